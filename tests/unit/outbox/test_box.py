import os
import random
import select
import signal
import sqlite3
import subprocess
import sys

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kwsiem import clock
from kwsiem.alert import first_id
from kwsiem.clock import wall_ns
from kwsiem.outbox import Item, Outbox, balanced, read_ledger, recent_alerts, tables
from kwsiem.outbox import box as box_module


def items(first, last=None, severity=8):
    numbers = range(first, first + 1 if last is None else last)
    return [Item(f"id-{n}", severity, msgspec.json.encode({"number": n})) for n in numbers]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kwsiem.db"


@pytest.fixture
def outbox(path):
    box = Outbox(path, ["a", "b"])
    yield box
    box.close()


def test_an_alert_is_found_by_its_id_and_among_the_latest(outbox):
    outbox.put(items(0, 5))
    assert outbox.document("id-3") == b'{"number":3}'
    assert outbox.document("id-9") is None
    assert outbox.latest(2) == [{"number": 4}, {"number": 3}]


def test_an_alert_waits_for_each_output_until_that_one_settles_it(outbox):
    assert outbox.put(items(0, 3)) == 3
    seqs = [stored.seq for stored in outbox.waiting("a", 10)]
    assert [stored.id for stored in outbox.waiting("a", 2)] == ["id-0", "id-1"]
    outbox.settle("a", seqs[:1], seqs[1:2], [(seqs[2], "refused")])
    assert outbox.waiting("a", 10) == []
    assert len(outbox.waiting("b", 10)) == 3
    account = outbox.ledger()["a"]
    assert (account.raised, account.delivered, account.filtered, account.dead, account.waiting) == (
        3,
        1,
        1,
        1,
        0,
    )
    assert balanced(outbox.ledger())
    assert [(letter.id, letter.reason) for letter in outbox.dead_letters("a")] == [("id-2", "refused")]


def test_a_repeated_id_is_counted_and_not_stored_twice(outbox):
    outbox.put(items(0, 3))
    assert outbox.put(items(1, 4)) == 1
    assert outbox.duplicates() == 2
    assert [s.id for s in outbox.waiting("a", 10)] == ["id-0", "id-1", "id-2", "id-3"]
    assert [s.seq for s in outbox.waiting("a", 10)] == [1, 2, 3, 4], "no gap where the repeats were"


def test_everything_is_there_after_opening_it_again(path):
    box = Outbox(path, ["a"])
    box.put(items(0, 5))
    box.settle("a", [1, 2], [], [])
    box.close()
    box = Outbox(path, ["a"])
    assert [s.id for s in box.waiting("a", 10)] == ["id-2", "id-3", "id-4"]
    assert box.ledger()["a"].delivered == 2
    assert balanced(box.ledger())
    box.close()


def test_a_new_output_begins_with_the_next_alert(path):
    box = Outbox(path, ["a"])
    box.put(items(0, 5))
    box.close()
    box = Outbox(path, ["a", "new"])
    box.put(items(5))
    assert [s.id for s in box.waiting("new", 10)] == ["id-5"]
    assert box.ledger()["new"].raised == 1
    box.close()


def test_recent_gives_the_latest_first(outbox, path):
    outbox.put(items(0, 10))
    assert [found["number"] for found in outbox.recent(3)] == [9, 8, 7]
    assert recent_alerts(path, 3) == outbox.recent(3)
    assert recent_alerts(path.with_name("none.db"), 3) == []


def test_only_so_much_history_is_kept_and_nothing_that_waits_is_removed(path):
    box = Outbox(path, ["a", "b"], history=10)
    box.put(items(0, 100))
    box.settle("a", list(range(1, 101)), [], [])
    box.prune()
    assert len(box.recent(1000)) == 100, "b has not settled them"
    box.settle("b", list(range(1, 51)), [], [])
    box.prune()
    assert len(box.recent(1000)) == 50
    box.settle("b", list(range(51, 101)), [], [])
    assert box.prune() == 0
    assert [found["number"] for found in box.recent(1000)] == list(range(99, 89, -1))
    assert balanced(box.ledger())
    box.close()


