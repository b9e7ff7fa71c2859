"""Bytes of bpftrace lines to decisions: events per second of CPU on one core, with 1, 10 and 100 rules.

    taskset -c 1 python bench/engine.py

10,000 sources. Rule 0 counts every event (5 in 300 s by source); each further rule tests three fields and
matches one event in a hundred. CPU time of the process, median of five runs.
"""

from __future__ import annotations

import gc
import random
import statistics
import time

from kwsiem.correlate.engine import Engine
from kwsiem.decode import LineDecoder
from kwsiem.event import EventKind, parse_fields
from kwsiem.messages import ProbeKinds
from kwsiem.rules.model import And, Compare, Correlation, Number, Rule, RuleSet, Text

EVENTS = 200_000
CHUNK = 128 * 1024
RUNS = 5
KIND = EventKind(
    "bench.event",
    parse_fields("process.pid:u32 user.id:u32 process.name:str destination.port:port source.ip:ip"),
)
KINDS = ProbeKinds("bench", {1: KIND})
NAMES = [f"proc{n}" for n in range(100)]


def lines() -> bytes:
    """Events 1 ms apart."""
    choose = random.Random(1)
    out = []
    for n in range(EVENTS):
        source = f"10.{choose.randrange(4)}.{choose.randrange(50)}.{choose.randrange(50)}"
        name = NAMES[n % 100]
        data = (
            f'[1,{8000 + n % 500},{n % 3},"{name}",{1 + n % 1000},"{source}",{381731022702 + n * 1_000_000}]'
        )
        out.append(f'{{"type": "value", "data": {data}}}\n')
    return "".join(out).encode()


def rules(count: int) -> RuleSet:
    """One rule for all events, the others for one in a hundred each."""
    made = [
        Rule(
            id="all",
            title="all",
            level="low",
            events=("bench.event",),
            predicate=Compare("destination.port", "gt", 0),
            correlation=Correlation("event_count", ("source.ip",), timespan_ns=300 * 10**9, value=5),
            suppress_ns=300 * 10**9,
            fingerprint="all",
        )
    ]
    for n in range(1, count):
        predicate = And(
            (
                Text("process.name", "equals", (NAMES[n % 100],)),
                Compare("destination.port", "lt", 60000),
                Number("user.id", (0, 1, 2)),
            )
        )
        made.append(
            Rule(
                id=f"r{n}",
                title="rare",
                level="low",
                events=("bench.event",),
                predicate=predicate,
                correlation=Correlation("event_count", ("source.ip",), timespan_ns=300 * 10**9, value=5),
                suppress_ns=300 * 10**9,
                fingerprint=f"r{n}",
            )
        )
    return RuleSet(rules=tuple(made))


def measure(blob: bytes, count: int | None) -> tuple[float, int]:
    """Seconds of CPU for all events, and the alerts; without rules only decoding is timed."""
    alerts: list[object] = []
    engine = Engine(alerts.append, host="bench")
    decoder = LineDecoder(KINDS)
    if count is not None:
        engine.set_rules(rules(count))
    for cls in decoder.classes:
        engine.bind(cls)
    begun = time.process_time()
    for start in range(0, len(blob), CHUNK):
        events = decoder.feed(blob[start : start + CHUNK])
        if count is not None:
            engine.process(events)
    took = time.process_time() - begun
    assert decoder.accepted == EVENTS
    return took, len(alerts)


def main() -> None:
    blob = lines()
    gc.freeze()
    gc.disable()  # as the engine process does
    print(f"{EVENTS} events, {len(blob) // EVENTS} bytes each, 10,000 sources, CPU time, median of {RUNS}")
    decode_s = statistics.median(measure(blob, None)[0] for _ in range(RUNS))
    print(f"decode only   {EVENTS / decode_s:>10,.0f} events/s  {decode_s / EVENTS * 1e9:>6.0f} ns/event")
    for count in (1, 10, 100):
        runs = [measure(blob, count) for _ in range(RUNS)]
        took = statistics.median(run[0] for run in runs)
        print(
            f"{count:>3} rules     {EVENTS / took:>10,.0f} events/s  {took / EVENTS * 1e9:>6.0f} ns/event"
            f"  decode {decode_s / took:.0%}, {runs[0][1]} alerts"
        )


if __name__ == "__main__":
    main()
