"""The real courier, without rights, brings alerts over every network transport at once; its keys are root's."""

import os
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from carrier import alert
from lab import wait_until
from peers.rsyslog import Rsyslog

from kwsiem.config import Settings
from kwsiem.document import document
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    AlertRaised,
    AlertsDurable,
    CourierStart,
    CourierToEngine,
    FromCourier,
    Ready,
    Stop,
)
from kwsiem.output_settings import SyslogSettings

pytestmark = pytest.mark.live

ALERTS = 100


@pytest.fixture
def rsyslog(tmp_path):
    (tmp_path / "receiver").mkdir()
    daemon = Rsyslog(tmp_path / "receiver")
    yield daemon
    daemon.stop()


def outputs_to(rsyslog):
    pki = rsyslog.certificates
    Path(pki.client_key).parent.chmod(0o700)
    tls = {"transport": "tls", "host": "localhost", "ca_file": pki.ca}
    return [
        SyslogSettings(name="udp", transport="udp", host="localhost", port=rsyslog.ports["udp"]),
        SyslogSettings(name="tcp", transport="tcp", host="localhost", port=rsyslog.ports["tcp"]),
        SyslogSettings(name="tls", port=rsyslog.ports["tls"], **tls),
        SyslogSettings(
            name="mtls", port=rsyslog.ports["mtls"], cert_file=pki.client, key_file=pki.client_key, **tls
        ),
        SyslogSettings(name="relp", transport="relp", host="localhost", port=rsyslog.ports["relp"]),
    ]


def test_without_rights_every_transport_delivers(rsyslog, tmp_path):
    tmp_path.chmod(0o755)  # the courier becomes nobody
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    settings = Settings(state_dir=str(state), outputs=tuple(outputs_to(rsyslog)))
    ours, theirs = link_pair()
    engine_end, courier_end = link_pair()
    argv = [sys.executable, "-I", "-m", "kwsiem.courier"]
    argv += ["--sensor-fd", str(theirs.fileno()), "--alerts-fd", str(courier_end.fileno())]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, pass_fds=(theirs.fileno(), courier_end.fileno()), stderr=log)
    theirs.close()
    courier_end.close()
    sensor, engine = Link(ours, FromCourier), Link(engine_end, CourierToEngine)
    try:
        sensor.send(CourierStart(host="gw01", settings=msgspec.to_builtins(settings)))
        assert select.select([sensor], [], [], 20)[0], (tmp_path / "log").read_text()
        first = sensor.receive()
        assert first and isinstance(first[0], Ready), (tmp_path / "log").read_text()
        assert os.stat(f"/proc/{process.pid}").st_uid != 0
        alerts = [alert(number) for number in range(ALERTS)]
        for number, each in enumerate(alerts):
            assert engine.send(AlertRaised(number=number, alert=each))
        durable = 0
        while durable < ALERTS:
            assert select.select([engine], [], [], 20)[0]
            received = engine.receive()
            durable += len(received[0].numbers) if received and isinstance(received[0], AlertsDurable) else 0
        wanted = {document(each)["event"]["id"] for each in alerts}

        def complete():
            counts = Counter(rsyslog.ids())
            return set(counts) == wanted and min(counts.values()) >= len(settings.outputs)

        wait_until(complete, 20, (tmp_path / "log").read_text())
        sensor.send(Stop())
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        for link in (sensor, engine):
            link.close()
