"""The two state files: the newest whole one is read, whatever died while writing."""

import fcntl
import os

import pytest

from kwsiem.statefile import StateFiles


@pytest.fixture
def fds(tmp_path):
    made = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b")]
    yield made
    for fd in made:
        os.close(fd)


def write(files: StateFiles, content: bytes, now_ns: int) -> int:
    fd = files.take_turn()
    assert files.write(fd, content, now_ns)
    return fd


def test_nothing_was_written(fds):
    assert StateFiles(fds).read() is None


def test_the_newest_is_read_and_the_other_is_written_next(fds):
    files = StateFiles(fds)
    for number in range(5):
        write(files, b"x" * number, 100 + number)
    again = StateFiles(fds)
    assert again.read() == b"xxxx"
    write(again, b"next", 200)
    assert StateFiles(fds).read() == b"next"
    assert {os.fstat(fd).st_size - 76 for fd in fds} == {4}


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty"])
def test_a_file_that_was_not_finished_is_passed_over(fds, damage):
    files = StateFiles(fds)
    write(files, b"old" * 100, 1)
    fd = write(files, b"new" * 100, 2)
    size = os.fstat(fd).st_size
    if damage == "cut":
        os.ftruncate(fd, size - 1)
    elif damage == "flip":
        os.pwrite(fd, b"?", size - 5)
    elif damage == "header":
        os.pwrite(fd, bytes(8), 0)
    else:
        os.ftruncate(fd, 0)
    assert StateFiles(fds).read() == b"old" * 100


def test_what_was_written_before_a_reboot_is_not_taken(fds):
    write(StateFiles(fds, "11111111-2222-3333-4444-555555555555"), b"old", 1)
    assert StateFiles(fds).read() is None


def test_a_file_that_another_process_writes_is_left_alone(fds):
    reader, writer = os.pipe()
    done_reader, done_writer = os.pipe()
    child = os.fork()
    if not child:
        fcntl.lockf(fds[0], fcntl.LOCK_EX)
        os.write(writer, b"1")
        os.read(done_reader, 1)
        os._exit(0)
    os.read(reader, 1)
    files = StateFiles(fds)
    assert not files.write(fds[0], b"x", 1)
    assert files.write(fds[1], b"y", 1)
    os.write(done_writer, b"1")
    os.waitpid(child, 0)
    assert files.read() == b"y"
