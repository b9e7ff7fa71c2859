"""A rule that matches everything does not drown the SIEM: it is held back, counted, and says so."""

import sys

import pytest
from appliance import SOURCE, RunningAppliance
from lab import Lab, wait_until
from test_loss import PROBE

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

RULE = """
  - id: everything
    title: Everything
    level: low
    event: test.kill
    detection: {every: {process.pid|gt: 0}, condition: every}
"""
CALLS = 30_000
FLOOD = (
    f"import os, time\nfor n in range({CALLS}):\n    os.kill(os.getpid(), 0)\n    n % 50 or time.sleep(0.001)"
)


def test_a_rule_that_matches_everything_is_held_back_and_says_so(tmp_path):
    with Lab("host") as lab:
        rules = (SOURCE / "rules.yaml").read_text() + RULE
        appliance = RunningAppliance(lab, tmp_path, rules=rules, record=False)
        (appliance.probes / "kills.bt").write_text(PROBE)
        with appliance:
            lab.run("host", [sys.executable, "-c", FLOOD], timeout=60)
            alert = appliance.wait_alert("rule-held-back", timeout=20)
            assert alert["kwsiem"]["alert"]["identity"] == {"rule.id": "everything"}

            def counters() -> dict:
                return appliance.status()["engine"]["engine"]

            wait_until(
                lambda: counters()["events"].get("test.kill", 0) >= CALLS, 15, "every call is an event"
            )
            held, said = counters()["held_back"], counters()["alerts"]
            assert 10_000 <= said < 16_000
            # Each match was an alert or is counted as held back; a few alerts are of other rules.
            assert 0 <= held + said - counters()["events"]["test.kill"] < 20
            wait_until(lambda: len(appliance.alerts(state=None)) >= said, 30, "what was said is in the file")
