import os
import stat

import pytest

from kwsiem.errors import OutputError
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.file import FileOutput


def lines(*texts):
    return [Rendered(text, 5, text.encode() + b"\n") for text in texts]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alerts.jsonl"


@pytest.fixture
def output(path):
    found = FileOutput(path, max_bytes=10_000, keep=2)
    found.open()
    yield found
    found.close()


def test_lines_are_appended(output, path):
    output.send(lines("a", "b"))
    output.send(lines("c"))
    assert path.read_text() == "a\nb\nc\n"


def test_the_file_is_closed_to_others(output, path):
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0


def test_what_is_there_is_kept(path):
    path.write_text("old\n")
    output = FileOutput(path, 10_000, 2)
    output.open()
    output.send(lines("new"))
    output.close()
    output.close()
    assert path.read_text() == "old\nnew\n"


def test_a_line_that_a_crash_left_unfinished_is_ended_first(path):
    path.write_text('{"torn')
    output = FileOutput(path, 10_000, 2)
    output.open()
    output.send(lines("whole"))
    output.close()
    assert path.read_text() == '{"torn\nwhole\n'


def test_a_full_file_is_rotated_and_so_many_are_kept(path):
    output = FileOutput(path, max_bytes=10, keep=2)
    output.open()
    for text in ("aaaaaaa", "bbbbbbb", "ccccccc", "ddddddd"):
        output.send(lines(text))
    output.close()
    assert path.read_text() == "ddddddd\n"
    assert path.with_name("alerts.jsonl.1").read_text() == "ccccccc\n"
    assert path.with_name("alerts.jsonl.2").read_text() == "bbbbbbb\n"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "alerts.jsonl",
        "alerts.jsonl.1",
        "alerts.jsonl.2",
    ]


def test_rotation_that_keeps_none_begins_anew(path):
    output = FileOutput(path, max_bytes=10, keep=0)
    output.open()
    output.send(lines("aaaaaaa"))
    output.send(lines("bbbbbbb"))
    output.close()
    assert [p.name for p in path.parent.iterdir()] == ["alerts.jsonl"]
    assert path.read_text() == "bbbbbbb\n"


@pytest.mark.parametrize("verb", ["moved", "removed", "replaced"])
def test_a_file_taken_away_under_us_is_begun_anew(output, path, verb):
    output.send(lines("a"))
    if verb == "removed":
        path.unlink()
    else:
        path.rename(path.with_name("moved"))
    if verb == "replaced":
        path.write_text("other\n")
    output.send(lines("b"))
    assert path.read_text() == ("other\nb\n" if verb == "replaced" else "b\n")
    if verb != "removed":
        assert path.with_name("moved").read_text() == "a\n"


def test_an_idle_check_makes_the_file_again(output, path):
    path.unlink()
    output.check()
    assert path.exists()


def test_a_write_that_fails_half_way_leaves_no_half_line(output, path, monkeypatch):
    output.send(lines("before"))
    real_write, calls = os.write, []

    def write(fd, data):
        calls.append(len(data))
        if len(calls) == 1:
            return real_write(fd, bytes(data)[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError, match="No space left") as error:
        output.send(lines("first", "second"))
    assert error.value.retryable
    assert error.value.sent == 0
    monkeypatch.undo()
    assert path.read_text() == "before\n"
    output.send(lines("first", "second"))
    assert path.read_text() == "before\nfirst\nsecond\n"


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing"])
def test_what_is_not_a_regular_file_is_refused_without_blocking(tmp_path, kind):
    path = tmp_path / "odd"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = tmp_path / "none" / "file"
    with pytest.raises(OutputError, match=r"Is a directory|not a regular file|No such file"):
        FileOutput(path, 10_000, 2).open()