def test_settled_alerts_that_are_too_old_go_and_nothing_that_waits(path, monkeypatch):
    now_ns = 1_800_000_000 * 10**9
    times = {"ahead": 0, "boot": 0}
    monkeypatch.setattr(clock, "wall_ns", lambda: now_ns + sum(times.values()) * 10**9)
    monkeypatch.setattr(clock, "boot_ns", lambda: times["boot"] * 10**9)
    box = Outbox(path, ["a", "b"], history_age_s=86_400)
    aged = [
        first_id(now_ns - day * 86_400 * 10**9 // 2)[:20] + f"{n:06}" for day in (4, 3, 1) for n in range(700)
    ]
    box.put([Item(key, 5, b"{}") for key in [*aged, "of-no-time"]])
    assert box.prune() == 0
    assert len(box.recent(9999)) == 2101, "nobody has settled them"
    box.settle("a", list(range(1, 2102)), [], [])
    box.settle("b", list(range(1, 501)), [], [])
    for times["ahead"] in (0, 31 * 86_400, -31 * 86_400, 0):
        box.prune()
        times["boot"] += 3599
        box.prune()
    assert len(box.recent(9999)) == 2101, "the clock was set, or may have been"
    times["boot"] += 1
    box.prune()
    assert len(box.recent(9999)) == 1601, "the rest waits for b"
    box.settle("b", list(range(501, 2102)), [], [])
    box.prune()
    assert box.prune() == 0
    assert len(box.recent(9999)) == 701
    assert balanced(box.ledger())
    assert box.ledger()["b"].delivered == 2101
    box.close()


def test_beyond_its_size_the_oldest_are_dropped_and_counted(path):
    box = Outbox(path, ["a", "b"], max_bytes=200_000)
    for first in range(0, 4000, 500):
        box.put([Item(f"id-{n}", 8, b"x" * 500) for n in range(first, first + 500)])
    box.settle("b", list(range(1, 4001)), [], [])
    dropped = 0
    for _ in range(10):
        dropped += box.prune()
    account = box.ledger()["a"]
    assert dropped == account.dropped > 0
    assert account.waiting == len(box.waiting("a", 10_000)) == 4000 - account.dropped
    assert box.ledger()["b"].dropped == 0
    assert balanced(box.ledger())
    box.close()


def test_what_was_dropped_while_it_was_being_sent_is_counted_once(path):
    box = Outbox(path, ["a"], max_bytes=1)
    box.put(items(0, 10))
    seqs = [s.seq for s in box.waiting("a", 10)]
    assert box.prune() == 10
    box.settle("a", seqs, [], [])
    account = box.ledger()["a"]
    assert (account.delivered, account.dropped) == (0, 10)
    assert account.balanced
    box.close()


def test_a_disk_that_takes_nothing_stores_nothing_of_the_group(outbox):
    outbox.put(items(0))
    outbox._durable.execute("PRAGMA max_page_count = 1")  # SQLite refuses to grow the file: SQLITE_FULL
    with pytest.raises(sqlite3.OperationalError, match="full"):
        outbox.put([Item(f"big-{n}", 8, b"x" * 9000) for n in range(20)])
    assert outbox.ledger()["a"].raised == 1
    outbox._durable.execute("PRAGMA max_page_count = 1000000")
    assert outbox.put([Item(f"big-{n}", 8, b"x" * 9000) for n in range(20)]) == 20
    assert balanced(outbox.ledger())


CHILD = """
import sys, threading
from pathlib import Path
from kwsiem.outbox import Item, Outbox
box = Outbox(Path(sys.argv[1]), ["a", "b"])
sent = open(sys.argv[2], "ab", buffering=0)
def carry(name):
    while True:
        batch = box.waiting(name, 7)
        if name == "a":
            for stored in batch:
                sent.write(stored.id.encode() + b"\\n")
        if batch:
            box.settle(name, [s.seq for s in batch], [], [])
for name in ("a", "b"):
    threading.Thread(target=carry, args=(name,), daemon=True).start()
number = int(sys.argv[3])
while True:
    group = [Item(f"id-{n}", 5, b"x" * (n % 4000)) for n in range(number, number + 1 + number % 5)]
    box.put(group)
    number += len(group)
    sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
"""


def test_nothing_that_was_durable_is_lost_by_kill_9(path, tmp_path):
    """A child stores, delivers and settles without pause and is killed at random moments, twelve times."""
    moments = random.Random(7)
    sent = tmp_path / "sent"
    next_number = 0
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(sent), str(next_number)], stdout=subprocess.PIPE
        )
        assert child.stdout
        durable = next_number
        for _ in range(moments.randrange(1, 60)):
            durable = int(child.stdout.readline())
        select.select([], [], [], moments.random() * 0.01)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        durable = int(rest[-1]) if rest and rest[-1].isdigit() else durable
        child.wait()
        child.stdout.close()
        box = Outbox(path, ["a", "b"])
        assert box.corrupt_path is None
        accounts = box.ledger()
        assert balanced(accounts)
        for name, account in accounts.items():
            assert len(box.waiting(name, 10**6)) == account.waiting
        next_number = accounts["a"].raised
        assert next_number >= durable, "what was said to be durable is on disk"
        waiting = {s.id for s in box.waiting("a", 10**6)}
        delivered = set(sent.read_text().split())
        assert waiting | delivered == {f"id-{n}" for n in range(next_number)}, (
            "each one waits or was delivered"
        )
        box.close()


