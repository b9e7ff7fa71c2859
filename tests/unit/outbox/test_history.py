"""The history is read by time, filtered, and followed, beside the outbox that is writing it."""

import sqlite3

import msgspec
import pytest

from kwsiem.alert import LEVELS, Alert, first_id
from kwsiem.document import document
from kwsiem.outbox import History, Item, Outbox, Wanted
from kwsiem.outbox import history as history_module

NOW_NS = 1_767_323_046_123_000_000


def alert(number, level="high", rule="tcp-port-scan"):
    return Alert(
        rule_id=rule, title="Scan", level=level, state="open", identity={"n": number}, count=number,
        first_ns=NOW_NS, last_ns=NOW_NS, raised_ns=NOW_NS + number * 10**9, opened_ts_ns=number,
        fields={"source.ip": f"198.51.100.{number % 256}"},
    )  # fmt: skip


def item(made):
    return Item(made.id, LEVELS[made.level], msgspec.json.encode(document(made)))


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "kwsiem.db", ["file"])
    yield box
    box.close()


@pytest.fixture
def history(outbox):
    return History(outbox.path)


def counts(entries):
    return [entry.summary.kwsiem.alert.count for entry in entries]


def test_the_newest_come_first_whatever_order_they_were_stored_in(outbox, history):
    outbox.put([item(alert(n)) for n in (3, 1, 2)])
    assert counts(history.newest(Wanted(), 0)) == [3, 2, 1]
    assert counts(history.newest(Wanted(), 2)) == [3, 2]


def test_time_severity_and_a_test_of_ones_own_select(outbox, history):
    outbox.put([item(alert(n, "low" if n % 2 else "high")) for n in range(1, 9)])
    since, until = first_id(NOW_NS + 3 * 10**9), first_id(NOW_NS + 7 * 10**9)
    assert counts(history.newest(Wanted(since=since, until=until), 0)) == [6, 5, 4, 3]
    assert counts(history.newest(Wanted(since=since, until=until, least_severity=8), 0)) == [6, 4]
    accepts = Wanted(accepts=lambda summary: summary.source.ip == "198.51.100.5")
    assert counts(history.newest(accepts, 0)) == [5]


def test_an_alert_is_found_by_the_end_of_its_id(outbox, history):
    made = [alert(n) for n in range(20)]
    outbox.put([item(each) for each in made])
    (found,) = history.find(made[7].id[-8:], 2)
    assert msgspec.json.decode(found.document)["event"]["id"] == made[7].id
    assert len(history.find(made[7].id, 2)) == 1
    assert not history.find("%", 2)
    assert not history.find("", 2)


def test_what_comes_is_told_once_and_pages_leave_nothing_out(outbox, history, monkeypatch):
    monkeypatch.setattr(history_module, "PAGE", 3)
    outbox.put([item(alert(1))])
    seq = history.head()
    outbox.put([item(alert(n)) for n in range(2, 10)])
    told = []
    while True:
        entries, last = history.behind(seq, Wanted(accepts=lambda summary: summary.kwsiem.alert.count != 4))
        told += counts(entries)
        if last == seq:
            break
        seq = last
    assert told == [2, 3, 5, 6, 7, 8, 9]
    assert history.behind(99, Wanted()) == ([], 9)  # another file took its place


def test_a_damaged_alert_is_left_out_and_counted(outbox, history):
    outbox.put([item(alert(n)) for n in (1, 2, 3)])
    with sqlite3.connect(outbox.path) as db:
        db.execute("UPDATE alerts SET frame = zeroblob(500) WHERE seq = 2")
    db.close()
    assert counts(history.newest(Wanted(), 0)) == [3, 1]
    assert history.damaged == 1


def test_the_time_of_an_id_is_the_bound_of_the_ids_of_that_millisecond():
    made = alert(5)
    assert first_id(made.raised_ns) <= made.id < first_id(made.raised_ns + 10**6)
