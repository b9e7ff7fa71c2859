"""Forged sources and rules written to do harm: no protected address is ever blocked (`make fuzz`).

    python tests/forged.py [--streams 1000000] [--seed 1]

Each stream is a handful of events, most of them in the names of gateway, resolver, administrator, allow list, own and
reserved addresses, in all the ways an address can be written. The rules are made at random: any kind, field, type and
threshold, all with ``block`` and ``spoofable: allow``. Events go through the real engine, its requests to the real
blocker with guard, policy and decisions; only the firewall is one that remembers.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from blocker_host import Host

from kwsiem.correlate.engine import Engine
from kwsiem.event import event_class, event_from_fields
from kwsiem.messages import BlockRequest
from kwsiem.response.facts import Protected, network_of
from kwsiem.rules.load import load_rules
from kwsiem.rules.source import Source
from kwsiem.sensor.catalog import read_catalog

PROBES = Path(__file__).resolve().parents[1] / "probes"
PROTECTED = {
    "192.0.2.1": "gateway", "192.0.2.53": "resolver", "192.0.2.67": "DHCP server", "203.0.113.9": "administrator session",
    "198.51.100.0/28": "allow list", "10.20.0.0/16": "container bridge", "2001:db8:1::1": "gateway", "2001:db8:2::/48": "allow list",
}  # fmt: skip
FORGED = (
    "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.53", "192.0.2.67", "203.0.113.9", "::ffff:203.0.113.9", "198.51.100.3",
    "198.51.100.15", "10.20.30.40", "2001:db8:1::1", "2001:DB8:1:0:0:0:0:1", "2001:db8:2:3::4", "127.0.0.1", "::1", "0.0.0.0",
    "::", "255.255.255.255", "224.0.0.1", "ff02::1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "", "gateway", "1.2.3.4.5",
    "192.0.2.1/24", "0/0", "::/0", "192.0.2.001", "3221225985", "0xc0000201", "192.0.2.1 ", "192.0.2.1\n",
)  # fmt: skip
STREAMS_PER_FILE = 2_000


def rule_file(rng: random.Random) -> bytes:
    """A rule file of one to six rules that block whatever they can."""
    lines = ["version: 1", "rules:"]
    for number in range(rng.randint(1, 6)):
        kind = rng.choice(["tcp.syn", "tcp.probe", "auth.attempt"])
        field = rng.choice(
            ["source.ip", "source.ip", "source.ip", "destination.ip"]
            if kind != "auth.attempt"
            else ["source.ip"]
        )
        wide = ["source.ip", "destination.ip"] if kind != "auth.attempt" else [field]
        group = rng.choice([[field], wide])
        counted = {
            "tcp.syn": "destination.port",
            "tcp.probe": "destination.port",
            "auth.attempt": "user.name",
        }[kind]
        kinds = ["event_count", "value_count"]
        chosen = rng.choice(kinds)
        value = rng.randint(1, 4)
        extra = f"field: {counted}, " if chosen == "value_count" else ""
        present = "process.pid|gt: 0" if kind == "auth.attempt" else "destination.port|gt: 0"
        lines += [
            f"  - id: harm-{number}",
            "    title: Harm",
            "    level: critical",
            f"    event: {kind}",
            f"    detection: {{s: {{{present}}}, condition: s}}",
            f"    correlation: {{type: {chosen}, {extra}group-by: [{', '.join(group)}], timespan: 10s, condition: {{gte: {value}}}}}",
            "    suppress: 1s",
            f"    block: {{field: {field}, for: {rng.choice(['1s', '10m', '24d'])}, spoofable: allow}}",
        ]
    return "\n".join(lines).encode()


class Run:
    """One host with its blocker, fed until the streams are done."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.host = Host(folder)
        self.host.protected = [
            Protected(network_of(text), rule, "forged.py") for text, rule in PROTECTED.items()
        ]
        self.host.start(
            spoofable=True, max_per_min=1_000_000, aggregate=self.rng.choice([0, 2, 8]), collateral=64
        )
        self.guarded = [entry.network for entry in self.host.blocker.guard.protected()]
        self.kinds = read_catalog([PROBES]).kinds()
        self.classes = {name: event_class(kind, 0) for name, kind in self.kinds.items()}
        self.asked = self.events = 0
        self.ts_ns = 10**12

    def new_rules(self) -> None:
        self.engine = Engine(self._raised, host="h")
        self.engine.set_rules(load_rules([Source("harm.yaml", rule_file(self.rng))], self.kinds))
        for cls in self.classes.values():
            self.engine.bind(cls)

    def _raised(self, alert) -> None:
        block = alert.block
        if isinstance(block.get("value"), str):
            self.asked += 1
            self.host.blocker.request(
                BlockRequest(
                    alert_id=alert.id, rule_id=alert.rule_id, value=block["value"], for_s=block["for_s"],
                    evidence=block["evidence"], spoofable=block["spoofable"],
                )
            )  # fmt: skip

    def _address(self) -> str:
        rng = self.rng
        pick = rng.random()
        if pick < 0.75:
            return rng.choice(FORGED)
        if pick < 0.9:
            return f"{rng.choice(['192.0.2', '198.51.100', '203.0.113', '10.20.30'])}.{rng.randrange(256)}"
        return (
            f"2001:db8:{rng.randrange(4)}::{rng.randrange(16):x}"
            if pick < 0.95
            else f"{rng.randrange(1, 224)}.{rng.randrange(256)}.7.7"
        )

    def stream(self) -> None:
        """A few events of one kind, most from one source."""
        rng = self.rng
        name = rng.choice(["tcp.syn", "tcp.probe", "auth.attempt"])
        kind, cls = self.kinds[name], self.classes[name]
        source, target = self._address(), self._address()
        events = []
        for number in range(rng.randint(1, 6)):
            self.ts_ns += rng.randrange(1, 400_000_000)
            if name == "auth.attempt":
                fields = {
                    "source.address": source,
                    "event.outcome": "failure",
                    "process.pid": 1 + number,
                    "user.name": f"u{number}",
                }
            else:
                fields = {"source.ip": source, "destination.ip": target, "destination.port": 1 + number}
            events.append(event_from_fields(cls, kind, fields, self.ts_ns))
        self.events += len(events)
        self.engine.process(events)

    def check(self) -> None:
        """Carry out what was asked, and look at everything that ever was in the firewall since."""
        self.host.blocker.flush()
        for text in self.host.ever:
            network = network_of(text)
            bad = [g for g in self.guarded if g.version == network.version and g.overlaps(network)]
            assert not bad, f"{text} is blocked, which is {bad}"
        self.host.ever.clear()


def run(streams: int, seed: int, folder: Path) -> Run:
    """So many streams; AssertionError when anybody protected was blocked."""
    made = Run(folder, seed)
    try:
        for number in range(streams):
            if number % STREAMS_PER_FILE == 0:
                made.new_rules()
            made.stream()
            if number % 200 == 199:
                made.check()
                made.host.later(made.rng.choice([1, 60, 1000]))
        made.check()
    finally:
        made.host.stop()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forged-") as folder:
        made = run(options.streams, options.seed, Path(folder))
    counters = made.host.counters
    print(
        f"{options.streams:,} streams, {made.events:,} events, {made.asked:,} blocks asked for,"
        f" {counters['blocked']:,} blocked, {counters['refused']:,} refused, nobody protected among them,"
        f" {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
