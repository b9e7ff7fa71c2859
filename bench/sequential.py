"""The sequential test alone: events a second, and slow scanners that are found among forged sources.

    taskset -c 1 python bench/sequential.py [--sources 1000000] [--scanners 200]

Three streams: few sources that come back to known services; 300,000 SYNs a second from anywhere; and a flood of
forged sources over two hours of event time, in which each scanner tries one new port every ten minutes, from the
beginning or from the half hour on.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import time
from collections.abc import Iterable, Iterator

from kwsiem.alert import Alert
from kwsiem.correlate.engine import Engine
from kwsiem.event import Event, EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Correlation, Number, Rule, RuleSet, Sequential, Step

FIELDS = "source.ip:ip source.port:port destination.ip:ip destination.port:port tcp.flags:u8"
SYN = event_class(EventKind("tcp.syn", parse_fields(FIELDS)), 1)
S = 10**9
HERE = "192.0.2.1"
HOURS_S = 7200
SCAN_S = 600
RULE = Rule(
    id="scan",
    title="scan",
    level="high",
    events=("tcp.syn", "tcp.open", "tcp.refused"),
    predicate=Compare("tcp.flags", "gt", 0),
    correlation=Correlation(
        "sequential_test",
        ("source.ip",),
        timespan_ns=24 * 3600 * S,
        steps=tuple(
            Step(name, Number("tcp.flags", (flags,)))
            for name, flags in (("syn", 2), ("opened", 16), ("refused", 20))
        ),
        sequential=Sequential(("destination.ip", "destination.port"), wait_ns=10 * S),
    ),
    suppress_ns=3600 * S,
    fingerprint="scan",
)


def address(rng: random.Random) -> str:
    """Anywhere in the IPv4 space."""
    number = rng.getrandbits(32)
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def syn(source: str, at_ns: int, port: int = 80) -> Event:
    """One SYN to this host."""
    made: Event = SYN(source, 40_000, HERE, port, 2, at_ns)  # type: ignore[call-arg]
    return made


def known(seconds: int, rate: int) -> Iterator[list[Event]]:
    """200 sources that come back to one service."""
    for tick in range(seconds * 100):
        yield [
            syn(f"198.51.100.{n % 200}", 1000 * S + tick * S // 100 + n * 1000) for n in range(rate // 100)
        ]


def forged(rng: random.Random, seconds: int, rate: int) -> Iterator[list[Event]]:
    """Each SYN from somewhere else."""
    for tick in range(seconds * 100):
        yield [syn(address(rng), 1000 * S + tick * S // 100 + n * 1000) for n in range(rate // 100)]


def slow(rng: random.Random, sources: int, scanners: list[str], begin_s: int) -> Iterator[list[Event]]:
    """A thin flood with slow scanners in it."""
    for second in range(HOURS_S):
        begin_ns = (1000 + second) * S
        batch = [syn(address(rng), begin_ns + n * S // 1000) for n in range(-(-sources // HOURS_S))]
        for number, scanner in enumerate(scanners):
            if second >= begin_s and (second + 3 * number) % SCAN_S == 0:
                batch.append(syn(scanner, begin_ns + S - 1, 1000 + second // SCAN_S))
        yield batch


def measure(name: str, stream: Iterable[list[Event]], scanners: list[str]) -> None:
    """One stream through the rule; prints what it cost and found."""
    alerts: list[Alert] = []
    engine = Engine(alerts.append, host="bench")
    engine.set_rules(RuleSet(rules=(RULE,)))
    engine.bind(SYN)
    count, spent = 0, 0.0
    for batch in stream:
        begun = time.perf_counter()
        engine.process(batch)
        engine.advance(batch[-1].ts_ns)
        spent += time.perf_counter() - begun
        count += len(batch)
    engine.finish()
    found = {alert.identity["source.ip"] for alert in alerts if alert.state == "open"}
    counters = engine.counters()
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{name}: {count / spent:,.0f} events/s, {counters['keys']:,} groups, {counters['crowded']:,} crowded,"
        f" {memory_mb} MB; {len(found & set(scanners))} of {len(scanners)} scanners, others: "
        f"{len(found - set(scanners))}"
    )


def main() -> None:
    """All streams."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sources", type=int, default=1_000_000)
    parser.add_argument("--scanners", type=int, default=200)
    options = parser.parse_args()
    rng = random.Random(1)
    gc.disable()
    scanners = [f"203.0.{113 + n // 256}.{n % 256}" for n in range(options.scanners)]
    measure("known contacts", known(3, 300_000), [])
    measure("forged flood", forged(rng, 4, 300_000), [])
    for begin_s in (0, 1800):
        measure(f"slow, from {begin_s} s", slow(rng, options.sources, scanners, begin_s), scanners)


if __name__ == "__main__":
    main()
