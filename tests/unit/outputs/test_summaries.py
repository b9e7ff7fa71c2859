"""Daily and weekly summaries over real sockets: to Telegram, Slack and mail, once, and when they are due."""

import sqlite3
import time
from contextlib import nullcontext
from datetime import datetime, timezone

import msgspec
import pytest
from peers.slack_hook import SlackHook
from peers.smtp import SmtpServer
from peers.telegram_api import TOKEN, TelegramApi, parse_html

from kwsiem.clock import NS_PER_S
from kwsiem.delivery import make_output, make_route, make_summaries
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import EmailSettings, SlackSettings, SummarySettings, TelegramSettings
from kwsiem.outputs import chatstate, summaries
from kwsiem.outputs.chatstate import ChatState
from kwsiem.outputs.summaries import latest_due
from kwsiem.outputs.worker import Worker

DAILY = SummarySettings(every="day", at="08:00")
DAY_S, HOUR_S = 86_400, 3600
HOSTILE = [
    "<b>x</b>",
    "a & b &amp; &#60;",
    "](tg://user?id=1) [x",
    "\x1b[2J\x1b]0;t\x07",
    "A" * 5000,
    "\u202eevil",
    "`<!channel>`",
    "\r\nBcc: x@evil.example",
]
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.fixture(autouse=True)
def zone(monkeypatch):
    """Sets the host's time zone; UTC until then."""

    def choose(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    choose("UTC0")
    yield choose
    monkeypatch.undo()
    time.tzset()


def ns(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()) * NS_PER_S


def iso(at_ns):
    return datetime.fromtimestamp(at_ns // NS_PER_S, timezone.utc).isoformat(" ", "minutes")[:16]


# when -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "now", "due"),
    [
        (DAILY, "2026-01-02 07:59:59", "2026-01-01 08:00"),
        (DAILY, "2026-01-02 08:00:00", "2026-01-02 08:00"),
        (DAILY, "2026-01-01 00:00:00", "2025-12-31 08:00"),
        (SummarySettings(every="week", at="23:59", weekday="sunday"), "2026-01-04 23:59:00", "2026-01-04 23:59"),
        (SummarySettings(every="week", at="23:59", weekday="sunday"), "2026-01-04 23:58:59", "2025-12-28 23:59"),
        (SummarySettings(every="week", at="00:00", weekday="monday"), "2026-01-04 23:58:59", "2025-12-29 00:00"),
    ],
)  # fmt: skip
def test_the_latest_time_at_which_one_was_due(settings, now, due):
    assert iso(latest_due(settings, ns(now))) == due


@pytest.mark.parametrize(
    ("at", "days"),
    [
        # Clocks go from 02:00 to 03:00 on 29 March 2026, and from 03:00 to 02:00 on 25 October.
        ("08:00", ["2026-03-28 07:00", "2026-03-29 06:00", "2026-03-30 06:00"]),
        ("02:30", ["2026-03-28 01:30", "2026-03-29 01:30", "2026-03-30 00:30"]),
        ("02:30", ["2026-10-24 00:30", "2026-10-25 00:30", "2026-10-26 01:30"]),
        ("08:00", ["2026-10-24 06:00", "2026-10-25 07:00", "2026-10-26 07:00"]),
    ],
)
def test_each_day_has_one_also_when_the_clocks_are_changed(zone, at, days):
    zone(BERLIN)
    begin, end = ns(f"{days[0]}:00"), ns(f"{days[-1]}:00")
    found = {
        iso(latest_due(SummarySettings(every="day", at=at), now))
        for now in range(begin, end + 1, 600 * NS_PER_S)
    }
    assert sorted(found) == days


# to whom ----------------------------------------------------------------------------------------------


class Rig:
    """Outbox, output, worker and a clock that is set by hand; the server is real."""

    def __init__(self, folder, patch, settings, secrets, host="<gw01>", now="2026-01-02 12:00:00"):
        self.folder, self.settings, self.secrets, self.host = folder, settings, secrets, host
        self.now_ns, self.now_s = ns(now), 0.0
        patch(summaries, "wall_ns", lambda: self.now_ns)
        patch(chatstate, "wall_ns", lambda: self.now_ns)
        self.outbox = Outbox(folder / "kwsiem.db", ["chat", "siem"])
        self.worker = None
        self.start()

    def start(self):
        """A new process: only what is on disk is remembered."""
        if self.worker:
            self.worker.close()
        self.output = make_output(self.settings, self.secrets)
        self.kept = ChatState(self.folder / "chat.json")
        self.summaries = make_summaries(
            self.settings, self.host, self.outbox.path, self.kept, self.outbox.ledger
        )
        route = make_route(self.settings, self.output.limits, self.kept.is_muted)
        self.worker = Worker("chat", self.output, self.outbox, route, extras=self.summaries)

    def put(self, *alerts):
        found = [document(alert) for alert in alerts]
        self.outbox.put(
            [
                Item(each["event"]["id"], each["event"]["severity"], msgspec.json.encode(each))
                for each in found
            ]
        )

    def pass_time(self, seconds, step_s=1.0):
        """Let time go by, as the clock and the worker see it; the worker is never late."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.worker.step(self.now_s)
            step = min(step_s, end_s - self.now_s)
            self.now_s += step
            self.now_ns += int(step * NS_PER_S)
        self.work()

    def until(self, text):
        self.pass_time((ns(text) - self.now_ns) // NS_PER_S, 60)

    def work(self):
        self.worker.step(self.now_s)
        while self.summaries.is_busy:
            self.worker.step(self.now_s)

    def set_clock(self, text):
        self.now_ns = ns(text)

    def close(self):
        self.worker.close()
        self.outbox.close()


@pytest.fixture
def begin(tmp_path, monkeypatch):
    rigs = []

    def start(settings, secrets, **more):
        rigs.append(Rig(tmp_path, monkeypatch.setattr, settings, secrets, **more))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close()


@pytest.fixture
def server():
    with TelegramApi((1000,), burst=100) as made:
        yield made
        assert not made.parse_errors


@pytest.fixture
def rig(begin, server):
    settings = TelegramSettings(
        name="chat", url=server.url, chat_id="1000", timeout_s=5.0, level="critical", summary=DAILY
    )
    made = begin(settings, {"token": TOKEN})
    made.server = server
    made.pass_time(10)
    assert not server.shown  # the first one comes at the next time that it is due
    return made


def texts(server):
    return [message.text for message in server.shown]


def at(rig, hours_ago, make_alert, number=0, **changes):
    return make_alert(number=number, raised_ns=rig.now_ns - int(hours_ago * HOUR_S * NS_PER_S), **changes)


def test_a_day_in_telegram(rig, make_alert):
    rig.put(
        at(rig, 20, make_alert, 1),
        at(rig, 2, make_alert, 2, level="critical", title="<b>&]("),
        at(rig, 1, make_alert, 3),
    )
    rig.pass_time(20 * HOUR_S + 10, 60)
    [alert, message] = rig.server.shown
    assert "CRITICAL" in alert.text
    lines = message.text.splitlines()
    assert lines[0].endswith("DAILY SUMMARY: 2 alerts")
    assert "host <gw01>" in lines
    assert "the time before 1 alert" in lines
    assert any("1 critical (0)" in line and "1 high (1)" in line for line in lines)
    assert any(line.endswith("1\N{MULTIPLICATION SIGN} <b>&](") for line in lines)
    assert "source 2\N{MULTIPLICATION SIGN} 198.51.100.7" in lines
    assert "output chat: 1 delivered, 0 waiting, 0 dead, 0 dropped" in lines
    assert "output siem: 0 delivered, 3 waiting, 0 dead, 0 dropped" in lines
    assert lines[-1] == "2026-01-02 08:00 UTC \N{EN DASH} 2026-01-03 08:00 UTC"
    assert message.is_silent and not message.buttons
    assert rig.outbox.ledger()["chat"].balanced
    assert rig.outbox.ledger()["chat"].delivered == 1
    assert rig.worker.stats()["summaries"] == {"taken": 1, "failures": 0, "refused": 0}


def test_once_a_day_also_over_restarts_and_nothing_is_said_too(rig):
    for day in range(3):
        for _ in range(6):
            rig.pass_time(4 * HOUR_S, 60)
            rig.start()
        assert len(rig.server.shown) == day + 1
    assert all("nothing happened" in text for text in texts(rig.server))


def test_what_was_missed_while_it_was_down_comes_as_one(rig):
    rig.now_ns += 10 * DAY_S * NS_PER_S
    rig.start()
    rig.pass_time(10)
    [text] = texts(rig.server)
    assert text.endswith("2026-01-02 08:00 UTC \N{EN DASH} 2026-01-12 08:00 UTC")
    rig.start()
    rig.pass_time(HOUR_S, 60)
    assert len(rig.server.shown) == 1


def test_a_destination_that_is_down_gets_one_for_all_of_it_and_alerts_go_on(rig, make_alert):
    rig.server.faults.extend(["reset"] * 1000)
    rig.pass_time(3 * DAY_S, 60)
    assert not rig.server.shown
    tries = len([path for path, _ in rig.server.requests if path.endswith("sendMessage")])
    assert 10 < tries < 100  # 3 days less 20 h: hourly in the end
    rig.server.faults.clear()
    rig.put(at(rig, 0, make_alert, level="critical"))
    rig.pass_time(2 * 60)  # the worker's own back-off is a minute at most
    [alert] = texts(rig.server)
    assert "CRITICAL" in alert
    rig.pass_time(HOUR_S, 60)
    [_, summary] = texts(rig.server)
    assert summary.endswith("2026-01-02 08:00 UTC \N{EN DASH} 2026-01-05 08:00 UTC")
    assert rig.worker.stats()["summaries"]["failures"] == rig.summaries.failures > 5


def test_429_is_obeyed(rig):
    rig.server.faults.append(
        (429, b'{"ok":false,"error_code":429,"description":"x","parameters":{"retry_after":300}}', {})
    )
    rig.until("2026-01-03 07:59:50")
    rig.pass_time(20)
    before = len(rig.server.requests)
    rig.pass_time(280)
    assert len(rig.server.requests) == before and not rig.server.shown
    rig.pass_time(40)
    assert len(rig.server.shown) == 1


def test_it_keeps_to_the_pace_of_the_output(begin, server, make_alert):
    settings = TelegramSettings(
        name="chat", url=server.url, chat_id="1000", timeout_s=5.0, rate_per_min=1, summary=DAILY
    )
    rig = begin(settings, {"token": TOKEN})
    rig.until("2026-01-03 07:59:55")
    rig.put(at(rig, 0, make_alert, 1))
    rig.pass_time(50)
    assert len(server.shown) == 1
    rig.put(at(rig, 0, make_alert, 2))  # in a storm of alerts the summary has its turn
    rig.pass_time(15)
    assert "DAILY SUMMARY: 1 alert" in texts(server)[1]
    rig.pass_time(60)
    assert len(server.shown) == 3


def test_what_the_destination_never_takes_is_counted_and_not_tried_again(rig, caplog):
    rig.server.faults.extend(
        [(400, b'{"ok":false,"error_code":400,"description":"message is too long"}', {})] * 2
    )
    rig.pass_time(DAY_S, 60)
    assert not rig.server.shown
    assert rig.summaries.stats() == {"taken": 0, "failures": 0, "refused": 1}
    assert "summary refused for good" in caplog.text
    rig.pass_time(DAY_S, 60)
    assert len(rig.server.shown) == 1


def test_an_answer_that_was_lost_may_make_it_come_twice_and_no_more(rig):
    rig.until("2026-01-03 07:59:50")
    rig.server.faults.extend(["reset-after"])
    rig.pass_time(HOUR_S)
    assert len(rig.server.shown) == 2 and len(set(texts(rig.server))) == 1


@pytest.mark.parametrize("jump", ["2031-01-01 00:00:00", "2020-06-01 00:00:00", "1970-01-02 00:00:00"])
def test_a_clock_that_jumps_to_and_fro_makes_no_storm(rig, jump):
    for _ in range(200):
        rig.set_clock(jump)
        rig.pass_time(60, 10)
        rig.set_clock("2026-01-03 09:00:00")
        rig.pass_time(60, 10)
    assert len(rig.server.shown) <= 200 * 120 // HOUR_S + 1


def test_a_clock_that_runs_a_day_each_minute_makes_no_storm(rig):
    for _ in range(120):
        rig.now_ns += DAY_S * NS_PER_S
        rig.pass_time(60, 10)
    assert 2 <= len(rig.server.shown) <= 3


def test_before_the_clock_was_set_nothing_begins(begin, server):
    settings = TelegramSettings(name="chat", url=server.url, chat_id="1000", timeout_s=5.0, summary=DAILY)
    rig = begin(settings, {"token": TOKEN}, now="1970-01-02 12:00:00")
    rig.pass_time(60)
    rig.set_clock("2026-01-02 13:00:00")
    rig.pass_time(HOUR_S, 60)
    assert not server.shown
    rig.until("2026-01-03 08:00:10")
    assert "2026-01-02 08:00" in texts(server)[0]


def test_a_clock_that_was_set_back_an_hour_repeats_nothing(rig):
    rig.pass_time(20 * HOUR_S + 10, 60)
    for _ in range(5):
        rig.now_ns -= HOUR_S * NS_PER_S
        rig.pass_time(HOUR_S, 60)
        rig.start()
    assert len(rig.server.shown) == 1


def test_after_a_year_by_mistake_it_goes_on_with_the_right_day(rig):
    rig.set_clock("2036-01-02 12:00:00")
    rig.pass_time(10)
    assert len(rig.server.shown) == 1
    rig.set_clock("2026-01-02 12:00:00")
    rig.pass_time(2 * DAY_S, 60)
    assert len(rig.server.shown) == 3


def test_a_note_that_cannot_be_written_does_not_repeat_it(rig, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chatstate, "_write", full)
    rig.pass_time(23 * HOUR_S, 60)
    assert len(rig.server.shown) == 1
    assert "cannot be noted" in caplog.text
    monkeypatch.undo()


def test_a_fault_of_the_output_holds_up_no_alert(rig, make_alert, monkeypatch, caplog):
    real = rig.output.send

    def send(batch):
        if batch[0].id.startswith("summary-"):
            raise RuntimeError("a bug")
        real(batch)

    monkeypatch.setattr(rig.output, "send", send)
    rig.pass_time(21 * HOUR_S, 60)
    rig.put(at(rig, 0, make_alert, level="critical"))
    rig.pass_time(120)
    assert len(rig.server.shown) == 1 and 3 < rig.summaries.failures < 20
    assert "a bug" in caplog.text


def test_the_first_ledger_begins_with_the_first_summary(begin, server, make_alert):
    settings = TelegramSettings(name="chat", url=server.url, chat_id="1000", timeout_s=5.0, summary=DAILY)
    rig = begin(settings, {"token": TOKEN})
    rig.put(at(rig, 1, make_alert, 1))
    rig.outbox.settle("siem", [1], [], [])
    rig.pass_time(10)
    rig.put(at(rig, 0, make_alert, 2))
    rig.outbox.settle("siem", [2], [], [])
    rig.until("2026-01-03 08:00:10")
    assert "output siem: 1 delivered, 0 waiting" in texts(server)[-1]


def test_what_the_history_lost_is_said(tmp_path, begin, server, make_alert):
    settings = TelegramSettings(
        name="chat", url=server.url, chat_id="1000", timeout_s=5.0, level="critical", summary=DAILY
    )
    rig = begin(settings, {"token": TOKEN})
    rig.pass_time(10)
    for hours_ago in (3, 2, 1):
        rig.put(at(rig, hours_ago, make_alert, hours_ago))
    rig.outbox.settle("siem", [1, 2, 3], [], [])
    rig.pass_time(5)
    db = sqlite3.connect(tmp_path / "kwsiem.db")  # as prune does, of what everybody has
    db.execute("DELETE FROM alerts WHERE seq = 1")
    db.commit()
    db.close()
    rig.until("2026-01-03 08:00:10")
    assert "DAILY SUMMARY: 2 alerts" in texts(server)[-1]
    assert "the time before no history of it" in texts(server)[-1]
    assert "the history does not hold all of this time" in texts(server)[-1]


def test_a_history_that_cannot_be_read_is_counted_and_holds_up_no_alert(rig, make_alert, monkeypatch):
    def broken(*_):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("kwsiem.delivery.History.newest", broken)
    rig.pass_time(21 * HOUR_S, 60)
    rig.put(at(rig, 0, make_alert, level="critical"))
    rig.pass_time(5)
    assert len(rig.server.shown) == 1 and rig.summaries.failures > 3
    monkeypatch.undo()


def test_a_long_history_is_read_in_portions_between_which_alerts_go_out(rig, make_alert):
    rig.put(*(at(rig, 0.001 * number, make_alert, number, title=f"t{number}") for number in range(1600)))
    while rig.outbox.ledger()["chat"].waiting:
        rig.pass_time(1)
    rig.until("2026-01-03 07:59:50")
    rig.now_ns += 10 * NS_PER_S
    rig.worker.step(rig.now_s + 10)
    assert rig.summaries.is_busy and not rig.server.shown
    rig.put(at(rig, 0, make_alert, 9999, level="critical"))
    wait_s = rig.worker.step(rig.now_s + 10)
    assert "CRITICAL" in texts(rig.server)[0] and wait_s <= summaries.LOOK_S
    rig.pass_time(12)
    assert "DAILY SUMMARY: 1,600 alerts" in texts(rig.server)[1]


def test_in_slack(begin, make_alert):
    with SlackHook() as hook:
        rig = begin(
            SlackSettings(name="chat", timeout_s=5.0, level="critical", summary=DAILY), {"url": hook.hook}
        )
        rig.pass_time(1)
        rig.put(at(rig, 1, make_alert, title="<!channel> `x`"))
        rig.pass_time(20 * HOUR_S + 10, 60)
        [body] = hook.bodies
    assert "DAILY SUMMARY: 1 alert on &lt;gw01&gt;" in body["text"]
    assert "&lt;!channel&gt; 'x'" in body["blocks"][1]["text"]["text"]
    assert "id" not in body["blocks"][2]["elements"][0]["text"]


def test_in_mail_as_text_and_html_each_recipient_once(begin, make_alert):
    with SmtpServer() as server:
        settings = EmailSettings(
            name="chat", host="localhost", port=server.port, security="none", sender="kwsiem@gw01.example.net",
            to=("a@example.net", "b@example.net"), level="critical", timeout_s=5.0,
            summary=SummarySettings(every="week", at="06:30", weekday="saturday"),
        )  # fmt: skip
        rig = begin(settings, {})
        rig.pass_time(1)
        rig.put(at(rig, 1, make_alert, title="<script>alert(1)</script>"))
        rig.pass_time(18 * HOUR_S, 60)
        server.recipient_replies["b@example.net"] = "450 greylisted"
        rig.pass_time(HOUR_S, 1)
        rig.put(at(rig, 0, make_alert, 2, level="critical"))
        server.recipient_replies.clear()
        rig.pass_time(HOUR_S, 60)
        found = [(mail["Subject"], recipients) for mail, recipients in server.mails]
        [mail] = [mail for mail, recipients in server.mails if recipients == ["a@example.net"]]
    summary = "[kwsiem] WEEKLY SUMMARY: 1 alert on <gw01>"
    assert [to for subject, to in found if subject == summary] == [["a@example.net"], ["b@example.net"]]
    assert [to for subject, to in found if subject != summary] == [["a@example.net", "b@example.net"]]
    assert mail["Message-ID"] == "<summary-gw01-chat-1767421800@gw01.example.net>"
    assert mail.get_content_type() == "multipart/alternative"
    page = mail.get_body(("html",)).get_content()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "<script>alert(1)</script>" in mail.get_body(("plain",)).get_content()


@pytest.mark.parametrize("word", HOSTILE, ids=lambda word: ascii(word[:8]))
@pytest.mark.parametrize("kind", ["telegram", "slack", "email"])
def test_a_hostile_word_is_taken_by_each_server_and_harmless(begin, make_alert, server, word, kind):
    """As the title of a rule, a source, a host, a probe and the name of an output."""
    with SlackHook() as hook, SmtpServer() if kind == "email" else nullcontext() as mail:
        common = {"name": "chat", "timeout_s": 5.0, "level": "critical", "summary": DAILY}
        settings = {
            "telegram": TelegramSettings(url=server.url, chat_id="1000", **common),
            "slack": SlackSettings(**common),
            "email": EmailSettings(
                host="localhost", port=mail.port if mail else 0, security="none", sender="k@gw01.example.net",
                to=("a@example.net",), **common,
            ),
        }[kind]  # fmt: skip
        rig = begin(settings, {"token": TOKEN, "url": hook.hook} if kind != "email" else {}, host=word)
        rig.pass_time(1)
        rig.put(
            at(rig, 1, make_alert, 1, title=word, rule_id=word, host=word, fields={"source.address": word}),
            at(rig, 1, make_alert, 2, identity={"probe.name": word}, evidence=[{"kind": "sensor.probe"}]),
        )
        rig.until("2026-01-03 08:00:10")
        assert rig.summaries.stats() == {"taken": 1, "failures": 0, "refused": 0}
        shown = (
            texts(server)
            or [body["text"] for body in hook.bodies]
            or [m["Subject"] for m, _ in (mail.mails if mail else [])]
        )
    assert len(shown) == 1 and "DAILY SUMMARY: 2 alerts" in shown[0]
    assert not set(shown[0]) & set("\x1b\x07\u202e\r")
    if kind == "telegram":
        assert rig.output.markup_errors == 0
        assert {tag for tag, *_ in server.shown[0].entities} <= {"b", "i", "code"}


def test_the_markup_is_whole(rig, make_alert):
    rig.put(at(rig, 1, make_alert, title="<b>" * 60, fields={"source.address": "</code>" * 100}))
    rig.pass_time(20 * HOUR_S + 10, 60)
    sent = msgspec.json.decode(rig.server.requests[-1][1])["text"]
    assert "</code>" * 5 in parse_html(sent)[0]
