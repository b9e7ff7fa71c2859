"""A random walk over everything that can be done to an outbox, against a plain model of it."""

import copy
import random
import shutil
from collections import Counter

import msgspec
import pytest

from kwsiem.outbox import Item, Outbox, balanced, frame, tables
from kwsiem.outbox import box as box_module

NAMES = ("a", "b")
STEPS = 120


class Clock:
    """Seconds of this boot, as the outbox reads them."""

    def __init__(self):
        self.s = 1000

    def ns(self):
        return self.s * 1_000_000_000


class Walk:
    """The outbox and, for each output, what is known of every alert: its fate, or that it waits."""

    def __init__(self, folder, seed, clock, **bounds):
        self.chance = random.Random(seed)
        self.folder = folder
        self.folder.mkdir()
        self.clock = clock
        self.bounds = bounds
        self.runs = 0
        self.number = 0
        self.waiting = {name: Counter() for name in NAMES}
        self.counts = {name: dict.fromkeys(("raised", "delivered", "dead", "filtered"), 0) for name in NAMES}
        self.lost = dict.fromkeys(NAMES, 0)
        self.before_holding = None
        self.path = folder / "0" / "kwsiem.db"
        self.path.parent.mkdir()
        self.open()

    def open(self):
        self.box = Outbox(self.path, NAMES, **self.bounds)

    def model(self):
        return copy.deepcopy((self.waiting, self.counts, self.lost))

    def new_items(self):
        count = self.chance.randrange(1, 40)
        first = max(0, self.number - self.chance.choice([0, 0, 3]))
        made = [
            Item(f"id-{n}", self.chance.choice([3, 5, 8, 10]), b"x" * self.chance.randrange(2000))
            for n in range(first, self.number + count)
        ]
        self.number += count
        return made

    def raised(self, items):
        for name in NAMES:
            for item in items:
                self.counts[name]["raised"] += 1
                self.waiting[name][item.id] += 1

    def put(self):
        items = self.new_items()
        stores = [self.box._quick, *([self.box._held.db] if self.box.holding else [])]
        known = {key for db in stores for (key,) in db.execute("SELECT id FROM alerts")}
        if self.box.holding:
            assert self.box.hold(items)
        else:
            assert self.box.put(items) == sum(item.id not in known for item in items)
        # One that came before and was removed since is an alert like any other.
        self.raised([item for item in items if item.id not in known])

    def settle(self):
        name = self.chance.choice(NAMES)
        batch = self.box.waiting(name, self.chance.randrange(1, 60))
        if self.chance.random() < 0.5:
            batch += self.box.urgent(name, batch[-1].seq if batch else 0, 20)
        chosen = [stored for stored in batch if self.chance.random() < self.chance.choice([0.3, 0.9, 1.0])]
        fates = {"delivered": [], "filtered": [], "dead": []}
        for stored in chosen:
            kind = self.chance.choice(["delivered"] * 8 + ["filtered", "dead"])
            fates[kind].append(stored.seq)
            assert self.waiting[name][stored.id] > 0, "what was settled does not wait any more"
            self.waiting[name] -= Counter([stored.id])
            self.counts[name][kind] += 1
        if self.chance.random() < 0.2:
            self.box.prune()  # between reading and settling: what is dropped meanwhile is counted once
            for stored in chosen:
                self.waiting[name][stored.id] += 1
            for kind, seqs in fates.items():
                self.counts[name][kind] -= len(seqs)
            before = self.box.ledger()[name]
            self.box.settle(name, fates["delivered"], fates["filtered"], [(s, "why") for s in fates["dead"]])
            after = self.box.ledger()[name]
            for kind in fates:
                self.counts[name][kind] += getattr(after, kind) - getattr(before, kind)
            for each in NAMES:
                self.waiting[each] = self.listed(each)
            return
        self.box.settle(name, fates["delivered"], fates["filtered"], [(s, "why") for s in fates["dead"]])

    def retry(self):
        if not self.box.holding:
            name = self.chance.choice(NAMES)
            before = Counter(letter.id for letter in self.box.dead_letters(name))
            count = self.box.retry_dead(name)
            again = before - Counter(letter.id for letter in self.box.dead_letters(name))
            assert sum(again.values()) == count
            self.waiting[name] += again
            self.counts[name]["dead"] -= count

    def prune(self):
        self.box.prune()
        for name in NAMES:
            listed = self.listed(name)
            assert listed <= self.waiting[name]
            self.waiting[name] = listed

    def time(self):
        self.clock.s += self.chance.randrange(1, 20)

    def hold(self):
        if not self.box.holding:
            self.before_holding = self.model()
            with self.box._lock:
                self.box._hold("full")

    def heal(self):
        assert self.box.heal()
        self.before_holding = None

    def reopen(self):
        self.box.close()
        self.before_holding = None
        self.open()

    def kill(self):
        """Go on with the files as they are on disk at this moment."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        for found in self.path.parent.iterdir():
            if not found.name.endswith("-shm"):
                shutil.copy(found, folder / found.name)
        lost = self.box.take_lost()
        self.box.close()
        shutil.rmtree(self.path.parent)
        self.path = folder / "kwsiem.db"
        self.count_lost(lost)
        if self.before_holding:
            self.waiting, self.counts, self.lost = self.before_holding
            self.before_holding = None
        self.open()
        assert self.box.salvaged == 0

    def listed(self, name):
        """What waits, by reading it; in memory the dead letters that wait again are out of reach."""
        found = Counter(stored.id for stored in self.box.waiting(name, 10**6))
        return found + (self.waiting_again(name) if self.box.holding else Counter())

    def waiting_again(self, name):
        letters = self.box._quick.execute(
            "SELECT frame FROM dead_letters WHERE output = ? AND again = 1", (name,)
        )
        return Counter(frame.decode(data).key for (data,) in letters)

    def count_lost(self, lost):
        for (name, _), count in lost.items():
            self.lost[name] += count

    def check(self):
        accounts = self.box.ledger()
        assert balanced(accounts)
        self.count_lost(self.box.take_lost())
        for name, account in accounts.items():
            counts = self.counts[name]
            assert self.listed(name) == self.waiting[name]
            assert account.waiting == sum(self.waiting[name].values())
            assert account.dropped == self.lost[name]
            for kind, count in counts.items():
                assert getattr(account, kind) == count, kind


@pytest.mark.parametrize("seed", range(12))
def test_every_account_is_right_at_any_moment(tmp_path, monkeypatch, seed):
    clock = Clock()
    monkeypatch.setattr(tables, "boot_ns", clock.ns)
    monkeypatch.setattr(box_module, "boot_ns", clock.ns)
    bounds = [
        {"history": 30},
        {"history": 30, "max_bytes": 400_000},
        {"history": 10, "max_bytes": 400_000, "max_age_s": {"a": 60, "b": 15}},
    ][seed % 3]
    walk = Walk(tmp_path / "walk", seed, clock, **bounds)
    steps = [walk.put] * 5 + [walk.settle] * 6 + [walk.prune, walk.time, walk.retry, walk.reopen, walk.kill]
    steps += [walk.hold, walk.heal]
    for _ in range(STEPS):
        walk.chance.choice(steps)()
        walk.check()
    walk.box.close()


def test_the_account_does_not_need_long_with_many_waiting(tmp_path):
    """It is read from one row for each output, however many alerts wait, also out of their order."""
    box = Outbox(tmp_path / "kwsiem.db", NAMES)
    box.put([Item(f"id-{n}", 5, msgspec.json.encode(n)) for n in range(20_000)])
    box.settle("a", list(range(10_000, 20_001)), [], [])
    steps = []
    box._quick.set_progress_handler(lambda: steps.append(1) and None, 1000)
    assert box.ledger()["a"].waiting == 9_999
    assert steps == [], "fewer than 1,000 steps of SQLite's machine"
    box._quick.set_progress_handler(None, 0)
    box.close()
