"""``kwsiem status NAME``: what was named alone, and whether it is well."""

import json

import pytest

from kwsiem.cli import main, status
from kwsiem.errors import ConfigError

SINCE = {"since_s": 5, "restarts": 0}
STATUS = {
    "probes": [
        {"name": "net", "state": "ready", "reason": "", **SINCE},
        {"name": "auth_pam", "state": "unsupported", "reason": "no PAM", **SINCE},
        {"name": "own", "state": "failed", "reason": "\x1b[2J wrong", **SINCE},
    ],
    "processes": [{"name": "engine", "state": "ready", "pid": 7, **SINCE}],
    "courier": {"outputs": [{"name": "siem", "state": "failing"}, {"name": "file", "state": "ready"}]},
    "engine": {"lines": {"net": {"received": 12, "rejected": {}, "lost": 0}}},
}


@pytest.fixture(autouse=True)
def appliance(monkeypatch):
    monkeypatch.setattr(status, "ask", lambda socket, request: STATUS)


@pytest.mark.parametrize(
    ("names", "code"),
    [(["net"], 0), (["net", "auth_pam", "engine", "file"], 0), (["own"], 1), (["net", "siem"], 1)],
)
def test_the_exit_code_is_that_of_what_was_named(names, code, capsys):
    assert main(["status", *names, "--runtime", "/nowhere"]) == code
    text = capsys.readouterr().out
    assert all(name in text for name in names) and "\x1b[2J" not in text
    assert not ({"net", "own", "siem", "engine", "file"} - set(names)) & set(text.split())


def test_json_has_what_was_named_alone(capsys):
    assert main(["status", "net", "file", "--json", "--runtime", "/nowhere"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [probe["name"] for probe in found["probes"]] == ["net"]
    assert found["processes"] == [] and found["engine"]["lines"]["net"]["received"] == 12
    assert [output["name"] for output in found["courier"]["outputs"]] == ["file"]


def test_a_name_that_nothing_has_is_an_error():
    with pytest.raises(ConfigError, match="smtp: no probe, process or output has this name"):
        status.only(STATUS, ["net", "smtp"])
