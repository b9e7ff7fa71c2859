import os
import re
import signal
import subprocess
import sys
from contextlib import closing

import msgspec
import pytest

from kwsiem import clock, rights
from kwsiem.alert import Alert
from kwsiem.cli import main
from kwsiem.cli.top.frame import as_terminal, as_text, cells, draw, fit, safe
from kwsiem.cli.top.history import MAX_INCIDENTS, Digest, History, HistoryReader, Incident, Source
from kwsiem.cli.top.model import Model, Sample
from kwsiem.document import document
from kwsiem.errors import KwsiemError
from kwsiem.outbox import Item, Outbox
from kwsiem.series import Acknowledged
from kwsiem.series_file import SeriesFile

HOSTILE = "<b>&](\x1b]0;x\x07\x1b[2J\x9b31m\r\n\u202e漢字\u0301\u0301" + "A" * 5000
NOW_NS = 1_800_000_000 * clock.NS_PER_S


def status(received=100, syn=50, pid=7, **changes):
    return {
        "version": "1.0", "host": "testhost", "pid": pid, "probe_problems": [], "bpftrace": "0.20",
        "probes": [
            {"name": "auth_pam", "state": "ready", "reason": ""},
            {"name": "net", "state": "failed", "reason": "no BTF"},
        ],
        "rules": {"rules": 12, "stale": False, "problems": []},
        "processes": [],
        "engine": {
            "lines": {"net": {"received": received, "accepted": received - 2, "rejected": {"json": 2}, "lost": 3}},
            "engine": {"events": {"tcp.syn": syn, "auth.failure": 1}},
            "alerts": {"raised": 4, "dropped": 1},
        },
        "courier": {"outputs": [{"name": "siem", "state": "failing", "waiting": 9, "delivered": 1, "last_error": "x"}]},
        "blocking": {"mode": "on", "wanted": "on"},
        **changes,
    }  # fmt: skip


def sample(at_s=10.0, text="Scan", source="198.51.100.7", **changes):
    blocks = [
        {"network": "203.0.113.9", "left_s": 7000, "mode": "on", "rule": "", "reason": text, "since": "1"}
    ]
    digest = Digest(
        [Incident("i1", NOW_NS, "open", "high", text, source, 7)],
        [Source(source, 3, "high", NOW_NS), Source("192.0.2.4", 2, "critical", NOW_NS + 1)],
    )
    return Sample(at_s, status(**changes), {"blocks": blocks}, digest)


class Appliance:
    """What stands at the other end of the control socket; keeps what it was asked."""

    def __init__(self, answer=None):
        self.asked = []
        self.answer = answer

    def __call__(self, request):
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def model_with(answer=None, **changes):
    appliance = Appliance(answer)
    model = Model(appliance)
    model.take(sample(**changes))
    return model, appliance


def picture(model, columns=80, lines=24):
    rows = draw(model, columns, lines)
    assert len(rows) == lines
    assert {sum(cells(part.text) for part in row) for row in rows} == {columns}
    return as_text(rows)


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (40, 12), (76, 13), (41, 200), (10, 3), (1, 1)])
@pytest.mark.parametrize("text", ["Scan", HOSTILE])
def test_every_picture_has_exactly_its_size_and_nothing_that_acts(size, text):
    model, _ = model_with(text=text, source=text)
    model.said = text
    for help_ in (False, True):
        model.help = help_
        shown = picture(model, *size)
        assert all(c.isprintable() for line in shown.split("\n") for c in line)
        assert not re.search("[\u202e\u0301]", shown)


def test_a_hostile_name_is_shown_as_it_is_written():
    model, _ = model_with(text=HOSTILE)
    shown = picture(model, 200, 60)
    assert "<b>&](\ufffd]0;x\ufffd\ufffd[2J" in shown
    assert "漢字" in shown
    assert "A" * 200 not in shown
    assert len(safe(HOSTILE)) <= 512


