"""The Kafka output against librdkafka's mock brokers, read back by a real consumer."""

import json
import socket
import sys

import pytest
from confluent_kafka import KafkaError
from peers.certificates import Certificates
from peers.delivery import Delivery
from peers.kafka import INIT_PRODUCER_ID, PRODUCE, Kafka

from kwsiem.delivery import make_output
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import KafkaSettings
from kwsiem.outputs.http import MISCONFIGURED_S
from kwsiem.outputs.kafka import KafkaOutput

TOPIC = "kwsiem.alerts"
LARGE = [{"kind": "tcp.syn", "ts_ns": n, "process.command_line": "x" * 1000} for n in range(10)]


@pytest.fixture
def kafka():
    with Kafka() as brokers:
        brokers.create(TOPIC)
        yield brokers


@pytest.fixture
def make(kafka, tmp_path):
    made = []

    def delivery(**changes):
        settings = KafkaSettings(
            **{"name": "k", "brokers": tuple(kafka.bootstraps), "timeout_s": 2.0, **changes}
        )
        made.append(Delivery(tmp_path, settings, {}))
        return made[-1]

    yield delivery
    for one in made:
        one.close()


def ids_of(records):
    return [dict(record.headers())["alert-id"].decode() for record in records]


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "zstd", "snappy"])
def test_every_alert_is_in_the_topic_once_in_order_and_with_its_headers(kafka, make, compression):
    delivery = make(compression=compression)
    ids = delivery.put(200)
    assert delivery.run() == []
    assert delivery.fates == (200, 0, 0)
    records = kafka.read(TOPIC)
    assert ids_of(records) == ids, "one key, one partition, one order"
    assert {record.key() for record in records} == {b"gw01.example.net"}
    assert dict(records[0].headers())["content-type"] == b"application/json"
    assert json.loads(records[7].value())["event"]["id"] == ids[7]
    assert not records[0].value().endswith(b"\n")
    assert delivery.worker.stats()["label"] == "confirmed"


def test_the_key_may_be_the_source(kafka, make):
    delivery = make(key="source", format="cef")
    delivery.put(1, fields={"source.ip": "203.0.113.9"})
    delivery.put(1, fields={})
    delivery.run()
    records = kafka.read(TOPIC)
    assert {record.key() for record in records} == {b"203.0.113.9", b"gw01.example.net"}
    assert all(record.value().startswith(b"CEF:0|") for record in records)
    assert dict(records[0].headers())["content-type"] == b"text/plain; charset=utf-8"


def test_what_librdkafka_retries_by_itself_comes_once(kafka, make):
    delivery = make()
    ids = delivery.put(20)
    kafka.errors(PRODUCE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.REQUEST_TIMED_OUT)
    kafka.errors(INIT_PRODUCER_ID, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    delivery.run()
    assert sorted(ids_of(kafka.read(TOPIC))) == sorted(ids)
    assert delivery.fates == (20, 0, 0)


def test_brokers_that_went_away_cost_nothing_but_time(kafka, make):
    delivery = make(timeout_s=0.5)
    first = delivery.put(5)
    delivery.run()
    kafka.down()
    second = delivery.put(5)
    wait_s = delivery.step()
    assert delivery.worker.state == "failing"
    assert delivery.fates == (5, 0, 5)
    assert "kafka 127.0.0.1" in delivery.worker.last_error
    delivery.now_s += wait_s
    delivery.now_s += delivery.step()
    assert delivery.fates == (5, 0, 5)
    kafka.up()
    delivery.run()
    assert ids_of(kafka.read(TOPIC)) == first + second
    assert delivery.fates == (10, 0, 0)


def test_brokers_that_are_too_slow_are_given_up_in_time_and_no_alert_is_lost(kafka, make):
    delivery = make(timeout_s=1.0)
    first = delivery.put(2)
    delivery.run()
    kafka.slow(4000)
    second = delivery.put(3)
    wait_s = delivery.step()
    assert delivery.fates == (2, 0, 3)
    kafka.slow(0)
    delivery.now_s += wait_s
    delivery.run()
    assert set(ids_of(kafka.read(TOPIC))) == {*first, *second}
    assert delivery.fates == (5, 0, 0)


def test_nobody_listens(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = KafkaSettings(name="k", brokers=(f"127.0.0.1:{port}",), timeout_s=0.5)
    with Delivery(tmp_path, settings, {}) as delivery:
        delivery.put(2)
        delivery.step()
        assert "onnect" in delivery.worker.last_error
        assert delivery.fates == (0, 0, 2)


def test_a_record_that_is_too_large_for_the_broker_does_not_cost_those_beside_it(kafka, make):
    """A broker refuses the whole request; each alert of it is then tried alone."""
    delivery = make()
    ids = delivery.put(4)
    kafka.errors(PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE, 0, KafkaError.MSG_SIZE_TOO_LARGE)
    assert delivery.run() == []
    assert ids_of(kafka.read(TOPIC)) == [ids[0], ids[2], ids[3]]
    assert set(delivery.dead) == {ids[1]}
    assert "too large" in delivery.dead[ids[1]]
    assert delivery.fates == (3, 1, 0)


def test_a_record_that_is_too_large_for_the_producer_is_refused(kafka, make):
    delivery = make()
    delivery.output._config["message.max.bytes"] = 6000
    ids = delivery.put(2)
    (large,) = delivery.put(1, evidence=LARGE)
    ids += delivery.put(1)
    assert delivery.run() == []
    assert ids_of(kafka.read(TOPIC)) == ids
    assert set(delivery.dead) == {large}


@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART])
def test_a_topic_that_is_not_ours_keeps_the_alerts_and_is_tried_slowly(kafka, make, code):
    kafka.topic_error(TOPIC, code)
    delivery = make(timeout_s=1.0)
    ids = delivery.put(2)
    wait_s = delivery.step()
    assert delivery.fates == (0, 0, 2)
    assert wait_s == MISCONFIGURED_S or code == KafkaError.UNKNOWN_TOPIC_OR_PART
    kafka.topic_error(TOPIC, 0)
    delivery.now_s += wait_s
    delivery.run()
    assert ids_of(kafka.read(TOPIC)) == ids


