"""``kwsiem stats --since``: the figures of a span, for people and for programs, while nothing runs."""

import json
import re
import sys

import pytest

from kwsiem import apart
from kwsiem.cli import figures, main
from kwsiem.cli.figures import bar, spark, step_of
from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.series_file import SeriesFile

HOSTILE = "\x1b[2J\x1b]0;x\x07<b>&](\u202e\r\n" + "A" * 5000


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """The command; exit code and what it printed."""
    monkeypatch.setattr(apart, "drop_here", lambda user: None)  # the test goes on as who it is
    (tmp_path / "kwsiem.yaml").write_text(f"state_dir: {tmp_path}\n")

    def run(*words):
        code = main(["stats", "--config", str(tmp_path / "kwsiem.yaml"), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def put(tmp_path):
    """Figures so many minutes ago."""

    def run(*rows):
        file = SeriesFile(tmp_path / "series.db", max_age_s=10**9, max_bytes=10**9)
        for minutes, values in rows:
            file.add(wall_ns() // NS_PER_S - 60 * minutes, values)
        file.close()

    return run


def test_totals_and_steps_add_up(ask, put):
    put(
        (5, {"packets": {"tcp": 10, "udp": 3}}),
        (20, {"packets": {"tcp": 7}}),
        (90, {"packets": {"tcp": 999}}),
    )
    code, out, _ = ask("--since", "1h", "--json", "--name", "packets")
    found = json.loads(out)
    packets = found["figures"]["packets"]
    assert code == 0 and list(found["figures"]) == ["packets"]
    assert found["step_s"] == 60
    assert packets["totals"] == {"tcp": 17, "udp": 3}
    assert packets["total"] == 20 == sum(packets["all"])
    assert len(packets["all"]) in {60, 61}
    assert [value for value in packets["steps"]["tcp"] if value] == [7, 10]


def test_of_gauges_the_highest_is_told(ask, put):
    put((5, {"waiting": {"siem": 10}}), (20, {"waiting": {"siem": 7, "file": 2}}))
    found = json.loads(ask("--since", "1h", "--json", "--name", "waiting")[1])["figures"]["waiting"]
    assert (found["kind"], found["total"], found["totals"]) == ("gauge", 10, {"siem": 10, "file": 2})


def test_until_ends_the_span(ask, put):
    put((5, {"events": {"tcp.syn": 1}}), (90, {"events": {"tcp.syn": 20}}))
    out = ask("--since", "3h", "--until", "1h", "--json")[1]
    assert json.loads(out)["figures"]["events"]["total"] == 20


@pytest.mark.parametrize(
    "words", [["--since", "366d"], ["--since", "0001-01-02"], ["--since", "1h", "--until", "9999-12-30"]]
)
def test_a_span_of_any_length(ask, put, words):
    put((5, {"events": {"tcp.syn": 7}}))
    code, out, _ = ask(*words, "--name", "events")
    assert code == 0 and "7 in all" in out


def test_the_largest_labels_come_first_and_no_more_than_asked_for(ask, put):
    put((5, {"ports": {**{f"tcp/{n}": n for n in range(1, 31)}, "other": 100}}))
    code, out, _ = ask("--since", "1h", "--name", "ports", "--top", "3")
    assert code == 0
    assert re.findall(r"^  tcp/(\d+) ", out, re.MULTILINE) == ["30", "29", "28"]
    assert "… and 27 more" in out
    assert "565 in all" in out
    assert re.search(r"tcp/28 .*\n  other +100 ", out), "what is all the rest stands last"


def test_people_get_a_table_with_bars(ask, put):
    put((5, {"alerts": {"high": 4, "low": 1}}), (7, {"alerts": {"critical": 2}}))
    out = ask("--since", "10m", "--name", "alerts")[1]
    rows = [line for line in out.splitlines() if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d  ", line)]
    assert len(rows) in {10, 11}
    (most,) = (row for row in rows if row.split()[2] == "5")
    (some,) = (row for row in rows if row.split()[2] == "2")
    sign = "█" if "█" in out else "#"
    assert most.count(sign) == 30 and some.count(sign) == 12
    order = re.findall(r"^  (\w+) ", out, re.MULTILINE)
    assert order == ["critical", "high", "low"], "levels stand in their order"


def test_the_overview_says_which_figures_there_are_not(ask, put):
    put((5, {"packets": {"tcp": 10}}))
    out = ask("--since", "1h")[1]
    assert re.search(r"^PACKETS  10 in all\n  tcp +10  ", out, re.MULTILINE)
    assert "no figures of alerts, events, ports, sources, lost, blocks, waiting" in out


def test_hostile_labels_are_harmless(ask, put):
    put((5, {name: {HOSTILE: 5} for name in ("packets", "ports", "sources", "lost", "events")}))
    for words in (["--since", "1h"], ["--since", "1h", "--name", "ports"]):
        out = ask(*words)[1]
        assert "<b>&](" in out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
        assert max(map(len, out.splitlines())) < 200
    out = ask("--since", "1h", "--json")[1]
    assert out.isascii() and "\x1b" not in out


def test_without_a_file_nothing_is_available(ask):
    code, out, err = ask("--since", "1h")
    assert (code, out) == (69, "")
    assert "has the appliance run on this host?" in err


def test_a_damaged_file_is_said(ask, tmp_path):
    (tmp_path / "series.db").write_bytes(b"no database" * 1000)
    code, _, err = ask("--since", "1h")
    assert code == 69 and "cannot be read" in err


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "1h", "--until", "2h"], ["--until", "1h"], ["--name", "packets"], ["--since", "1h", "--metrics"],
        ["--follow", "--metrics"],
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_a_usage_error(ask, words):
    assert ask(*words)[0] == 2


@pytest.mark.parametrize("words", [["--top", "0"], ["--top", "x"], ["--name", "nothing"], ["--since", "soon"], ["--interval", "0"], ["--interval", "nan"]])  # fmt: skip
def test_what_is_no_value_is_a_usage_error(ask, words):
    with pytest.raises(SystemExit) as raised:
        ask("--since", "1h", *words)
    assert raised.value.code == 2


@pytest.mark.parametrize("length_s", [1, 60, 3600, 86_400, 30 * 86_400, 10**9])
def test_a_step_is_whole_minutes_and_there_are_no_more_than_asked_for(length_s):
    step_s = step_of(length_s, 60)
    assert step_s % 60 == 0
    assert length_s <= 60 * step_s


def test_sparks_and_bars(monkeypatch):
    monkeypatch.setattr(figures, "_speaks_unicode", lambda: True)
    assert spark([0, 1, 1000]) == " ▁█"
    assert spark([]) == "" and spark([0, 0]) == "  "
    assert len(spark(range(10_000))) <= 60 and spark(range(10_000))[-1] == "█"
    assert bar(1, 10**6).strip() == "█" and bar(0, 5).strip() == "" and len(bar(7, 7).strip()) == 30
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", open("/dev/null", "w", encoding="ascii"))  # noqa: SIM115
    with sys.stdout:
        assert spark([0, 1, 1000]) == " .@"
