"""What a distinct count costs with more and more live values for each key.

    taskset -c 1 python bench/distinct.py [--keys 16]

``round``: the values of each key come again and again in turn, all of them live. ``slide``: always new values, the
oldest leave the window as new ones come. Nothing alerts. CPU time for each event, the engine alone, best of three.
"""

from __future__ import annotations

import argparse
import gc
import time

from kwsiem.correlate.engine import Engine
from kwsiem.event import Event, EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Correlation, Rule, RuleSet

KIND = EventKind("bench.value", parse_fields("source.ip:ip test.value:u32"))
EVENT = event_class(KIND, 1)
EVENTS = 400_000
TIMESPAN_NS = 60 * 10**9


def rule(values: int) -> Rule:
    """A rule whose window holds so many values of each key."""
    correlation = Correlation(
        "value_count", ("source.ip",), timespan_ns=TIMESPAN_NS, field="test.value", value=values * 3 // 2
    )
    return Rule(
        id="r",
        title="r",
        level="low",
        events=("bench.value",),
        predicate=Compare("test.value", "gte", 0),
        correlation=correlation,
        suppress_ns=TIMESPAN_NS,
        fingerprint="r",
    )


def measure(values: int, keys: int, slide: bool) -> float:
    """Nanoseconds for each event once the windows are full."""
    engine = Engine(lambda _: None, host="bench")
    engine.set_rules(RuleSet(rules=(rule(values),)))
    engine.bind(EVENT)
    full = values * keys * 3 // 2
    step_ns = TIMESPAN_NS * 9 // 10 // (values * keys)  # a value comes again before it is over
    took = 0.0
    sources = [f"192.0.2.{n}" for n in range(keys)]
    for start in range(0, full + EVENTS, 2000):  # the window is full before anything is timed
        numbers = range(start, start + 2000)
        batch: list[Event] = [
            EVENT(sources[n % keys], n // keys if slide else n // keys % values, 10**9 + n * step_ns)
            for n in numbers
        ]
        begun = time.process_time()
        engine.process(batch)
        if start >= full:
            took += time.process_time() - begun
    assert not engine.counters()["alerts"]
    assert not engine.counters()["evictions"]
    return took / EVENTS * 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1)
    keys = parser.parse_args().keys
    gc.freeze()
    gc.disable()
    base: dict[bool, float] = {}
    for values in (10, 100, 1000, 10_000, 100_000):
        shown = []
        for slide in (False, True):
            cost = min(measure(values, keys, slide) for _ in range(3))
            base.setdefault(slide, cost)
            shown.append(f"{'slide' if slide else 'round'} {cost:5.0f} ns ({cost / base[slide]:.2f})")
        print(f"{values:>7,} values for each of {keys} hot keys   " + "   ".join(shown), flush=True)


if __name__ == "__main__":
    main()