def test_a_producer_that_may_not_write_keeps_the_alerts_and_is_tried_slowly(kafka, make):
    kafka.errors(PRODUCE, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 3)
    delivery = make()
    ids = delivery.put(2)
    assert delivery.step() == MISCONFIGURED_S
    assert delivery.fates == (0, 0, 2)
    kafka.clear_errors(PRODUCE)
    delivery.now_s += MISCONFIGURED_S
    delivery.run()
    assert ids_of(kafka.read(TOPIC)) == ids


def test_a_new_producer_goes_on_after_a_fatal_error(kafka, make):
    delivery = make(timeout_s=1.0)
    first = delivery.put(1)
    delivery.run()
    kafka.errors(PRODUCE, *[KafkaError.INVALID_PRODUCER_EPOCH] * 2)
    second = delivery.put(2)
    delivery.run()
    assert set(ids_of(kafka.read(TOPIC))) == {*first, *second}
    assert delivery.fates == (3, 0, 0)


def test_closing_twice_and_before_opening(make):
    output = make().output
    output.close()
    output.open()
    output.check()
    output.close()
    output.close()


# settings ---------------------------------------------------------------------------------------


def config(**changes):
    secrets = changes.pop("secrets", {})
    return KafkaOutput(KafkaSettings(**{"name": "k", "brokers": ("b:9092",), **changes}), secrets)._config


def test_all_replicas_confirm_and_nothing_doubles():
    found = config(timeout_s=3.0)
    assert (found["acks"], found["enable.idempotence"], found["delivery.timeout.ms"]) == ("all", True, 3000)


def test_a_user_with_a_password(tmp_path):
    certificates = Certificates(tmp_path / "c")
    found = config(
        security="sasl_ssl", user="u", secrets={"password": "p"}, ca_file=certificates.ca,
        cert_file=certificates.client, key_file=certificates.client_key,
    )  # fmt: skip
    assert found["sasl.mechanism"] == "SCRAM-SHA-512"
    assert (found["sasl.username"], found["sasl.password"]) == ("u", "p")
    assert found["ssl.ca.pem"].startswith("-----BEGIN CERTIFICATE")
    assert found["ssl.key.pem"].startswith("-----BEGIN")
    assert found["enable.ssl.certificate.verification"] is True


def test_tls_to_a_port_without_is_an_error_in_words(kafka, tmp_path):
    certificates = Certificates(tmp_path / "c")
    settings = KafkaSettings(
        name="k", brokers=tuple(kafka.bootstraps), security="ssl", ca_file=certificates.ca, timeout_s=1.0
    )
    output = KafkaOutput(settings, {})
    with pytest.raises(OutputError, match="kafka 127"):
        output.open()
    output.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"brokers": ()}, "brokers"),
        ({"security": "sasl_ssl"}, "user and password_secret"),
        ({"security": "sasl_plaintext", "user": "u"}, "user and password_secret"),
        ({"security": "ssl", "fingerprint": "a" * 64}, "fingerprint"),
        ({"security": "ssl", "ca_file": "/nonexistent"}, "ca_file /nonexistent"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_start(changes, said):
    with pytest.raises(ConfigError, match=said):
        config(**changes)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "kwsiem.outputs.kafka", raising=False)
    with pytest.raises(ConfigError, match=r"kwsiem\[kafka\]"):
        make_output(KafkaSettings(name="k", brokers=("b:9092",)), {})
