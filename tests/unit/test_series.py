"""The history of figures: what the courier writes is what others read, within bounds, whatever the disk does."""

import resource
import shutil
import signal
import sqlite3
import stat
import threading
from contextlib import closing

import pytest

from kwsiem import clock, series, series_file
from kwsiem.series import Acknowledged, Journal, Series
from kwsiem.series_file import SeriesFile, SeriesWriter

#: A whole hour and minute.
T = 1_799_996_400
NS = 1_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "series.db"


@pytest.fixture
def now(monkeypatch):
    """The wall clock, to be set, and the time since boot."""
    times = {"ns": T * NS, "boot": 50 * NS}
    monkeypatch.setattr(clock, "wall_ns", lambda: times["ns"])
    monkeypatch.setattr(clock, "boot_ns", lambda: times["boot"])
    return times


def go_on(now, for_s):
    """Time passes, for all clocks."""
    now["ns"] += for_s * NS
    now["boot"] += for_s * NS


@pytest.fixture
def file(path, now):
    with closing(SeriesFile(path, max_age_s=30 * 86400, max_bytes=1 << 28)) as file:
        yield file


def rows(path, table="minutes"):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT * FROM {table}").fetchall()


def test_sums_are_added_up_and_gauges_keep_the_highest(file, path):
    file.add(T, {"packets": {"tcp": 3, "udp": 1}, "waiting": {"siem": 7}})
    file.add(T + 10, {"packets": {"tcp": 4}, "waiting": {"siem": 2}})
    file.add(T + 60, {"packets": {"tcp": 5, "icmp": 9}, "waiting": {"siem": 5}})
    reader = Series(path)
    assert reader.totals("packets", T, T + 120) == [("tcp", 12), ("icmp", 9), ("udp", 1)]
    assert reader.totals("packets", T, T + 60) == [("tcp", 7), ("udp", 1)]
    assert reader.totals("packets", T, T + 120, top=1) == [("tcp", 12)]
    assert reader.totals("waiting", T, T + 120) == [("siem", 7)]
    assert reader.steps("packets", T - 60, T + 120) == {"tcp": [0, 7, 5], "udp": [0, 1, 0], "icmp": [0, 0, 9]}
    assert reader.steps("waiting", T, T + 120, step_s=120) == {"siem": [7]}
    assert reader.steps("packets", T, T + 120, top=1) == {"tcp": [7, 5]}
    assert reader.steps("packets", T, T + 180, step_s=120) == {"tcp": [12, 0], "udp": [1, 0], "icmp": [9, 0]}


def test_the_first_minute_counts_whole_and_the_end_is_not_in_it(file, path):
    file.add(T, {"packets": {"tcp": 3}})
    file.add(T + 60, {"packets": {"tcp": 5}})
    reader = Series(path)
    assert reader.totals("packets", T + 59, T + 60) == [("tcp", 3)]
    assert reader.steps("packets", T + 59, T + 61) == {"tcp": [3, 5]}
    assert reader.totals("packets", T + 120, T + 60) == []
    assert reader.steps("packets", T + 120, T + 60) == {}


def test_what_cannot_be_asked_is_said(file, path):
    reader = Series(path)
    with pytest.raises(ValueError, match="no figure 'nothing'"):
        reader.totals("nothing", T, T + 60)
    with pytest.raises(ValueError, match="step"):
        reader.steps("packets", T, T + 60, step_s=30)
    with pytest.raises(ValueError, match="steps, at most"):
        reader.steps("packets", 0, T)


def test_without_a_file_or_with_an_empty_one_all_is_empty(path):
    for make in (lambda: None, path.touch):
        make()
        reader = Series(path)
        assert reader.totals("packets", 0, T) == []
        assert reader.steps("packets", T, T + 60) == {}
        assert reader.journal(0, T * NS) == []
        assert reader.acknowledged(["x"]) == {}


def test_a_file_that_is_none_is_an_error_to_readers(path):
    path.write_bytes(b"no database, but long enough to be taken for a page of one" * 99)
    with pytest.raises(sqlite3.DatabaseError):
        Series(path).totals("packets", T, T + 60)


