"""The engine against a second evaluator; ``make fuzz`` does the same with 100,000 streams and more."""

import os
import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import fuzz

from kwsiem.rules.model import Constant, Correlation, Rule, Step

#: Of each type; KWSIEM_FUZZ_STREAMS raises it.
STREAMS = int(os.environ.get("KWSIEM_FUZZ_STREAMS", "250"))


@pytest.mark.parametrize("kind", fuzz.TYPES)
def test_the_engine_says_what_the_oracle_says(kind):
    for seed in range(STREAMS):
        difference = fuzz.compare(kind, seed)
        assert not difference, f"tests/fuzz.py --streams 1 --type {kind} --seed {seed}\n{difference}"


@pytest.mark.parametrize("kind", fuzz.TYPES)
def test_there_is_something_to_say_in_enough_streams(kind):
    """The comparison above would be worth nothing if nothing ever fired; a sequence needs some luck to."""
    said = [fuzz.run_oracle(fuzz.case(kind, Random(f"{kind} {seed}"))[0]) for seed in range(100)]
    assert sum(map(bool, said)) >= (20 if kind.endswith("sequence") else 25)


def test_whatever_fails_is_told_as_a_difference(monkeypatch):
    """A StopIteration in a worker would else end the run in silence, as if all had been compared."""
    monkeypatch.setattr(fuzz.oracle, "incidents", lambda *_: next(iter(())))
    assert "StopIteration" in fuzz.compare("any", 0)


def both_addresses(kind: str, **condition) -> Rule:
    """One event may meet both steps, each under its own name of the address (Sigma's aliases)."""
    steps = tuple(
        Step(name, Constant(True), events=("w.a",), group_by=(name,))
        for name in ("source.ip", "destination.ip")
    )
    return Rule(
        id="r", title="t", level="low", events=("w.a",), predicate=Constant(True), fingerprint="r",
        suppress_ns=60 * fuzz.S,
        correlation=Correlation(kind, ("ip",), timespan_ns=10 * fuzz.S, steps=steps, **condition),
    )  # fmt: skip


def through_both(rule: Rule, *at_s: int) -> tuple[list[fuzz.Found], list[fuzz.Found]]:
    """What the oracle and the engine say of events whose two addresses are the same."""
    fields = {"source.address": "192.0.2.1", "destination.ip": "192.0.2.1"}
    stream = [fuzz.Arrival("w.a", fields, at * 4, at * 4) for at in at_s]
    rows = [(each.event(), each.happening(), each.arrives * fuzz.QUARTER) for each in stream]
    given = fuzz.Case(rule, rows, tuple(fuzz.CLASSES.values()), True)
    return fuzz.run_oracle(given), fuzz.run_engine(given, Random(1))


def test_an_event_counts_once_under_two_names():
    expected, got = through_both(both_addresses("event_count", value=2), 1, 2)
    assert [(each.opened_ns // fuzz.S, each.count, each.total) for each in expected] == [(2, 2, 2)]
    assert got == expected


@pytest.mark.parametrize(("op", "value"), [("neq", 2), ("eq", 1), ("lt", 2), ("lte", 1)])
def test_temporal_looks_once_at_an_event_that_meets_two_rules_under_two_names(op, value):
    expected, got = through_both(both_addresses("temporal", op=op, value=value), 1)
    assert expected == []
    assert got == expected


def test_the_total_of_temporal_counts_an_event_once_under_two_names():
    expected, got = through_both(both_addresses("temporal", value=2), 1, 2)
    assert [(each.count, each.total) for each in expected] == [(2, 3)]
    assert got == expected
