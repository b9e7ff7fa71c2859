"""Windows against a brute-force oracle written from the definition, sharing no code with the engine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Correlation, Number, Rule, RuleSet, Step

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32"))
EVENT = event_class(KIND, 1)
S = 10**9


def rule(correlation: Correlation, suppress_s: float = 1e9, **changes) -> Rule:
    return Rule(
        **{
            "id": "r", "title": "t", "level": "low", "events": ("t.e",), "predicate": Compare("test.value", "gte", 0),
            "correlation": correlation, "suppress_ns": round(suppress_s * S), "fingerprint": str(hash(correlation)),
            **changes,
        }
    )  # fmt: skip


class Run:
    """An engine with one rule, and what it said."""

    def __init__(self, *rules: Rule) -> None:
        self.alerts: list = []
        self.engine = Engine(self.alerts.append, host="h")
        self.engine.set_rules(RuleSet(rules=rules))
        self.engine.bind(EVENT)

    def send(self, *events: tuple[str, int, int]) -> "Run":
        self.engine.process([EVENT(key, value, ts) for key, value, ts in events])
        return self

    def opened(self) -> list[tuple[str, int]]:
        return [(a.identity.get("source.ip"), a.opened_ts_ns) for a in self.alerts if a.state == "open"]


def count(value: int, timespan_s: float, **more) -> Correlation:
    return Correlation("event_count", ("source.ip",), timespan_ns=round(timespan_s * S), value=value, **more)


def distinct(value: int, timespan_s: float) -> Correlation:
    return Correlation(
        "value_count", ("source.ip",), timespan_ns=round(timespan_s * S), field="test.value", value=value
    )


STREAMS = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 4), st.integers(1, 400)), min_size=1, max_size=40
)


@settings(max_examples=300)
@given(STREAMS, st.integers(1, 5), st.integers(1, 60))
def test_event_count_fires_at_the_very_event_the_definition_names(stream, threshold, window):
    """In order of time: the first event with at least `threshold` of its key in (t - window, t]."""
    stream = sorted(stream, key=lambda e: e[2])
    expected = []
    for key in ("a", "b"):
        stamps = []
        for k, _, ts in stream:
            if k == key:
                stamps.append(ts)
                if sum(ts - window < s <= ts for s in stamps) >= threshold:
                    expected.append((key, ts))
                    break
    run = Run(rule(count(threshold, window / S))).send(*stream)
    assert sorted(run.opened()) == sorted(expected)


@settings(max_examples=300)
@given(STREAMS, st.integers(1, 5), st.integers(1, 60))
def test_value_count_fires_at_the_very_event_the_definition_names(stream, threshold, window):
    stream = sorted(stream, key=lambda e: e[2])
    expected = []
    for key in ("a", "b"):
        seen = []
        for k, value, ts in stream:
            if k == key:
                seen.append((ts, value))
                if len({v for s, v in seen if ts - window < s <= ts}) >= threshold:
                    expected.append((key, ts))
                    break
    run = Run(rule(distinct(threshold, window / S))).send(*stream)
    assert sorted(run.opened()) == sorted(expected)


@settings(max_examples=300)
@given(STREAMS, st.integers(1, 5), st.integers(1, 60), st.randoms())
def test_event_count_finds_the_same_keys_in_any_order_within_the_lateness(stream, threshold, window, random):
    shuffled = list(stream)
    random.shuffle(shuffled)  # 400 ns apart at most: far within two seconds
    fires = set()
    for key in ("a", "b"):
        stamps = sorted(ts for k, _, ts in stream if k == key)
        if any(sum(t - window < s <= t for s in stamps) >= threshold for t in stamps):
            fires.add(key)
    run = Run(rule(count(threshold, window / S))).send(*shuffled)
    assert {key for key, _ in run.opened()} == fires


def test_the_window_is_half_open():
    assert Run(rule(count(2, 60))).send(("a", 0, S), ("a", 0, 61 * S)).opened() == []
    assert Run(rule(count(2, 60))).send(("a", 0, S), ("a", 0, 61 * S - 1)).opened() != []


def test_a_straddled_window_is_found():
    """Four events at the end of one minute, one at the beginning of the next: no fixed windows."""
    events = [("a", n, 58 * S + n * S // 2) for n in range(4)] + [("a", 9, 60 * S)]
    assert Run(rule(count(5, 60))).send(*events).opened() == [("a", 60 * S)]


def test_keys_survive_the_turn_of_generations_as_long_as_a_window_needs_them():
    run = Run(rule(count(2, 60)))
    run.send(("a", 0, 100 * S))
    for second in range(100, 160):
        run.engine.advance(second * S)
    assert run.send(("a", 0, 159 * S)).opened() == [("a", 159 * S)]


def test_old_keys_are_let_go():
    run = Run(rule(count(2, 60)))
    run.send(*((str(n), 0, 100 * S) for n in range(1000)))
    for second in range(100, 400, 10):
        run.engine.advance(second * S)
    assert run.engine.counters()["keys"] == 0
    assert run.engine.counters()["evictions"] == 0


def test_a_flood_of_keys_is_capped_and_counted(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.window.MAX_KEYS", 1000)
    run = Run(rule(count(2, 60)))
    run.send(*((str(n), 0, n) for n in range(10_000)))
    counters = run.engine.counters()
    assert counters["keys"] <= 1000
    assert counters["crowded"] >= 9000  # counted in a sketch: who was there first stays


def test_events_without_a_group_are_counted_and_match_nothing():
    run = Run(rule(count(1, 60))).send(("", 0, S), ("", 0, S))
    assert run.alerts == []
    assert run.engine.counters()["ungrouped"] == 2


# -- sequences -----------------------------------------------------------------------------------------

FAIL, OK = Number("test.value", (0,)), Number("test.value", (1,))


def sequence(fails: int, timespan_s: float) -> Correlation:
    return Correlation(
        "sequence",
        ("source.ip",),
        timespan_ns=round(timespan_s * S),
        steps=(Step("fail", FAIL, fails), Step("ok", OK)),
    )


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 100)), max_size=25, unique_by=lambda e: e[1]),
    st.integers(1, 3),
    st.integers(1, 50),
)
def test_a_sequence_fires_where_the_definition_says(stream, fails, window):
    """At the first success with `fails` failures before it, the earliest of them less than a window away."""
    stream = sorted(stream, key=lambda e: e[1])
    expected = []
    for value, ts in stream:
        before = [t for v, t in stream if v == 0 and t < ts]
        if value == 1 and len(before) >= fails and ts - before[-fails] < window:
            expected = [("a", ts)]
            break
    run = Run(rule(sequence(fails, window / S))).send(*(("a", value, ts) for value, ts in stream))
    assert run.opened() == expected


def test_steps_at_the_same_instant_are_not_in_order():
    assert Run(rule(sequence(1, 60))).send(("a", 0, S), ("a", 1, S)).opened() == []


# -- incidents -----------------------------------------------------------------------------------------


def test_an_incident_opens_once_is_updated_at_ten_times_and_closes_with_its_totals():
    run = Run(rule(count(5, 60), suppress_s=30))
    run.send(*(("a", n, S + n * S // 100) for n in range(600)))
    assert [(a.state, a.count) for a in run.alerts] == [("open", 5), ("update", 50), ("update", 500)]
    run.engine.advance(20 * S)
    assert run.alerts[-1].state == "update"
    run.engine.advance(60 * S)
    assert (run.alerts[-1].state, run.alerts[-1].count) == ("close", 600)
    assert len({a.id for a in run.alerts}) == 4
    assert len({a.incident_id for a in run.alerts}) == 1


def test_a_quiet_source_that_comes_back_is_a_new_incident_whether_or_not_the_clock_came_by():
    for advance in (False, True):
        run = Run(rule(count(2, 60), suppress_s=100))
        run.send(("a", 0, S), ("a", 0, 2 * S))
        if advance:
            run.engine.advance(300 * S)
        run.send(("a", 0, 300 * S), ("a", 0, 301 * S))
        assert [(a.state, a.raised_ns) for a in run.alerts] == [
            ("open", 2 * S),
            ("close", 102 * S),
            ("open", 301 * S),
        ]


def test_without_a_quiet_time_each_match_is_an_alert():
    run = Run(rule(Correlation(), suppress_s=0)).send(("a", 0, 1), ("a", 0, 2), ("b", 0, 3))
    assert [a.state for a in run.alerts] == ["open"] * 3


def test_the_same_events_give_the_same_ids():
    events = [("a", n, S + n) for n in range(5)]
    first, second = Run(rule(count(5, 60))).send(*events), Run(rule(count(5, 60))).send(*events)
    assert [a.id for a in first.alerts] == [a.id for a in second.alerts]


def test_an_alert_says_why_with_values_and_evidence():
    alert = Run(rule(distinct(3, 60))).send(("a", 7, S), ("a", 8, 2 * S), ("a", 9, 3 * S)).alerts[0]
    assert alert.reason == "3 distinct test.value in 1m (at least 3): 7, 8, 9"
    assert alert.values == [7, 8, 9]
    assert alert.evidence == [
        {"kind": "t.e", "ts_ns": 3 * S, "grade": "spoofable", "source.ip": "a", "test.value": 9}
    ]
    assert (alert.first_ns, alert.last_ns) == (S, 3 * S)


# -- reload --------------------------------------------------------------------------------------------


def test_an_unchanged_rule_keeps_its_window_over_a_reload_and_takes_its_new_words():
    run = Run(rule(count(5, 60)))
    run.send(*(("a", 0, S + n) for n in range(4)))
    run.engine.set_rules(RuleSet(rules=(rule(count(5, 60), title="new words"),)))
    run.send(("a", 0, 2 * S))
    assert [a.title for a in run.alerts] == ["new words"]


def test_a_changed_threshold_begins_anew():
    run = Run(rule(count(5, 60)))
    run.send(*(("a", 0, S + n) for n in range(4)))
    run.engine.set_rules(RuleSet(rules=(rule(count(3, 60)),)))
    run.send(("a", 0, 2 * S), ("a", 0, 2 * S + 1))
    assert run.alerts == []
    run.send(("a", 0, 2 * S + 2))
    assert len(run.alerts) == 1


def test_an_open_incident_goes_on_over_a_reload():
    run = Run(rule(count(2, 60), suppress_s=100))
    run.send(("a", 0, 1), ("a", 0, 2))
    run.engine.set_rules(RuleSet(rules=(rule(count(2, 60), suppress_s=100),)))
    run.send(*(("a", 0, 3 + n) for n in range(5)))
    assert [a.state for a in run.alerts] == ["open"]


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_batches_make_no_difference(batch):
    events = [("a", n % 7, S + n * 10**7) for n in range(500)]
    run = Run(rule(distinct(4, 1)), rule(count(50, 1), id="c", fingerprint="c"))
    for start in range(0, len(events), batch):
        run.send(*events[start : start + batch])
    assert sorted((a.rule_id, a.state, a.count) for a in run.alerts) == [
        ("c", "open", 50), ("c", "update", 500), ("r", "open", 4), ("r", "update", 40), ("r", "update", 400),
    ]  # fmt: skip


@pytest.mark.parametrize("correlation", [count(2, 60), count(2, 60, op="eq")])
def test_a_changed_quiet_time_holds_at_once_for_windows_that_stay(correlation):
    first = rule(correlation, suppress_s=1000)
    run = Run(first).send(("a", 0, S), ("a", 0, 2 * S))
    run.engine.advance(10 * S)
    run.engine.set_rules(RuleSet(rules=(rule(correlation, suppress_s=5, fingerprint=first.fingerprint),)))
    run.send(("a", 0, 20 * S), ("a", 0, 21 * S))
    run.engine.finish()
    assert [(a.state, a.count) for a in run.alerts] == [("open", 2), ("close", 2), ("open", 2)]
