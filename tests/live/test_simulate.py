"""The command that attacks: real tools from a namespace that is gone afterwards."""

import sys
from pathlib import Path

import pytest
from appliance import RunningAppliance
from lab import Lab

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


def test_simulated_attacks_raise_their_alerts_and_leave_nothing(tmp_path):
    before = set(Path("/run/netns").iterdir()) if Path("/run/netns").is_dir() else set()
    with Lab("host") as lab, RunningAppliance(lab, tmp_path) as appliance:
        links = lab.ip("host", "-o", "link")
        for scenario, rule in (("portscan", "tcp-port-scan"), ("ssh-bruteforce", "ssh-brute-force")):
            lab.run("host", [sys.executable, "-m", "kwsiem", "simulate", scenario], timeout=100)
            assert appliance.wait_alert(rule)["source"]["ip"] == "203.0.113.2"
        assert lab.ip("host", "-o", "link") == links
        assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith("kwsim")]
    after = set(Path("/run/netns").iterdir())
    assert {path for path in after - before if not path.name.startswith("kw")} == set()
