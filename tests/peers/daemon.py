"""A receiver that runs as a process of its own: started, stopped, killed, asked for what it has written."""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 20.0
#: Below what the kernel hands out by itself: a client that tries a port of its own range may reach itself.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port of loopback that nobody has, neither for TCP nor for UDP."""
    while True:
        port = random.choice(_PORTS)
        try:
            with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


def answers(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def id_of(message: str) -> str | None:
    """The id of the alert in a line of any format that a syslog message carries."""
    if message.lstrip().startswith("{"):
        try:
            found = json.loads(message)
        except ValueError:
            return None
        ids = (
            found.get("event", {}).get("id"),
            found.get("id"),
            found.get("_alert_id"),
            found.get("metadata", {}).get("uid"),
        )
        return next((str(value) for value in ids if value), None)
    matched = re.search(r"[ ^|,(\t](?:externalId|id|alertId)=([0-9A-Za-z-]+)", message)
    return matched[1] if matched else None


class Daemon:
    """One receiver in the foreground, writing one JSON object a line into ``out``.

    A subclass sets ``ports`` (by transport) and ``out`` before it calls ``super().__init__``, and says how
    it is started and what it calls the message.
    """

    ports: dict[str, int]
    message_key: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.errors = folder / "errors"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def argv(self) -> list[str]:
        raise NotImplementedError

    def is_up(self) -> bool:
        raise NotImplementedError

    def prepare(self) -> None:
        """What is to be done before each start."""

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.prepare()
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(self.argv(), stdout=errors, stderr=errors)
        self.wait(self.is_up)

    def stop(self) -> None:
        """End it in order: what it has taken is written. It can be started again."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL: what it has not written is lost."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It stands still: connections are taken by its kernel, nothing is read."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        if number != signal.SIGKILL:
            self.thaw()
        self.process.wait(DEADLINE_S)
        self.process = None

    def records(self) -> list[dict[str, Any]]:
        """What it has written, whole lines only."""
        data = self.out.read_bytes() if self.out.exists() else b""
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].split(b"\n") if line]

    def messages(self) -> list[str]:
        """The text behind the header of each record."""
        return [str(record.get(self.message_key, "")).removeprefix(" ") for record in self.records()]

    def ids(self) -> list[str]:
        """The alert id of each record in order of arrival; a record without one is an error."""
        found = []
        for message in self.messages():
            alert_id = id_of(message)
            assert alert_id, f"a record that is no alert: {message!r}"
            found.append(alert_id)
        return found

    def take(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many records and give all there are."""
        self.wait(lambda: self.line_count() >= count)
        return self.records()

    def clear(self) -> None:
        """Forget what was written; receivers append, so they go on at the beginning."""
        if self.out.exists():
            os.truncate(self.out, 0)

    def line_count(self) -> int:
        """How many records are written; cheaper than reading them."""
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0

    def wait(self, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """Until the condition holds; gives what it gave."""
        end_s = time.monotonic() + deadline_s
        while not (found := condition()):
            alive = self.process is None or self.process.poll() is None
            assert time.monotonic() < end_s and alive, (
                self.errors.read_text()[-3000:] if self.errors.exists() else "no answer in time"
            )
            select.select([], [], [], 0.02)
        return found
