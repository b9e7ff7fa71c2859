"""The sequential test of first contacts: a slow scan is found, a browser is not, a flood hides nobody."""

import pytest

from kwsiem.correlate import sequential
from kwsiem.correlate.engine import Engine
from kwsiem.errors import ConfigError
from kwsiem.event import OWN_KINDS, EventKind, event_class, event_from_fields, parse_fields
from kwsiem.rules.explain import sentence
from kwsiem.rules.load import Source, load_rules

FIELDS = parse_fields("source.ip:ip destination.ip:ip destination.port:port tcp.flags:u8")
FLAGS = {"tcp.syn": 2, "tcp.open": 16, "tcp.refused": 20}
KINDS = {name: EventKind(name, FIELDS) for name in FLAGS} | dict(OWN_KINDS)
CLASSES = {name: event_class(kind, 1) for name, kind in KINDS.items()}
S = 10**9
HERE = "192.0.2.1"
RULE = """
version: 1
rules:
  - id: scan
    title: A source tries what is not there
    level: medium
    event: [tcp.syn, tcp.open, tcp.refused]
    detection:
      syn: {tcp.flags: 2}
      opened: {tcp.flags: 16}
      refused: {tcp.flags: 20}
      condition: 1 of *
    sequential_test:
      group-by: [source.ip]
      field: [destination.ip, destination.port]
      timespan: 24h
      attempt: syn
      success: opened
      failure: refused
      wait: 10s
    suppress: 1h
"""


def rules(source: str = RULE):
    return load_rules([Source("r.yaml", source.encode())], KINDS)


def event(kind: str, at_s: float, source: str = "198.51.100.7", port: int = 22):
    return CLASSES[kind](source, HERE, port, FLAGS[kind], int(at_s * S))


def lost(at_s: float, reason: str):
    kind = KINDS["sensor.lost"]
    return event_from_fields(
        CLASSES["sensor.lost"], kind, {"event.reason": reason, "event.count": 1}, int(at_s * S)
    )


class Run:
    def __init__(self, source: str = RULE) -> None:
        self.alerts: list = []
        self.ruleset = rules(source)
        self.start()

    def start(self, saved: bytes = b"") -> None:
        self.engine = Engine(self.alerts.append, host="h")
        if saved:
            self.engine.offer(saved)
        self.engine.set_rules(self.ruleset)
        for cls in CLASSES.values():
            self.engine.bind(cls)

    def send(self, *events) -> "Run":
        for each in events:
            self.engine.process([each])
            self.engine.advance(each.ts_ns)
        return self

    def opened(self) -> list:
        self.engine.finish(10**18)
        assert self.engine.counters()["errors"] == {}
        return [alert for alert in self.alerts if alert.state == "open"]


def slow_scan(count: int, kind: str = "tcp.syn", begin_s: int = 1000):
    return [event(kind, begin_s + 600 * n, port=1 + n) for n in range(count)]


@pytest.mark.parametrize("kind", ["tcp.syn", "tcp.refused"])
def test_five_failures_ten_minutes_apart_are_a_scan_and_four_are_not(kind):
    (alert,) = Run().send(*slow_scan(5, kind)).opened()
    assert alert.opened_ts_ns == (1000 + 600 * 4 + (10 if kind == "tcp.syn" else 0)) * S
    assert alert.identity == {"source.ip": "198.51.100.7"}
    assert alert.reason.startswith("5 of 5 first contacts failed in 1d: 192.0.2.1 1, 192.0.2.1 2")
    assert (alert.count, alert.first_ns, alert.values[0]) == (5, 1000 * S, "192.0.2.1 1")
    assert Run().send(*slow_scan(4, kind)).opened() == []


def test_successes_weigh_against_failures():
    opened = [event("tcp.open", 900 + n, port=8000 + n) for n in range(3)]
    assert Run().send(*opened, *slow_scan(7)).opened() == []
    (alert,) = Run().send(*opened, *slow_scan(8)).opened()
    assert alert.reason.startswith("8 of 11 first contacts failed")
    renewed = [event("tcp.open", 900 + n, port=8000 + n) for n in range(4)]
    (alert,) = Run().send(*renewed, *slow_scan(5)).opened()  # the fourth success began the test anew
    assert alert.reason.startswith("5 of 5 ")


