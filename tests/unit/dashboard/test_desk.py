"""The parent does only what stands there: limited, checked, written down; the sensor has the last word."""

import logging
import os
import socket
import threading

import pytest

from kwsiem import clock
from kwsiem.dashboard.desk import (
    MAX_CHANGES_PER_MIN,
    MAX_LOOKS_PER_S,
    Acknowledge,
    Answered,
    Desk,
    FromChild,
    Look,
    Parent,
    Release,
    serve_one,
)
from kwsiem.errors import UnavailableError
from kwsiem.link import Link, link_pair

WHO = "dashboard 127.0.0.1 ab12"


class Sensor:
    """The control socket: remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.answers = {}

    def __call__(self, request):
        self.asked.append(request)
        answer = self.answers.get(request["command"], {})
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def sensor():
    return Sensor()


@pytest.fixture
def desk(sensor):
    return Desk(sensor, lambda: {"rules.yaml": b"version: 1"})


@pytest.fixture
def written(caplog):
    caplog.set_level(logging.INFO, "kwsiem.audit")
    return lambda: [vars(record) for record in caplog.records if record.name == "kwsiem.audit"]


def test_a_release_is_asked_as_the_command_line_asks_it(desk, sensor, written):
    sensor.answers["blocks"] = {"removed": "198.51.100.7", "left_s": 9}
    assert desk.answer(Release(1, "198.51.100.7", WHO)) == ("", {"removed": "198.51.100.7", "left_s": 9})
    assert sensor.asked == [{"command": "blocks", "verb": "remove", "network": "198.51.100.7"}]
    desk.answer(Release(2, "2001:db8::/64", WHO))
    assert sensor.asked[-1]["network"] == "2001:db8::/64"
    line = written()[0]
    assert (line["action"], line["who"], line["network"], line["outcome"]) == (
        "release",
        WHO,
        "198.51.100.7",
        "done",
    )


@pytest.mark.parametrize("network", ["", "x", "1.2.3.4; reboot", "198.51.100.7/24", "1" * 5000, "0.0.0.0/99"])
def test_what_is_no_network_never_reaches_the_sensor(desk, sensor, written, network):
    error, _ = desk.answer(Release(1, network, WHO))
    assert "no address" in error
    assert sensor.asked == []
    assert written()[0]["outcome"] == "refused"


def test_what_the_sensor_refuses_is_explained_and_written_down(desk, sensor, written):
    sensor.answers["blocks"] = {"error": "192.0.2.9 is not blocked"}
    assert desk.answer(Release(1, "192.0.2.9", WHO))[0] == "192.0.2.9 is not blocked"
    assert written()[0]["reason"] == "192.0.2.9 is not blocked"
    sensor.answers["blocks"] = UnavailableError("kwsiem is not running")
    assert desk.answer(Release(1, "192.0.2.9", WHO))[0] == "kwsiem is not running"
    assert [line["outcome"] for line in written()] == ["refused", "refused"]


def test_an_acknowledgement_is_passed_on_cleaned(desk, sensor, written):
    sensor.answers["acknowledge"] = {"acknowledged": "I1"}
    assert desk.answer(Acknowledge(1, "I1", "x\x1b[2J\u202ey" + "z" * 500)) == ("", {"acknowledged": "I1"})
    (asked,) = sensor.asked
    assert (asked["command"], asked["incident_id"]) == ("acknowledge", "I1")
    assert len(asked["who"]) == 128 and not set("\x1b\u202e") & set(asked["who"])
    assert desk.answer(Acknowledge(2, "", WHO))[0] == "that is no incident"
    assert desk.answer(Acknowledge(3, "x" * 500, WHO))[0] == "that is no incident"
    assert len(sensor.asked) == 1
    assert not set("\x1b\u202e") & set(written()[0]["who"])


def test_a_child_gone_bad_changes_little(desk, sensor, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    errors = [desk.answer(Release(n, "192.0.2.9", WHO))[0] for n in range(100)]
    assert errors[:MAX_CHANGES_PER_MIN] == [""] * MAX_CHANGES_PER_MIN
    assert all("within a minute" in error for error in errors[MAX_CHANGES_PER_MIN:])
    assert len(sensor.asked) == MAX_CHANGES_PER_MIN
    assert desk.answer(Look(1, "status"))[0] == ""
    now[0] += 60.0
    assert desk.answer(Release(1, "192.0.2.9", WHO))[0] == ""


def test_a_child_gone_bad_does_not_fill_the_audit_log(desk, sensor, written, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    for number in range(10_000):
        desk.answer(Release(number, "192.0.2.9", WHO))
    assert len(written()) == MAX_CHANGES_PER_MIN + 1
    assert "only counted" in written()[-1]["reason"]
    now[0] += 60.0
    desk.answer(Acknowledge(1, "I1", WHO))
    assert len(written()) == MAX_CHANGES_PER_MIN + 3
    assert written()[-2]["changes"] == 10_000 - MAX_CHANGES_PER_MIN
    assert written()[-1]["action"] == "acknowledge"


def test_answers_that_nobody_reads_do_not_fill_the_log(desk, sensor, caplog):
    ours, theirs = link_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    link, sending = Link(ours, FromChild), Link(theirs, Answered)
    asked = 0
    for number in range(2000):
        asked += sending.send(Look(number, "status"))
        serve_one(desk, link)
    link.close()
    sending.close()
    assert asked == 2000
    assert [record.times for record in caplog.records if "does not read" in record.message] == [
        1,
        10,
        100,
        1000,
    ]
    assert len(caplog.records) == 4


def test_what_is_no_request_does_not_fill_the_log(desk, caplog):
    ours, theirs = link_pair()
    with theirs:
        link = Link(ours, FromChild)
        for _ in range(2000):
            theirs.send(b"\xc1")
            serve_one(desk, link)
        link.close()
    assert [record.times for record in caplog.records] == [1, 10, 100, 1000]


def test_a_child_gone_bad_does_not_keep_the_sensor_busy(desk, sensor, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    errors = [desk.answer(Look(n, "status"))[0] for n in range(100)]
    assert errors.count("") == len(sensor.asked) == MAX_LOOKS_PER_S
    now[0] += 1.0
    assert desk.answer(Look(1, "status"))[0] == ""


def test_a_look_changes_nothing(desk, sensor):
    for what in ("status", "blocks", "rules"):
        desk.answer(Look(1, what))
    assert [(r["command"], r.get("verb")) for r in sensor.asked] == [
        ("status", None),
        ("blocks", "list"),
        ("metrics", None),
    ]


def test_over_the_link_answers_larger_than_a_message_come_whole(desk, sensor):
    ours, theirs = link_pair()
    link, parent = Link(ours, FromChild), Parent(Link(theirs, Answered))
    before = len(os.listdir("/proc/self/fd"))
    stop = threading.Event()

    def serve():
        while not stop.wait(0.001):
            serve_one(desk, link)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        sensor.answers["status"] = {"host": "x" * 1_000_000}
        assert parent.look("status") == sensor.answers["status"]
        sensor.answers["blocks"] = {"error": "no"}
        with pytest.raises(UnavailableError, match="no"):
            parent.release("192.0.2.1", WHO)
        assert parent.look("status")["host"]
    finally:
        stop.set()
        thread.join()
        link.close()
    with pytest.raises(UnavailableError, match="gone"):
        parent.look("status")
    assert len(os.listdir("/proc/self/fd")) == before - 1
    parent._link.close()


@pytest.mark.parametrize("packet", [b"", b"\xc1", b"\x81\xa4type\xa4boom", b"x" * 5000])
def test_what_is_no_request_is_passed_over(desk, sensor, packet):
    ours, theirs = link_pair()
    with theirs:
        link = Link(ours, FromChild)
        if packet:
            theirs.send(packet)
        serve_one(desk, link)
        link.close()
    assert sensor.asked == []
