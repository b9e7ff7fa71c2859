"""The event log: files of bounded size that together are one recording, whatever happens between two lines."""

import gzip
import json
import os
import time

import pytest

from kwsiem import event_log as event_log_module
from kwsiem.config import parse_settings
from kwsiem.errors import ConfigError
from kwsiem.event import EventKind, parse_fields
from kwsiem.event_log import EventLog, compress
from kwsiem.messages import EventLogStart, ProbeKinds
from kwsiem.replay import Replay
from kwsiem.rules.model import Compare, Correlation, Rule, RuleSet

KIND = EventKind("tcp.syn", parse_fields("source.ip:ip destination.port:port"))
PROBES = [ProbeKinds(name, {number: KIND}) for name, number in (("net", 1), ("other", 2))]
RULES = RuleSet(
    rules=(
        Rule(
            id="scan", title="t", level="low", events=("tcp.syn",), predicate=Compare("destination.port", "gt", 0),
            correlation=Correlation("value_count", ("source.ip",), timespan_ns=10**9, field="destination.port", value=7),
            suppress_ns=10**7, fingerprint="f",
        ),
    )
)  # fmt: skip


def start(folder, **changes):
    values = {"max_bytes": 4096, "max_age_s": 0, "keep": 1000, "compress": False}
    return EventLogStart(path=str(folder / "events.jsonl"), **{**values, **changes})


def lines(number):
    """The probe that printed it and the line; each number its own."""
    probe = number % 2
    data = [probe + 1, f"192.0.2.{number // 50}", number % 50 + 1, 10**9 + number * 10**6]
    return PROBES[probe].probe, json.dumps({"type": "value", "data": data}).encode() + b"\n"


def written(log, numbers):
    """These lines through the log as the engine reads them: in pieces that end anywhere."""
    for number in numbers:
        probe, line = lines(number)
        cut = number % len(line)
        log.lines(probe, line[:cut])
        log.lines(probe, line[cut:])
        if number % 10 == 0:
            log.advanced(10**9 + number * 10**6)
            log.tick()


def begun(folder, **changes):
    log = EventLog(start(folder, **changes), "web1", 5)
    for kinds in PROBES:
        log.contract(kinds)
    return log


def files(folder):
    return [*sorted(folder.glob("events-*")), folder / "events.jsonl"]


def replayed(paths):
    alerts = []
    made = Replay(RULES, {}, alerts.append, host="here")
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            made.feed(file)
    made.finish()
    return made, alerts


def wait_until(condition):
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_the_files_together_replay_as_one_recording(tmp_path):
    (tmp_path / "whole").mkdir()
    whole, parts = begun(tmp_path / "whole", max_bytes=2**30), begun(tmp_path)
    for log in (whole, parts):
        written(log, range(1, 1001))
        log.close()
    assert len(files(tmp_path / "whole")) == 1 and len(files(tmp_path)) > 10
    one, expected = replayed(files(tmp_path / "whole"))
    many, alerts = replayed(files(tmp_path))
    assert (
        (many.lines, many.events, many.rejected) == (1000, 1000, {}) == (one.lines, one.events, one.rejected)
    )
    assert len(alerts) >= 20 and [a.id for a in alerts] == [a.id for a in expected]
    # Each file can be read alone.
    for path in files(tmp_path)[:-1]:
        assert path.stat().st_size < 4096 + 2048
        assert not replayed([path])[0].rejected


def test_complete_files_are_compressed_and_replay_as_before(tmp_path):
    log = begun(tmp_path, compress=True)
    written(log, range(1, 301))

    def packed():
        log.tick()
        return all(path.suffix == ".gz" for path in files(tmp_path)[:-1])

    wait_until(packed)
    log.close()
    assert len(files(tmp_path)) > 3 and not list(tmp_path.glob(".*"))
    made, _ = replayed(files(tmp_path))
    assert (made.lines, made.rejected) == (300, {})


def test_the_oldest_files_go(tmp_path):
    log = begun(tmp_path, keep=2)
    written(log, range(1, 501))
    log.close()
    assert log.rotated > 3
    assert [path.name for path in files(tmp_path)] == [
        f"events-{log.rotated - 1:08d}.jsonl", f"events-{log.rotated:08d}.jsonl", "events.jsonl",
    ]  # fmt: skip


def test_a_file_is_complete_after_its_time(tmp_path, monkeypatch):
    now_s = [1000.0]
    monkeypatch.setattr(event_log_module, "monotonic_s", lambda: now_s[0])
    log = begun(tmp_path, max_bytes=2**30, max_age_s=60)
    written(log, range(1, 21))
    assert log.rotated == 0
    now_s[0] += 61
    written(log, range(21, 31))
    log.close()
    assert log.rotated == 1
    assert replayed(files(tmp_path))[0].lines == 30


def test_the_next_run_goes_on_and_a_torn_line_is_none(tmp_path):
    first = begun(tmp_path, max_bytes=2**30)
    written(first, range(1, 11))
    first.close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"type":"kwsiem_con')
    (tmp_path / "events-00000007.jsonl").write_bytes(b"")
    (tmp_path / "events-00000007.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / ".events.jsonl.gz").write_bytes(b"half")
    second = begun(tmp_path, max_bytes=4096)
    written(second, range(11, 41))
    second.close()
    assert second.lost == 1
    assert [path.name for path in files(tmp_path)][:2] == [
        "events-00000007.jsonl.gz",
        "events-00000008.jsonl",
    ]
    assert not (tmp_path / ".events.jsonl.gz").exists()
    made, _ = replayed(files(tmp_path))
    assert (made.lines, made.rejected) == (40, {})


def test_a_full_disk_costs_lines_that_are_counted_and_no_more(tmp_path, monkeypatch):
    log = begun(tmp_path, max_bytes=2**30)
    written(log, range(1, 21))
    real_write = os.write

    def half(fd, data):
        real_write(fd, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_log_module.os, "write", half)
    written(log, range(21, 41))
    assert log.lost == 20 and "No space" in log.failed
    monkeypatch.setattr(event_log_module.os, "write", real_write)
    written(log, range(41, 61))
    log.close()
    assert log.lost == 20 and not log.failed
    made, _ = replayed(files(tmp_path))
    assert (made.lines, made.rejected) == (40, {})


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    log = begun(tmp_path)
    written(log, range(1, 11))
    log.close()
    assert log.failed and log.lost == 10
    assert (tmp_path / "elsewhere").read_text() == ""


def test_compressing_leaves_one_of_the_two(tmp_path):
    path = tmp_path / "events-00000001.jsonl"
    path.write_bytes(b"x\n" * 1000)
    compress(path, tmp_path / ".half")
    assert [p.name for p in tmp_path.iterdir()] == ["events-00000001.jsonl.gz"]
    assert gzip.decompress((tmp_path / "events-00000001.jsonl.gz").read_bytes()) == b"x\n" * 1000


def test_its_settings():
    text = b"event_log: {path: events.jsonl, max_bytes: 8192, keep: 3, compress: true}"
    found = parse_settings("x", text).event_log
    assert (found.path, found.max_bytes, found.keep, found.compress, found.max_age_s) == (
        "events.jsonl",
        8192,
        3,
        True,
        86_400,
    )
    assert parse_settings("x", b"user: kwsiem").event_log.path == ""
    with pytest.raises(ConfigError, match=r"event_log\.max_bytes"):
        parse_settings("x", b"event_log: {max_bytes: 1}")
