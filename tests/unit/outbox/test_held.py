"""While the disk takes nothing: alerts in memory go on to the outputs, and to disk when that is possible."""

import sqlite3

import pytest

from kwsiem.outbox import HELD_ALERTS, Item, Outbox, balanced, read_ledger


def items(first, last, severity=5, size=10):
    return [Item(f"id-{n}", severity, b"x" * size) for n in range(first, last)]


@pytest.fixture
def box(tmp_path):
    made = Outbox(tmp_path / "kwsiem.db", ["a", "b"])
    yield made
    set_full(made, full=False)
    made.close()


def set_full(box, *, full):
    """SQLite refuses every write, as on a full disk."""
    for db in (box._durable, box._quick):
        db.execute(f"PRAGMA query_only = {int(full)}")


def seqs(found):
    return [stored.seq for stored in found]


def test_held_alerts_come_behind_those_on_disk_and_keep_their_numbers(box, tmp_path):
    box.put(items(0, 5))
    set_full(box, full=True)
    with pytest.raises(sqlite3.OperationalError):
        box.put(items(5, 8))
    assert box.hold(items(5, 8), "no space")
    assert box.holding == "no space"
    assert box.held()[0] == 3
    with pytest.raises(sqlite3.OperationalError, match="no space"):
        box.put(items(8, 9))
    assert seqs(box.waiting("a", 100)) == list(range(1, 9))
    assert seqs(box.waiting("a", 6)) == list(range(1, 7))
    box.settle("a", [1, 2, 3, 4, 5, 6], [], [])
    account = box.ledger()["a"]
    assert (account.raised, account.delivered, account.waiting) == (8, 6, 2)
    assert read_ledger(tmp_path / "kwsiem.db")["a"].delivered == 0, "the disk knows nothing of it"
    assert not box.heal()
    set_full(box, full=False)
    assert box.heal()
    assert box.holding == ""
    assert box.ledger()["a"] == account == read_ledger(tmp_path / "kwsiem.db")["a"]
    assert [s.id for s in box.waiting("a", 100)] == ["id-6", "id-7"]
    assert box.put(items(7, 9)) == 1, "known ones stay known"
    assert box.duplicates() == 1


def test_settling_goes_on_in_memory_when_the_disk_does_not_take_it(box):
    box.put(items(0, 5))
    set_full(box, full=True)
    box.settle("a", [1, 2], [], [(3, "refused")])
    assert box.holding
    assert seqs(box.waiting("a", 10)) == [4, 5]
    set_full(box, full=False)
    assert box.heal()
    account = box.ledger()["a"]
    assert (account.delivered, account.dead, account.waiting) == (2, 1, 2)
    assert [(letter.id, letter.reason) for letter in box.dead_letters("a")] == [("id-2", "refused")]


def test_what_all_outputs_have_settled_is_let_go_and_what_is_dead_is_not(box):
    set_full(box, full=True)
    box.hold(items(0, 6))
    box.settle("a", [1, 2, 3, 4], [], [])
    assert box.released() == [], "b has none of them"
    box.settle("b", [1, 2], [], [(3, "refused")])
    assert box.released() == ["id-0", "id-1"], "of the third there is a dead letter, which is on no disk"
    assert box.released() == [], "told once"
    assert box.held()[0] == 3
    assert seqs(box.waiting("b", 10)) == [4, 5, 6]
    assert balanced(box.ledger())
    set_full(box, full=False)
    assert box.heal()
    assert [letter.id for letter in box.dead_letters("b")] == ["id-2"]
    assert seqs(box.waiting("b", 10)) == [4, 5, 6]
    assert box.ledger()["a"].delivered == 4
    assert box.salvaged == 0


def test_memory_is_bounded_and_freed_again(box):
    set_full(box, full=True)
    for first in range(0, HELD_ALERTS, 500):
        assert box.hold(items(first, first + 500))
    assert not box.hold(items(HELD_ALERTS, HELD_ALERTS + 1))
    assert box.ledger()["a"].raised == HELD_ALERTS
    for name in ("a", "b"):
        box.settle(name, list(range(1, 1001)), [], [])
    assert len(box.released()) == 1000
    assert box.hold(items(HELD_ALERTS, HELD_ALERTS + 1000))


def test_memory_is_bounded_in_bytes(box):
    set_full(box, full=True)
    assert box.hold(items(0, 250, size=60_000))
    assert not box.hold(items(250, 500, size=60_000))


def test_alerts_that_are_on_disk_are_not_held_again(box):
    box.put(items(0, 3))
    set_full(box, full=True)
    assert box.hold(items(1, 5))
    assert sorted(box.released()) == ["id-1", "id-2"]
    assert box.held()[0] == 2
    assert box.ledger()["a"].raised == 5
    assert box.duplicates() == 2


def test_urgent_and_sent_alerts_are_found_in_memory_too(box):
    box.put(items(0, 3) + items(3, 4, severity=8))
    set_full(box, full=True)
    box.hold(items(4, 6) + items(6, 7, severity=10))
    assert seqs(box.urgent("a", 0, 10)) == [4, 7]
    box.settle("a", [1, 2, 3, 7], [], [], replays=True)
    assert seqs(box.urgent("a", 0, 10)) == [4]
    assert seqs(box.sent("a", 0, 10)) == [1, 2, 3, 7]
    assert box.replay_after("a") == 0


def test_notes_are_kept_in_memory_meanwhile(box):
    set_full(box, full=True)
    box.set_note("a", "incident", "42")
    assert box.note("a", "incident") == "42"
    set_full(box, full=False)
    box.heal()
    assert box.note("a", "incident") == "42"


def test_closing_tries_the_disk_once_more(tmp_path):
    box = Outbox(tmp_path / "kwsiem.db", ["a"])
    set_full(box, full=True)
    box.hold(items(0, 3))
    set_full(box, full=False)
    box.close()
    box = Outbox(tmp_path / "kwsiem.db", ["a"])
    assert len(box.waiting("a", 10)) == 3
    box.close()


def test_a_damaged_file_is_salvaged_while_alerts_are_held(tmp_path):
    path = tmp_path / "kwsiem.db"
    box = Outbox(path, ["a"])
    box.put(items(0, 300, size=3000))
    box.hold(items(300, 310), "no space")
    box._durable.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    data = bytearray(path.read_bytes())
    data[10 * 16384 : 11 * 16384] = bytes(16384)
    path.write_bytes(bytes(data))
    box._quick.execute("PRAGMA shrink_memory")
    found = {stored.id for stored in box.waiting("a", 1000)}
    assert box.heal()
    found = {stored.id for stored in box.waiting("a", 1000)}
    account = box.ledger()["a"]
    assert account.balanced
    assert len(found) + account.dropped == 310 == account.raised
    assert {f"id-{n}" for n in range(300, 310)} <= found
    box.close()
