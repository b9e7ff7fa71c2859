"""Damage of every kind to file and log: nothing altered is given out, and what is lost is counted exactly."""

import contextlib
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
    box._cursors_due_s = 0
    box.prune()
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
        # What was settled ahead of the cursor, and neither it nor its mark is found, counts as lost too.
        assert len(missing) <= account.dropped <= len(missing) + (3 if name == "b" else 0)
        assert account.dropped == account.reasons.get("corrupt", 0) == told.get((name, "corrupt"), 0)
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


@pytest.mark.parametrize("block", range(5))
def test_one_flipped_bit_anywhere_loses_nothing(tmp_path, killed, block):
    """Twenty places in the file and twenty in the log for each block."""
    chance = random.Random(block)
    lost = repeated = 0
    for turn in range(40):
        folder = tmp_path / str(turn)
        shutil.copytree(killed, folder)
        damaged = folder / ("kwsiem.db" if turn % 2 else "kwsiem.db-wal")
        damage(damaged, lambda data: flip(chance, data, 1))
        got = check(folder / "kwsiem.db")
        lost += got[0]
        repeated += got[1]
        shutil.rmtree(folder)
    assert lost == 0
    assert repeated <= 3 * 40, "what was settled out of its order, with an account that did not count it"


def half_pages(chance, data, header=0, step=PAGE):
    """Half of some pages zeroed, as by a power cut on a disk that writes less than a page at once."""
    pages = (len(data) - header) // step
    for page in chance.sample(range(pages), max(1, pages // 10)):
        begin = header + page * step + chance.choice([0, step // 2])
        data[begin : begin + step // 2] = bytes(step // 2)


def cut(chance, data):
    del data[chance.randrange(len(data)) :]


def garbage(chance, data):
    begin = chance.randrange(len(data))
    length = min(chance.randrange(1, 100_000), len(data) - begin)
    data[begin : begin + length] = chance.randbytes(length)


DAMAGES = {
    "many bits": lambda chance, data: flip(chance, data, 50),
    "torn pages": half_pages,
    "cut": cut,
    "garbage": garbage,
    "first page": lambda chance, data: data.__setitem__(slice(0, PAGE), chance.randbytes(PAGE)),
    "all garbage": lambda chance, data: data.__setitem__(slice(None), chance.randbytes(len(data))),
    "empty": lambda chance, data: data.clear(),
    "header bytes": lambda chance, data: flip(chance, memoryview(data)[:100], 3),
}


@pytest.mark.parametrize("which", ["", "-wal"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_what_damage_leaves_is_delivered_and_the_rest_counted(tmp_path, killed, kind, which):
    chance = random.Random(f"{kind}{which}")
    losses = []
    for turn in range(5):
        folder = tmp_path / str(turn)
        shutil.copytree(killed, folder)
        damage(folder / f"kwsiem.db{which}", lambda data: DAMAGES[kind](chance, data))
        losses.append(check(folder / "kwsiem.db")[0])
        shutil.rmtree(folder)
    if kind in {"header bytes", "first page"} and not which:
        assert losses == [0] * 5


@pytest.mark.parametrize("kind", ["many bits", "torn pages", "garbage", "cut"])
def test_damage_to_file_and_log_at_once(tmp_path, killed, kind):
    chance = random.Random(kind)
    for turn in range(6):
        folder = tmp_path / str(turn)
        shutil.copytree(killed, folder)
        for which in ("", "-wal"):
            damage(folder / f"kwsiem.db{which}", lambda data: DAMAGES[kind](chance, data))
        check(folder / "kwsiem.db")
        shutil.rmtree(folder)


def test_without_file_and_log_the_cursors_beside_tell_what_is_lost(path):
    box = Outbox(path, ["a", "b"])
    box.close()
    path.write_bytes(b"\0" * 50_000)
    lost, repeated, _ = check(path)
    assert (lost, repeated) == (ALERTS - SETTLED["a"] + ALERTS - SETTLED["b"] - 3, 0)


def test_a_garbled_page_that_the_log_still_holds_heals_by_itself(path, killed):
    """A power cut while SQLite brings its log to the file: the log is not reset before that is on disk."""
    log_data = wal(path).read_bytes()
    numbers = {
        int.from_bytes(log_data[at : at + 4], "big") for at in range(32, len(log_data) - PAGE, PAGE + 24)
    }
    chance = random.Random(3)
    data = bytearray(path.read_bytes())
    garbled = [number for number in numbers if number * PAGE <= len(data)]
    assert garbled, "the log holds pages that are in the file too"
    for number in garbled:
        begin = (number - 1) * PAGE + PAGE // 2
        data[begin : begin + PAGE // 2] = chance.randbytes(PAGE // 2)
    path.write_bytes(bytes(data))
    assert check(path) == (0, 0, 0)


def test_documents_larger_than_a_page_are_found_in_their_pieces(tmp_path):
    path = tmp_path / "kwsiem.db"
    box = Outbox(path, ["a"])
    documents = [bytes([65 + n]) * (n * 9000 + 1) for n in range(7)]
    box.put([Item(f"id-{n}", 5, data) for n, data in enumerate(documents[:4])])
    box._durable.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    box.put([Item(f"id-{n + 4}", 5, data) for n, data in enumerate(documents[4:])])
    copied(box, tmp_path / "copy")
    box.close()
    path = tmp_path / "copy" / "kwsiem.db"
    damage(path, lambda data: data.__setitem__(slice(0, 4096), bytes(4096)))
    box = Outbox(path, ["a"])
    assert [stored.document for stored in box.waiting("a", 100)] == documents
    assert box.salvaged == 1
    box.close()


def test_a_group_that_was_being_written_when_it_was_killed_is_not_called_lost(tmp_path, killed):
    """The log cut in the middle of its last transaction, anywhere: SQLite forgets it, and so do we."""
    step = PAGE + 24
    data = (killed / "kwsiem.db-wal").read_bytes()
    slots = [int.from_bytes(data[at + 4 : at + 8], "big") for at in range(32, len(data), step)]
    commits = [n for n, pages in enumerate(slots) if pages]
    for last in range(commits[-6] + 1, commits[-5] + 1):
        folder = tmp_path / str(last)
        shutil.copytree(killed, folder)
        (folder / "kwsiem.db-wal").write_bytes(data[: 32 + last * step + 1000])
        (folder / "kwsiem.db.cursors").unlink()  # it is of before that transaction, as it always is
        box = Outbox(folder / "kwsiem.db", ["a", "b"])
        assert box.salvaged == 0
        assert box.take_lost() == {}
        assert balanced(box.ledger())
        drained(box)
        box.close()


@pytest.mark.parametrize("after", range(5))
def test_a_kill_while_the_files_are_exchanged_loses_nothing(path, monkeypatch, after):
    """Each renaming of the exchange is the last thing that the killed courier does."""
    import pathlib

    real = pathlib.Path.rename
    count = 0

    class Killed(BaseException):
        pass

    def rename(self, target):
        nonlocal count
        if count >= after:
            raise Killed
        count += 1
        return real(self, target)

    damage(path, lambda data: data.__setitem__(slice(0, 8), b"garbage!"))
    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with contextlib.suppress(Killed):
        Outbox(path, ["a", "b"]).close()
    monkeypatch.undo()
    lost, repeated, _ = check(path)
    assert (lost, repeated) in {(0, 0), (0, 3)}


def test_a_disk_too_full_for_the_new_file_leaves_the_old_one(path, monkeypatch):
    from kwsiem.outbox import salvage

    before = (path.read_bytes()[100:], wal(path).read_bytes())
    damage(path, lambda data: data.__setitem__(slice(0, 8), b"garbage!"))

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(salvage, "_copy_tables", full)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        Outbox(path, ["a", "b"])
    monkeypatch.undo()
    assert (path.read_bytes()[100:], wal(path).read_bytes()) == before
    assert sorted(p.name for p in path.parent.iterdir() if ".new" in p.name) == []
    assert check(path)[0] == 0


def test_files_that_cannot_be_exchanged_are_an_error_of_the_disk_and_the_next_use_goes_on(path, monkeypatch):
    def refused(*_):
        raise PermissionError("no renaming here")

    def damaged():
        raise sqlite3.DatabaseError("database disk image is malformed")

    box = Outbox(path, ["a", "b"])
    before = box.ledger()
    waiting = box.waiting("a", 1000)
    monkeypatch.setattr("pathlib.Path.rename", refused)
    with pytest.raises(sqlite3.OperationalError, match="no renaming here"):
        box._do(damaged)
    for attempt in (lambda: box.put(items(ALERTS, ALERTS + 1)), lambda: Outbox(path, ["a", "b"])):
        with pytest.raises(sqlite3.OperationalError, match="no renaming here"):
            attempt()
    monkeypatch.undo()
    assert box.put(items(ALERTS, ALERTS + 1)) == 1
    assert [stored.id for stored in box.waiting("a", 1000)][:-1] == [stored.id for stored in waiting]
    assert box.salvaged == 1
    assert balanced(box.ledger()) and box.ledger()["a"].delivered == before["a"].delivered
    box.close()


def test_only_so_many_damaged_files_are_kept_aside(path):
    for _ in range(4):
        Outbox(path, ["a", "b"]).close()
        damage(path, lambda data: data.__setitem__(slice(0, 8), b"garbage!"))
    Outbox(path, ["a", "b"]).close()
    kept = [
        p.name
        for p in path.parent.iterdir()
        if ".corrupt-" in p.name and not p.name.endswith(("-wal", "-shm"))
    ]
    assert len(kept) == 2


def test_a_file_damaged_under_a_running_courier_is_salvaged_by_the_reading_that_finds_it(
    tmp_path, killed, path
):
    wal(path).unlink()
    path.with_name("kwsiem.db.cursors").unlink()
    box = Outbox(path, ["a", "b"])
    waiting = len(box.waiting("a", 1000))
    box.close()
    damage(path, lambda data: data.__setitem__(slice(6 * PAGE, 7 * PAGE), bytes(PAGE)))
    box = Outbox(path, ["a", "b"])
    found = box.waiting("a", 1000)
    account = box.ledger()["a"]
    assert len(found) + account.reasons.get("corrupt", 0) == waiting
    assert box.salvaged <= 1
    assert account.balanced
    box.close()


def test_a_file_of_version_1_is_taken_over(tmp_path):
    path = tmp_path / "kwsiem.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(VERSION_1)
    db.execute("PRAGMA journal_mode = WAL")
    db.executemany(
        "INSERT INTO alerts VALUES (?, ?, 8, ?)", [(n, f"id-{n - 1}", document(n - 1)) for n in range(1, 51)]
    )
    db.execute("UPDATE counters SET value = 50 WHERE name = 'head'")
    db.execute("INSERT INTO outputs VALUES ('a', 0, 10, 9, 2, 0, 0)")
    db.execute("INSERT INTO ahead VALUES ('a', 20)")
    db.execute("INSERT INTO dead_letters VALUES (1, 'a', 3, 'id-2', 'refused', 7, ?)", (document(2),))
    db.execute("INSERT INTO notes VALUES (1, 'a', 'key', 'value')")
    db.close()
    box = Outbox(path, ["a"])
    account = box.ledger()["a"]
    assert (account.raised, account.delivered, account.dead, account.waiting) == (50, 9, 2, 39)
    assert account.balanced
    assert [s.id for s in box.waiting("a", 100)] == [f"id-{n}" for n in range(10, 50) if n != 19]
    assert [s.document for s in box.waiting("a", 1)] == [document(10)]
    assert [(letter.id, letter.reason) for letter in box.dead_letters("a")] == [("id-2", "refused")]
    assert box.note("a", "key") == "value"
    assert box.put(items(49, 51)) == 1
    box.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "kwsiem.db",
        "kwsiem.db.cursors",
        "kwsiem.db.reserve",
    ]


VERSION_1 = """
PRAGMA user_version = 1;
CREATE TABLE alerts (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, severity INTEGER NOT NULL, document BLOB NOT NULL
);
CREATE TABLE outputs (
    name TEXT PRIMARY KEY, base INTEGER NOT NULL, cursor INTEGER NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0, filtered INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY, output TEXT NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL,
    reason TEXT NOT NULL, at_ns INTEGER NOT NULL, document BLOB NOT NULL
);
CREATE TABLE ahead (output TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (output, seq)) WITHOUT ROWID;
CREATE TABLE sendings (
    output TEXT NOT NULL, boot TEXT NOT NULL, at_s INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (output, boot, at_s)
) WITHOUT ROWID;
CREATE TABLE notes (
    number INTEGER PRIMARY KEY, output TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    UNIQUE (output, key)
);
CREATE INDEX urgent ON alerts (seq) WHERE severity >= 8;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counters VALUES ('head', 0), ('duplicates', 0);
"""