def test_a_browser_that_comes_back_to_the_same_services_is_none():
    visits = [
        event(kind, 1000 + 60 * n + late, port=port)
        for n in range(50)
        for port in (80, 443, 22)
        for kind, late in (("tcp.syn", 0), ("tcp.open", 0.1))
    ]
    assert Run().send(*sorted(visits, key=lambda each: each.ts_ns)).opened() == []


def test_only_the_first_outcome_of_a_contact_counts():
    again = [event("tcp.refused", 1000 + n, port=22) for n in range(50)]
    came_up = [event("tcp.open", 2000 + n, port=22) for n in range(10)]
    assert Run().send(*again, *came_up).opened() == []
    assert len(Run().send(*again, *came_up, *slow_scan(4, begin_s=3000)).opened()) == 1


def test_an_answer_in_time_is_no_failure_and_a_late_one_is_too_late():
    def answered(late):
        return [
            e
            for n in range(5)
            for e in (event("tcp.syn", 100 * n, port=n), event("tcp.open", 100 * n + late, port=n))
        ]

    assert Run().send(*answered(9.9)).opened() == []
    assert len(Run().send(*answered(10)).opened()) == 1


def test_a_contact_is_forgotten_after_the_timespan():
    far = [event("tcp.refused", 1000 + 30_000 * n, port=n) for n in range(5)]
    assert Run().send(*far).opened() == []  # the first is a day old when the fifth fails
    near = [event("tcp.refused", 1000 + 20_000 * n, port=n) for n in range(5)]
    assert len(Run().send(*near).opened()) == 1


@pytest.mark.parametrize(
    ("reason", "found"), [("budget", 0), ("map_full", 0), ("ring_buffer", 0), ("aggregated", 1)]
)
def test_what_may_have_been_answered_while_events_were_lost_is_no_failure(reason, found):
    scan = [each for n, syn in enumerate(slow_scan(5)) for each in (syn, lost(1005 + 600 * n, reason))]
    assert len(Run().send(*scan).opened()) == found
    refused = [
        each for n, r in enumerate(slow_scan(5, "tcp.refused")) for each in (r, lost(1005 + 600 * n, reason))
    ]
    assert len(Run().send(*refused).opened()) == 1  # what was answered is sure


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_run_that_was_cut_goes_on_from_its_snapshot(cut):
    stream = [event("tcp.open", 500, port=80), *slow_scan(6), event("tcp.refused", 5000, port=99)]
    whole = [(a.opened_ts_ns, a.count, a.reason) for a in Run().send(*stream).opened()]
    run = Run().send(*stream[:cut])
    run.engine.advance(stream[cut - 1].ts_ns + 5 * S)  # an attempt waits for its outcome
    run.start(run.engine.save())
    assert run.engine.restored == 1
    assert [(a.opened_ts_ns, a.count, a.reason) for a in run.send(*stream[cut:]).opened()] == whole
    assert len(whole) == 1