def test_labels_are_cleaned_cut_and_names_checked(file, path):
    file.add(
        T, {"sources": {"a\x1b[31m\n" + "b" * 5000: 1, "\ud800": 2}, "nonsense": {"x": 1}, "events": {"y": 0}}
    )
    labels = dict(Series(path).totals("sources", T, T + 60))
    assert set(labels) == {"\ufffd", "a\ufffd[31m " + "b" * 120 + "…"}
    assert {row[0] for row in rows(path)} == {"sources"}


def test_a_value_cannot_run_over(file, path):
    for _ in range(3):
        file.add(T, {"packets": {"tcp": 2**200}})
    assert Series(path).totals("packets", T, T + 60) == [("tcp", series_file.MAX_VALUE)]


def test_a_minute_has_so_many_labels_and_keeps_the_largest(file, path):
    for start in range(0, 2000, 100):
        file.add(T, {"sources": {f"10.0.{n // 256}.{n % 256}": 1 for n in range(start, start + 100)}})
    file.add(T + 30, {"sources": {"10.0.0.7": 50, "10.0.0.8": 40}})
    assert len(rows(path)) <= series_file.MINUTE_LABELS
    file.add(T + 60, {"packets": {"tcp": 1}})
    found = dict(Series(path).totals("sources", T, T + 60))
    assert len(found) == 51
    # They come late, when there is no room any more; what they had before may be among the others.
    assert found["10.0.0.7"] in {50, 51}
    assert found["10.0.0.8"] in {40, 41}
    assert sum(found.values()) == 2090


def test_ports_keep_twenty_and_other_figures_all(file, path):
    many = {f"tcp/{port}": port for port in range(1, 101)}
    file.add(T, {"ports": many, "events": many})
    file.add(T + 60, {"ports": {"tcp/1": 1}})
    found = dict(Series(path).totals("ports", T, T + 60))
    assert set(found) == {f"tcp/{port}" for port in range(81, 101)} | {"other"}
    assert found["other"] == sum(range(1, 81))
    assert len(Series(path).totals("events", T, T + 60)) == 100


def test_a_courier_that_was_killed_goes_on_in_its_minute(file, path):
    file.add(T, {"sources": {f"10.0.0.{n}": 5 for n in range(100)}, "waiting": {"siem": 9}})
    second = SeriesFile(path, max_age_s=0, max_bytes=1 << 28)
    second.add(T + 20, {"sources": {"10.0.0.1": 5, "other": 3}, "waiting": {"siem": 4}})
    second.close()
    assert Series(path).totals("sources", T, T + 60)[0] == ("10.0.0.1", 10)
    assert Series(path).totals("waiting", T, T + 60) == [("siem", 9)]
    third = SeriesFile(path, max_age_s=0, max_bytes=1 << 28)
    third.add(T + 60, {"packets": {"tcp": 1}})
    third.close()
    found = dict(Series(path).totals("sources", T, T + 60))
    assert len(found) == 51
    assert found["other"] == 3 + 50 * 5


def test_the_journal_is_read_newest_first_by_kind_and_time(file, path):
    file.note([Journal(T * NS + n, f"kind.{n % 2}", {"number": n}) for n in range(6)])
    reader = Series(path)
    assert [each.fields["number"] for each in reader.journal(T * NS + 1, T * NS + 5)] == [4, 3, 2, 1]
    assert [each.fields["number"] for each in reader.journal(0, 2 * T * NS, ["kind.1"], limit=2)] == [5, 3]
    assert reader.journal(T * NS, T * NS + 1) == [Journal(T * NS, "kind.0", {"number": 0})]


def test_what_the_journal_takes_is_bounded(file, path, now):
    file.note([Journal(2**80, "k\n" * 500, {f"f{n}": "x\x00" * 5000 for n in range(100)} | {"b": 2**90})])
    (found,) = Series(path).journal(0, 2**63)
    assert len(found.kind) == series.MAX_LABEL
    assert "\n" not in found.kind
    assert 0 < len(found.fields) <= series_file.JOURNAL_FIELDS
    assert all(len(text) <= series_file.JOURNAL_TEXT and "\x00" not in text for text in found.fields.values())
    file.note([Journal(T * NS, "many", {}) for _ in range(5000)])
    assert len(Series(path).journal(0, 2**62, ["many"])) == series_file.JOURNAL_A_MINUTE - 1
    assert file.lost == {"many": 5000 - series_file.JOURNAL_A_MINUTE + 1}
    now["ns"] += 60 * NS
    file.note([Journal(T * NS, "later", {})])
    assert len(Series(path).journal(0, 2**62, ["later"])) == 1


