"""A recording gives back what was read, whose it was, and what it meant."""

import os
import tempfile

from kwsiem.event import EventKind, parse_fields
from kwsiem.messages import ProbeKinds
from kwsiem.recording import HostMark, Recorder, read_recording

KINDS = ProbeKinds("net", {1: EventKind("tcp.syn", parse_fields("source.ip:ip"))})
OTHER = ProbeKinds("pam", {1: EventKind("auth.attempt", parse_fields("user.name:str"))})


def recorded(write) -> list[object]:
    with tempfile.TemporaryFile() as file:
        recorder = Recorder(file.fileno(), "web1", 1000)
        write(recorder)
        recorder.flush()
        file.seek(0)
        return list(read_recording(file))


def test_lines_keep_their_order_and_their_probe():
    def write(recorder):
        recorder.contract(KINDS)
        recorder.contract(OTHER)
        recorder.lines("net", b"1\n2\n")
        recorder.lines("pam", b"3\n")
        recorder.lines("net", b"4\n")

    assert recorded(write) == [
        HostMark("web1", 1000), KINDS, OTHER, "net", b"1\n", b"2\n", "pam", b"3\n", "net", b"4\n",
    ]  # fmt: skip


def test_a_line_read_in_two_parts_is_written_whole():
    def write(recorder):
        recorder.lines("net", b"ab")
        recorder.lines("pam", b"x\n")
        recorder.lines("net", b"cd\n")

    assert recorded(write)[1:] == ["pam", b"x\n", "net", b"abcd\n"]


def test_a_full_disk_stops_the_recording_and_nothing_else():
    fd = os.open("/dev/full", os.O_WRONLY)
    recorder = Recorder(fd, "web1", 0)
    recorder.lines("net", b"1\n")
    recorder.flush()
    os.close(fd)
    assert "No space" in recorder.failed
    recorder.lines("net", b"2\n")
    recorder.flush()
