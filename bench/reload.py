"""What it takes the engine to take over 1,000 changed rules: how long no event is looked at, and where it goes.

    taskset -c 1 python bench/reload.py [--rules 1000]

Three shapes of rules: each tests one name for equality (a dictionary picks them), each tests parts of text as
Sigma rules do (nothing to pick by), each is decided in the order of time (a mean). CPU time of one process as
the engine's is, garbage collection off; best, median and longest of RUNS takeovers between which all rules
change. What is put off until a value first comes is shown as well: the first 5,000 events after a takeover
beside the next 5,000.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import msgspec

from kwsiem.correlate import codegen
from kwsiem.correlate.engine import Engine
from kwsiem.event import Event, EventKind, event_class, parse_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import RuleSet, decode_ruleset
from kwsiem.rules.source import Source

RUNS = 15
EVENTS = 5_000
KIND = EventKind(
    "bench.event",
    parse_fields("process.pid:u32 process.name:str process.command_line:str source.ip:ip"),
)
HEAD = "  - {{id: r{n}, title: R, level: low, event: bench.event, suppress: 1h,\n"
BY_SOURCE = "group-by: [source.ip], timespan: 10m"
SHAPES = {
    "one name each": HEAD
    + "     detection: {{a: {{process.name: name{n}}}, condition: a}},\n"
    + f"     correlation: {{{{type: event_count, {BY_SOURCE}, condition: {{{{gte: {{limit}}}}}}}}}}}}}}\n",
    "parts of text": HEAD
    + "     detection: {{a: {{process.name|endswith: 'me{n}'}}, b: {{process.command_line|contains: [' -x{n}', '/y{n}']}},"
    + " c: {{source.ip|cidr: 127.0.0.0/8}}, condition: a and b and not c}},\n"
    + f"     correlation: {{{{type: event_count, {BY_SOURCE}, condition: {{{{gte: {{limit}}}}}}}}}}}}}}\n",
    "a mean": HEAD
    + "     detection: {{a: {{process.name: name{n}}}, condition: a}},\n"
    + f"     correlation: {{{{type: value_avg, field: process.pid, {BY_SOURCE}, condition: {{{{gte: {{limit}}}}}}}}}}}}}}\n",
}


def rules(shape: str, count: int, limit: int) -> bytes:
    """Compiled rules, as the loader hands them over."""
    text = "version: 1\nrules:\n" + "".join(SHAPES[shape].format(n=n, limit=limit) for n in range(count))
    return load_rules([Source("bench", text.encode())], {"bench.event": KIND}).encode()


def events(cls: type[Event], count: int) -> list[Event]:
    """Events, one in two of a name that a rule tests, in an order that jumps."""
    return [
        cls(
            n,
            f"name{n * 7919 % (2 * count)}",
            f"run -x{n % 5000}",
            f"10.0.{n >> 8 & 255}.{n & 255}",
            n * 1000,
        )
        for n in range(EVENTS)
    ]


def took_ms(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1000


class Split:
    """Where the time of set_rules goes: making Python source and compiling it, and all else."""

    def __init__(self) -> None:
        self.compile_ms = self.handlers_ms = 0.0
        self._compile = codegen._FunctionMaker._compile
        self._handler = Engine._handler

    def __enter__(self) -> Split:
        def compiling(maker, lines):
            begun = time.process_time()
            try:
                return self._compile(maker, lines)
            finally:
                self.compile_ms += (time.process_time() - begun) * 1000

        def handler(engine, cls, states):
            begun = time.process_time()
            try:
                return self._handler(engine, cls, states)
            finally:
                self.handlers_ms += (time.process_time() - begun) * 1000

        codegen._FunctionMaker._compile = compiling
        Engine._handler = handler
        return self

    def __exit__(self, *_: object) -> None:
        codegen._FunctionMaker._compile = self._compile
        Engine._handler = self._handler


def measure(shape: str, count: int) -> None:
    versions = [rules(shape, count, limit) for limit in (100_000, 100_001)]
    cls = event_class(KIND, 1)
    some = events(cls, count)
    whole, decodes, first, then = [], [], [], []
    engine = Engine(lambda _: None, host="bench")
    engine.bind(cls)
    engine.set_rules(decode_ruleset(versions[1]))
    for run in range(RUNS):
        data = versions[run % 2]
        decodes.append(took_ms(lambda data=data: decode_ruleset(data)))
        whole.append(took_ms(lambda data=data: engine.set_rules(decode_ruleset(data))))
        first.append(took_ms(lambda: engine.process(some)))
        then.append(took_ms(lambda: engine.process(some)))
    with Split() as split:
        for run in range(RUNS):
            ruleset: RuleSet = decode_ruleset(versions[(run + RUNS) % 2])
            engine.set_rules(ruleset)
    bare = statistics.median(
        took_ms(lambda: msgspec.msgpack.decode(versions[0], type=RuleSet)) for _ in range(RUNS)
    )
    same = took_ms(lambda: engine.set_rules(ruleset))
    middle, decode = statistics.median(whole), statistics.median(decodes)
    handlers, compiling = split.handlers_ms / RUNS, split.compile_ms / RUNS
    print(
        f"{shape:<14} {len(versions[0]) >> 10:>5} KiB  {min(whole):>6.1f} {middle:>6.1f} {max(whole):>6.1f} ms:"
        f"  decode {bare:.1f}, check {max(0.0, decode - bare):.1f},"
        f" states {max(0.0, middle - decode - handlers):.1f}, source {handlers - compiling:.1f},"
        f" compile {compiling:.1f}; unchanged rules {same:.1f};"
        f" events after {statistics.median(first):.0f}, then {statistics.median(then):.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=1000)
    count = parser.parse_args().rules
    gc.freeze()
    gc.disable()  # as the engine process does
    print(f"{count:,} rules, all changed, {RUNS} takeovers: best, median, longest; the median's parts")
    for shape in SHAPES:
        measure(shape, count)


if __name__ == "__main__":
    main()