def test_a_damaged_entry_of_the_journal_is_left_out(file, path):
    file.note([Journal(1, "good", {"a": 1})])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for bad in ("{", "[1]", b"\xff\xfe", "[" * 2000, '"' + "x" * 9000 + '"'):
            db.execute("INSERT INTO journal (at_ns, kind, fields) VALUES (2, 'bad', ?)", (bad,))
    assert Series(path).journal(0, 10) == [Journal(1, "good", {"a": 1})]


def test_who_acknowledged_first_stays(file, path):
    assert file.acknowledge("i1", Acknowledged(5, "anna\x1b[1m\u202e")) == Acknowledged(
        5, "anna\ufffd[1m\ufffd"
    )
    assert file.acknowledge("i1", Acknowledged(6, "bert")) == Acknowledged(5, "anna\ufffd[1m\ufffd")
    assert file.acknowledge("i2", Acknowledged(7, "b" * 5000)).who == "b" * 127 + "…"
    found = Series(path).acknowledged([f"i{n}" for n in range(2000)])
    assert set(found) == {"i1", "i2"}
    assert found["i1"] == Acknowledged(5, "anna\ufffd[1m\ufffd")


def test_only_the_owner_reads_the_file(file, path):
    file.add(T, {"packets": {"tcp": 1}})
    for suffix in ("", "-wal", "-shm"):
        found = path.with_name(path.name + suffix).stat()
        assert stat.S_IMODE(found.st_mode) == 0o600


def test_a_link_in_its_place_is_not_followed(path, tmp_path):
    aim = tmp_path / "aim"
    aim.touch()
    path.symlink_to(aim)
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 28)) as file:
        file.add(T, {"packets": {"tcp": 1, "udp": 1}})
        assert file.lost == {"disk": 2}
        assert file.error
        assert file.acknowledge("i1", Acknowledged(1, "anna")) is None
    assert aim.read_bytes() == b""


def test_prune_removes_what_is_too_old(file, path, now):
    for day in range(40):
        go_on(now, 86400 if day else 0)
        file.add(T + day * 86400, {"packets": {"tcp": 1}})
        file.note([Journal(now["ns"], "day", {"day": day})])
        file.acknowledge(f"i{day}", Acknowledged(now["ns"], "anna"))
    file.prune()
    for table in ("minutes", "journal", "acknowledgements"):
        assert len(rows(path, table)) == 31
    assert Series(path).journal(0, 2**62)[-1].fields == {"day": 9}


def test_a_clock_that_is_set_removes_nothing(file, path, now):
    """Forward by a month and back again at any moment; for good only when it goes on so for an hour."""
    file.add(T, {"packets": {"tcp": 1}})
    file.note([Journal(T * NS, "one", {})])
    file.acknowledge("i1", Acknowledged(T * NS, "anna"))

    def left():
        file.prune()
        return [len(rows(path, table)) for table in ("minutes", "journal", "acknowledgements")]

    for step_s in (31 * 86400, -31 * 86400, -3650 * 86400, 3650 * 86400, 40 * 86400):
        go_on(now, 7200)
        assert left() == [1, 1, 1]
        now["ns"] += step_s * NS
        assert left() == [1, 1, 1]
        go_on(now, 3599)
        assert left() == [1, 1, 1]
        if step_s < 40 * 86400:
            now["ns"] -= step_s * NS
            assert left() == [1, 1, 1]
            now["ns"] += step_s * NS
    go_on(now, 3602)
    assert left() == [0, 0, 0]


def test_beyond_the_size_a_clock_that_is_set_does_not_remove_all(path, now):
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 20)) as file:
        for minute in range(600):
            go_on(now, 60)
            file.add(T + 60 * minute, {"events": {f"kind.{n}.{'x' * 90}": 1 for n in range(50)}})
        file.note([Journal(now["ns"], "last", {})])
        file.acknowledge("i1", Acknowledged(now["ns"], "anna"))
        now["ns"] += 10 * 365 * 86400 * NS
        before = len(rows(path))
        file.prune()
        assert 0 < len(rows(path)) < before
        assert len(rows(path, "journal")) == len(rows(path, "acknowledgements")) == 1


