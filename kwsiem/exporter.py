"""The exporter process: the appliance's figures for Prometheus, over HTTP.

Run by the sensor as ``python -I -m kwsiem.exporter`` when ``metrics.listen`` is set. It speaks HTTP with
whoever connects, so it has nothing to lose: no rights, no secret, no file, and a link on which the sensor
takes nothing from it but a few counters. A port that is taken costs the endpoint alone: it is tried again,
and ``kwsiem status`` says why.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import selectors
import signal
from typing import Any, Final

from kwsiem import clock, logs, metrics, rights
from kwsiem.config import listen_address
from kwsiem.errors import LinkError
from kwsiem.link import Link
from kwsiem.messages import ExporterStart, Figures, Ready, RuleStats, Stats, Stop, ToExporter
from kwsiem.rule_figures import RuleFigures
from kwsiem.scrape import MetricsServer

TICK_S: Final = 0.5
#: A port that is taken is tried again after this.
LISTEN_AGAIN_S: Final = 5.0

log = logging.getLogger("kwsiem.exporter")


class Pages:
    """The latest figures, and the pages made of them: each made once, however many ask."""

    def __init__(self) -> None:
        self._figures: dict[str, Any] = {}
        self._rules = RuleFigures()
        self._made: dict[bool, tuple[bytes, str]] = {}

    def take(self, message: Figures | RuleStats) -> None:
        """New figures of one part of the appliance, or of some rules."""
        if isinstance(message, RuleStats):
            self._rules.take(message.sha256, message.rules)
        elif message.part:
            self._figures[message.part] = message.values
        else:
            self._figures |= message.values
        self._made.clear()

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page in the format that a reader wants, and its content type."""
        wants = metrics.accepts_openmetrics(accept)
        if wants not in self._made:
            self._made[wants] = metrics.render(self._figures, self._rules.counts, is_openmetrics=wants)
        return self._made[wants]


class ExporterProcess:
    """Everything the process holds, and its loop."""

    def __init__(self, sensor: Link[ToExporter]) -> None:
        self.sensor = sensor
        self.pages = Pages()
        self.server: MetricsServer | None = None
        self.error = ""
        self.stopping = False
        self._next_try_s = 0.0

    def start(self) -> None:
        """Take the first message, give up all rights, say that we are ready."""
        os.set_blocking(self.sensor.fileno(), True)
        received = self.sensor.receive()
        start = received[0] if received else None
        if not isinstance(start, ExporterStart):
            raise LinkError("the sensor did not begin with exporter_start")
        os.set_blocking(self.sensor.fileno(), False)
        logs.setup("exporter", start.log_level)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        rights.drop(start.user)
        self.address = listen_address(start.listen)
        if not ipaddress.ip_address(self.address[0]).is_loopback:
            log.warning("metrics are open to the network, without a password", extra={"listen": start.listen})
        self._listen()
        self.sensor.send(Ready(pid=os.getpid()))

    def run(self) -> None:
        """Serve until told to stop or until the sensor is gone."""
        next_second_s = 0.0
        while not self.stopping and not self.sensor.closed:
            self._wait()
            while (message := self.sensor.take_message()) is not None:
                if isinstance(message, Stop):
                    self.stopping = True
                elif isinstance(message, (Figures, RuleStats)):
                    self.pages.take(message)
            if self.server:
                self.server.step()
            if clock.monotonic_s() >= next_second_s:
                next_second_s = clock.monotonic_s() + 1.0
                self._listen()
                self.sensor.send(Stats(values=self.stats()))
        if self.server:
            self.server.close()

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.sensor, selectors.EVENT_READ)
            if self.server:
                selector.register(self.server, selectors.EVENT_READ)
            selector.select(TICK_S)

    def _listen(self) -> None:
        if self.server or clock.monotonic_s() < self._next_try_s:
            return
        self._next_try_s = clock.monotonic_s() + LISTEN_AGAIN_S
        try:
            self.server = MetricsServer(self.address, self.pages.page)
        except OSError as error:
            if not self.error:
                log.error("metrics cannot be served", extra={"listen": self.address, "error": str(error)})
            self.error = error.strerror or str(error)
            return
        self.error = ""
        log.info("metrics are served", extra={"listen": self.address})

    def stats(self) -> dict[str, Any]:
        """How we are, for the sensor."""
        server = self.server
        return {
            "listening": server is not None,
            "error": self.error,
            "served": server.served if server else 0,
            "refused": server.refused if server else 0,
            "bad_messages": self.sensor.bad,
        }


def main() -> int:
    """Entry of the process; 0 after a clean end."""
    parser = argparse.ArgumentParser(
        prog="kwsiem.exporter", description="The exporter; started by the sensor."
    )
    parser.add_argument("--sensor-fd", type=int, required=True)
    options = parser.parse_args()
    process = ExporterProcess(Link.from_fd(options.sensor_fd, ToExporter))
    process.start()
    process.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
