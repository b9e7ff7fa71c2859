"""Links carry whole messages and descriptors, and survive a bad peer."""

import os
from pathlib import Path

import msgspec
import pytest

from kwsiem.errors import LinkError
from kwsiem.link import MAX_MESSAGE_BYTES, Link, link_pair
from kwsiem.messages import FromEngine, OwnEvent, ProbeAttach, ProbeKinds, Ready, Stop, ToEngine


@pytest.fixture
def ends():
    left, right = link_pair()
    pair = Link(left, FromEngine), Link(right, ToEngine)
    yield pair
    for end in pair:
        end.close()


def test_a_message_arrives_whole_with_its_descriptor(ends):
    sensor, engine = ends
    read_fd, write_fd = os.pipe()
    assert sensor.send(ProbeAttach(kinds=ProbeKinds("p", {}), generation=3), [read_fd])
    message, fds = engine.receive()
    assert (message.kinds.probe, message.generation) == ("p", 3)
    os.write(write_fd, b"x")
    assert os.read(fds[0], 1) == b"x"
    for fd in (read_fd, write_fd, *fds):
        os.close(fd)


def test_nothing_there_is_none(ends):
    assert ends[0].receive() is None
    assert not ends[0].closed


def test_a_message_the_peer_may_not_send_is_refused_and_the_link_goes_on(ends):
    sensor, engine = ends
    engine.send(Stop())
    engine.send(Ready(pid=5))
    with pytest.raises(LinkError):
        sensor.receive()
    assert sensor.receive()[0].pid == 5


@pytest.mark.parametrize("packet", [b"x", b"\x81", b"\xff" * 100, b"\x80", os.urandom(1000)])
def test_bytes_that_are_no_message_are_refused(ends, packet):
    sensor, engine = ends
    engine._socket.send(packet)
    with pytest.raises(LinkError):
        sensor.receive()


def test_descriptors_of_a_bad_message_are_closed(ends):
    sensor, engine = ends
    before = len(list(Path("/proc/self/fd").iterdir()))
    engine.send(Stop(), [0, 1])
    with pytest.raises(LinkError):
        sensor.receive()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_message_too_large_is_not_sent(ends):
    event = OwnEvent(kind="sensor.lost", fields={"x": "y" * MAX_MESSAGE_BYTES}, ts_ns=1)
    with pytest.raises(LinkError):
        ends[0].send(event)


def test_a_full_buffer_says_so_and_loses_nothing(ends):
    sensor, engine = ends
    sent = 0
    while sensor.send(OwnEvent(kind="x", fields={"n": sent, "pad": "y" * 50_000}, ts_ns=sent)):
        sent += 1
    numbers = []
    while (received := engine.receive()) is not None:
        numbers.append(received[0].ts_ns)
    assert numbers == list(range(sent))
    assert sent > 10


def test_the_end_of_the_peer_is_seen(ends):
    sensor, engine = ends
    engine.close()
    assert sensor.receive() is None
    assert sensor.closed
    assert not sensor.send(Stop())


def test_what_a_peer_sent_before_it_was_killed_is_read_although_it_left_ours_unread(ends):
    sensor, engine = ends
    sensor.send(Stop())
    for number in range(3):
        engine.send(Ready(pid=number))
    engine.close()
    assert [sensor.receive()[0].pid for _ in range(3)] == [0, 1, 2]
    assert sensor.receive() is None
    assert sensor.closed


def test_a_message_nested_without_end_is_refused(ends):
    sensor, engine = ends
    head = msgspec.msgpack.encode({"type": "stats", "values": 0})[:-1]
    engine._socket.send(head + b"\x81\xa1x" + b"\x91" * 50_000 + b"\x01")
    with pytest.raises(LinkError):
        sensor.receive()


def test_a_bad_peer_does_not_fill_the_log(ends, caplog):
    sensor, engine = ends
    for _ in range(100):
        sensor._socket.send(b"\xc1")
        assert engine.take() is None
    assert engine.bad == 100
    assert [record.count for record in caplog.records] == [1, 2, 4, 8, 16, 32, 64]
