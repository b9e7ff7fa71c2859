"""``kwsiem report``: right figures, a page without anything active in it, and a file that is whole or not there."""

import base64
import contextlib
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from kwsiem import rights
from kwsiem.alert import LEVELS
from kwsiem.cli import main
from kwsiem.cli import report as command
from kwsiem.cli.report import facts, tally
from kwsiem.cli.report.facts import Span, span_of
from kwsiem.cli.report.page import Page, duration, words
from kwsiem.cli.report.tally import Places, Tally
from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.control import ControlServer
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox
from kwsiem.outbox.history import History, Wanted
from kwsiem.series import Acknowledged, Journal
from kwsiem.series_file import SeriesFile

HOSTILE = "\x1b[2J<b>&](\u202e\r\n\"'<script>alert(1)</script>{{ 7*7 }}<img src=x onerror=y>" + "A" * 5000
HOUR_NS = 3600 * NS_PER_S
ELEMENTS = """
html head meta title style body header main footer section article h1 h2 h3 h4 p b ul ol li
small code span div table thead tbody tr th td br svg desc g rect line text polyline
"""
ATTRIBUTES = """
lang charset http-equiv content name class id aria-labelledby aria-hidden role viewbox width
height x y x1 x2 y1 y2 text-anchor preserveaspectratio points value scope
"""


