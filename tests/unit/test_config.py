"""Settings: defaults for everything, every error at once, each with its place."""

from pathlib import Path

import pytest

from kwsiem.config import HistorySettings, Settings, listen_address, load_settings, parse_settings, resolve
from kwsiem.errors import ConfigError
from kwsiem.output_settings import type_of


def test_everything_has_a_default(monkeypatch, tmp_path):
    monkeypatch.setattr("kwsiem.config.CONFIG_PATH", tmp_path / "absent.yaml")
    monkeypatch.delenv("KWSIEM_CONFIG", raising=False)
    settings = load_settings()
    assert [type_of(output) for output in settings.outputs] == ["console", "file"]
    assert settings.outputs[1].path == "/var/lib/kwsiem/alerts.jsonl"
    assert Path(settings.rules).name == "rules.yaml"
    assert settings.host


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such settings file"):
        load_settings(tmp_path / "absent.yaml")


def test_the_environment_names_the_file(monkeypatch, tmp_path):
    path = tmp_path / "k.yaml"
    path.write_text("host: from-environment\n")
    monkeypatch.setenv("KWSIEM_CONFIG", str(path))
    assert load_settings().host == "from-environment"


def test_outputs_are_read():
    text = b"outputs:\n  - {name: siem, type: syslog, transport: tcp, host: 192.0.2.5, port: 6514, format: ecs}\n"
    (output,) = parse_settings("k.yaml", text).outputs
    assert (output.transport, output.host, output.port, output.format) == ("tcp", "192.0.2.5", 6514, "ecs")


def test_all_errors_are_told_at_once_with_line_key_value_and_what_was_expected():
    text = b"""hots: web1
log_level: loud
outputs:
  - {name: a, type: syslg}
  - {name: a, type: console, colour: red}
  - {type: console}
  - {name: b, type: syslog, port: 99999}
"""
    with pytest.raises(ConfigError) as error:
        parse_settings("k.yaml", text)
    lines = str(error.value).split("\n")
    assert lines[0] == "k.yaml:1:1: hots: unknown key, did you mean 'host'?"
    assert lines[1].startswith("k.yaml:2:1: log_level: ")
    assert "'loud'" in lines[1]
    assert "'debug'" in lines[1]
    assert lines[2].startswith("k.yaml:4:15: outputs.0.type: ")
    assert lines[3].startswith("k.yaml:5:30: outputs.1.colour: unknown key")
    assert "key 'name' is missing" in lines[4]
    assert lines[5].startswith("k.yaml:7:29: outputs.3.port: must be 0 to 65535, got 99999")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"host: a\nhost: b\n", "k.yaml:2:1: key 'host' stands twice, first in line 1"),
        (b"a: &x [1]\nb: *x\n", "aliases"),
        (b"\thost: a\n", "a tab cannot indent YAML"),
        (b"", "the file is empty"),
        (b"- a\n", "expected a mapping"),
        (b"host: [\n", "k.yaml:2"),
        (b"\xff\xfe\xff", "k.yaml: not readable as YAML"),
    ],
)
def test_what_is_no_settings_file_is_told_plainly(text, says):
    with pytest.raises(ConfigError) as error:
        parse_settings("k.yaml", text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:65535", ("::1", 65535)),
        ("0.0.0.0:1024", ("0.0.0.0", 1024)),
    ],
)
def test_metrics_listen_at_an_address_and_a_port(listen, address):
    settings = parse_settings("x", f'metrics: {{listen: "{listen}"}}\n'.encode())
    assert listen_address(settings.metrics.listen) == address


@pytest.mark.parametrize(
    "listen", ["9464", "localhost:9464", "127.0.0.1:80", "127.0.0.1:99999", "300.0.0.1:9464", "::1:9464"]
)
def test_metrics_listen_nowhere_else(listen):
    with pytest.raises(ConfigError, match=r"^x:1:.*metrics.listen: .*got"):
        parse_settings("x", f'metrics: {{listen: "{listen}"}}\n'.encode())


def test_two_outputs_cannot_have_one_name():
    with pytest.raises(ConfigError, match="'x' stands twice"):
        parse_settings("k.yaml", b"outputs: [{name: x, type: console}, {name: x, type: file}]")


def test_a_bot_has_one_reader():
    text = "outputs: [{name: a, type: telegram, chatops: {users: [7]}}, {name: b, type: telegram%s}]"
    assert parse_settings("k.yaml", (text % "").encode()).outputs[0].chatops.users == (7,)
    other = text % ", token_secret: OTHER, chatops: {users: [7]}"
    assert parse_settings("k.yaml", other.encode()).outputs[1].chatops.users == (7,)
    with pytest.raises(ConfigError, match=r"outputs\.1\.chatops: another output has it"):
        parse_settings("k.yaml", (text % ", chatops: {users: [8]}").encode())


@pytest.mark.parametrize("users", ["7", "[a]", "[1.5]", "{}"])
def test_users_of_chatops_are_numbers(users):
    text = f"outputs: [{{name: a, type: telegram, chatops: {{users: {users}}}}}]"
    with pytest.raises(ConfigError, match=r"outputs\.0\.chatops"):
        parse_settings("k.yaml", text.encode())


def test_the_file_output_goes_to_the_state_folder():
    settings = resolve(Settings(state_dir="/srv/state"))
    assert settings.outputs[1].path == "/srv/state/alerts.jsonl"


def test_further_rules_lie_beside_a_named_file_and_else_in_etc():
    assert resolve(Settings()).rules_dir == "/etc/kwsiem/rules.d"
    assert resolve(Settings(rules="/srv/r.yaml")).rules_dir == "/srv/rules.d"
    assert resolve(Settings(rules="/srv/r.yaml", rules_dir="/srv/more")).rules_dir == "/srv/more"


def test_the_history_is_kept_for_so_long_and_so_large():
    assert parse_settings("f", b"{}").history == HistorySettings()
    assert HistorySettings().max_age_s == 30 * 86_400
    found = parse_settings("f", b"history: {max_age_d: 90, max_bytes: 1048576, every_s: 1}").history
    assert (found.max_age_d, found.max_bytes, found.every_s) == (90, 1 << 20, 1)
    assert parse_settings("f", b"history: {max_age_d: 0}").history.max_age_s == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_age_d: -1", "must be 0 to 3650"),
        ("max_age_d: 0.5", "must be 0 or at least 1"),
        ("max_bytes: 1000", "must be 4096 to"),
        ("max_bytes: 5000", "must be at least 1048576"),
        ("every_s: 0", "must be 1 to 60"),
        ("max_age: 3", "did you mean 'max_age_d'"),
    ],
)
def test_a_history_without_sense_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_settings("f", f"history: {{{text}}}".encode())