def test_what_is_shown_at_80x24():
    model, _ = model_with()
    shown = picture(model)
    for words in ("kwsiem 1.0 on testhost", "12 rules", "blocking on", "198.51.100.7", "203.0.113.9"):
        assert words in shown
    assert re.search(r"high +open +7 +198\.51\.100\.7 +Scan", shown)
    assert re.search(r"siem +failing +9 +1", shown)
    assert "! probe net is failed: no BTF (and 1 more: kwsiem status)" in shown
    assert "116 min" in shown
    assert "lost 3 (-/s)  rejected 2  alerts 4, dropped 1" in shown


def test_rates_are_those_of_the_last_seconds():
    model, _ = model_with(at_s=0.0)
    model.take(sample(at_s=10.0, received=200, syn=70))
    shown = picture(model)
    assert "events 2.0/s  lines 10.0/s" in shown
    assert "tcp.syn 2.0/s" in shown
    for second in range(11, 20):
        model.take(sample(at_s=float(second), received=200, syn=70))
    assert "lines 0.0/s" in picture(model)


def test_an_engine_that_was_restarted_counts_from_zero():
    model, _ = model_with(at_s=0.0)
    model.take(sample(at_s=2.0, received=30, syn=10))
    assert model.rates["lines"] == 15.0
    model.take(sample(at_s=3.0, received=5, pid=8))
    assert model.rates == {}, "another appliance"


def test_an_appliance_that_goes_and_comes_back():
    model, _ = model_with(at_s=10.0)
    model.take(Sample(14.0, error="kwsiem is not running"))
    shown = picture(model)
    assert "! not answering for 4 s: kwsiem is not running" in shown
    assert "203.0.113.9" in shown, "what was known stays"
    model.take(Sample(16.0, error="kwsiem is not running"))
    assert "for 6 s" in picture(model)
    model.take(sample(at_s=17.0, pid=9))
    assert "not answering" not in picture(model)


def test_a_pause_keeps_the_picture():
    model, _ = model_with()
    model.press("p")
    model.take(sample(at_s=11.0, text="Later"))
    assert "Later" not in picture(model)
    assert "PAUSED" in picture(model)
    model.press("p")
    assert "Later" in picture(model)


def test_sources_are_sorted_as_asked():
    model, _ = model_with()
    assert [s.address for s in model.sources] == ["198.51.100.7", "192.0.2.4"]
    model.press("s")
    assert [s.address for s in model.sources] == ["192.0.2.4", "198.51.100.7"]
    assert "sources by latest" in picture(model)


def test_a_block_is_asked_for_and_the_refusal_of_the_guard_is_shown():
    refusal = {
        "results": [{"network": "198.51.100.7", "blocked": False, "reason": "own: \x1b[2Jan address of ours"}]
    }
    model, appliance = model_with(refusal)
    model.press("b")
    assert appliance.asked == []
    assert "Block 198.51.100.7?" in picture(model)
    model.press("h")
    entry = {"network": "198.51.100.7", "for_s": 3600, "reason": "by hand, in top"}
    assert appliance.asked == [{"command": "blocks", "verb": "add", "entries": [entry]}]
    assert "198.51.100.7: refused: own: \ufffd[2Jan address of ours" in picture(model)


def test_an_incident_is_acknowledged_once(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "anna")
    model, appliance = model_with({"acknowledged": "i1"})
    model.press("a")
    assert "Acknowledge Scan?" in picture(model)
    model.press("x")
    assert appliance.asked == []
    model.press("a")
    model.press("y")
    assert appliance.asked == [{"command": "acknowledge", "incident_id": "i1", "who": "anna"}]
    assert "acknowledged" in picture(model).splitlines()[-1]
    later = sample(at_s=11.0)
    later.digest.incidents[0].acknowledged = "be\x1b[2Jrt"
    model.take(later)
    assert "open ack" in picture(model)
    assert "(acknowledged by be\ufffd[2Jrt)" in picture(model)
    model.press("a")
    assert model.question is None
    assert "acknowledged it already" in picture(model)
    model.press("tab")
    model.press("a")
    assert model.said == "choose an alert first: tab"
    assert len(appliance.asked) == 1


def test_a_refused_acknowledgement_is_said():
    model, _ = model_with({"error": "the courier does not answer"})
    model.press("a")
    model.press("y")
    assert "not done: the courier does not answer" in picture(model)


