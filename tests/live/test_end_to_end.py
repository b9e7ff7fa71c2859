"""One real scan, seen in the kernel, arrives at the console, the file and a real rsyslog over all transports."""

import json
import socket
import subprocess
import sys

import pytest
from appliance import RunningAppliance, whole_lines
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

FIELDS = (
    "pri",
    "timereported",
    "hostname",
    "app-name",
    "procid",
    "msgid",
    "structured-data",
    "msg",
    "inputname",
)


def rsyslog_conf(folder) -> str:
    """A receiver for each transport; each message becomes one JSON object with what rsyslog understood."""
    properties = {"timereported": ' dateFormat="rfc3339"'}
    parts = " ".join(
        f'property(outname="{name}" name="{name}"{properties.get(name, "")} format="jsonf")'
        + (' constant(value=", ")' if name != FIELDS[-1] else "")
        for name in FIELDS
    )
    return f"""
global(workDirectory="{folder}" maxMessageSize="64k" parser.escapeControlCharactersOnReceive="on")
module(load="imudp") module(load="imtcp") module(load="imuxsock" SysSock.Use="off")
template(name="fields" type="list") {{ constant(value="{{") {parts} constant(value="}}\\n") }}
ruleset(name="all") {{ action(type="omfile" file="{folder}/received" template="fields" flushOnTXEnd="on") }}
input(type="imudp" address="127.0.0.1" port="5514" ruleset="all" name="udp")
input(type="imtcp" address="127.0.0.1" port="5515" ruleset="all" name="tcp" supportOctetCountedFraming="on")
input(type="imuxsock" socket="{folder}/log.sock" ruleset="all" useSpecialParser="off" parseHostname="on" useSysTimeStamp="off")
"""


OUTPUTS = """
  - {{name: udp, type: syslog, transport: udp, port: 5514, format: cef}}
  - {{name: octets, type: syslog, transport: tcp, port: 5515, format: ecs, app_name: octets}}
  - {{name: lines, type: syslog, transport: tcp, port: 5515, framing: newline, format: ecs, app_name: lines}}
  - {{name: unix, type: syslog, transport: unix, path: {folder}/log.sock, format: ecs, app_name: unix, facility: local3}}
"""


def received(folder) -> list[dict[str, str]]:
    path = folder / "received"
    return [json.loads(line) for line in whole_lines(path)]


def test_a_scan_reaches_every_output_with_every_field(tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "rsyslog.conf").write_text(rsyslog_conf(tmp_path))
    with Lab("host", "peer") as lab:
        argv = ["rsyslogd", "-n", "-iNONE", "-f", str(tmp_path / "rsyslog.conf")]
        lab.popen("host", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until((tmp_path / "log.sock").exists, 10, "rsyslog listens")
        (tmp_path / "log.sock").chmod(0o666)
        folder = tmp_path / "appliance"
        folder.mkdir()
        appliance = RunningAppliance(lab, folder, outputs=OUTPUTS.format(folder=tmp_path))
        with appliance:
            with lab.inside("peer"):
                for port in range(20, 25):
                    with socket.socket() as sock:
                        sock.settimeout(0.5)
                        sock.connect_ex((lab.ip4("host"), port))
            alert = appliance.wait_alert("tcp-port-scan")
            identifier = alert["event"]["id"]
            wait_until(
                lambda: sum(identifier in record["msg"] for record in received(tmp_path)) == 4,
                15,
                f"four records of {identifier}",
            )
            console = appliance.console.read_text()
            stats = subprocess.run(
                [sys.executable, "-m", "kwsiem", "stats", "--json", "--runtime", str(appliance.runtime)],
                capture_output=True, text=True, timeout=20, check=False,
            )  # fmt: skip
            assert stats.returncode == 0, stats.stdout
            assert {output["name"] for output in json.loads(stats.stdout)["outputs"]} >= {"udp", "octets"}
    records = [record for record in received(tmp_path) if identifier in record["msg"]]
    by_name = {record["app-name"]: record for record in records}
    assert set(by_name) == {"kwsiem", "octets", "lines", "unix"}
    for name, record in by_name.items():
        facility = 19 if name == "unix" else 22
        assert record["pri"] == str(facility * 8 + 3)  # level high is syslog's err
        assert record["hostname"] == "testhost"
        assert record["msgid"] == "tcp-port-scan"
        if name != "unix":  # rsyslog puts its own time on what comes by a local socket, whatever is sent
            assert record["timereported"].replace("000Z", "Z") == alert["@timestamp"]
        assert record["structured-data"] == "-"
        assert record["procid"].isdecimal()
    for name in ("octets", "lines", "unix"):
        assert json.loads(by_name[name]["msg"]) == alert
    cef = by_name["kwsiem"]["msg"].lstrip()
    assert cef.startswith("CEF:0|KernelWatch|kwsiem|")
    assert f"src={lab.ip4('peer')} " in cef
    assert f"dst={lab.ip4('host')} " in cef
    assert f"externalId={identifier}" in cef
    assert identifier in console
    assert "tcp-port-scan" in console
