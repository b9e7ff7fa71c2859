"""Factories that unit tests of several stages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kwsiem.alert import Alert

START_NS = 1_767_323_045_123_000_000  # 2026-01-02T03:04:05.123Z


def _alert(**changes: Any) -> Alert:
    number = changes.pop("number", 0)
    values: dict[str, Any] = {
        "rule_id": "tcp-port-scan",
        "title": "TCP port scan",
        "level": "high",
        "state": "open",
        "identity": {"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1"},
        "count": 5,
        "first_ns": START_NS,
        "last_ns": START_NS + 1_000_000_000,
        "raised_ns": START_NS + 1_000_000_000,
        "opened_ts_ns": 1000 + number,
        "reason": "5 different destination.port in 3s",
        "tags": ["attack.discovery", "attack.t1046"],
        "fields": {
            "source.ip": "198.51.100.7",
            "destination.ip": "192.0.2.1",
            "destination.port": 24,
            "tcp.flags": 2,
        },
        "values": [20, 21, 22, 23, 24],
        "evidence": [
            {"kind": "tcp.syn", "ts_ns": 1000, "source.ip": "198.51.100.7", "destination.port": 20},
            {"kind": "tcp.syn", "ts_ns": 2000, "source.ip": "198.51.100.7", "destination.port": 24},
        ],
        "host": "gw01.example.net",
    }
    return Alert(**{**values, **changes})


@pytest.fixture(scope="session")
def make_alert() -> Callable[..., Alert]:
    """An alert like those of the shipped rules, with any attribute changed; ``number`` tells them apart."""
    return _alert
