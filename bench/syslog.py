"""Alerts per second through outbox and worker to a real rsyslogd, over each transport.

    python bench/syslog.py [--profile] [TRANSPORT …]

Documents are stored first; measured is from the first round of the worker until nothing waits, with the
messages rendered (cef) and with messages rendered before (what the transport itself costs). ``written`` is
until rsyslogd has written all of them, one write for each, in the thread that reads.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "live"))

from carrier import alert
from peers.rsyslog import Rsyslog

from kwsiem.delivery import make_output, make_renderer, make_route
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import SyslogSettings
from kwsiem.outputs.worker import Route, Worker

ALERTS = 20_000
TRANSPORTS = ("tcp", "tls", "relp", "udp")


def settings_of(rsyslog: Rsyslog, transport: str) -> SyslogSettings:
    return SyslogSettings(
        name="siem", transport=transport, host="localhost" if transport == "tls" else "127.0.0.1",
        port=rsyslog.ports[transport], ca_file=rsyslog.certificates.ca,
    )  # fmt: skip


def measure(folder: Path, rsyslog: Rsyslog, transport: str, rendered: bool, profile: bool) -> None:
    count = ALERTS // 4 if transport == "udp" else ALERTS
    settings = settings_of(rsyslog, transport)
    documents = [document(alert(number)) for number in range(count)]
    encoded = [msgspec.json.encode(found) for found in documents]
    render = make_renderer(settings)
    before = {data: render(data) for data in encoded}
    outbox = Outbox(folder / f"{transport}-{rendered}.db", ["siem"])
    for first in range(0, count, 500):
        outbox.put(
            [
                Item(found["event"]["id"], 8, data)
                for found, data in zip(
                    documents[first : first + 500], encoded[first : first + 500], strict=True
                )
            ]
        )
    route = Route(before.__getitem__) if rendered else make_route(settings)
    worker = Worker("siem", make_output(settings, {}), outbox, route)
    rsyslog.clear()
    profiler = cProfile.Profile()
    begin, cpu = time.perf_counter(), time.process_time()
    if profile:
        profiler.enable()
    while outbox.ledger()["siem"].waiting:
        assert worker.step(0.0) == 0.0, worker.last_error
    profiler.disable()
    done, used = time.perf_counter() - begin, time.process_time() - cpu
    rsyslog.wait(lambda: rsyslog.line_count() >= count)
    written = time.perf_counter() - begin
    assert len(set(rsyslog.ids())) == count
    worker.close()
    outbox.close()
    print(
        f"{transport:5} {'rendered before' if rendered else 'rendered (cef)':15} {count / done:8.0f} alerts/s sent,"
        f" {count / written:8.0f} written; our CPU {used / count * 1e6:5.0f} us each ({len(before[encoded[0]])} bytes)"
    )
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def main() -> None:
    chosen = [name for name in sys.argv[1:] if name in TRANSPORTS] or TRANSPORTS
    with tempfile.TemporaryDirectory(prefix="bench-syslog-") as name:
        folder = Path(name)
        rsyslog = Rsyslog(folder)
        try:
            for transport in chosen:
                for rendered in (False, True):
                    measure(folder, rsyslog, transport, rendered, "--profile" in sys.argv)
        finally:
            rsyslog.stop()


if __name__ == "__main__":
    main()
