"""What a taken-over engine can send to the sensor: anything. The sensor never ends, and never does what is not allowed."""

import os
import random
import socket

import msgspec
import pytest

from kwsiem import appliance as module
from kwsiem.appliance import Appliance
from kwsiem.config import Settings
from kwsiem.link import Link
from kwsiem.messages import FromEngine
from kwsiem.response.facts import network_of

SEED = 20_261_121
ROUNDS = 20_000
VALUES = (
    "198.51.100.7", "192.0.2.1", "127.0.0.1", "::ffff:192.0.2.1", "0.0.0.0/0", "", "x" * 70_000, "\ud800".encode("utf-8", "surrogatepass"),
    0, 1, -1, 600, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 1.5, float("inf"), None, True, [], {}, ["a"] * 1000, {"a": {"b": 1}}, b"\xff\x00",
    "proven", "spoofable", "block_request", "ready", "stats", "net", "../../etc/passwd", "A\nB",
)  # fmt: skip
MESSAGES = (
    {"type": "ready", "pid": 1},
    {"type": "heartbeat", "probe": "net", "generation": 1, "ts_ns": 1},
    {"type": "probe_drained", "probe": "net", "generation": 1},
    {"type": "rules_taken", "sha256": "x", "rules": 1, "took_ms": 1.0},
    {"type": "block_request", "alert_id": "A", "rule_id": "r", "value": "198.51.100.7", "for_s": 600, "evidence": "proven", "spoofable": True, "reason": "x"},
    {"type": "block_withdrawn", "alert_id": "A", "rule_id": "r", "value": "198.51.100.7"},
    {"type": "stats", "values": {"a": 1}},
)  # fmt: skip


@pytest.fixture
def sensor(host, monkeypatch):
    """A sensor that has not started anything, with a blocker over a firewall that remembers."""
    monkeypatch.setattr(module, "check_host", lambda _: (0, 17, 0))
    found = Appliance(Settings(host="h"))
    found.blocker = host.start(spoofable=True)
    yield found
    found.selector.close()
    for end in found._alert_ends:
        end.close()


def mutated(rng):
    """One message, valid or not: keys gone, added, of other types; bytes cut, flipped, or none of it."""
    message = dict(rng.choice(MESSAGES))
    for _ in range(rng.randrange(4)):
        key = rng.choice([*message, "unknown"])
        if rng.random() < 0.2:
            message.pop(key, None)
        else:
            message[key] = rng.choice(VALUES)
    data = bytearray(msgspec.msgpack.encode(message))
    if rng.random() < 0.3 and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    return os.urandom(rng.randrange(1, 200)) if rng.random() < 0.05 else bytes(data)


def test_whatever_comes_the_sensor_goes_on_and_blocks_only_what_it_may(host, sensor):
    rng = random.Random(SEED)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    link = Link(ours, FromEngine)
    sensor.engine.link = link
    sent = 0
    for _ in range(ROUNDS):
        data = mutated(rng)
        if not data:
            continue
        theirs.send(data)
        sent += 1
        sensor._receive(sensor.engine, link, sensor._from_engine)
        if sent % 50 == 0:
            sensor.blocker.flush()
            host.later(rng.choice([0.01, 0.5, 700.0]))
    sensor.blocker.flush()
    assert sensor._bad_messages > ROUNDS / 10, "many were not valid, and counted"
    assert sensor.blocker.counters["blocked"] > 10, "and valid ones were heard among them"
    guarded = [entry.network for entry in sensor.blocker.guard.protected()]
    assert host.actions().count("blocked") == sensor.blocker.counters["blocked"]
    for kind, action, _ in host.told:
        assert kind == "block.decision"
        assert action in {"blocked", "refused", "released", "ended"}
    for text in host.ever:
        network = network_of(text)
        assert not any(g.version == network.version and g.overlaps(network) for g in guarded), text
    link.close()
    theirs.close()