def test_any_other_key_is_no():
    model, appliance = model_with({})
    for key in ("y", "q", "escape", "\r"):
        model.press("b")
        model.press(key)
        assert model.said == "nothing was done"
    assert appliance.asked == []
    assert not model.quit


def test_the_question_keeps_its_target_when_rows_move():
    model, appliance = model_with(
        {"results": [{"network": "198.51.100.7", "blocked": True, "mode": "on", "for_s": 86400}]}
    )
    model.press("tab")
    model.press("b")
    new = sample(at_s=11.0)
    new.digest.sources.insert(0, Source("192.0.2.99", 50, "high", NOW_NS))
    model.take(new)
    model.press("d")
    assert appliance.asked[0]["entries"][0]["network"] == "198.51.100.7"
    assert model.said == "198.51.100.7: blocked for 1 day"


def test_the_choice_stays_with_what_it_names():
    model, _ = model_with()
    model.press("tab")
    model.press("down")
    new = sample(at_s=11.0)
    new.digest.sources.insert(0, Source("192.0.2.99", 50, "high", NOW_NS))
    model.take(new)
    assert model.keys("sources")[model.row("sources")] == "192.0.2.4"


def test_a_release_is_asked_for():
    model, appliance = model_with({"removed": "203.0.113.9", "left_s": 7000})
    model.press("r")
    assert model.said == "choose a block first: tab"
    model.press("tab")
    model.press("tab")
    model.press("r")
    assert "Release 203.0.113.9?" in picture(model)
    model.press("y")
    assert appliance.asked == [{"command": "blocks", "verb": "remove", "network": "203.0.113.9"}]
    assert model.said == "203.0.113.9: removed"


def test_an_alert_without_address_cannot_be_blocked_and_errors_are_said():
    model, appliance = model_with(source="root")
    model.press("b")
    assert (model.question, model.said) == (None, "this alert names no address")
    model, appliance = model_with(KwsiemError("gone"))
    model.press("b")
    model.press("h")
    assert model.said == "not done: gone"
    assert len(appliance.asked) == 1


def test_numbers_and_lists_that_are_none():
    model = Model(Appliance())
    for wrong in (None, 1, "x", [1], {"a": 1}):
        parts = dict.fromkeys(("engine", "rules", "blocking", "probes", "courier", "pid"), wrong)
        model.take(Sample(1.0, parts, {"blocks": wrong}))
        assert "the appliance answers something unknown" in picture(model)


def test_no_colour_is_no_sequence_at_all():
    model, _ = model_with()
    rows = draw(model, 80, 24)
    assert "\033" not in "".join(as_terminal(row, False) for row in rows)
    assert "\033[31m" in "".join(as_terminal(row, True) for row in rows)


def test_wide_letters_are_counted_by_cells():
    assert fit("漢字漢字", 5) == "漢字…"
    assert fit("漢字漢字", 4) == "漢… "
    assert fit("ab", 4) == "ab  "
    assert fit("ab", 0) == ""


# -- the history ---------------------------------------------------------------------------------------


def put(box, number, source="198.51.100.7", level="high", count=1, age_s=10, title="Scan"):
    at_ns = NOW_NS - age_s * clock.NS_PER_S
    alert = Alert(
        rule_id=f"r{number}", title=title, level=level, state="open", identity={"source.ip": source}, count=count,
        first_ns=at_ns, last_ns=at_ns, raised_ns=at_ns, opened_ts_ns=1, fields={"source.ip": source}, host="h",
    )  # fmt: skip
    box.put([Item(alert.id, 8, msgspec.json.encode(document(alert)))])


