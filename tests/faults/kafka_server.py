"""librdkafka's mock cluster in a process of its own; each record is a line in FOLDER/out.

``python kafka_server.py FOLDER``; FOLDER/brokers has its address once it listens. It fails as FOLDER/mode says:
``down`` (the broker takes no connection and ends those it has), ``error CODE`` (every produce request is
answered with this code of the Kafka protocol). The mock's functions are not in the Python package's interface,
but the library that it brings has them (rdkafka_mock.h).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import confluent_kafka

TOPIC = "kwsiem.alerts"
_PRODUCER = 0  # rdkafka.h: rd_kafka_type_t
_PRODUCE = 0  # Kafka protocol: ApiKey
_BROKER = 1
_ERRORS = 1000


class Cluster:
    """One broker, and what can be done to it."""

    def __init__(self) -> None:
        package = Path(confluent_kafka.__file__).parent
        library = next(package.parent.glob("confluent_kafka.libs/librdkafka-*"))
        self._lib = ctypes.CDLL(str(library))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        error = ctypes.create_string_buffer(512)
        configuration = ctypes.c_void_p(self._lib.rd_kafka_conf_new())
        handle = ctypes.c_void_p(
            self._lib.rd_kafka_new(_PRODUCER, configuration, error, ctypes.c_size_t(512))
        )
        self._cluster = ctypes.c_void_p(self._lib.rd_kafka_mock_cluster_new(handle, 1))
        self.brokers = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def set(self, mode: str) -> None:
        """Fail in this way from now on."""
        self._lib.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(_PRODUCE))
        if mode == "down":
            self._lib.rd_kafka_mock_broker_set_down(self._cluster, ctypes.c_int32(_BROKER))
            return
        self._lib.rd_kafka_mock_broker_set_up(self._cluster, ctypes.c_int32(_BROKER))
        if mode.startswith("error "):
            codes = (ctypes.c_int * _ERRORS)(*[int(mode.split()[1])] * _ERRORS)
            self._lib.rd_kafka_mock_push_request_errors_array(
                self._cluster, ctypes.c_int16(_PRODUCE), ctypes.c_size_t(_ERRORS), codes
            )


def main() -> None:
    """Serve until killed."""
    folder = Path(sys.argv[1])
    cluster, mode = Cluster(), ""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": cluster.brokers, "group.id": "matrix", "auto.offset.reset": "earliest",
         "enable.auto.commit": False, "topic.metadata.refresh.interval.ms": 200}
    )  # fmt: skip
    consumer.assign([confluent_kafka.TopicPartition(TOPIC, number, 0) for number in range(4)])
    (folder / "brokers").write_text(cluster.brokers)
    with (folder / "out").open("ab", buffering=0) as out:
        while True:
            wanted = (folder / "mode").read_text() if (folder / "mode").exists() else ""
            if wanted != mode:
                mode = wanted
                cluster.set(mode)
                (folder / "done").write_text(mode)
            records = consumer.consume(500, 0.02)
            lines = [record.value() + b"\n" for record in records if not record.error()]
            if lines:
                out.write(b"".join(lines))


if __name__ == "__main__":
    main()
