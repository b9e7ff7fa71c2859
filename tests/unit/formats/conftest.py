"""Documents that the tests of every format share."""

import pytest

from kwsiem.document import document

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