def test_incidents_and_sources_of_the_history(tmp_path):
    history = History(tmp_path / "kwsiem.db")
    assert history.update(NOW_NS) == Digest(), "there is no file yet"
    box = Outbox(tmp_path / "kwsiem.db", ["file"])
    try:
        put(box, 1, source="192.0.2.1", age_s=4000)
        for number in range(30):
            put(box, number, level="low")
        put(box, 1, count=5, level="critical", title=HOSTILE)
        found = history.update(NOW_NS)
        assert len(found.incidents) == MAX_INCIDENTS
        assert (found.incidents[0].count, found.incidents[0].level) == (5, "critical")
        assert found.incidents[0].title.startswith("<b>&](")
        assert len(found.incidents[0].title) <= 256
        assert [(s.address, s.alerts, s.level) for s in found.sources] == [("198.51.100.7", 31, "critical")]
        put(box, 50, source="192.0.2.50")
        with closing(SeriesFile(tmp_path / "series.db", max_age_s=0, max_bytes=1 << 28)) as series:
            series.acknowledge(found.incidents[0].id, Acknowledged(NOW_NS, "anna"))
        found = history.update(NOW_NS)
        assert [each.acknowledged for each in found.incidents[:3]] == ["", "anna", ""]
        assert found.incidents[0].source == "192.0.2.50"
        assert {s.address: s.alerts for s in found.sources} == {"198.51.100.7": 31, "192.0.2.50": 1}
    finally:
        box.close()


def test_a_history_that_is_begun_anew_or_damaged(tmp_path):
    path = tmp_path / "kwsiem.db"
    history = History(path)
    for source in ("192.0.2.1", "192.0.2.2"):
        box = Outbox(path, ["file"])
        for number in range(2 if source == "192.0.2.1" else 1):
            put(box, number, source=source)
        box.close()
        assert [s.address for s in history.update(NOW_NS).sources] == [source]
        path.unlink()
    path.write_bytes(b"no database" * 1000)
    assert history.update(NOW_NS).error.startswith("the history cannot be read: ")


# -- the command -----------------------------------------------------------------------------------------


def test_it_needs_a_terminal_or_once(capsys):
    assert main(["top"]) == 69
    assert "kwsiem top --once" in capsys.readouterr().err


def test_without_an_appliance(tmp_path, capsys):
    assert main(["top", "--once", "--runtime", str(tmp_path)]) == 69
    assert "kwsiem is not running" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "x", "inf"])
def test_intervals_that_make_no_sense(text):
    with pytest.raises(SystemExit) as found:
        main(["top", "--interval", text])
    assert found.value.code == 2


def test_other_commands_do_not_pay_for_it():
    program = (
        "import sys, kwsiem.cli as cli; cli._groups(['run']); assert 'kwsiem.cli.top' not in sys.modules;"
        "cli._groups([]); found = {m for m in sys.modules if m.startswith('kwsiem.cli.top')};"
        "assert found == {'kwsiem.cli.top'}, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_time_that_no_calendar_has():
    model, _ = model_with()
    model.sample.digest.incidents[0].at_ns = 2**48 * clock.NS_PER_MS
    assert "?" in picture(model)


def test_alerts_are_read_in_pages_and_the_oldest_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("kwsiem.cli.top.history.MAX_ALERTS", 7)
    monkeypatch.setattr("kwsiem.cli.top.history._PAGE", 3)
    box = Outbox(tmp_path / "kwsiem.db", ["file"])
    try:
        for number in range(10):
            put(box, number, source=f"192.0.2.{number}")
        found = History(tmp_path / "kwsiem.db").update(NOW_NS)
    finally:
        box.close()
    assert [incident.source for incident in found.incidents] == [f"192.0.2.{n}" for n in range(9, 2, -1)]
    assert len(found.sources) == 7


def test_why_the_reader_has_ended_is_said_and_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(rights, "drop", lambda user: None)
    monkeypatch.setattr(History, "update", lambda *_: 1 // 0)
    with closing(HistoryReader(tmp_path / "kwsiem.db", "nobody")) as reader:
        first = reader.read()
        assert "not read any more: ZeroDivisionError" in first.error
        assert reader.read() == reader.read() == first
    monkeypatch.undo()
    monkeypatch.setattr(rights, "drop", lambda user: None)
    with closing(HistoryReader(tmp_path / "kwsiem.db", "nobody")) as reader:
        assert reader.read() == Digest()
        os.kill(reader._pid, signal.SIGKILL)
        assert "has ended" in reader.read().error
