"""kwsiem rules: what the rules say, whether their tests pass, the schema of their file; exit codes."""

import json
from pathlib import Path

import pytest

from kwsiem.cli import main

SOURCE = Path(__file__).resolve().parents[3]
SHIPPED = str(SOURCE / "rules.yaml")
PROBES = ("--probes", str(SOURCE / "probes"))
RULES = """version: 1
rules:
  - id: lost
    title: "Lost\\e[31m"
    level: low
    tags: [attack.discovery, attack.t1110.001, attack.t9999, car.2013]
    event: sensor.lost
    detection:
      some: {event.count|gt: 0}
      condition: some
    correlation: {type: event_count, group-by: [probe.name], timespan: 3s, condition: {gte: 2}}
    falsepositives: [A flood]
    tests:
      - {name: two, events: [{kind: sensor.lost, probe.name: a, event.count: 1, repeat: 2}], alerts: 1}
      - {name: one, events: [{kind: sensor.lost, probe.name: a, event.count: 1}], alerts: 0}
  - id: each
    title: Each
    level: high
    event: [sensor.probe, sensor.lost]
    detection: {all_: {probe.name: x}, condition: all_}
"""
BROKEN_TEST = RULES.replace("alerts: 1}", "alerts: 3}")


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RULES)
    return path


