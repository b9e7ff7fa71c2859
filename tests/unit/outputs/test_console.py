import os
import pty
import tty

import pytest

from kwsiem.errors import OutputError
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.console import ConsoleOutput

CRITICAL = Rendered("1", 10, b"critical alert\n")
LOW = Rendered("2", 3, b"low alert\n")


@pytest.fixture
def pipe():
    read, write = os.pipe()
    open_ends = {read, write}
    yield read, write, open_ends
    for fd in open_ends:
        os.close(fd)


def drain(fd):
    """All that is in a pipe now."""
    os.set_blocking(fd, False)
    found = b""
    while True:
        try:
            found += os.read(fd, 65536)
        except BlockingIOError:
            return found


def test_lines_come_out_as_they_are_without_colour_in_a_pipe(pipe):
    read, write, _ = pipe
    console = ConsoleOutput(write, 1.0)
    console.open()
    console.check()
    console.send([CRITICAL, LOW])
    assert os.read(read, 1000) == b"critical alert\nlow alert\n"


def test_a_terminal_gets_colour_and_every_line_ends_it():
    leader, follower = pty.openpty()
    try:
        tty.setraw(follower)
        console = ConsoleOutput(follower, 1.0)
        console.open()
        console.send([CRITICAL, LOW])
        wanted = b"\x1b[1;31mcritical alert\x1b[0m\n\x1b[36mlow alert\x1b[0m\n"
        got = b""
        while len(got) < len(wanted):  # the kernel hands a terminal's output over in the background
            got += os.read(leader, 1000)
        assert got == wanted
    finally:
        os.close(leader)
        os.close(follower)


def test_a_closed_standard_output_is_an_output_error():
    with pytest.raises(OutputError, match="no standard output"):
        ConsoleOutput(-1, 1.0).open()


def test_a_reader_that_has_gone_is_an_output_error(pipe):
    read, write, open_ends = pipe
    console = ConsoleOutput(write, 1.0)
    console.open()
    os.close(read)
    open_ends.remove(read)
    with pytest.raises(OutputError, match="no reader"):
        console.check()
    with pytest.raises(OutputError, match="Broken pipe") as error:
        console.send([LOW])
    assert error.value.retryable
    assert error.value.sent == 0


def test_a_reader_that_reads_nothing_costs_the_time_out_and_the_torn_line_is_ended(pipe):
    read, write, _ = pipe
    console = ConsoleOutput(write, 0.05)
    console.open()
    large = Rendered("3", 3, b"x" * 50_000 + b"\n")
    with pytest.raises(OutputError, match=r"nothing was read for 0\.05 s") as error:
        console.send([LOW, large, large])
    assert error.value.sent == 2
    got = drain(read)
    console.send([LOW])
    lines = (got + drain(read)).split(b"\n")
    assert lines[:2] == [b"low alert", b"x" * 50_000]
    assert 0 < len(lines[2]) < 50_000, "torn"
    assert lines[3:] == [b"low alert", b""], "what was torn is a line of its own"
