"""``kwsiem dashboard``: what must not be served is refused, with words that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kwsiem.cli import main
from kwsiem.dashboard.token import FILE_NAME, NAME, folder_of


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(NAME, raising=False)
    config = tmp_path / "kwsiem.yaml"
    config.write_text(f"state_dir: {tmp_path}/state\nruntime_dir: {tmp_path}\nenv_file: {tmp_path}/env\n")

    def command(*words):
        code = main(["dashboard", "--config", str(config), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.mark.parametrize("listen", ["0.0.0.0:9470", "192.0.2.1:9470", "[::]:9470"])
def test_the_network_gets_nothing_without_tls(run, listen):
    code, _, err = run("--listen", listen)
    assert code == 78
    assert "--tls-certificate" in err and "ssh -L" in err


@pytest.mark.parametrize(
    "listen", ["", "9470", "localhost:9470", "127.0.0.1:80", "127.0.0.1:99999", "::1:9470"]
)
def test_an_address_that_is_none(run, listen):
    code, _, err = run("--listen", listen)
    assert code == 78
    assert "--listen" in err


def test_a_key_without_a_certificate(run):
    assert run("--tls-key", "k.pem")[0] == 78


def test_the_token_is_printed_and_stays(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, out, _ = run("--show-token")
    assert code == 0
    assert out.strip() == (folder_of(tmp_path / "state") / FILE_NAME).read_text().strip()
    assert run("--show-token")[1] == out


def test_whoever_is_not_root_learns_it(run, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, _, err = run("--show-token")
    assert code == 69
    assert "sudo" in err


def test_other_commands_do_not_pay_for_it():
    code = "import sys, kwsiem.cli.dashboard; print([m for m in ('uvicorn', 'starlette', 'jinja2', 'asyncio') if m in sys.modules])"
    source = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
