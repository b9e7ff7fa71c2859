"""``kwsiem config`` prints a settings file that means what is in force, without any secret."""

import json

import pytest
import yaml

from kwsiem import secret
from kwsiem.cli import main
from kwsiem.config import Settings, load_settings, parse_settings, resolve

FILE = """\
host: "web\\x1b[2J1"
# a comment
history_alerts: 50000
blocking:
  allow: [192.0.2.1]
outputs:
  - {name: hook, type: webhook, url: "https://u:pass-word@soar.example.net/x?key=hunter-two", signing_secret: SIGNING}
env_file: ENV
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(secret, "_known", set())
    (tmp_path / "env").write_text("SIGNING=hunter-two\n")
    path = tmp_path / "kwsiem.yaml"
    path.write_text(FILE.replace("ENV", str(tmp_path / "env")))
    return path


def test_what_it_prints_is_a_settings_file_that_means_the_same(tmp_path, capsys):
    path = tmp_path / "kwsiem.yaml"
    path.write_text(
        "host: web1\nrules: /x/rules.yaml\noutputs:\n  - {name: a, type: syslog, host: h, tags: [x*]}\n"
    )
    assert main(["config", "--config", str(path)]) == 0
    assert resolve(parse_settings("printed", capsys.readouterr().out.encode())) == load_settings(path)


def test_json_holds_the_same_values(config, capsys):
    main(["config", "--config", str(config)])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert main(["config", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert printed["history_alerts"] == 50_000


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_no_secret_and_no_escape_is_shown(config, capsys, words):
    main(["config", "--config", str(config), *words])
    text = capsys.readouterr().out
    assert "hunter-two" not in text and "pass-word" not in text and "\x1b" not in text
    assert "SIGNING" in text and "soar.example.net" in text


def test_it_says_where_a_value_comes_from(config, capsys):
    main(["config", "--config", str(config), "--probes", "/elsewhere"])
    lines = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["history_alerts"].endswith(f"# {config}:3")
    assert lines["blocking"].endswith(f"# {config}:4")
    assert lines["probes"].endswith("# --probes")
    assert lines["rules_dir"].endswith("# from this host")
    assert "#" not in lines["state_dir"]


def test_the_defaults_are_those_without_a_file(config, capsys, monkeypatch):
    monkeypatch.setenv("KWSIEM_CONFIG", str(config))
    assert main(["config", "--default"]) == 0
    text = capsys.readouterr().out
    assert parse_settings("printed", text.encode()) == resolve(Settings())
    assert "# " not in text.split("\nblocking:")[1]


def test_bad_settings_are_an_error(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("hots: x\n")
    assert main(["config", "--config", str(tmp_path / "bad.yaml")]) == 78
    assert "did you mean 'host'" in capsys.readouterr().err


def test_keys_that_are_named_are_printed_alone(config, capsys):
    assert main(["config", "--config", str(config), "outputs", "history_alerts", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["outputs", "history_alerts"]
    assert main(["config", "--config", str(config), "history_alerts"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"history_alerts": 50000}
    assert main(["config", "--config", str(config), "nothing\x1b[2J"]) == 78
    assert "no such setting; there are host, user" in (said := capsys.readouterr().err) and "\x1b" not in said
