"""The event log of the real appliance: its rotated files, compressed ones too, replay to the same alerts."""

import json
import socket
import sys
from pathlib import Path

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until

pytestmark = pytest.mark.live

RULES = """version: 1
rules:
  - id: scan
    title: Scan
    level: high
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 10m
      condition: {gte: 6}
    suppress: 1h
"""
SETTINGS = "event_log: {path: events.jsonl, max_bytes: 4096, keep: 1000, compress: true}\n"


def knock(lab, source, ports):
    for port in ports:
        with lab.inside("peer"), socket.socket() as sock:
            sock.bind((source, 0))
            sock.settimeout(0.5)
            assert sock.connect_ex((lab.ip4("host"), port))


def test_rotated_files_replay_to_the_alerts_of_the_live_run(tmp_path):
    with Lab("host", "peer") as lab:
        lab.link("host", "peer")
        sources = [lab.ip4("peer"), *(f"198.51.100.{number}" for number in (77, 78))]
        for source in sources[1:]:
            lab.address("peer", lab.end("peer").device, f"{source}/24")
        with RunningAppliance(lab, tmp_path, rules=RULES, settings=SETTINGS, record=False) as appliance:

            def packed() -> list[Path]:
                return sorted(appliance.state.glob("events-*.gz"))

            for source in sources:
                knock(lab, source, range(21, 25))
            already = len(packed())
            wait_until(lambda: len(packed()) > already, 15, "a complete file is compressed")
            # The rest of each scan lies in a later file.
            for source in sources:
                knock(lab, source, range(25, 29))
                appliance.wait_alert("scan", source)
            assert appliance.stop() == 0
        files = [*sorted(appliance.state.glob("events-*")), appliance.state / "events.jsonl"]
        assert {path.stat().st_uid for path in files} == {appliance.state.stat().st_uid}
        argv = [
            sys.executable,
            "-I",
            "-m",
            "kwsiem",
            "replay",
            "--format",
            "ecs",
            "--rules",
            str(appliance.rules),
        ]
        done = lab.run("host", [*argv, "--probes", str(appliance.probes), *map(str, files)], check=False)
        assert "rejected" not in done.stderr, done.stderr
        replayed = {a["event"]["id"]: a for a in map(json.loads, done.stdout.splitlines())}
        live = {a["event"]["id"]: a for a in appliance.alerts("scan", state=None)}
        assert len(live) == len(sources)
        assert {i: a for i, a in replayed.items() if a["kwsiem"]["alert"]["state"] == "open"} == {
            i: a for i, a in live.items() if a["kwsiem"]["alert"]["state"] == "open"
        }
