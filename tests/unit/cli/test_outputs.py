"""``kwsiem outputs`` in a process of its own: it gives up its rights, as the courier does."""

import json
import re
import socket
import subprocess
import sys
import threading

import pytest

from kwsiem.cli import main

TIMEOUT_S = 30


@pytest.fixture
def folder(tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


def settings(folder, outputs):
    path = folder / "kwsiem.yaml"
    path.write_text(
        f"state_dir: {folder}\nruntime_dir: {folder}\nenv_file: {folder}/env\noutputs:\n{outputs}"
    )
    return path


def kwsiem(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "kwsiem", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


@pytest.fixture
def receiver():
    """Takes one TCP connection and what comes over it until its end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        got = []

        def serve():
            peer, _ = server.accept()
            with peer, peer.makefile("rb") as stream:
                got.append(stream.read())

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], got, thread
        thread.join(TIMEOUT_S)


def test_a_test_alert_is_marked_arrives_and_is_told(folder, receiver):
    port, got, thread = receiver
    path = settings(
        folder,
        f"  - {{name: siem, type: syslog, transport: tcp, port: {port}, level: critical, format: json}}\n"
        f"  - {{name: file, type: file, path: {folder}/alerts.jsonl}}\n",
    )
    done = kwsiem("outputs", "test", "--all", "--json", "--config", path)
    assert done.returncode == 0, done.stderr
    siem, file = json.loads(done.stdout)
    thread.join(TIMEOUT_S)
    line = got[0].decode()
    assert f'"id":"{siem["id"]}"' in line
    assert '"rule":"kwsiem-test","title":"Test alert of kwsiem"' in line
    assert (siem["label"], file["label"]) == ("sent, unconfirmed", "confirmed")
    document = json.loads((folder / "alerts.jsonl").read_text())
    assert document["event"]["id"] == file["id"]
    assert document["tags"] == ["kwsiem.test"]
    assert (folder / "alerts.jsonl").stat().st_uid != 0, "made by the user that goes on writing it"


def test_an_output_that_does_not_take_it_is_told_with_the_reason_and_the_others_go_on(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = settings(
        folder,
        f"  - {{name: siem, type: syslog, transport: tcp, port: {port}}}\n  - {{name: tg, type: telegram}}\n"
        "  - {name: con, type: console}\n",
    )
    done = kwsiem("outputs", "test", "--all", "--config", path)
    assert done.returncode == 1
    assert f"siem: FAILED: 127.0.0.1:{port} (tcp): Connection refused\n" in done.stdout
    assert (
        f"tg: FAILED: output 'tg': token_secret: no secret TELEGRAM_BOT_TOKEN; put TELEGRAM_BOT_TOKEN=… into {folder}/env\n"
        in done.stdout
    )
    assert "con: sent, unconfirmed, " in done.stdout
    assert "Traceback" not in done.stderr


def test_list_shows_where_each_goes_and_no_secret(folder, capsys):
    path = settings(
        folder,
        "  - {name: siem, type: syslog, transport: tls, host: log.example.net}\n"
        "  - {name: hec, type: splunk_hec, url: 'https://s:8088'}\n",
    )
    assert main(["outputs", "list", "--config", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == [
        "siem",
        "syslog",
        "cef",
        "informational",
        "log.example.net:default",
        "port",
        "(tls)",
        "not",
        "running",
    ]
    assert lines[2] == ["hec", "splunk_hec", "ecs", "informational", "https://s:8088", "not", "running"]
    assert main(["outputs", "--json", "--config", str(path)]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["siem", "hec"]


def test_an_unknown_name_is_an_error_that_names_the_known_ones(folder, capsys):
    path = settings(folder, "  - {name: siem, type: syslog}\n")
    assert main(["outputs", "test", "seim", "--config", str(path)]) == 78
    assert capsys.readouterr().err == "kwsiem: no output 'seim'; configured: siem\n"
    assert main(["outputs", "test", "--config", str(path)]) == 78


def test_dead_letters_are_listed_and_can_be_tried_again(folder):
    from kwsiem.outbox import Item, Outbox

    box = Outbox(folder / "kwsiem.db", ["siem"])
    box.put([Item("01A", 8, b"{}"), Item("01B", 8, b"{}")])
    box.settle("siem", [1], [], [(2, "400 no such index")])
    box.close()
    for path in folder.glob("kwsiem.db*"):
        path.chmod(0o666)
    path = settings(folder, "  - {name: siem, type: syslog}\n")
    done = kwsiem("outputs", "dead", "siem", "--json", "--config", path)
    assert [(one["id"], one["reason"]) for one in json.loads(done.stdout)] == [("01B", "400 no such index")]
    done = kwsiem("outputs", "retry", "siem", "--config", path)
    assert done.returncode == 69
    assert "not running" in done.stderr
    done = kwsiem("stats", "--config", path)
    assert done.returncode == 0, done.stderr
    assert "this is what its outbox on disk says" in done.stderr
    assert re.search(r"siem +2 +1 +0 +1 +0 +0", done.stdout)


def test_check_names_what_keeps_an_output_from_being_made(folder, capsys):
    path = settings(
        folder,
        "  - {name: a, type: syslog, transport: tls, ca_file: /no/such.pem}\n  - {name: b, type: telegram}\n"
        "  - {name: c, type: file, path: /tmp/x, extra: {'Bad Name': x}}\n",
    )
    assert main(["check", "--no-probes", "--config", str(path)]) == 78
    said = capsys.readouterr().out
    assert "output 'a': ca_file /no/such.pem: No such file or directory" in said
    assert "output 'b': token_secret: no secret TELEGRAM_BOT_TOKEN" in said
    assert "output 'c': " in said
