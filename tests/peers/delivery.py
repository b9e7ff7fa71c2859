"""The whole way of an alert in one process: outbox, worker, output, with a clock that the test turns."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kwsiem.alert import Alert
from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.outbox import Item, Ledger, Outbox
from kwsiem.output_settings import OutputSettings
from kwsiem.outputs.worker import Worker

START_NS = 1_767_323_045_123_000_000  # 2026-01-02T03:04:05.123Z


def alert(number: int = 0, **changes: Any) -> Alert:
    """A port scan; ``number`` tells one from another, and is its second."""
    at_ns = START_NS + number * 1_000_000_000
    values: dict[str, Any] = {
        "rule_id": "tcp-port-scan",
        "title": "TCP port scan",
        "level": "medium",
        "state": "open",
        "identity": {"source.ip": "198.51.100.7"},
        "count": 5,
        "first_ns": at_ns,
        "last_ns": at_ns,
        "raised_ns": at_ns,
        "opened_ts_ns": 1000 + number,
        "reason": '5 different destination.port in 3s, "quoted" \\ ünïcode </script>',
        "tags": ["attack.discovery", "attack.t1046"],
        "fields": {"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1", "destination.port": 24},
        "values": [20, 21, 22, 23, 24],
        "evidence": [],
        "host": "gw01.example.net",
    }
    return Alert(**{**values, **changes})


class Delivery:
    """One output behind a real outbox; ``now_s`` is the worker's monotonic time."""

    def __init__(self, folder: Path, settings: OutputSettings, secrets: Mapping[str, str]) -> None:
        self.name = settings.name
        self.outbox = Outbox(folder / "kwsiem.db", [self.name])
        self.output = make_output(settings, secrets)
        self.states: list[str] = []
        self.worker = Worker(
            self.name,
            self.output,
            self.outbox,
            make_route(settings),
            on_state=lambda state, _, reason: self.states.append(f"{state} {reason}".strip()),
            random_source=random.Random(1),
        )
        self.now_s = 0.0
        self._number = 0

    def put(self, count: int = 1, **changes: Any) -> list[str]:
        """Store so many new alerts; gives their ids."""
        items = []
        for _ in range(count):
            found = document(alert(self._number, **changes))
            items.append(Item(found["event"]["id"], found["event"]["severity"], msgspec.json.encode(found)))
            self._number += 1
        assert self.outbox.put(items) == count
        return [item.id for item in items]

    def step(self) -> float:
        """One round of the worker at once; gives the pause that it asks for."""
        return self.worker.step(self.now_s)

    def run(self, most: int = 30) -> list[float]:
        """Rounds, each when it is due, until nothing waits; gives the pauses after errors."""
        pauses = []
        for _ in range(most):
            wait_s = self.step()
            if self.worker.state == "failing":
                pauses.append(wait_s)
            self.now_s += wait_s
            if not self.ledger.waiting:
                return pauses
        raise AssertionError(f"{self.ledger} after {most} rounds: {self.worker.last_error}")

    @property
    def ledger(self) -> Ledger:
        found = self.outbox.ledger()[self.name]
        assert found.balanced
        return found

    @property
    def fates(self) -> tuple[int, int, int]:
        """Delivered, dead, waiting."""
        return self.ledger.delivered, self.ledger.dead, self.ledger.waiting

    @property
    def dead(self) -> dict[str, str]:
        return {letter.id: letter.reason for letter in self.outbox.dead_letters(self.name)}

    def close(self) -> None:
        self.worker.close()
        self.outbox.close()

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