class Reader(HTMLParser):
    """What a browser would see: elements, attributes, the text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.text, self.open = set(), set(), "", []
        self.policy = self.style = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}
        found = dict(attributes)
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data


@pytest.fixture
def put(make_alert, tmp_path):
    """Alerts into the history: hours ago, and what else is different."""

    def run(*alerts):
        made = []
        for number, (hours, changes) in enumerate(alerts):
            raised_ns = wall_ns() - int(hours * HOUR_NS)
            times = {"raised_ns": raised_ns, "first_ns": raised_ns - NS_PER_S, "last_ns": raised_ns}
            made.append(make_alert(number=number, **{**times, **changes}))
        box = Outbox(tmp_path / "kwsiem.db", ["file"])
        box.put([Item(a.id, LEVELS.get(a.level, 8), msgspec.json.encode(document(a))) for a in made])
        box.close()
        return made

    return run


@pytest.fixture
def report(tmp_path, monkeypatch, capfd):
    """The command; exit code, the page or the JSON, and what was said."""
    monkeypatch.setattr(rights, "drop", lambda user: None)  # the child goes on as who it is
    (tmp_path / "kwsiem.yaml").write_text(f"host: web1\nstate_dir: {tmp_path}\nruntime_dir: {tmp_path}/run\n")

    def run(*options):
        argv = ["report", "--config", str(tmp_path / "kwsiem.yaml"), *options]
        if "--output" not in options:
            argv += ["--output", "-"]
        code = main(argv)
        out, err = capfd.readouterr()
        return code, json.loads(out) if "--json" in options and not code else out, err

    return run


@pytest.fixture
def figures(tmp_path):
    """Writes figures of an hour ago and our own events."""

    def run(values=None, entries=(), acknowledged=()):
        file = SeriesFile(tmp_path / "series.db", max_age_s=10**9, max_bytes=10**9)
        now_s = wall_ns() // NS_PER_S
        file.add(now_s - 3600, values or {})
        file.note(Journal(wall_ns() - 60 * NS_PER_S, kind, fields) for kind, fields in entries)
        for incident in acknowledged:
            file.acknowledge(incident, Acknowledged(wall_ns(), "anna"))
        file.close()

    return run


# figures ----------------------------------------------------------------------------------------------


def test_alerts_are_counted_by_level_rule_and_source(report, put):
    put(
        (1, {"level": "critical", "rule_id": "ssh"}),
        (2, {}),
        (3, {"state": "update", "count": 50}),
        (4, {"level": "low", "fields": {"source.ip": "2001:db8::7"}}),
        (30, {"level": "low"}),
        (31, {}),
        (60, {}),
    )
    code, found, _ = report("--since", "24h", "--json")
    assert code == 0
    assert found["levels"] == {"informational": 0, "low": 1, "medium": 0, "high": 2, "critical": 1}
    assert (found["alerts"], found["opened"]) == (4, 3)
    assert sum(found["before"].values()) == 2 and found["before"]["low"] == 1
    assert {(rule["id"], rule["alerts"], rule["opened"]) for rule in found["rules"]} == {
        ("ssh", 1, 1),
        ("tcp-port-scan", 3, 2),
    }
    assert found["rules"][0]["id"] == "ssh", "the most severe first"
    assert found["rules"][0]["techniques"] == ["T1046 Network Service Discovery"]
    assert found["rules"][0]["tactics"] == ["TA0007 Discovery"]
    sources = {source["address"]: source for source in found["sources"]}
    assert sources["198.51.100.7"]["alerts"] == 3 and sources["198.51.100.7"]["level"] == "critical"
    assert sources["198.51.100.7"]["last_ns"] - sources["198.51.100.7"]["first_ns"] == pytest.approx(
        2 * HOUR_NS, abs=10**9
    )
    assert sum(map(sum, found["timeline"].values())) == 4


def test_an_incident_is_there_once_with_its_latest_message(report, put):
    same = {"opened_ts_ns": 5, "first_ns": wall_ns() - 5 * HOUR_NS}
    put(
        (3, {**same, "state": "open"}),
        (2, {**same, "state": "update", "count": 50}),
        (
            1,
            {
                **same,
                "state": "close",
                "count": 77,
                "evidence": [
                    {"kind": "tcp.syn", "ts_ns": 10**9, "grade": "proven"},
                    {"kind": "tcp.syn", "ts_ns": 2 * 10**9, "process.name": "x"},
                ],
            },
        ),
        (2, {"opened_ts_ns": 6, "level": "low"}),
    )
    found = report("--since", "24h", "--json")[1]["incidents"]
    assert [(one["level"], one["state"], one["count"]) for one in found] == [
        ("high", "close", 77),
        ("low", "open", 5),
    ]
    assert found[0]["evidence"] == ["tcp.syn  +0.000 s  proven  ", "tcp.syn  +1.000 s    process.name=x"]
    assert found[0]["first_ns"] // 10**9 == same["first_ns"] // 10**9


def test_until_and_the_default_of_a_week(report, put):
    put((1, {}), (30, {}), (100, {}), (500, {}))
    assert report("--json")[1]["alerts"] == 3
    assert report("--since", "7d", "--until", "24h", "--json")[1]["alerts"] == 2


@pytest.mark.parametrize(
    "words_", [["--since", "366d"], ["--since", "0001-01-02"], ["--since", "1h", "--until", "9999-12-30"]]
)
def test_a_span_of_any_length(report, put, words_):
    put((0.5, {}))
    code, page, _ = report(*words_)
    assert code == 0 and "1 alert in" in Reader(page).text


def test_before_is_not_told_when_the_history_does_not_reach_back(report, put):
    put((1, {}), (30, {}))
    code, found, _ = report("--since", "24h", "--json")
    assert code == 0 and found["before"] is None
    assert "there is no earlier span to compare" in Reader(report("--since", "24h")[1]).text


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        (10, 10, "as many as"), (15, 10, "50% more than"), (5, 10, "50% fewer than"), (40, 10, "4.0 times as many as"),
        (10, 0, "before there was none"), (0, 10, "No alert was raised"),
    ],
)  # fmt: skip
def test_the_summary_compares_in_words(now, before, said):
    none = dict.fromkeys(LEVELS, 0)
    made = facts.Report(
        title="", host="", version="", made_ns=0, since_ns=0, until_ns=7 * 24 * HOUR_NS, step_s=3600, running=False,
        alerts=now, levels={**none, "high": now}, before={**none, "low": before}, history_since_ns=1,
    )  # fmt: skip
    assert said in " ".join(words(made))


def test_figures_journal_and_acknowledgements_are_in_it(report, put, figures):
    (made, *_) = put((0.1, {}), (40, {}))
    figures(
        {
            "packets": {"tcp": 1000, "udp": 5}, "ports": {"tcp/22": 900, "other": 7}, "lost": {"kernel:budget": 4},
            "probe_up_s": {"net": 60, "auth": 30},
        },
        [
            ("block.decision", {"source.address": "198.51.100.7", "event.action": "blocked", "rule.id": "ssh"}),
            ("block.decision", {"source.address": "192.0.2.9", "event.action": "refused", "event.reason": "gateway"}),
            ("sensor.probe", {"probe.name": "auth", "probe.state": "failed", "event.reason": "no BTF"}),
        ],
        [made.incident_id],
    )  # fmt: skip
    found = report("--since", "2h", "--json")[1]
    assert {name: sum(values) for name, values in found["packets"].items()} == {"tcp": 1000, "udp": 5}
    assert found["ports"] == [["tcp/22", 900], ["other", 7]]
    assert found["lost"] == [
        {
            "stage": "kernel",
            "reason": "budget",
            "count": 4,
            "why": "held back by the probe: too much in one second",
        }
    ]
    net = next(probe for probe in found["probes"] if probe["name"] == "net")
    assert net["up_s"] == 60 and 1.0 in net["steps"] and None in net["steps"] and 0.0 in net["steps"]
    auth = next(probe for probe in found["probes"] if probe["name"] == "auth")
    assert 0.5 in auth["steps"] and 1.0 not in auth["steps"]
    assert found["blocks"]["counts"] == {"blocked": 1, "refused": 1}
    assert found["blocks"]["refused"] == {"gateway": 1}
    assert found["sources"][0]["blocked"] == "blocked"
    assert found["changes"][0][1:] == ["probe auth", "failed: no BTF"]
    assert found["incidents"][0]["acknowledged"] == "anna"
    text = Reader(report("--since", "2h")[1]).text
    for words_ in ("tcp/22", "acknowledged by anna", "gateway (1)", "no BTF", "held back by the probe"):
        assert words_ in text


def test_the_running_appliance_tells_what_is_blocked_and_how_outputs_are(report, put, tmp_path, monkeypatch):
    put((1, {}))
    output = {
        "name": "siem",
        "state": "failing",
        "label": "confirmed",
        "raised": 9,
        "delivered": 7,
        "waiting": 2,
        "balanced": True,
        "last_error": "refused",
    }
    status = {
        "probes": [], "probe_problems": [], "processes": [], "rules": {"stale": False},
        "courier": {"outputs": [output]}, "engine": {},
    }  # fmt: skip
    blocks = {"mode": "on", "blocks": [{"network": "198.51.100.7"}]}
    with answering(tmp_path / "run", {"status": status, "blocks": blocks}):
        live = command._live(tmp_path / "run" / "control.sock")
    monkeypatch.setattr(command, "_live", lambda socket: live)  # no fork beside our thread
    found = report("--since", "2h", "--json")[1]
    assert found["running"]
    assert found["blocked_now"] == 1 and found["sources"][0]["blocked"] == "blocked now"
    assert found["outputs"][0]["fates"] == {
        "delivered": 7,
        "waiting": 2,
        "dead": 0,
        "dropped": 0,
        "filtered": 0,
    }
    assert found["problems"] == ["output siem is failing: refused"]


@pytest.mark.parametrize(
    ("up_s", "length_s", "part"),
    [(60, 60, 1), (50, 60, 1), (30, 60, 0.5), (0, 60, 0), (0, 5, None), (3, 5, 1)],
)
def test_a_step_in_which_the_last_seconds_are_not_told_yet_is_whole(up_s, length_s, part):
    assert facts._part(up_s, length_s) == part


def test_an_address_is_blocked_with_its_network():
    assert facts._is_in("198.51.100.7", ["192.0.2.1", "198.51.100.0/24"])
    assert facts._is_in("2001:db8::7", ["2001:db8::/48"])
    assert not facts._is_in("198.51.101.7", ["198.51.100.0/24", "2001:db8::/48"])
    assert not facts._is_in("no <b>address", ["198.51.100.0/24"])


@contextlib.contextmanager
def answering(folder, answers):
    folder.mkdir()
    server = ControlServer(folder / "control.sock", lambda request: answers[request["command"]])
    stop = threading.Event()

    def serve():
        while not stop.wait(0.005):
            server.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def test_without_the_appliance_the_accounts_on_disk_are_told(report, put):
    put((1, {}))
    found = report("--since", "2h", "--json")[1]
    assert not found["running"]
    assert [(one["name"], one["fates"]["waiting"]) for one in found["outputs"]] == [("file", 1)]


# bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [0.01, 1, 24, 7 * 24, 90 * 24, 400 * 24, 30 * 365 * 24])
def test_a_span_has_a_bounded_number_of_whole_steps(hours):
    until_ns = wall_ns()
    since_ns = until_ns - int(hours * HOUR_NS)
    span = span_of(since_ns, until_ns)
    assert span.step_s % 60 == 0
    assert 0 <= since_ns - span.since_ns < span.step_s * NS_PER_S
    assert -(-(span.until_ns - span.since_ns) // (span.step_s * NS_PER_S)) <= 182


def test_more_names_than_places_are_bounded_and_counted():
    places = Places(10, lambda one: (one.alerts,))
    for number in range(1000):
        # One that comes again and again among many that come once.
        one = places.get("often") or places.add("often", tally.Source("often"))
        one.alerts += 1
        places.add(f"once {number}", tally.Source(f"once {number}", alerts=1))
        assert len(places) <= 20
    assert places.first(1)[0].alerts == 1000
    assert len(places) + places.left_out == 1001


def test_a_document_that_is_none_is_counted_not_fatal(put, tmp_path):
    put((1, {}))
    (entry,) = History(tmp_path / "kwsiem.db").newest(Wanted(), 0)
    now_ns = wall_ns()
    found = Tally(now_ns - 2 * HOUR_NS, now_ns, 60 * NS_PER_S)
    found.take(msgspec.structs.replace(entry, document=b'{"event": {"start": "never"}, "kwsiem": 5}'))
    found.take(msgspec.structs.replace(entry, document=b"{"))
    assert (found.alerts, found.unreadable) == (2, 2)
    assert found.incidents(5)[0].evidence == []


def test_a_broken_file_of_figures_is_said_and_the_rest_is_there(report, put, tmp_path):
    put((1, {}))
    (tmp_path / "series.db").write_bytes(b"no database" * 1000)
    code, page, _ = report("--since", "2h")
    assert code == 0
    assert "This report lacks packets" in Reader(page).text


# the page ---------------------------------------------------------------------------------------------


def hostile_report(put, figures):
    put(
        (0.5, {
            "rule_id": HOSTILE, "title": HOSTILE, "reason": HOSTILE, "description": HOSTILE, "tags": ["attack.t1046"],
            "fields": {"source.address": HOSTILE, "destination.address": HOSTILE}, "identity": {"user.name": HOSTILE},
            "evidence": [{"kind": HOSTILE, "ts_ns": 1, "grade": HOSTILE, "user.name": HOSTILE}],
        }),
    )  # fmt: skip
    figures(
        {name: {HOSTILE: 5, "5": 9} for name in ("packets", "ports", "lost", "probe_up_s")},
        [
            ("block.decision", {"source.address": HOSTILE, "event.action": HOSTILE, "event.reason": HOSTILE, "rule.id": HOSTILE}),
            ("block.decision", {"source.address": HOSTILE, "event.action": "refused", "event.reason": HOSTILE}),
            ("output.state", {"output.name": HOSTILE, "output.state": HOSTILE, "event.reason": HOSTILE}),
        ],
    )  # fmt: skip


def test_hostile_names_are_text_in_the_page(report, put, figures):
    hostile_report(put, figures)
    code, page, _ = report("--since", "2h", "--title", HOSTILE)
    assert code == 0
    found = Reader(page)
    assert not found.open
    assert not found.elements - set(ELEMENTS.split())
    assert not found.attributes - set(ATTRIBUTES.split())
    assert found.text.count("<script>alert(1)</script>") > 15, "shown as it is"
    assert "{{ 7*7 }}" in found.text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert not re.search("A{400}", page), "cut"


def test_the_policy_allows_this_style_sheet_and_nothing_else(report, put):
    put((1, {}))
    found = Reader(report("--since", "2h")[1])
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    assert (
        found.policy
        == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in found.style and "@import" not in found.style
    assert "prefers-color-scheme: dark" in found.style and "size: A4" in found.style


def test_a_section_without_data_says_so(report, put):
    put((500, {}))
    code, page, _ = report("--since", "2h")
    assert code == 0
    text = Reader(page).text
    for said in (
        "No alert in this span.", "No rule raised an alert", "names a source", "No incident in this span",
        "The journal has no block", "No figures of packets", "No figures of probes", "No figures of losses",
        "the appliance did not answer", "No alert was raised in these 2 h",
    ):  # fmt: skip
        assert said in text


def test_of_much_evidence_the_first_and_the_last_are_shown_with_their_numbers(report, put):
    put((1, {"evidence": [{"kind": f"kind-{n}", "ts_ns": n} for n in range(1, 11)]}))
    page = report("--since", "2h")[1]
    assert re.findall(r'<li value="(\d+)">(\S+)', page) == [(str(n), f"kind-{n}") for n in (1, 2, 3, 9, 10)]


def test_all_chart_ids_are_different(report, put, figures):
    hostile_report(put, figures)
    ids = re.findall(r' id="([^"]*)"', report("--since", "2h")[1])
    assert len(ids) == len(set(ids)) > 15


def test_the_page_is_made_from_files_that_a_package_contains():
    listed = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"kwsiem.cli.report" = ["report.html", "report.css"]' in listed
    assert Page()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (3600, "1 h"), (7 * 86400, "7 days"), (90061, "1 day 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# the file ---------------------------------------------------------------------------------------------


def test_the_file_is_for_its_owner_alone_and_replaces_the_one_before(report, put, tmp_path):
    put((1, {}))
    target = tmp_path / "out" / "report.html"
    target.parent.mkdir()
    target.write_text("before")
    target.chmod(0o644)
    code, out, said = report("--output", str(target))
    assert (code, out) == (0, "")
    assert "wrote" in said
    assert "<!doctype html>" in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == ["report.html"]


def test_a_report_that_fails_leaves_the_file_of_before(report, tmp_path):
    target = tmp_path / "out" / "report.html"
    target.parent.mkdir()
    target.write_text("before")
    code, _, said = report("--output", str(target))  # there is no history
    assert code == 69 and "no such file; has the appliance run on this host?" in said
    assert target.read_text() == "before"
    assert os.listdir(target.parent) == ["report.html"]


def test_what_is_no_file_is_refused(report, put, tmp_path):
    put((1, {}))
    code, _, said = report("--output", str(tmp_path))
    assert code == 69 and "not a regular file" in said
    code, _, said = report("--output", str(tmp_path / "none" / "r.html"))
    assert code == 69 and "No such file" in said


def test_a_link_is_replaced_not_followed(report, put, tmp_path):
    put((1, {}))
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "r.html").symlink_to(tmp_path / "precious")
    assert report("--output", str(tmp_path / "r.html"))[0] == 0
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_child_that_dies_is_a_failure(report, put, monkeypatch, tmp_path):
    put((1, {}))
    monkeypatch.setattr(facts, "gather", lambda *_, **__: os._exit(7))
    code, _, said = report("--output", str(tmp_path / "r.html"))
    assert code == 1 and "ended with 7" in said
    assert not (tmp_path / "r.html").exists()


def test_an_error_that_nobody_expected_is_said_on_one_line(report, put, monkeypatch):
    put((1, {}))
    monkeypatch.setattr(facts, "gather", lambda *_, **__: {}["\x1b[2J<b>"])
    code, out, said = report()
    assert (code, out) == (1, "")
    assert "KeyError" in said and "test_report.py:" in said and "\x1b" not in said and said.count("\n") == 1


def test_the_process_that_makes_it_cannot_write_to_what_we_write_to(report, put, monkeypatch, tmp_path):
    put((1, {}))
    target = tmp_path / "out" / "r.html"
    target.parent.mkdir()

    def gather(*_, **__):
        open_now = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
        raise OSError(repr([name for name in open_now if "/out/" in name]))

    monkeypatch.setattr(facts, "gather", gather)
    assert "kwsiem: []\n" in report("--output", str(target))[2]


def test_a_report_without_end_and_a_full_disk_are_failures(report, put, monkeypatch, tmp_path):
    put((1, {}))
    words = ["report", "--config", str(tmp_path / "kwsiem.yaml"), "--output", "-"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"from kwsiem import rights; rights.drop = print; from kwsiem.cli import main; raise SystemExit(main({words}))"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert done.returncode == 69 and "No space left" in done.stderr and "Traceback" not in done.stderr
    monkeypatch.setattr("kwsiem.cli.report._MAX_BYTES", 1000)
    code, _, said = report("--output", str(tmp_path / "r.html"))
    assert code == 1 and "larger than" in said
    assert not (tmp_path / "r.html").exists()


def test_since_must_be_before_until(report):
    assert report("--since", "1h", "--until", "2h")[0] == 2


def test_rights_are_given_up_before_anything_is_read(report, put, monkeypatch):
    put((1, {}))

    def drop(user):
        raise OSError(f"becoming {user}")

    monkeypatch.setattr(rights, "drop", drop)
    code, out, said = report("--since", "1h")
    assert code == 69 and not out and "becoming kwsiem" in said


def test_span_is_exact_at_its_end():
    assert Span(0, 90 * NS_PER_S, 60).seconds == 90
