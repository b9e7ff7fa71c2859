"""What a summary counts, and that people get it well-formed, bounded and inert in three forms."""

from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.slack_hook import check
from peers.telegram_api import parse_html, utf16_units

from kwsiem.clock import NS_PER_S
from kwsiem.document import document
from kwsiem.formats import summary as module
from kwsiem.formats.chat import MAX_SUBJECT, MAX_TELEGRAM, summary_mail, summary_slack, summary_telegram
from kwsiem.formats.summary import Ledger, Ranked, Summary, Tally

BEGIN_NS = 1_767_312_000 * NS_PER_S
HOSTILE = [
    "<b>x</b>",
    "a & b &amp; &#60;",
    "](tg://user?id=1) [x",
    "\x1b[2J\x1b]0;t\x07",
    "A" * 5000,
    "\u202eevil\u200b",
    "<!channel> `x` <https://evil.example|bank>",
    "\r\nBcc: x@evil.example",
    "\N{FOX FACE}" * 3000,
    "https://evil.example/",
]


def data(alert):
    return msgspec.json.encode(document(alert))


def told(tally, **more):
    given = {"every": "day", "host": "gw01", "since": "2026-01-02 00:00 UTC", "until": "2026-01-03 00:00 UTC"}
    return tally.summary(**{**given, "outputs": [], "knows_before": True, "is_partial": False, **more})


def test_an_alert_counts_once_in_its_span_by_level_rule_and_source(make_alert):
    tally = Tally(BEGIN_NS)
    for number in range(5):
        for state in ("open", "update", "close"):
            alert = make_alert(
                number=number, state=state, level="critical" if number == 4 else "high",
                raised_ns=BEGIN_NS + (number - 1) * NS_PER_S,
            )  # fmt: skip
            tally.add(data(alert))
    found = told(tally)
    assert (found.alerts, found.before) == (4, 1)
    assert found.levels == [("critical", 1, 0), ("high", 3, 1)]
    assert [(rule.level, rule.count) for rule in found.rules] == [("high", 3), ("critical", 1)]
    assert sum(source.count for source in found.sources) == 4
    assert told(tally, knows_before=False).before is None


def test_what_kwsiem_says_about_itself_is_told_apart(make_alert):
    tally = Tally(BEGIN_NS)

    def add(kind, number, block=None, **identity):
        tally.add(
            data(
                make_alert(
                    number=number, raised_ns=BEGIN_NS, state="open", block=block or {}, fields={},
                    identity={name.replace("_", "."): value for name, value in identity.items()},
                    evidence=[{"kind": kind}],
                )
            )
        )  # fmt: skip

    add("sensor.probe", 1, probe_name="net")
    add("sensor.lost", 2, probe_name="net")
    add("output.lost", 3, output_name="siem")
    add("block.decision", 4, source_address="198.51.100.7")
    add("tcp.syn", 5, block={"value": "198.51.100.7", "for_s": 600})
    found = told(tally)
    assert (found.asked, found.blocked) == (1, 1)
    assert found.probes == [Ranked("net", 1)]
    assert sorted(found.lost, key=lambda each: each.name) == [
        Ranked("output siem", 1),
        Ranked("probe net", 1),
    ]


def test_a_flood_of_forged_sources_is_bounded(make_alert, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEYS", 50)
    tally = Tally(BEGIN_NS)
    [alert] = [document(make_alert(state="open", raised_ns=BEGIN_NS))]
    for number in range(200):
        alert["source"]["ip"] = f"198.51.{number}.7"
        tally.add(msgspec.json.encode(alert))
    found = told(tally)
    assert found.alerts == 200
    assert len(found.sources) == 10 and found.more_sources == 40


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[]", b"\xff", b'{"kwsiem": {"alert": {"state": "open", "level": 3, "evidence": [1]}}}',
             b'{"kwsiem": {"alert": {"state": "open", "identity": [], "evidence": {}}}, "@timestamp": 7}'],
)  # fmt: skip
def test_what_is_no_alert_harms_nothing(junk):
    tally = Tally(BEGIN_NS)
    tally.add(junk)
    assert told(tally).alerts == 0


def test_nothing_happened_is_said_too():
    found = told(Tally(BEGIN_NS), outputs=[Ledger("siem", 3, 0, 0, 0)])
    text, _ = parse_html(summary_telegram(found))
    assert "DAILY SUMMARY: nothing happened" in text
    assert "2026-01-02 00:00 UTC \N{EN DASH} 2026-01-03 00:00 UTC" in text
    assert "siem: 3 delivered, 0 waiting, 0 dead, 0 dropped" in text
    assert "probes that stopped none" in text and "lost nothing" in text
    assert "nothing happened" in summary_slack(found)["text"]
    subject, plain, _, page = summary_mail(found)
    assert subject == "[kwsiem] DAILY SUMMARY: nothing happened on gw01"
    assert "nothing happened" in plain and "nothing happened" in page


def test_what_the_history_does_not_hold_is_said():
    found = told(Tally(BEGIN_NS), knows_before=False, is_partial=True)
    assert "the time before no history of it" in parse_html(summary_telegram(found))[0]
    assert "the history does not hold all of this time" in parse_html(summary_telegram(found))[0]


def summary_of(word):
    ranked = [Ranked(f"{number}{word}", 7, "high") for number in range(10)]
    return Summary(
        every="week", host=word, since="2026-01-02 00:00 UTC", until="2026-01-09 00:00 UTC", alerts=10**9,
        before=10**9, levels=[(level, 10**8, 10**8) for level in ("critical", "high", "medium", "low", "informational")],
        rules=ranked, more_rules=10**6, sources=ranked, more_sources=10**6, asked=10**6, blocked=10**6,
        probes=ranked, lost=ranked, outputs=[Ledger(f"{n}{word}", 10**9, 10**9, 10**9, 10**9) for n in range(100)],
        is_partial=True,
    )  # fmt: skip


class _Page(HTMLParser):
    """The tags and the text of a page; every tag is one of those that we write, without a link."""

    def __init__(self, page):
        super().__init__()
        self.tags = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not {name for name, _ in attrs} - {"align", "valign", "lang"}

    def handle_data(self, text):
        self.text += text


def check_all(found):
    message = summary_telegram(found)
    assert utf16_units(message) <= MAX_TELEGRAM
    text, entities = parse_html(message)
    assert {tag for tag, *_ in entities} <= {"b", "code", "i"}
    check(summary_slack(found))
    subject, plain, headers, page = summary_mail(found)
    assert len(subject) <= MAX_SUBJECT and len(page) < 100_000
    assert all("\r" not in value and "\n" not in value for value in (subject, *headers.values()))
    shown = _Page(page)
    assert shown.tags <= {"html", "body", "h2", "p", "table", "tr", "th", "td", "code"}
    for text in (message, plain, page, subject, msgspec.json.encode(summary_slack(found)).decode()):
        assert not set(text) & set("\x1b\x00\r\u202e\u200b\u2028")


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_name_is_harmless_in_all_three(word):
    check_all(summary_of(word))
    text, _ = parse_html(summary_telegram(summary_of(word)))
    assert "1,000,000,000 alerts" in text and "WEEKLY SUMMARY" in text


@given(st.text(max_size=200) | st.sampled_from(HOSTILE))
@settings(deadline=None, max_examples=100)
def test_whatever_the_names_are(word):
    check_all(summary_of(word))
