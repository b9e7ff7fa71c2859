"""A real attack becomes a real alert: the short form of ``make scoreboard``, and the scoreboard's own judgement."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from appliance import SOURCE, RunningAppliance
from lab import End, Lab
from scoreboard.cases import ROWS, SHORT, rules
from scoreboard.daily import listed_rules
from scoreboard.field import Site
from scoreboard.run import Match, Result, judge, own_rules
from scoreboard.watch import Arrival, LossTail

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def match(open_folder):
    """All short rows against one appliance, played to the end; it has ended when the tests read what it said."""
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    field, state = folder / "field", folder / "appliance"
    for path in (folder, field, state):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    with Lab("host") as lab:
        match = Match(lab, field, SHORT, RunningAppliance(lab, state), flood_s=2)
        with match.open():
            match.play()
        match.finish()
        yield match


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.id)
def test_an_attack_is_found_and_nothing_else_is_said(match, row):
    result = next(result for result in match.results if result.row is row)
    assert not result.error, result.error
    assert result.hits, f"only {result.found}"
    assert result.false == []
    for rule in row.expect & set(result.found):
        opened = [a for a in match.opened(result) if a.rule == rule]
        identities = {json.dumps(a.alert["kwsiem"]["alert"]["identity"]) for a in opened}
        assert len(opened) == len(identities), "one incident is one alert"


def test_no_alert_belongs_to_no_attack(match):
    assert [(a.rule, a.alert["message"]) for a in match.nobodys] == []


def test_replay_of_the_recording_prints_the_alerts_of_the_live_run(match):
    """The recording holds every attack, floods among them."""
    host = match.appliance
    argv = [sys.executable, "-I", "-m", "kwsiem", "replay", "--format", "ecs", "--rules", str(host.rules)]
    done = match.field.lab.run(
        "host", [*argv, "--probes", str(host.probes), str(host.recording)], check=False
    )
    replayed = {a["event"]["id"]: a for a in map(json.loads, done.stdout.splitlines())}
    live = {a["event"]["id"]: a for a in host.alerts() if a["rule"]["id"] not in match.own}
    assert len(live) >= len(SHORT)
    opened = {i: a for i, a in replayed.items() if a["kwsiem"]["alert"]["state"] == "open"}
    assert {i: a for i, a in opened.items() if a["rule"]["id"] not in match.own} == live


# the scoreboard itself --------------------------------------------------------------------------------


def test_rows_are_told_apart_and_name_rules_that_are_shipped():
    assert len({row.id for row in ROWS}) == len(ROWS)
    shipped = (SOURCE / "rules.yaml").read_text()
    named = frozenset().union(*(row.expect | row.also for row in ROWS))
    assert {name for name in named if f"- id: {name}\n" not in shipped} == set()


def result_of(row, link):
    own, host = (
        End(n, "eth0", f"198.51.{link}.{k}", f"2001:db8:{link}::{k}") for n, k in (("a", 2), ("host", 1))
    )
    return Result(row, Site("a", own, host), began_ns=1_000, first_ns=2_000, ended_ns=10_000)


def arrival(rule, source, destination="198.51.1.1", ts_ns=5_000):
    return Arrival(
        ts_ns, {"rule": {"id": rule}, "source": {"ip": source}, "destination": {"ip": destination}}
    )


ROW = replace(
    ROWS[0], family=4, expect=rules("wanted"), also=rules("true-too"), phase="together", forged=False
)


def judged(row, *arrivals, own=()):
    results = [result_of(row, 1), result_of(row, 2)]
    nobodys = judge(results, arrivals, set(own))
    return results[0], nobodys


def test_an_alert_counts_for_the_attack_it_names():
    result, nobodys = judged(
        ROW, arrival("true-too", "198.51.1.2"), arrival("wanted", "198.51.1.2", ts_ns=502_000)
    )
    assert result.good and not nobodys
    assert result.hits == {"wanted": 0.0005}
    other, _ = judged(ROW, arrival("wanted", "198.51.2.2", "198.51.2.1"))
    assert not other.good and not other.found


@pytest.mark.parametrize(("rule", "source"), [("another", "198.51.1.2"), ("wanted", "203.0.113.9")])
def test_another_rule_or_another_source_is_a_false_alarm(rule, source):
    result, nobodys = judged(ROW, arrival("wanted", "198.51.1.2"), arrival(rule, source))
    assert result.false == [f"{rule} ({source})"]
    assert not result.good and not nobodys


def test_a_forged_source_is_none_where_sources_are_forged():
    result, _ = judged(replace(ROW, forged=True), arrival("wanted", "203.0.113.9"))
    assert result.good


def test_an_alert_of_no_attack_is_kept_and_the_appliances_own_are_not_judged():
    _, nobodys = judged(
        ROW, arrival("wanted", "203.0.113.9", "203.0.113.1"), arrival("own", "", ""), own=["own"]
    )
    assert [a.rule for a in nobodys] == ["wanted"]
    assert "sensor-lost-events" in own_rules((SOURCE / "rules.yaml").read_text())


def test_testers_are_put_on_the_lists_of_the_rules():
    edited = listed_rules((SOURCE / "rules.yaml").read_text(), ["198.51.100.9/32"])
    assert "  monitoring: [198.51.100.9/32, " in edited


def test_what_a_probe_held_back_is_read_from_the_recording(tmp_path):
    recording = tmp_path / "recording"
    recording.write_text(
        '{"type":"kwsiem_contract","data":{"probe":"p","numbers":{"9":{"name":"sensor.lost"},"1":{"name":"x"}}}}\n'
        '{"type":"kwsiem_probe","data":"p"}\n'
        '{"type": "value", "data": [9, "p", "budget", 7, 1]}\n{"type": "value", "data": [1, "p", "budget", 7, 1]}\n'
        '{"type":"kwsiem_probe","data":"q"}\n{"type": "value", "data": [9, "q", "budget", 7, 1]}\n'
    )
    tail = LossTail(recording)
    tail.read()
    assert [(loss.probe, loss.reason, loss.count) for loss in tail.losses] == [("p", "budget", 7)]
