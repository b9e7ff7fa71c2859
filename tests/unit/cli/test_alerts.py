"""The list of alerts: what is asked for, on one line each, harmless on a terminal."""

import json
import re
import select
import threading
from contextlib import closing
from datetime import datetime, timezone

import msgspec
import pytest

from kwsiem import apart
from kwsiem.alert import LEVELS, Alert
from kwsiem.cli import main
from kwsiem.cli.alerts import cut_columns, line, render
from kwsiem.clock import wall_ns
from kwsiem.control import ControlServer
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox, Summary
from kwsiem.series import Acknowledged
from kwsiem.series_file import SeriesFile

HOSTILE = "\x1b[2J\x1b]0;x\x07<b>&](\u202e\r\n" + "A" * 5000


def alert(number, **changes):
    raised_ns = wall_ns() - (100 - number) * 60 * 10**9
    values = {
        "rule_id": "tcp-port-scan", "title": "Scan", "level": "high", "state": "open", "count": number,
        "identity": {"source.ip": f"198.51.100.{number}"}, "first_ns": raised_ns, "last_ns": raised_ns,
        "raised_ns": raised_ns, "opened_ts_ns": number, "reason": "many ports",
        "fields": {"source.ip": f"198.51.100.{number}", "destination.ip": "2001:db8::1", "destination.port": 22},
        "evidence": [{"kind": "tcp.syn", "ts_ns": 10**9 + n * 10**6, "grade": "proven", "source.port": n} for n in (7, 8)],
    }  # fmt: skip
    return Alert(**{**values, **changes})


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """The command over a history that holds these alerts; exit code and what it printed."""
    monkeypatch.setattr(apart, "drop_here", lambda user: None)  # the test goes on as who it is
    monkeypatch.setenv("KWSIEM_CONFIG", str(tmp_path / "kwsiem.yaml"))
    (tmp_path / "kwsiem.yaml").write_text("host: web1\n")

    def run(alerts, *words):
        box = Outbox(tmp_path / "kwsiem.db", ["file"])
        box.put([Item(a.id, LEVELS[a.level], msgspec.json.encode(document(a))) for a in alerts])
        box.close()
        place = len(words) if "show" in words else 0
        code = main(["alerts", *words[:place], "--state-dir", str(tmp_path), *words[place:]])
        return code, capsys.readouterr().out

    return run


def shown(output):
    return [int(re.search(r"198\.51\.100\.(\d+) ", row)[1]) for row in output.splitlines()]


def test_the_newest_come_first_and_no_more_than_asked_for(ask):
    assert shown(ask([alert(n) for n in range(1, 31)])[1]) == list(range(30, 10, -1))
    assert shown(ask([], "--limit", "2")[1]) == [30, 29]
    assert len(shown(ask([], "--limit", "0")[1])) == 30


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["--rule", "ssh-*"], [2]),
        (["--rule", "ssh-guess"], [2]),
        (["--rule", "ssh"], []),
        (["--source", "198.51.100.3"], [3]),
        (["--source", "198.51.100.0/30"], [3, 2, 1]),
        (["--level", "critical"], [4]),
        (["--state", "close"], [5]),
        (["--since", "97m"], [5, 4, 3]),
        (["--until", "96m"], [3, 2, 1]),
        (["--since", "2001-01-31", "--until", "2001-02-01T00:00:00Z"], []),
    ],
)
def test_filters(ask, words, numbers):
    alerts = [
        alert(1),
        alert(2, rule_id="ssh-guess"),
        alert(3),
        alert(4, level="critical"),
        alert(5, state="close"),
    ]
    # Half a minute from any bound.
    alerts = [msgspec.structs.replace(a, raised_ns=a.raised_ns + 30 * 10**9) for a in alerts]
    assert shown(ask(alerts, *words)[1]) == numbers


@pytest.mark.parametrize("word", ["2", "yesterday", "2026-13-01", "", "99999999999999999999d"])
def test_a_time_that_is_none_is_a_usage_error(ask, word, capsys):
    with pytest.raises(SystemExit) as raised:
        ask([alert(1)], "--since", word)
    assert raised.value.code == 2
    assert "expected a time" in capsys.readouterr().err


def test_json_is_an_array_of_documents(ask):
    alerts = [alert(n) for n in (1, 2)]
    assert json.loads(ask(alerts, "--json")[1]) == [document(a) for a in reversed(alerts)]
    assert json.loads(ask([], "--json", "--rule", "none")[1]) == []


def test_any_format_of_the_outputs(ask):
    assert ask([alert(1)], "--format", "cef")[1].startswith("CEF:0|")


def test_one_alert_is_shown_with_its_evidence(ask):
    made = alert(9)
    code, text = ask([made, alert(8)], "show", made.id[-8:].lower())
    assert code == 0
    assert "many ports" in text
    assert "1. tcp.syn  +0.000 s  proven" in text
    assert "2. tcp.syn  +0.001 s  proven" in text
    assert json.loads(ask([], "show", made.id, "--json")[1]) == document(made)


def test_an_id_that_is_not_there_or_not_enough_fails(ask):
    assert ask([alert(n) for n in range(64)], "show", "NONE")[0] == 1
    assert any(ask([], "show", letter)[0] == 1 for letter in "0123456789ABCDEF")