class Accounts(RuleBasedStateMachine):
    """Any order of storing, settling, pruning and reopening keeps every account balanced."""

    @initialize(path=st.just(None))
    def begin(self, path):
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "kwsiem.db"
        self.box = Outbox(self.path, ["a", "b"], history=20, max_bytes=100_000)
        self.number = 0

    @rule(count=st.integers(1, 60), repeat=st.integers(0, 10), size=st.integers(1, 2000))
    def put(self, count, repeat, size):
        start = max(0, self.number - repeat)
        self.box.put([Item(f"id-{n}", 5, b"x" * size) for n in range(start, self.number + count)])
        self.number += count

    @rule(name=st.sampled_from("ab"), limit=st.integers(1, 50), kinds=st.randoms())
    def settle(self, name, limit, kinds):
        fate = {"delivered": [], "filtered": [], "dead": []}
        for stored in self.box.waiting(name, limit):
            fate[kinds.choice(list(fate))].append(stored.seq)
        self.box.settle(name, fate["delivered"], fate["filtered"], [(seq, "why") for seq in fate["dead"]])

    @rule()
    def prune(self):
        self.box.prune()

    @rule(names=st.sampled_from([["a", "b"], ["a"], ["b", "a"]]))
    def reopen(self, names):
        self.box.close()
        self.box = Outbox(self.path, names, history=20, max_bytes=100_000)
        self.box.close()
        self.box = Outbox(self.path, ["a", "b"], history=20, max_bytes=100_000)

    @invariant()
    def accounts_balance(self):
        if hasattr(self, "box"):
            for name, account in self.box.ledger().items():
                assert account.balanced
                assert account.waiting == len(self.box.waiting(name, 10**6))

    def teardown(self):
        if hasattr(self, "box"):
            self.box.close()
            self.folder.cleanup()


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_beyond_its_size_alerts_of_low_severity_go_before_high_ones(path):
    box = Outbox(path, ["a"], max_bytes=600_000)
    for first in range(0, 2000, 100):
        high = [Item(f"high-{n}", 8, b"x" * 500) for n in range(first, first + 10)]
        box.put(high + [Item(f"low-{n}", 5, b"x" * 500) for n in range(first, first + 90)])
        box.prune()
    for _ in range(10):
        box.prune()
    waiting = [stored.id for stored in box.waiting("a", 10_000)]
    assert sum(key.startswith("high") for key in waiting) == 200
    account = box.ledger()["a"]
    assert account.reasons == {"size": 2000 - len(waiting)}
    assert box.take_lost() == {("a", "size"): account.dropped}
    assert box.take_lost() == {}
    assert account.balanced
    box.close()


def test_alerts_that_waited_too_long_are_dropped_for_that_output_alone(path, monkeypatch):
    now_s = 1000
    for module in (box_module, tables):
        monkeypatch.setattr(module, "boot_ns", lambda: now_s * 10**9)
    box = Outbox(path, ["a", "b"], max_age_s={"a": 60.0, "b": 0.0})
    box.put(items(0, 10))
    now_s += 30
    box.put(items(10, 20))
    now_s += 32
    assert box.prune() == 10
    assert [s.id for s in box.waiting("a", 100)] == [f"id-{n}" for n in range(10, 20)]
    assert len(box.waiting("b", 100)) == 20
    assert box.ledger()["a"].reasons == {"age": 10}
    box.close()
    monkeypatch.setattr(tables, "boot_id", lambda: "another boot")
    now_s = 5
    box = Outbox(path, ["a", "b"], max_age_s={"a": 60.0})
    assert box.prune() == 0, "by wall time they are young"
    monkeypatch.setattr(tables, "wall_ns", lambda: wall_ns() + 3600 * 10**9)
    assert box.prune() == 10
    assert balanced(box.ledger())
    box.close()


