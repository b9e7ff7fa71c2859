"""A flood of forged sources with slow attackers among them: who is found, at what cost in memory and pauses.

    taskset -c 1 python bench/flood.py [--sources 9000000] [--attackers 2000]

The flood takes 60 s of event time, each forged source comes once from anywhere in the IPv4 space. Each attacker
comes six times, 8 s apart; the rule wants five within 300 s.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import time
from collections.abc import Iterator

from kwsiem.alert import Alert
from kwsiem.correlate.engine import Engine
from kwsiem.event import Event, EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Correlation, Rule, RuleSet

KIND = EventKind("bench.syn", parse_fields("source.ip:ip destination.port:port"))
EVENT = event_class(KIND, 1)
S = 10**9
SECONDS = 60
BATCH = 2_000
RULE = Rule(
    id="slow",
    title="slow",
    level="high",
    events=("bench.syn",),
    predicate=Compare("destination.port", "gt", 0),
    correlation=Correlation("event_count", ("source.ip",), timespan_ns=300 * S, value=5),
    suppress_ns=300 * S,
    fingerprint="slow",
)


def address(number: int) -> str:
    """A number of 32 bits as an address."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def batches(sources: int, attackers: list[str]) -> Iterator[list[Event]]:
    """Events in the order of time, made as they are needed."""
    choose = random.Random(7)
    visits = sorted(
        ((start + round_ * 8.0) * S, attacker)
        for attacker in attackers
        for start in (choose.random() * 18,)
        for round_ in range(6)
    )
    step_ns = SECONDS * S // sources
    batch: list[Event] = []
    position = 0
    for number in range(sources):
        ts_ns = S + number * step_ns
        while position < len(visits) and visits[position][0] + S <= ts_ns:
            batch.append(EVENT(visits[position][1], 22, ts_ns))
            position += 1
        batch.append(EVENT(address(choose.getrandbits(32)), 80, ts_ns))
        if len(batch) >= BATCH:
            yield batch
            batch = []
    yield batch


def rss_mb() -> float:
    """Resident memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sources", type=int, default=9_000_000)
    parser.add_argument("--attackers", type=int, default=2_000)
    options = parser.parse_args()
    attackers = [f"203.0.{n // 256}.{n % 256}" for n in range(options.attackers)]
    alerts: list[Alert] = []
    engine = Engine(alerts.append, host="bench")
    engine.set_rules(RuleSet(rules=(RULE,)))
    engine.bind(EVENT)
    gc.collect()
    gc.freeze()
    gc.disable()  # as the engine process does
    before_mb, peak_mb = rss_mb(), 0.0
    longest_s = took_s = 0.0
    last_s = 0
    for batch in batches(options.sources, attackers):
        begun = time.perf_counter()
        cpu = time.process_time()
        engine.process(batch)
        if batch[-1].ts_ns // S != last_s:
            last_s = batch[-1].ts_ns // S
            engine.advance(batch[-1].ts_ns)
            peak_mb = max(peak_mb, rss_mb())
        took_s += time.process_time() - cpu
        longest_s = max(longest_s, time.perf_counter() - begun)
    found = {alert.identity["source.ip"] for alert in alerts if alert.state == "open"}
    true = found & set(attackers)
    counters = engine.counters()
    print(
        f"{options.sources:,} forged sources in {SECONDS} s of event time, {len(attackers):,} slow attackers"
    )
    print(f"found {len(true):,} of {len(attackers):,}, false {len(found - true)}")
    print(f"memory grew by {peak_mb - before_mb:.0f} MB at most; longest batch {longest_s * 1000:.1f} ms")
    print(f"{options.sources / took_s:,.0f} events/s; keys {counters['keys']:,}, "
          f"hits counted in the sketch {counters['crowded']:,}, evicted {counters['evictions']:,}")  # fmt: skip


if __name__ == "__main__":
    main()