def test_without_an_age_all_stays(path, now):
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 28)) as file:
        file.add(60, {"packets": {"tcp": 1}})
        file.prune()
    assert len(rows(path)) == 1


def test_prune_removes_the_oldest_beyond_the_size(path, now):
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 20)) as file:
        for minute in range(600):
            now["ns"] = (T + 60 * minute) * NS
            file.add(T + 60 * minute, {"events": {f"kind.{n}.{'x' * 90}": 1 for n in range(50)}})
            if minute % 10 == 9:
                file.prune()
        assert file.counters()["bytes"] <= 1.1 * (1 << 20)
        found = Series(path).steps("events", T, T + 60 * 600)
    values = next(iter(found.values()))
    assert values[-60:] == [1] * 60
    assert values[0] == 0


def test_too_many_entries_and_acknowledgements_go(file, path, monkeypatch):
    monkeypatch.setattr(series_file, "JOURNAL_ROWS", 3)
    monkeypatch.setattr(series_file, "ACKNOWLEDGEMENTS", 2)
    file.note([Journal(n, "one", {}) for n in range(5)])
    for n in range(5):
        file.acknowledge(f"i{n}", Acknowledged(10**18 + n, "anna"))
    file._max_age_s = 0
    file.prune()
    assert [each.at_ns for each in Series(path).journal(0, 9)] == [4, 3, 2]
    assert set(Series(path).acknowledged([f"i{n}" for n in range(5)])) == {"i3", "i4"}


@pytest.mark.parametrize("damage", ["head", "pages", "schema", "version"])
def test_a_damaged_file_is_put_aside_and_begun_anew(path, now, damage):
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 28)) as file:
        for minute in range(100):
            file.add(T + 60 * minute, {"events": {f"kind.{n}": 1 for n in range(50)}})
    if damage == "head":
        path.write_bytes(b"\xff" * 100 + path.read_bytes()[100:])
    elif damage == "pages":
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE minutes" if damage == "schema" else "PRAGMA user_version = 99")
            db.commit()
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 28)) as file:
        file.add(T, {"packets": {"tcp": 4}})
        assert file.damaged == 1
        assert not file.lost
        assert file.counters()["error"] == ""
    assert Series(path).totals("packets", T, T + 60) == [("tcp", 4)]
    (aside,) = path.parent.glob("series.db.corrupt-*")
    assert aside.stat().st_size > 4096


def test_the_last_two_damaged_files_are_kept(path, now):
    for number in range(5):
        now["ns"] = (T + number) * NS
        path.write_bytes(b"%d" % number * 5000)
        SeriesFile(path, max_age_s=0, max_bytes=1 << 28).close()
    found = sorted(path.parent.glob("series.db.corrupt-*"))
    assert [each.read_bytes()[:1] for each in found] == [b"3", b"4"]


def test_a_damaged_file_that_cannot_be_put_aside_is_told_once(path, now, caplog):
    path.write_bytes(b"garbage" * 1000)
    taken = path.with_name(f"{path.name}.corrupt-{now['ns']}")
    taken.mkdir()
    with closing(SeriesFile(path, max_age_s=0, max_bytes=1 << 28)) as file:
        for _ in range(5):
            file.add(T, {"packets": {"tcp": 1}})
        assert (file.damaged, file.lost) == (0, {"disk": 5})
        assert "not a database" in file.error and "directory" in file.error
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        taken.rmdir()
        file.add(T, {"packets": {"tcp": 1}})
        assert (file.damaged, file.error) == (1, "")
    assert taken.read_bytes() == b"garbage" * 1000


def test_a_file_that_is_damaged_while_it_is_open_is_begun_anew(file, path):
    file.add(T, {"packets": {"tcp": 1}})
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE minutes")
    file.add(T, {"packets": {"tcp": 2}})
    assert file.damaged == 1
    assert Series(path).totals("packets", T, T + 60) == [("tcp", 2)]


def test_what_a_full_disk_does_not_take_is_counted_and_the_next_is_written(file, path):
    """A limit on the size of files stands for the full disk: SQLite sees a write that fails."""
    file.add(T, {"packets": {"tcp": 1}})
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("series.db-wal").stat().st_size, hard))
    try:
        file.add(T, {"events": {f"kind.{n}": 1 for n in range(150)}})
        file.note([Journal(T * NS, "one", {})])
        assert file.acknowledge("i1", Acknowledged(1, "anna")) is None
        assert file.error
        file.prune()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert file.lost["disk"] == 151
    file.add(T, {"packets": {"tcp": 2}})
    assert file.error == ""
    assert not file.damaged
    assert Series(path).totals("packets", T, T + 60) == [("tcp", 3)]


