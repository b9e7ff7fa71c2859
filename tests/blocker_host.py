"""A blocker with a firewall that only remembers (what a real one does is tested live), and clocks that stand."""

import itertools

from kwsiem import clock
from kwsiem.config import BlockingSettings
from kwsiem.messages import BlockRequest
from kwsiem.response.blocker import Blocker
from kwsiem.response.decisions import Decisions
from kwsiem.response.facts import RESERVED, Protected, network_of
from kwsiem.response.guard import Guard
from kwsiem.response.names import Names


class MemoryFirewall:
    def __init__(self):
        self.entries = {}
        self.ever = set()
        self.calls = []
        self.broken = ""
        self.full = set()
        self.error = None

    def _called(self, verb):
        self.calls.append(verb)
        if self.error:
            raise self.error

    def init(self):
        self._called("init")

    def block(self, entries):
        self._called("block")
        self.ever.update(e.network for e in entries)
        self.entries.update((e.network, e.timeout_s) for e in entries if e.network not in self.full)
        return {e.network: "set is full" for e in entries if e.network in self.full}

    def release(self, networks):
        self._called("release")
        for network in networks:
            self.entries.pop(network, None)

    def flush(self):
        self._called("flush")
        self.entries.clear()

    def close(self, *, remove):
        self._called("remove" if remove else "close")

    def damage(self):
        self._called("damage")
        return self.broken

    def repair_steps(self, entries):
        for entry in entries:
            yield {}
            self.entries[entry.network] = entry.timeout_s
        self.broken = ""

    def repair(self, entries):
        self._called("repair")
        self.broken = ""
        self.entries = {e.network: e.timeout_s for e in entries}


class Host:
    """Everything around a blocker, with clocks that stand until they are moved."""

    def __init__(self, folder, patch=setattr):
        self.folder = folder
        self.wall_ns = 1_800_000_000 * 10**9
        self.now_s = 1000.0
        patch(clock, "wall_ns", lambda: self.wall_ns)
        patch(clock, "monotonic_s", lambda: self.now_s)
        self.firewall = MemoryFirewall()
        self.ever = self.firewall.ever
        self.told = []
        self.cut = []
        self.protected = [Protected(network_of("192.0.2.1"), "gateway", "test")]
        self.names = {}
        self.alerts = itertools.count()
        self.blocker = None

    def start(self, **settings):
        chosen = {"mode": "on", "confirmed": True, **settings}
        self.blocker = Blocker(
            BlockingSettings(**chosen),
            Guard(
                sources={
                    "reserved": lambda: list(RESERVED),
                    **dict.fromkeys(("resolvers", "dhcp", "administrators", "addresses", "bridges"), list),
                    "gateways": lambda: list(self.protected),
                },
                spoofable_permitted=chosen.get("spoofable", False),
            ),
            Decisions(self.folder / "blocks" / "blocks.db"),
            self.firewall,
            lambda kind, fields: self.told.append((kind, fields["event.action"], fields["event.reason"])),
            cut=lambda *networks: self.cut.extend(networks),
            names=Names(resolve=lambda name: self.names[name]),
        )
        self.blocker.start()
        return self.blocker

    def stop(self):
        if self.blocker:
            self.counters = self.blocker.counters
            self.blocker.close()
            self.blocker = None

    def later(self, seconds):
        self.now_s += seconds
        self.wall_ns += int(seconds * 10**9)
        self.blocker.tick()

    def ask(self, *values, for_s=600, evidence="proven", **more):
        for value in values:
            self.blocker.request(
                BlockRequest(
                    alert_id=f"A{next(self.alerts)}", rule_id="ssh-brute-force", value=value, for_s=for_s,
                    evidence=evidence, **more,
                )
            )  # fmt: skip
        self.blocker.flush()

    def actions(self):
        return [action for _, action, _ in self.told]
