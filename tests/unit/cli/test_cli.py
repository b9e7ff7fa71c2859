"""The command line as a person meets it: help, errors in a sentence, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kwsiem.cli import alerts, main
from kwsiem.cli.status import faults

SOURCE = Path(__file__).resolve().parents[3]
COMMANDS = (
    "run", "status", "stats", "check", "doctor", "probes", "rules", "outputs", "blocks", "replay", "simulate"
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_a_wrong_word_is_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["rnu"])
    assert ended.value.code == 2


def test_a_missing_settings_file_is_78(capsys):
    assert main(["check", "--no-probes", "--config", "/no/such/file"]) == 78
    assert capsys.readouterr().err == "kwsiem: /no/such/file: no such settings file\n"


def test_status_without_an_appliance_is_69(capsys, tmp_path):
    assert main(["status", "--runtime", str(tmp_path)]) == 69
    assert "not running" in capsys.readouterr().err


def test_check_says_all_is_well(capsys):
    assert main(["check", "--no-probes", "--rules", str(SOURCE / "rules.yaml")]) == 0
    assert "their tests pass" in capsys.readouterr().out


def test_check_as_json_names_every_problem(capsys, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules:\n  - {id: x, titel: y}\n")
    assert main(["check", "--no-probes", "--json", "--rules", str(rules)]) == 78
    problems = json.loads(capsys.readouterr().out)["rules"]["problems"]
    assert f"{rules}:3:13: rule x: unknown key 'titel', did you mean 'title'?" in problems


def test_probes_lists_kinds(capsys):
    assert main(["probes", "--json", "--probes", str(SOURCE / "probes")]) == 0
    listed = {probe["name"]: probe for probe in json.loads(capsys.readouterr().out)}
    assert listed["net"]["kinds"]["tcp.syn"]["destination.port"] == "port"
    assert "source.ip" in listed["auth_pam"]["kinds"]["auth.attempt"]


def test_replay_prints_alerts_and_tells_what_it_rejected(capsys, tmp_path):
    events = tmp_path / "events.jsonl"
    lines = [
        json.dumps(
            {
                "kind": "tcp.syn",
                "ts_ns": 10**18 + n,
                "source.ip": "198.51.100.7",
                "destination.ip": "192.0.2.1",
                "destination.port": n,
            }
        )
        for n in range(1, 7)
    ]
    events.write_text("\n".join([*lines, "rubbish"]) + "\n")
    assert main(["replay", "--rules", str(SOURCE / "rules.yaml"), "--format", "ecs", str(events)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["rule"]["id"] == "tcp-port-scan"
    assert "rejected: 1 no_probe" in err


def test_a_file_that_is_not_there_is_69(capsys):
    assert main(["replay", "--rules", str(SOURCE / "rules.yaml"), "/no/such/file"]) == 69
    assert "/no/such/file" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback():
    argv = [sys.executable, "-m", "kwsiem", "probes", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout and child.stderr
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()


def test_without_root_the_appliance_says_what_to_do():
    # Rights are dropped after the imports: a developer's interpreter may live where nobody else may read.
    code = "import kwsiem.cli.run, locale, os; os.setuid(65534); raise SystemExit(kwsiem.cli.main(['run']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert "needs root" in done.stderr


def test_the_sensor_carries_nothing_of_what_other_commands_import():
    script = """
import sys
from kwsiem.cli import main
try:
    main(["run", "--help"])
except SystemExit:
    print([name for name in ("sigma", "pyparsing", "re2", "ssl", "requests") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_chatops_that_fails_is_a_fault():
    status = {"probes": [], "probe_problems": [], "rules": {"stale": False}, "processes": []}
    chats = [
        {"name": "a", "state": "ready", "last_error": ""},
        {"name": "b", "state": "failing", "last_error": "409"},
    ]
    assert faults({**status, "courier": {"chats": chats}}) == ["ChatOps of output b is failing: 409"]
    series = {"error": "disk full", "lost": {}, "damaged": 0, "bytes": 0}
    assert faults({**status, "courier": {"series": series}}) == [
        "the history of figures is not written: disk full"
    ]
    engine = {"event_log": {"failed": "no space"}}
    assert faults({**status, "courier": {}, "engine": engine}) == ["the event log is not written: no space"]


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["--config", "F", "--json", "show", "X"], "F"),
        (["show", "X", "--config", "F", "--json"], "F"),
        (["--config", "G", "--json", "show", "X", "--config", "F"], "F"),
    ],
)
def test_an_option_holds_before_a_verb_and_behind_it(words, config, monkeypatch):
    seen = []
    monkeypatch.setattr(alerts, "show_", lambda options: seen.append(options) or 0)
    assert main(["alerts", *words]) == 0
    assert [(str(each.config), each.json, each.state_dir) for each in seen] == [(config, True, None)]
