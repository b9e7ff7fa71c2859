"""Alerts with hostile values, and a worker with an outbox that carries them to a receiver in the test's own time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from kwsiem.alert import Alert
from kwsiem.delivery import make_output, make_renderer, make_route
from kwsiem.document import document
from kwsiem.outbox import Item, Ledger, Outbox
from kwsiem.output_settings import OutputSettings
from kwsiem.outputs.base import Output, Rendered
from kwsiem.outputs.worker import Worker

START_NS = 1_767_323_045_123_000_000
HOSTILE = 'a=b \\ c | d "q" ]x\ncs1=forged\r\x00\x1b[31m\u2028<0>1 - - - é 🦊 #012\t\\'


def alert(number: int, text: str = "root", **changes) -> Alert:
    fields = {"source.ip": "2001:db8::bad:1", "user.name": text, "service.name": "sshd", "process.pid": 7}
    values = {
        "rule_id": "ssh-brute-force", "title": "SSH brute force", "level": "critical", "state": "open",
        "identity": {"source.ip": "2001:db8::bad:1"}, "count": 25, "first_ns": START_NS, "last_ns": START_NS,
        "raised_ns": START_NS, "opened_ts_ns": number, "reason": f"last: {text}", "tags": ["attack.t1110.001"],
        "fields": fields, "evidence": [{"kind": "auth.attempt", "ts_ns": 1, **fields}], "host": "gw01.example.net",
    }  # fmt: skip
    return Alert(**{**values, **changes})


#: A usual one, a hostile one, one too long for a datagram, and one with a hostile header.
DOCUMENTS = [
    document(alert(0)),
    document(alert(1, HOSTILE)),
    document(alert(2, "é🦊=|\\" * 150)),
    document(alert(3, level="informational", host="host with space\n", rule_id="x" * 60)),
]


def rendered(settings: OutputSettings, documents: Sequence[dict]) -> list[Rendered]:
    """Documents as the settings want them."""
    render = make_renderer(settings)
    return [
        Rendered(found["event"]["id"], found["event"]["severity"], render(msgspec.json.encode(found)))
        for found in documents
    ]


def send(settings: OutputSettings, documents: Sequence[dict]) -> list[Rendered]:
    """Send documents over one connection, and give what was sent."""
    output, found = make_output(settings, {}), rendered(settings, documents)
    output.open()
    output.send(found)
    output.close()
    return found


class Carrier:
    """An outbox and the worker of one output; time is what the worker asks for."""

    def __init__(self, folder: Path, settings: OutputSettings) -> None:
        self.outbox = Outbox(folder / "kwsiem.db", ["siem"])
        self.output: Output = make_output(settings, {})
        self.worker = Worker("siem", self.output, self.outbox, make_route(settings))
        self.now_s = 0.0
        self.raised: list[str] = []

    def put(self, count: int) -> None:
        """Raise so many alerts."""
        documents = [document(alert(number)) for number in range(len(self.raised), len(self.raised) + count)]
        self.raised += [found["event"]["id"] for found in documents]
        self.outbox.put([Item(found["event"]["id"], 8, msgspec.json.encode(found)) for found in documents])

    def carry(self, rounds: int) -> None:
        """So many rounds, each when it is due."""
        for _ in range(rounds):
            self.now_s += self.worker.step(self.now_s)

    def carry_all(self) -> None:
        """Until nothing waits, and what was to be sent again has been."""
        for _ in range(1000):
            wait_s = self.worker.step(self.now_s)
            self.now_s += wait_s
            if wait_s and self.worker.state == "ready":
                return
        raise AssertionError(f"still {self.ledger}, {self.worker.stats()}")

    @property
    def ledger(self) -> Ledger:
        return self.outbox.ledger()["siem"]

    def close(self) -> None:
        self.worker.close()
        self.outbox.close()