def test_a_flood_of_forged_sources_hides_no_slow_scanner(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.window.MAX_KEYS", 8000)
    monkeypatch.setattr(sequential, "MAX_WAITING", 2000)
    forged = iter(range(10**9))

    def flood(at_s, count):
        for n in range(count):
            number = next(forged)
            yield event(
                "tcp.syn",
                at_s + n / 1000,
                f"{11 + number % 97}.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            )

    run = Run()
    for step in range(12):
        at_s = 1000 + 600 * step
        early = [event("tcp.syn", at_s - 1 + n / 1000, f"203.0.113.{n}", 1 + step) for n in range(20)]
        late = [event("tcp.syn", at_s + 5 + n / 1000, f"198.51.100.{n}", 1 + step) for n in range(20)]
        batch = [*early, *flood(at_s, 2500), *(late if step >= 2 else ())]
        run.engine.process(batch)
        run.engine.advance(batch[-1].ts_ns + 20 * S)
    found = {alert.identity["source.ip"] for alert in run.opened()}
    assert found == {f"{net}.{n}" for net in ("203.0.113", "198.51.100") for n in range(20)}
    counters = run.engine.counters()
    assert counters["crowded"] > 10_000
    assert counters["keys"] <= 8000


def test_a_group_keeps_so_many_contacts_and_no_more(monkeypatch):
    contacts = [event("tcp.open", 1000 + n, port=n) for n in range(200)]
    run = Run().send(*contacts)
    run.engine.finish()
    (window,) = run.engine._states[0]._windows
    assert len(window.state_of("198.51.100.7").contacts) == sequential.MAX_OF_GROUP
    assert run.engine.counters()["evictions"] == 200 - sequential.MAX_OF_GROUP
    monkeypatch.setattr(sequential, "MAX_CONTACTS", 0)
    run.send(event("tcp.open", 2000, port=1000)).engine.finish()
    assert len(window.state_of("198.51.100.7").contacts) == sequential.PRESSED_OF_GROUP


def test_a_fast_scan_that_nothing_answers_is_found():
    assert len(Run().send(*(event("tcp.syn", 1000 + n / 100, port=n) for n in range(500))).opened()) == 1


def test_the_rule_in_words():
    said = sentence(rules().rules[0])
    assert "first contacts (new destination.ip and destination.port)" in said
    assert "syn with refused or without opened for 10s" in said
    assert "5 in a row" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("wait: 10s", "wait: 24h", "sequential_test.wait: must be more than 0 and less than the timespan"),
        ("wait: 10s", "wait: 10s\n      benign: 0.1", "needs 0 < scanner < benign < 1"),
        ("wait: 10s", "wait: 10s\n      benign: 0.21", "at most 32 are kept"),
        ("wait: 10s", "wait: 10s\n      missed: 2", "expected a number between 0 and 1"),
        ("wait: 10s", "wait: 10s\n      missed: 0.7", "missed must lie between 0 and 0.5"),
        ("      wait: 10s\n", "", "key 'wait' is missing"),
        ("attempt: syn", "attempt: sin", "no selection and no rule is called 'sin', did you mean 'syn'"),
        ("attempt: syn", "attempt: opened", "stands twice"),
        ("destination.port]", "destination.prt]", "no field 'destination.prt'"),
        ("field: [destination.ip, destination.port]", "field: []", "expected 1 to 8 fields, got 0"),
    ],
)
def test_mistakes_are_told(old, new, said):
    with pytest.raises(ConfigError) as error:
        rules(RULE.replace(old, new))
    assert said in str(error.value)


NAMING = """
version: 1
rules:
  - {id: tried, title: t, level: low, event: tcp.syn, detection: {p: {tcp.flags: 2}, condition: p}}
  - {id: opened, title: o, level: low, event: tcp.open, detection: {p: {destination.port|gt: 0}, condition: p}}
  - {id: refused, title: r, level: low, event: tcp.refused, detection: {p: {tcp.flags: 20}, condition: p}}
  - id: scan
    title: A source tries what is not there
    level: medium
    sequential_test:
      group-by: [source.ip]
      field: [destination.ip, destination.port]
      timespan: 24h
      attempt: tried
      success: opened
      failure: refused
      wait: 10s
    suppress: 1h
"""


def test_it_may_name_other_rules_each_with_its_own_kind():
    run = Run(NAMING)
    assert [rule.id for rule in run.ruleset.rules] == ["scan"], "what it names says nothing by itself"
    assert [alert.rule_id for alert in run.send(*slow_scan(5)).opened()] == ["scan"]
    opened = [event("tcp.open", 900 + n, port=8000 + n) for n in range(3)]
    assert Run(NAMING).send(*opened, *slow_scan(7, "tcp.refused")).opened() == []
    assert len(Run(NAMING).send(*opened, *slow_scan(8, "tcp.refused")).opened()) == 1


def test_a_rule_with_a_correlation_cannot_be_its_part():
    counted = "condition: p}, correlation: {type: event_count, timespan: 1m, condition: {gte: 2}}}"
    with pytest.raises(ConfigError, match="rule tried has a correlation"):
        rules(NAMING.replace("{p: {tcp.flags: 2}, condition: p}}", "{p: {tcp.flags: 2}, " + counted))