def test_a_month_of_minutes_is_read_at_once_and_labels_are_bounded(file, path):
    with closing(sqlite3.connect(path)) as db:
        db.executemany(
            "INSERT INTO minutes VALUES ('sources', ?, ?, ?)",
            [(T // 60 + n % 7, f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", n + 1) for n in range(3000)],
        )
        db.commit()
    reader = Series(path)
    found = reader.steps("sources", T, T + 30 * 86400)
    assert len(found) == series.MAX_VALUES // 43_200
    assert all(len(values) == 43_200 for values in found.values())
    assert len(reader.totals("sources", T, T + 600)) == series.MAX_LABELS
    assert reader.totals("sources", T, T + 600)[0] == ("10.0.11.183", 3000)


def test_who_tells_something_never_waits_for_the_disk(path, now):
    """While the thread is held up, so much waits; what is beyond is counted."""
    file = SeriesFile(path, max_age_s=0, max_bytes=1 << 28)
    writer = SeriesWriter(file)
    with file._lock:
        for _ in range(series_file.WAITING + 50):
            writer.add(T, {"packets": {"tcp": 1, "udp": 1}})
        assert file.lost["busy"] >= 2 * 49
        assert file.counters()["lost"]["busy"] >= 2 * 49
    writer.close(20)
    (tcp, udp) = dict(Series(path).totals("packets", T, T + 60)).values()
    assert tcp == udp
    assert tcp + udp + file.lost["busy"] == 2 * (series_file.WAITING + 50)


def test_an_acknowledgement_waits_for_room_in_the_queue(path, now, monkeypatch):
    monkeypatch.setattr(series_file, "ACKNOWLEDGEMENTS_WAITING", 3)
    file = SeriesFile(path, max_age_s=0, max_bytes=1 << 28)
    writer = SeriesWriter(file)
    busy, go = threading.Event(), threading.Event()
    writer._put(0, lambda: (busy.set(), go.wait(20)))
    assert busy.wait(20)
    for _ in range(series_file.WAITING + 50):
        writer.add(T, {"packets": {"tcp": 1}})
    for number in range(3):
        writer.acknowledge(f"i{number}", Acknowledged(number, "anna"))
    assert file.lost == {"busy": 50}
    writer.acknowledge("i3", Acknowledged(5, "bert"))
    assert file.lost == {"busy": 51}
    go.set()
    writer.close(20)
    assert set(Series(path).acknowledged([f"i{n}" for n in range(4)])) == {"i0", "i1", "i2"}


def test_an_acknowledgement_is_tried_again_when_the_disk_did_not_take_it(tmp_path, now):
    """Until the file can be made, all that a person was told of waits; what never can be is counted."""
    path = tmp_path / "later" / "series.db"
    file = SeriesFile(path, max_age_s=0, max_bytes=1 << 28)
    writer = SeriesWriter(file)
    writer.acknowledge("i1", Acknowledged(5, "anna"))
    assert writer.acknowledge_now("i2", Acknowledged(6, "bert")) is None
    tried = threading.Event()
    writer._put(0, tried.set)
    assert tried.wait(20)
    path.parent.mkdir()
    writer.add(T, {"packets": {"tcp": 1}})
    writer.close(20)
    found = Series(path).acknowledged(["i1", "i2"])
    assert found == {"i1": Acknowledged(5, "anna"), "i2": Acknowledged(6, "bert")}
    assert not file.lost
    shutil.rmtree(path.parent)
    writer = SeriesWriter(file)
    writer.acknowledge("i3", Acknowledged(5, "anna"))
    writer.close(20)
    assert file.lost == {"disk": 1}


def test_a_fault_does_not_end_the_thread(path, now):
    file = SeriesFile(path, max_age_s=0, max_bytes=1 << 28)
    writer = SeriesWriter(file)
    writer._put(3, lambda: 1 // 0)
    writer.add(T, {"packets": {"tcp": 1}})
    writer.close(20)
    assert file.lost == {"failed": 3}
    assert Series(path).totals("packets", T, T + 60) == [("tcp", 1)]
