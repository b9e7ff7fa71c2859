"""What people get to see: well-formed, bounded and inert whatever the alert holds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.slack_hook import check
from peers.telegram_api import parse_html, utf16_units

from kwsiem.formats.chat import MAX_SUBJECT, MAX_TELEGRAM, mail, slack, telegram

NASTY = st.sampled_from(
    [
        "<!channel>", "<@U123>", "<https://evil.example|bank>", "`", "</code>", "<b>", "&amp;", "&", "&#0;", '"',
        "\r\nBcc: x@evil.example", "\u202e", "\u200b", "\x00", "\x1b[31m", "\ud83d", "😀", "é", "@everyone",
        "https://evil.example/", "\u2028", "x" * 300, "&" * 1100, "😀" * 600, "<" * 1024,
    ]
)  # fmt: skip
TEXT = st.lists(NASTY | st.text(max_size=20), max_size=6).map("".join)
ANY = TEXT | st.integers() | st.booleans() | st.none() | st.lists(TEXT, max_size=3)


def put(document, name, value):
    *parents, leaf = name.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[leaf] = value


NAMES = (
    "host.name", "rule.name", "rule.id", "event.reason", "event.id", "event.start", "event.end", "event.duration",
    "user.name", "service.name", "process.name", "process.pid", "process.command_line", "process.parent.name",
    "file.path", "source.ip", "source.address", "source.port", "destination.ip", "destination.port",
    "kwsiem.alert.level", "kwsiem.alert.state", "kwsiem.alert.count", "kwsiem.alert.values",
    "kwsiem.alert.falsepositives", "kwsiem.alert.incident_id", "kwsiem.alert.block.value",
    "kwsiem.alert.block.for_s", "kwsiem.alert.block.decision", "threat.technique.id", "threat.technique.name",
    "labels.site",
)  # fmt: skip
DIGESTED = st.fixed_dictionaries(
    {"count": st.integers(1, 10**12)},
    optional={
        "rules": st.lists(
            st.fixed_dictionaries({"name": ANY, "level": ANY, "count": ANY}) | TEXT, max_size=60
        ),
        "sources": st.lists(st.fixed_dictionaries({"address": ANY, "count": ANY}), max_size=25),
        "levels": st.lists(st.fixed_dictionaries({"level": ANY, "count": ANY}), max_size=5),
        "more_rules": ANY,
        "more_sources": ANY,
    },
)


@st.composite
def documents(draw):
    document = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        put(document, name, draw(ANY | st.lists(TEXT, max_size=60)))
    if draw(st.booleans()):
        put(document, "kwsiem.digest", draw(DIGESTED))
    return document


def harmless(text):
    assert not any(char in text for char in "\u202e\u200b\x00\x1b\r\u2028")
    text.encode()


@given(documents())
@settings(deadline=None, max_examples=200)
def test_telegram_takes_every_message(document):
    message = telegram(document)
    assert utf16_units(message) <= MAX_TELEGRAM
    plain, entities = parse_html(message)
    assert {tag for tag, *_ in entities} <= {"b", "code", "i"}
    assert plain.strip()
    harmless(message)


@given(documents())
@settings(deadline=None, max_examples=200)
def test_slack_takes_every_message_and_nothing_in_it_pings_or_links(document):
    body = slack(document)
    check(json.loads(json.dumps(body)))
    harmless(json.dumps(body, ensure_ascii=False))


@given(documents())
@settings(deadline=None, max_examples=200)
def test_a_mail_has_one_line_in_each_header_and_no_link_from_outside(document):
    subject, text, headers = mail(document)
    assert len(subject) <= MAX_SUBJECT
    for value in (subject, *headers.values()):
        assert "\n" not in value
        harmless(value)
    assert all(len(line) <= 998 for line in text.split("\n"))
    harmless(text)
    if "kwsiem" not in document:
        shown = text.split("\n", 1)[1]
        assert "https://" not in shown


@given(TEXT)
@settings(deadline=None)
def test_text_from_outside_stands_in_a_code_span_of_telegram(text):
    """There Telegram makes no link, no mention and no command of it."""
    plain, entities = parse_html(telegram({"event": {"reason": text}, "user": {"name": text}}))
    for at in (at for at in range(len(plain)) if plain.startswith(("https://evil", "@everyone"), at)):
        assert any(tag == "code" and begin <= at < end for tag, begin, end in entities)


def test_the_message_of_a_scan_has_what_one_asks_for_at_night(scan):
    plain, _ = parse_html(telegram(scan))
    assert plain.split("\n") == [
        "🟠 HIGH: TCP port scan",
        "host gw01.example.net",
        "198.51.100.7 → 192.0.2.1",
        "5 events, 2026-01-02 03:04:05 \u2013 03:04:06 UTC",
        "why 5 different destination.port in 3s",
        "values 20, 21, 22, 23, 24",
        "ATT&CK T1046 (Network Service Discovery)",
        f"open · id {scan['event']['id'][-8:]}",
    ]


def test_a_closed_incident_says_how_long_and_how_many(close):
    put(close, "event.duration", 251 * 10**9)
    put(close, "kwsiem.alert.count", 312)
    message = telegram(close)
    assert message.startswith("✅ <b>HIGH: TCP port scan</b>")
    assert "closed after 4 min, 312 events" in message
    assert "198.51.100.7 for 10 min: asked for" in message
    put(close, "kwsiem.alert.block.decision", "blocked")
    assert "198.51.100.7 for 10 min: blocked" in telegram(close)
    assert mail(close)[0].startswith("Re: [kwsiem] HIGH")
    assert mail(close)[0].removeprefix("Re: ") == mail({**close, "kwsiem": {"alert": {"level": "high"}}})[0]


def test_hints_and_labels_are_shown(make_alert):
    from kwsiem.document import document

    found = document(make_alert(falsepositives=["Scanners: add them to the list monitoring"]))
    message = telegram({**found, "labels": {"site": "hq"}})
    assert "<i>false positive?</i> Scanners: add them to the list monitoring" in message
    assert "labels <code>site=hq</code>" in message


def test_a_digest_has_its_counts_by_rule_the_most_severe_first(digested):
    plain, _ = parse_html(telegram(digested))
    lines = plain.split("\n")
    assert lines[0] == "🔴 CRITICAL: 6 alerts"
    assert "2 critical, 2 high, 1 medium, 1 informational" in lines
    at = lines.index("🔴 2\u00d7 SSH brute force")
    assert lines[at : at + 4] == [
        "🔴 2\u00d7 SSH brute force",
        "🟠 2\u00d7 TCP port scan",
        "🟡 1\u00d7 Large transfer",
        "⚪ 1\u00d7 Netcat with a shell",
    ]
    assert "2\u00d7 198.51.100.7" in lines
    assert lines[-1].startswith("digest · id")


@pytest.mark.parametrize("room", ["rules", "sources"])
def test_what_a_digest_does_not_show_is_counted(digested, room):
    one = {"name": "n", "level": "low", "count": 1, "address": "192.0.2.1"}
    put(digested, f"kwsiem.digest.{room}", [one] * 20)
    put(digested, f"kwsiem.digest.more_{room}", 30)
    shown = {"rules": 15, "sources": 10}[room]
    assert f"and {50 - shown} more {room}" in telegram(digested)


def test_long_facts_are_left_out_and_ids_stay(hostile):
    for name in ("event.reason", "process.command_line", "file.path", "user.name", "rule.name"):
        put(hostile, name, "&" * 1024)
    put(hostile, "kwsiem.alert.values", ["&" * 1024] * 50)
    message = telegram(hostile)
    assert utf16_units(message) <= MAX_TELEGRAM
    plain, _ = parse_html(message)
    assert "why" in plain and "values" not in plain
    assert plain.endswith(hostile["event"]["id"][-8:])
