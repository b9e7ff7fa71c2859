"""What is told to the courier: growth of counters, bounded, and counted where it is given up."""

import pytest

from kwsiem import clock, series_feed
from kwsiem.series_feed import Deltas, Feed, SensorFigures, Uptime


@pytest.fixture
def now(monkeypatch):
    times = {"s": 100.0}
    monkeypatch.setattr(clock, "monotonic_s", lambda: times["s"])
    monkeypatch.setattr(clock, "wall_ns", lambda: 1_800_000_000 * 10**9 + int(times["s"] * 10**9))
    return times


class Courier:
    """The other end; takes nothing while it is ``away``."""

    def __init__(self):
        self.messages = []
        self.away = False

    def send(self, message):
        if not self.away:
            self.messages.append(message)
        return not self.away

    def figures(self):
        return [message.figures for message in self.messages if message.figures]

    def journal(self):
        return [entry for message in self.messages for entry in message.journal]


def test_only_growth_is_told_and_fractions_are_kept_for_later():
    deltas = Deltas()
    assert deltas.of("a", {"x": 3, "y": 0}) == {"x": 3}
    assert deltas.of("a", {"x": 3, "y": 2.7}) == {"y": 2}
    assert deltas.of("a", {"x": 5, "y": 3.4}) == {"x": 2, "y": 1}
    assert deltas.of("b", {"x": 5}) == {"x": 5}


def test_a_counter_that_begins_anew_counts_from_nought():
    deltas = Deltas()
    deltas.of("a", {"x": 100})
    assert deltas.of("a", {"x": 4}) == {"x": 4}
    assert deltas.of("a", {}) == {}
    assert deltas.of("a", {"x": 3}) == {"x": 3}


def test_labels_are_bounded():
    deltas = Deltas()
    for start in range(0, 10_000, 500):
        assert len(deltas.of("a", {f"l{n}": 1 for n in range(start, start + 500)})) == series_feed.MAX_LABELS
    assert len(deltas._before["a"]) == series_feed.MAX_LABELS


def test_uptime_is_what_is_up_between_two_looks(now):
    uptime = Uptime()
    for _ in range(10):
        now["s"] += 0.5
        uptime.see(["a"])
    now["s"] += 3.25
    uptime.see(["b"])
    assert uptime.take() == {"a": 5, "b": 3}
    now["s"] += 0.75
    uptime.see(["b"])
    assert uptime.take() == {"b": 1}


def test_figures_that_the_courier_did_not_take_wait_for_the_next_second_only_until_there_are_new_ones(now):
    courier = Courier()
    feed = Feed(courier.send)
    courier.away = True
    feed.tell({"packets": {"tcp": 1}})
    feed.tick()
    feed.tell({"packets": {"tcp": 2}})
    assert feed.lost == 1
    courier.away = False
    feed.tick()
    feed.tick()
    assert courier.figures() == [{"packets": {"tcp": 2}}]
    assert courier.messages[0].at_s == 1_800_000_100


def test_without_figures_nothing_is_sent(now):
    courier = Courier()
    Feed(courier.send).tell({"packets": {}})
    assert courier.messages == []


def test_the_journal_is_bounded_by_the_second_and_in_all(now):
    courier = Courier()
    feed = Feed(courier.send)
    for _ in range(series_feed.JOURNAL_PER_S + 7):
        feed.note("k", {}, 1)
    assert feed.lost == 7
    feed.tick()
    assert len(courier.journal()) == series_feed.JOURNAL_PER_S
    assert all(len(message.journal) <= series_feed.JOURNAL_AT_ONCE for message in courier.messages)
    courier.away = True
    for _ in range(100):
        for _ in range(series_feed.JOURNAL_PER_S):
            feed.note("k", {}, 1)
        feed.tick()
    assert feed.lost == 7 + 100 * series_feed.JOURNAL_PER_S - series_feed.JOURNAL_WAITING
    courier.away = False
    feed.tick()
    assert len(courier.journal()) == series_feed.JOURNAL_PER_S + series_feed.JOURNAL_WAITING


def test_fields_of_an_entry_are_bounded_and_cleaned(now):
    courier = Courier()
    feed = Feed(courier.send)
    feed.note("k", {f"f{n}": "x\x1b" * 9000 for n in range(500)} | {"n": 5}, 1)
    feed.note("k", {"n": 5, "t": True}, 2)
    feed.tick()
    big, small = courier.journal()
    assert len(big.fields) == 32
    assert all(len(text) <= 256 and "\x1b" not in text for text in big.fields.values())
    assert small.fields == {"n": 5, "t": True}


def test_the_sensor_tells_blocks_uptime_and_usage_when_it_is_time(now):
    courier = Courier()
    figures = SensorFigures(10.0, courier.send)
    usage = [
        {"process": "sensor", "probe": "", "pid": 1, "cpu_s": 1.5, "resident_bytes": 100},
        {"process": "bpftrace", "probe": "net", "pid": 2, "cpu_s": 0.25, "resident_bytes": 50},
    ]
    for _ in range(25):
        figures.tick(lambda: ["net"], lambda: {"on": 3}, lambda: usage)
        now["s"] += 0.5
    assert courier.figures() == [
        {
            "blocks": {"on": 3},
            "probe_up_s": {"net": 10},
            "cpu_ms": {"sensor": 1500, "bpftrace:net": 250},
            "memory_bytes": {"sensor": 100, "bpftrace:net": 50},
        }
    ]
    usage[1] |= {"pid": 3, "cpu_s": 0.1}  # another bpftrace
    usage[0] |= {"cpu_s": 1.75}
    now["s"] += 10
    figures.tick(list, dict, lambda: usage)
    assert courier.figures()[1]["cpu_ms"] == {"sensor": 250, "bpftrace:net": 100}


def test_what_is_due_keeps_its_grid_and_makes_up_for_nothing():
    assert series_feed.next_due(10.0, 10.3, 1.0) == 11.0
    assert series_feed.next_due(10.0, 99.0, 1.0) == 100.0
