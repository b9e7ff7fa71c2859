"""Kafka brokers in this process: librdkafka's own mock cluster, with faults on demand, read by a real consumer.

The cluster belongs to a client handle of its own; the producer under test and the consumer reach it over TCP.
Its functions (rdkafka_mock.h) are not in the Python binding, so they are called by ctypes.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, TopicPartition

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22  # API keys of the Kafka protocol
PARTITIONS = 4


def _library() -> ctypes.CDLL:
    beside = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = [str(path) for path in beside.glob("librdkafka*")] or [ctypes.util.find_library("rdkafka")]
    assert found[0], "librdkafka is not here"
    library = ctypes.CDLL(found[0])
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class Kafka:
    """So many brokers; topics have four partitions."""

    def __init__(self, brokers: int = 1) -> None:
        self._library = _library()
        text = ctypes.create_string_buffer(512)
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        for name, value in ((b"log_level", b"0"), (b"client.id", b"host of the brokers")):
            assert self._library.rd_kafka_conf_set(conf, name, value, text, 512) == 0, text.value
        handle = self._library.rd_kafka_new(0, conf, text, ctypes.c_size_t(512))
        assert handle, text.value
        self._handle = ctypes.c_void_p(handle)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._handle, brokers))
        self._brokers = range(1, brokers + 1)
        self.bootstraps = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode().split(",")

    def create(self, topic: str, copies: int = 1) -> None:
        assert (
            self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), PARTITIONS, copies) == 0
        )

    def topic_error(self, topic: str, error: int) -> None:
        self._library.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), error)

    def errors(self, api: int, *codes: int) -> None:
        """The next requests of this kind are answered with these errors, one after the other."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(api), ctypes.c_size_t(len(codes)), array
        )

    def clear_errors(self, api: int) -> None:
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(api))

    def down(self) -> None:
        for broker in self._brokers:
            self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self) -> None:
        for broker in self._brokers:
            self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def slow(self, rtt_ms: int) -> None:
        for broker in self._brokers:
            self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, rtt_ms)

    def read(self, topic: str) -> list[Any]:
        """Every record of the topic, by partition and offset."""
        consumer = Consumer(
            {
                "bootstrap.servers": ",".join(self.bootstraps),
                "group.id": "reader",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        try:
            consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
            return sorted(self._records(consumer), key=lambda record: (record.partition(), record.offset()))
        finally:
            consumer.close()

    def _records(self, consumer: Consumer) -> Sequence[Any]:
        found, ended = [], set()
        while len(ended) < PARTITIONS:
            message = consumer.poll(10)
            assert message is not None, "the brokers do not answer the reader"
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
        return found

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    def __enter__(self) -> Kafka:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