def run(capsys, *words):
    code = main(["rules", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("words", [[], ["list"], ["show"], ["test"], ["schema"]])
def test_every_part_has_help_with_examples(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["rules", *words, "--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_the_list_names_every_rule_on_a_line_of_its_own(capsys, rules):
    code, out, _ = run(capsys, "list", "--rules", str(rules), *PROBES)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["lost", "low", "sensor.lost", "2", "Lost\\x1b[31m"]
    assert lines[2][:3] == ["each", "high", "sensor.probe"]
    _, out, _ = run(capsys, "list", "--json", "--rules", str(rules), *PROBES)
    assert [rule["id"] for rule in json.loads(out)] == ["lost", "each"]


def test_without_a_word_rules_are_listed(capsys, monkeypatch, rules, tmp_path):
    settings = tmp_path / "kwsiem.yaml"
    settings.write_text(f"rules: {rules}\n")
    monkeypatch.setenv("KWSIEM_CONFIG", str(settings))
    assert run(capsys)[1].startswith("RULE")


# -- show --------------------------------------------------------------------------------------------


def test_show_says_in_words_when_a_rule_fires(capsys, rules):
    code, out, _ = run(capsys, "show", "lost", "--rules", str(rules), *PROBES)
    assert code == 0
    first, *rest = out.splitlines()
    assert first == (
        "lost (low): fires when one probe.name has at least 2 matching events within 3s;"
        " looks at sensor.lost where event.count > 0"
    )
    text = "\n".join(rest)
    for said in (
        "TA0007 Discovery",
        "T1110.001 Password Guessing",
        "T9999",
        "car.2013",
        "A flood",
        "after 1m",
    ):
        assert said in text, said
    assert "each (" not in out
    assert "\x1b" not in out  # the title's escape sequence is shown, not obeyed


def test_show_takes_patterns_and_prints_json(capsys, rules):
    code, out, _ = run(capsys, "show", "l*", "e?ch", "--json", "--rules", str(rules), *PROBES)
    shown = json.loads(out)
    assert code == 0
    assert [rule["id"] for rule in shown["rules"]] == ["lost", "each"]
    assert shown["rules"][0]["tests"] == 2
    assert shown["rules"][0]["attack"][0] == {"id": "TA0007", "name": "Discovery"}
    assert shown["rules"][1]["fires"] == "fires on each event that matches"
    assert shown["skipped"] == []


def test_show_explains_all_shipped_rules(capsys):
    code, out, _ = run(capsys, "show", "--rules", SHIPPED, *PROBES)
    assert code == 0
    assert (
        "tcp-port-scan (high): fires when one source.ip, destination.ip has at least 5 distinct"
        " destination.port within 3s; looks at tcp.syn where" in out
    )
    assert "3 times failure, then success within 10m" in out


def test_a_rule_that_is_not_there_is_usage_with_the_nearest(capsys, rules):
    code, out, err = run(capsys, "show", "lots", "--rules", str(rules), *PROBES)
    assert (code, out) == (2, "")
    assert err == "kwsiem: no rule 'lots', did you mean 'lost'?\n"
    assert run(capsys, "test", "nope-*", "--rules", str(rules), *PROBES)[0] == 2


# -- test --------------------------------------------------------------------------------------------


def test_the_shipped_rules_pass(capsys):
    code, out, _ = run(capsys, "test", "--rules", SHIPPED, *PROBES)
    assert code == 0
    assert "FAIL" not in out
    assert ", 0 failed, " in out


def test_a_test_that_fails_is_named_with_what_was_expected_and_its_place(capsys, rules):
    rules.write_text(BROKEN_TEST)
    code, out, _ = run(capsys, "test", str(rules), *PROBES)
    assert code == 1
    assert out.splitlines() == [
        "lost",
        f"  FAIL  two: expected 3 alerts, got 1 ({rules}:14)",
        "  pass  one",
        "without tests: each",
        "2 rules, 2 tests, 1 failed, 1 rules without tests",
    ]


def test_only_the_named_rules_of_the_named_files_are_tested(capsys, rules, tmp_path):
    rules.write_text(BROKEN_TEST)
    other = tmp_path / "other.yml"
    other.write_text(RULES.replace("id: lost", "id: lost2").replace("id: each", "id: each2"))
    code, out, _ = run(capsys, "test", str(other), str(rules), "*2", *PROBES)
    assert code == 0
    assert "2 rules, 2 tests, 0 failed" in out
    assert run(capsys, "test", str(other), str(rules), *PROBES)[0] == 1


def test_outcomes_as_json(capsys, rules):
    rules.write_text(BROKEN_TEST)
    code, out, _ = run(capsys, "test", "--json", str(rules), *PROBES)
    report = json.loads(out)
    assert code == 1
    assert (report["passed"], report["failed"], report["without_tests"]) == (1, 1, ["each"])
    first = report["rules"][0]["tests"][0]
    assert first == {"name": "two", "line": 14, "expected": 3, "got": 1, "error": "", "passed": False}
    assert report["rules"][0]["file"] == str(rules)


@pytest.mark.parametrize("content", ["version: 1\nrules: [{id: x, titel: y}]\n", "", "rules: [", None])
def test_a_file_that_does_not_load_is_78_with_its_problems(capsys, tmp_path, content):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_text(content)
    code, out, err = run(capsys, "test", str(path), *PROBES)
    assert (code, out) == (78, "")
    assert str(path) in err
    assert "Traceback" not in err


# -- schema ------------------------------------------------------------------------------------------


def test_the_schema_completes_this_hosts_event_kinds(capsys):
    code, out, _ = run(capsys, "schema", *PROBES)
    assert code == 0
    assert "tcp.syn" in json.loads(out)["$defs"]["rule"]["properties"]["event"]["anyOf"][0]["enum"]


# -- rules over rules, Sigma's files -----------------------------------------------------------------

CHAIN = RULES.replace(
    "  - id: each\n",
    "  - id: upper\n    title: Upper\n    level: high\n"
    "    correlation: {type: event_count, rules: [lost], timespan: 1h, condition: {gte: 2}}\n"
    "    tests:\n"
    "      - name: twice\n"
    "        events:\n"
    "          - {kind: sensor.lost, probe.name: a, event.count: 1, repeat: 2}\n"
    "          - {kind: sensor.lost, probe.name: a, event.count: 1, repeat: 2, wait: 2m}\n"
    "        alerts: 1\n"
    "  - id: each\n",
)


def test_a_rule_that_only_others_look_at_is_shown_and_tested_too(capsys, rules):
    rules.write_text(CHAIN)
    code, out, _ = run(capsys, "test", str(rules), *PROBES)
    assert code == 0, out
    assert out.splitlines()[0] == "lost"
    assert "3 rules, 3 tests, 0 failed, 1 rules without tests" in out
    assert (
        "never itself: other rules name it" in run(capsys, "show", "lost", "--rules", str(rules), *PROBES)[1]
    )
    _, out, _ = run(capsys, "show", "upper", "--rules", str(rules), *PROBES)
    assert "lost: an incident of lost, which fires when one probe.name has at least 2" in " ".join(
        out.split()
    )
    assert "never itself" not in out


def test_sigma_rules_that_are_skipped_are_named_with_their_reason(capsys, tmp_path, rules):
    sigma = tmp_path / "sigma.yml"
    sigma.write_text(
        "title: Windows\nid: 5f1f7a52-6e5f-4f1f-9f0e-0d3a1a5a6f10\nstatus: test\n"
        "logsource: {product: windows, category: process_creation}\n"
        "detection: {a: {Image: x}, condition: a}\nlevel: low\n"
    )
    code, out, _ = run(capsys, "show", "--rules", str(sigma), *PROBES)
    assert code == 0
    assert "skipped Sigma rules: 1" in out
    assert f"{sigma}:" in out
    _, out, _ = run(capsys, "show", "--json", "--rules", str(sigma), *PROBES)
    (skipped,) = json.loads(out)["skipped"]
    assert skipped["rule"] == "5f1f7a52-6e5f-4f1f-9f0e-0d3a1a5a6f10"
    assert skipped["reason"]
    assert run(capsys, "test", str(sigma), str(rules), *PROBES)[0] == 0