def test_an_output_that_was_away_counts_what_was_removed_meanwhile(path):
    box = Outbox(path, ["a", "b"], history=10)
    box.put(items(0, 20))
    box.close()
    box = Outbox(path, ["a"], history=10)
    box.put(items(20, 100))
    box.settle("a", list(range(1, 101)), [], [])
    box.prune()
    assert box.take_lost() == {}, "nobody waits for an output that is not configured"
    assert set(read_ledger(path)) == {"a", "b"}
    box.close()
    box = Outbox(path, ["a", "b"], history=10)
    account = box.ledger()["b"]
    assert account.reasons == {"not_configured": 90}
    assert account.waiting == len(box.waiting("b", 1000)) == 10
    assert account.balanced
    box.close()


def test_dead_letters_wait_once_more_for_their_output_alone(outbox):
    outbox.put(items(0, 4))
    outbox.settle("a", [1], [], [(2, "refused"), (3, "too large")])
    assert outbox.retry_dead("a") == 2
    assert outbox.dead_letters("a") == []
    account = outbox.ledger()["a"]
    assert (account.dead, account.waiting) == (0, 3)
    found = outbox.waiting("a", 10)
    assert [s.id for s in found] == ["id-1", "id-2", "id-3"], "before all that waits"
    assert [s.id for s in outbox.waiting("b", 10)] == ["id-0", "id-1", "id-2", "id-3"]
    outbox.settle("a", [found[0].seq, 4], [], [(found[1].seq, "refused again")])
    outbox.settle("a", [found[0].seq], [], [])
    account = outbox.ledger()["a"]
    assert (account.delivered, account.dead, account.waiting) == (3, 1, 0)
    assert account.balanced
    letter = outbox.dead_letters("a")[0]
    assert (letter.id, letter.reason, letter.output) == ("id-2", "refused again", "a")
    assert letter.at_ns > 0
    assert outbox.urgent("a", found[0].seq, 10) == [], "none that is settled"


def test_dead_letters_are_bounded_in_number_and_bytes(outbox, monkeypatch):
    monkeypatch.setattr(tables, "MAX_DEAD_LETTERS", 5)
    outbox.put(items(0, 20))
    outbox.settle("a", [], [], [(seq, "refused") for seq in range(1, 21)])
    assert [letter.id for letter in outbox.dead_letters("a")] == [f"id-{n}" for n in range(15, 20)]
    monkeypatch.setattr(tables, "MAX_DEAD_BYTES", 1000)
    outbox.put([Item(f"big-{n}", 5, b"x" * 300) for n in range(5)])
    outbox.settle("a", [], [], [(seq, "refused") for seq in range(21, 26)])
    assert [letter.id for letter in outbox.dead_letters("a")] == ["big-3", "big-4"]
    assert outbox.ledger()["a"].dead == 25
    assert outbox.retry_dead("a") == 2
    account = outbox.ledger()["a"]
    assert (account.dead, account.waiting) == (23, 2)
    assert account.balanced


def test_one_wrong_bit_in_a_row_is_mended_and_two_are_a_counted_loss(outbox):
    outbox.put(items(0, 3))

    def damage(seq, bits):
        (data,) = outbox._quick.execute("SELECT frame FROM alerts WHERE seq = ?", (seq,)).fetchone()
        changed = bytearray(data)
        for bit in bits:
            changed[bit // 8] ^= 1 << bit % 8
        outbox._quick.execute("UPDATE alerts SET frame = ? WHERE seq = ?", (bytes(changed), seq))

    damage(1, [300])
    damage(2, [290, 300])
    assert [s.document for s in outbox.waiting("a", 10)] == [items(0)[0].document, items(2)[0].document]
    assert outbox.repaired() == 1
    assert outbox.ledger()["a"].reasons == outbox.ledger()["b"].reasons == {"corrupt": 1}
    assert [s.id for s in outbox.waiting("b", 10)] == ["id-0", "id-2"]
    assert outbox.take_lost() == {("a", "corrupt"): 1, ("b", "corrupt"): 1}
    assert balanced(outbox.ledger())


def test_the_ledger_can_be_read_by_another_process(outbox, path):
    outbox.put(items(0, 3))
    outbox.settle("a", [1], [], [])
    assert read_ledger(path) == outbox.ledger()
    assert read_ledger(path.with_name("none.db")) == {}
