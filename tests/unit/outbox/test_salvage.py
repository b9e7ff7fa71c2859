"""Damage of every kind to file and log: nothing altered is given out, and what is lost is counted exactly."""

import random
import shutil
import sqlite3

import msgspec
import pytest

from kwsiem.outbox import Item, Outbox, balanced

ALERTS = 400
#: What each output had settled when the files were copied, as after a kill.
SETTLED = {"a": 150, "b": 220}
PAGE = 16384


def document(number):
    return msgspec.json.encode({"number": number, "text": "x" * (number * 37 % 3000)})


def items(first, last, severity=5):
    return [Item(f"id-{n}", severity, document(n)) for n in range(first, last)]


def copied(box, folder):
    """The files as a kill leaves them."""
    folder.mkdir(exist_ok=True)
    for suffix in ("", "-wal", ".cursors"):
        source = box.path.with_name(box.path.name + suffix)
        if source.exists():
            shutil.copy(source, folder / source.name)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """An outbox that was killed: half of it in the file, half in the log."""
    folder = tmp_path_factory.mktemp("killed")
    box = Outbox(folder / "kwsiem.db", ["a", "b"])
    for first in range(0, ALERTS // 2, 20):
        box.put(items(first, first + 20))
    box.settle("a", list(range(1, 101)), [], [])
    box._durable.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for first in range(ALERTS // 2, ALERTS, 20):
        box.put(items(first, first + 20))
    box.settle("a", list(range(101, SETTLED["a"] + 1)), [], [])
    box.settle("b", list(range(1, SETTLED["b"] + 1)), [], [])
    box.settle("b", [230, 231, 240], [], [])
    copied(box, folder / "copy")
    box.close()
    return folder / "copy"


@pytest.fixture
def path(tmp_path, killed):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "kwsiem.db"


def wal(path):
    return path.with_name(path.name + "-wal")


def damage(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))


def drained(box):
    """What each output gets now; everything is delivered."""
    found = {}
    for name in SETTLED:
        found[name] = {}
        while batch := box.waiting(name, 37):
            for stored in batch:
                assert stored.document == document(int(stored.id[3:])), "nothing altered is given out"
                found[name][stored.id] = stored.seq
            box.settle(name, [stored.seq for stored in batch], [], [])
            assert balanced(box.ledger())
    return found


def check(path, *, history=100_000):
    """Open, deliver everything, and compare with what was raised; gives how many were lost and repeated."""
    box = Outbox(path, ["a", "b"], history=history)
    assert balanced(box.ledger())
    found = drained(box)
    accounts = box.ledger()
    lost = repeated = 0
    told = box.take_lost()
    for name, before in SETTLED.items():
        settled = {f"id-{n}" for n in range(before)} | (
            {"id-229", "id-230", "id-239"} if name == "b" else set()
        )
        missing = {f"id-{n}" for n in range(ALERTS)} - settled - set(found[name])
        account = accounts[name]
        assert account.balanced and account.waiting == 0 and account.raised == ALERTS
        assert account.dropped == account.reasons.get("corrupt", 0) == len(missing)
        assert told.get((name, "corrupt"), 0) == len(missing)
        lost += len(missing)
        repeated += len(settled & set(found[name]))
    assert box.put(items(ALERTS, ALERTS + 1)) == 1
    assert [stored.seq for stored in box.waiting("a", 10)] == [ALERTS + 1], "numbers go on"
    salvaged = box.salvaged
    box.close()
    again = Outbox(path, ["a", "b"])
    assert again.salvaged == 0, "the new file is good"
    again.close()
    return lost, repeated, salvaged


def test_an_undamaged_copy_loses_and_repeats_nothing(path):
    assert check(path) == (0, 0, 0)


def flip(chance, data, count):
    for _ in range(count):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


@pytest.mark.parametrize("block", range(10))
def test_one_flipped_bit_anywhere_loses_nothing(tmp_path, killed, block):
    """Thirty places in the file and thirty in the log for each block."""
    chance = random.Random(block)
    lost = repeated = 0
    for turn in range(60):
        folder = tmp_path / str(turn)
        shutil.copytree(killed, folder)
        damaged = folder / ("kwsiem.db" if turn % 2 else "kwsiem.db-wal")
        damage(damaged, lambda data: flip(chance, data, 1))
        got = check(folder / "kwsiem.db")
        lost += got[0]
        repeated += got[1]
        shutil.rmtree(folder)
    assert lost == 0
    assert repeated <= 3 * 60, "what was settled out of its order, with an account that did not count it"
