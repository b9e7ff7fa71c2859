"""kwsiem replay --diff: what a changed rule file would add, remove and change, on the same events."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kwsiem.cli import main

SOURCE = Path(__file__).resolve().parents[3]
PROBES = ("--probes", str(SOURCE / "probes"))
BEGIN_NS = 1_767_323_045 * 10**9  # 2026-01-02T03:04:05Z
RULE = """  - id: {id}
    title: Lost
    level: {level}
    event: sensor.lost
    detection: {{some: {{event.count|gt: 0}}, condition: some}}
    correlation: {{type: event_count, group-by: [probe.name], timespan: 10s, condition: {{gte: {gte}}}}}
"""


def rules(path, *rows):
    """A rule file of rows (id, threshold, level)."""
    parts = (RULE.format(id=row[0], gte=row[1], level=(*row, "low")[2]) for row in rows)
    path.write_text("version: 1\nrules:\n" + "".join(parts) + ("" if rows else "  []\n"))
    return str(path)


def event(second, name="a"):
    ts_ns = BEGIN_NS + int(second * 10**9)
    return {"kind": "sensor.lost", "ts_ns": ts_ns, "probe.name": name, "event.count": 1}


def lines(events):
    return "".join(json.dumps(item) + "\n" for item in events)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(lines([event(0), event(1), event(2), event(3, "b"), event(4, "b")]))
    return str(path)


def diff(capsys, before, after, *words):
    code = main(["replay", "--rules", before, "--diff", after, *PROBES, *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_same_rules_make_no_difference(capsys, tmp_path, recording):
    before, after = rules(tmp_path / "a.yaml", ("x", 2)), rules(tmp_path / "b.yaml", ("x", 2))
    code, out, err = diff(capsys, before, after, recording)
    assert (code, out) == (0, "no difference: 2 incidents of 1 rules either way\n")
    assert err == "kwsiem replay: 5 lines, 5 events\n"
    assert diff(capsys, before, before, recording)[0] == 0


def test_what_a_higher_threshold_removes_and_a_new_rule_adds(capsys, tmp_path, recording):
    before = rules(tmp_path / "a.yaml", ("x", 2))
    after = rules(tmp_path / "b.yaml", ("x", 3), ("new", 2, "high"))
    code, out, _ = diff(capsys, before, after, recording)
    assert code == 1
    assert [line.split() for line in out.splitlines() if line] == [
        ["RULE", "BEFORE", "AFTER", "ADDED", "REMOVED", "CHANGED"],
        ["new", "0", "2", "2", "0", "0"],
        ["x", "2", "1", "0", "1", "1"],
        ["+", "2026-01-02T03:04:06.000Z", "HIGH", "new", "probe.name=a"],
        ["+", "2026-01-02T03:04:09.000Z", "HIGH", "new", "probe.name=b"],
        ["-", "2026-01-02T03:04:09.000Z", "LOW", "x", "probe.name=b"],
        ["~", "2026-01-02T03:04:07.000Z", "LOW", "x", "probe.name=a", "(1s", "later)"],
    ]


def test_another_level_is_a_change(capsys, tmp_path, recording):
    before, after = rules(tmp_path / "a.yaml", ("x", 2)), rules(tmp_path / "b.yaml", ("x", 2, "high"))
    code, out, _ = diff(capsys, before, after, recording)
    assert code == 1
    assert out.count("(was low)") == 2


def test_everything_is_in_the_json(capsys, tmp_path, recording):
    before, after = rules(tmp_path / "a.yaml", ("x", 2)), rules(tmp_path / "b.yaml", ("x", 3))
    code, out, _ = diff(capsys, before, after, "--json", recording)
    report = json.loads(out)
    assert code == 1
    assert (report["before"], report["after"], report["events"]) == (before, after, 5)
    alerts = report["alerts"]
    assert alerts["rules"] == {"x": {"before": 2, "after": 1, "added": 0, "removed": 1, "changed": 1}}
    (removed,) = alerts["removed"]
    assert (removed["rule"], removed["identity"], removed["time"]) == (
        "x",
        {"probe.name": "b"},
        "2026-01-02T03:04:09.000Z",
    )
    assert alerts["changed"][0]["before"]["time"] < alerts["changed"][0]["after"]["time"]
    assert alerts["added"] == []


def test_the_listing_for_people_is_bounded_the_json_is_not(capsys, tmp_path):
    recording = tmp_path / "many.jsonl.gz"
    with gzip.open(recording, "wt") as file:
        file.write(lines(event(n, f"probe{n}\x1b[2J") for n in range(50)))
    before, after = rules(tmp_path / "a.yaml"), rules(tmp_path / "b.yaml", ("x", 1))
    code, out, _ = diff(capsys, before, after, str(recording))
    assert code == 1
    assert out.count("\n+ 20") == 20
    assert "+ … and 30 more; --json lists all" in out
    assert "\x1b" not in out
    assert len(json.loads(diff(capsys, before, after, "--json", str(recording))[1])["alerts"]["added"]) == 50


def test_bad_rules_on_either_side_are_78_and_told_at_once(capsys, tmp_path, recording):
    good = rules(tmp_path / "good.yaml", ("x", 2))
    bad = rules(tmp_path / "bad.yaml", ("x", 2, "loud"))
    worse = rules(tmp_path / "worse.yaml", ("x", 0))
    assert diff(capsys, good, bad, recording)[0] == 78
    assert diff(capsys, bad, good, recording)[0] == 78
    code, out, err = diff(capsys, bad, worse, recording)
    assert (code, out) == (78, "")
    assert "bad.yaml" in err and "worse.yaml" in err
    assert diff(capsys, good, str(tmp_path / "none.yaml"), recording)[0] == 78


def test_a_pipe_is_read_once_for_both(tmp_path, recording):
    before, after = rules(tmp_path / "a.yaml", ("x", 2)), rules(tmp_path / "b.yaml", ("x", 3))
    argv = [
        sys.executable,
        "-m",
        "kwsiem",
        "replay",
        "--rules",
        before,
        "--diff",
        after,
        *PROBES,
        "--json",
        "-",
    ]
    done = subprocess.run(argv, input=Path(recording).read_bytes(), capture_output=True, check=False)
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["alerts"]["removed"]) == 1


def test_lines_that_cannot_be_used_are_told_but_are_no_difference(capsys, tmp_path):
    recording = tmp_path / "events.jsonl"
    recording.write_text(lines([event(0)]) + '{"kind": "no.kind", "ts_ns": 1}\n')
    before = rules(tmp_path / "a.yaml", ("x", 2))
    code, out, err = diff(capsys, before, before, str(recording))
    assert (code, out) == (0, "no difference: 0 incidents of 0 rules either way\n")
    assert "rejected: 1 unknown_kind" in err


def test_plain_replay_prints_json_lines_on_request(capsys, tmp_path, recording):
    path = rules(tmp_path / "a.yaml", ("x", 2))
    assert main(["replay", "--json", "--rules", path, *PROBES, recording]) == 0
    assert [json.loads(line)["rule"] for line in capsys.readouterr().out.splitlines()] == ["x", "x"]


def test_blocks_that_a_changed_rule_asks_for_are_told(capsys, tmp_path):
    rule = (
        "version: 1\nrules:\n  - id: probe\n    title: Probe\n    level: low\n    event: tcp.probe\n"
        "    detection: {some: {tcp.flags: 0}, condition: some}\n"
        "    correlation: {type: event_count, group-by: [source.ip], timespan: 10s, condition: {gte: 2}}\n"
    )
    (tmp_path / "a.yaml").write_text(rule)
    (tmp_path / "b.yaml").write_text(rule + "    block: {field: source.ip, for: 10m}\n")
    fields = {"kind": "tcp.probe", "source.ip": "198.51.100.7", "tcp.flags": 0}
    events = [{**fields, "ts_ns": BEGIN_NS + n * 10**9} for n in range(3)]
    (tmp_path / "e.jsonl").write_text(lines(events))
    words = (str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), str(tmp_path / "e.jsonl"))
    code, out, _ = diff(capsys, *words)
    assert code == 1
    assert "asks to block 198.51.100.7 for 10m" in out
    assert "blocks asked for: 1 added, 0 removed" in out
    _, out, _ = diff(capsys, *words, "--json")
    blocks = json.loads(out)["blocks"]
    assert [entry["block"]["value"] for entry in blocks["added"]] == ["198.51.100.7"]
    assert blocks["removed"] == []


def test_rules_that_wait_for_late_events_are_decided_at_the_end(capsys, tmp_path):
    recording = tmp_path / "events.jsonl"
    recording.write_text(lines([event(0), event(0.5)]))
    before = rules(tmp_path / "a.yaml")
    after = tmp_path / "b.yaml"
    after.write_text(Path(rules(after, ("x", 2))).read_text().replace("{gte: 2}", "{eq: 2}"))
    assert main(["replay", "--rules", str(after), *PROBES, str(recording)]) == 0
    assert capsys.readouterr().out.count(" x: ") == 1
    code, out, _ = diff(capsys, before, str(after), str(recording))
    assert code == 1
    assert "+ 2026-01-02T03:04:05.500Z LOW x probe.name=a" in out