def test_without_a_history_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(apart, "drop_here", lambda user: None)
    assert main(["alerts", "--state-dir", str(tmp_path)]) == 69
    assert "has the appliance run" in capsys.readouterr().err


def test_hostile_text_stays_on_its_line_and_moves_no_cursor(ask):
    made = alert(
        1, rule_id=HOSTILE, reason=HOSTILE, identity={"user.name": HOSTILE}, fields={"user.name": HOSTILE}
    )
    code, text = ask([made])
    assert code == 0 and text.count("\n") == 1
    shown_one = ask([], "show", made.id)[1]
    for output in (text, shown_one, ask([], "--json")[1]):
        assert output.replace("\n", "").isprintable()
        assert "\u202e" not in output


def test_a_terminal_gets_no_more_columns_than_it_has():
    facts = {"@timestamp": "2026-01-02T03:04:05.123Z", "event": {"id": "A" * 26, "reason": "端口" * 250}}
    summary = msgspec.convert(facts, Summary, strict=False)
    for width in (20, 60, 80, 200):
        assert len(line(summary, width)) <= width
    assert "端口" * 200 in line(summary)


@pytest.mark.parametrize(
    ("text", "columns", "cut"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("端口口", 5, "端口…"), ("端口口", 6, "端口口"), ("端口口", 4, "端…"), ("a", 0, ""), ("e\u0301x", 2, "e\u0301x")],
)  # fmt: skip
def test_wide_characters_take_two_columns(text, columns, cut):
    assert cut_columns(text, columns) == cut


def test_the_time_is_local():
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    summary = msgspec.convert({"@timestamp": "2026-01-02T03:04:05.000Z"}, Summary, strict=False)
    assert line(summary).startswith(f"{moment.astimezone():%Y-%m-%d %H:%M:%S}")
    assert f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" in render({"@timestamp": "2026-01-02T03:04:05.000Z"})


def test_who_acknowledged_is_shown(ask, tmp_path):
    alerts = [alert(n) for n in range(1, 31)]
    with closing(SeriesFile(tmp_path / "series.db", max_age_s=0, max_bytes=1 << 28)) as series:
        series.acknowledge(alerts[3].incident_id, Acknowledged(1_800_000_000 * 10**9, HOSTILE))
    lines = ask(alerts, "--limit", "0")[1].splitlines()
    assert len(lines) == 30
    (said,) = [line for line in lines if "[ack " in line]
    assert "198.51.100.4 " in said
    assert "\x1b" not in said and "\u202e" not in said
    shown = ask([], "show", alerts[3].id)[1]
    assert re.search(r"^acknowledged +by .*<b>&]\(.*, 2027-01-15 ", shown, re.MULTILINE)
    document = json.loads(ask([], "show", "--json", alerts[3].id)[1])
    assert document["kwsiem"]["alert"]["acknowledged"]["at"] == "2027-01-15T08:00:00.000Z"
    assert "acknowledged" not in json.loads(ask([], "show", "--json", alerts[4].id)[1])["kwsiem"]["alert"]


def test_damaged_acknowledgements_leave_the_list_as_it_is(ask, tmp_path, capsys):
    (tmp_path / "series.db").write_bytes(b"no database" * 1000)
    assert shown(ask([alert(1)])[1]) == [1]


@pytest.fixture
def appliance(tmp_path):
    """A control socket that takes one acknowledgement and keeps what it was asked."""
    asked = []

    def answer(request):
        asked.append(request)
        return {"acknowledged": request["incident_id"]}

    server = ControlServer(tmp_path / "control.sock", answer)

    def serve():
        if select.select([server], [], [], 20)[0]:
            server.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield asked
    thread.join()
    server.close()


def test_an_incident_is_acknowledged_by_the_end_of_an_alerts_id(
    ask, appliance, tmp_path, monkeypatch, capsys
):
    """The child that reads the history is a real one: it gives its rights up, to whom these files belong."""
    monkeypatch.setenv("SUDO_USER", "anna")
    (tmp_path / "kwsiem.yaml").write_text("host: web1\nuser: root\n")
    chosen = alert(2)
    ask([alert(1), chosen])
    words = ["--state-dir", str(tmp_path), "--runtime", str(tmp_path)]
    assert (
        main(
            [
                "alerts",
                "acknowledge",
                "--config",
                str(tmp_path / "kwsiem.yaml"),
                *words,
                chosen.id[-8:].lower(),
            ]
        )
        == 0
    )
    assert appliance == [{"command": "acknowledge", "incident_id": chosen.incident_id, "who": "anna"}]
    assert capsys.readouterr().out == f"{chosen.incident_id} acknowledged\n"


def test_an_alert_that_is_not_there_cannot_be_acknowledged(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KWSIEM_CONFIG", str(tmp_path / "kwsiem.yaml"))
    (tmp_path / "kwsiem.yaml").write_text("host: web1\nuser: root\n")
    Outbox(tmp_path / "kwsiem.db", ["file"]).close()
    code = main(
        ["alerts", "acknowledge", "--state-dir", str(tmp_path), "--runtime", str(tmp_path), "NOSUCHID"]
    )
    assert code != 0
    assert "no alert 'NOSUCHID'" in capfd.readouterr().err
