"""The Telegram output against a Bot API server that is as strict as the documentation."""

import json
import re
import socket

import msgspec
import pytest
from peers.telegram_api import TOKEN, TelegramApi

from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.errors import ConfigError, OutputError
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import TelegramSettings
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.telegram import limits
from kwsiem.outputs.worker import Worker

PRIVATE, GROUP = 1000, -200


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Rig:
    """Server, outbox and worker; time goes on as far as the worker asks for."""

    def __init__(self, folder, chat=PRIVATE, **settings):
        self.clock = Clock()
        self.server = TelegramApi((PRIVATE, GROUP), self.clock)
        self.outbox = Outbox(folder / "kwsiem.db", ["chat"])
        self.settings = TelegramSettings(
            name="chat", url=self.server.url, chat_id=str(chat), timeout_s=5.0, **settings
        )
        self.worker = None
        self.start()

    def get(self, key):
        return self.outbox.note("chat", key)

    def set(self, key, value):
        self.outbox.set_note("chat", key, value)

    def start(self):
        """A new process: nothing but the outbox is remembered."""
        if self.worker:
            self.worker.close()
        self.output = make_output(self.settings, {"token": TOKEN}, notes=self)
        self.worker = Worker("chat", self.output, self.outbox, make_route(self.settings, self.output.limits))

    def put(self, *alerts):
        items = []
        for alert in alerts:
            found = document(alert)
            items.append(Item(found["event"]["id"], found["event"]["severity"], msgspec.json.encode(found)))
        self.outbox.put(items)
        return [item.id for item in items]

    def step(self):
        wait_s = self.worker.step(self.clock.now_s)
        self.clock.now_s += wait_s
        return wait_s

    def run(self, most_s=600.0):
        end_s = self.clock.now_s + most_s
        while self.ledger.waiting:
            assert self.clock.now_s < end_s, self.worker.stats()
            self.step()

    @property
    def ledger(self):
        found = self.outbox.ledger()["chat"]
        assert found.balanced
        return found

    @property
    def texts(self):
        return [message.text for message in self.server.shown]

    def close(self):
        self.worker.close()
        self.outbox.close()
        self.server.close()


@pytest.fixture
def begin(tmp_path):
    rigs = []

    def start(**options):
        rigs.append(Rig(tmp_path, **options))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(begin):
    return begin()


@pytest.fixture(autouse=True)
def _no_token_anywhere(caplog, capfd):
    caplog.set_level("DEBUG")
    yield
    said = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in said and TOKEN.partition(":")[2] not in said


def incident(make_alert, number=0, **changes):
    """The alerts of one incident in their order: open, update, close."""
    states = [("open", 5, 1), ("update", 50, 20), ("close", 312, 240)]
    start_ns = 1_767_323_045_123_000_000
    return [
        make_alert(
            number=number, state=state, count=count, raised_ns=start_ns + at_s * 10**9,
            last_ns=start_ns + at_s * 10**9, **changes,
        )
        for state, count, at_s in states
    ]  # fmt: skip


def test_an_alert_is_one_message_without_link_preview(rig, make_alert):
    [alert_id] = rig.put(make_alert())
    rig.run()
    [message] = rig.server.shown
    assert message.text.startswith("🟠 HIGH: TCP port scan")
    assert message.text.endswith(f"id {alert_id[-8:]}")
    assert not message.is_silent
    assert rig.ledger.delivered == 1
    assert rig.output.answer == "message 1"


def test_an_incident_edits_its_own_message_also_after_a_restart(rig, make_alert):
    opened, update, closed = incident(make_alert)
    rig.put(opened)
    rig.run()
    rig.start()
    rig.put(update)
    rig.run()
    rig.start()
    rig.put(closed)
    rig.run()
    [message] = rig.server.shown
    assert len(message.history) == 3
    assert "closed after 4 min, 312 events" in message.text
    assert rig.ledger.delivered == 3


def test_two_incidents_have_two_messages(rig, make_alert):
    one, other = incident(make_alert, 1), incident(make_alert, 2)
    rig.put(one[0], other[0], one[2])
    rig.run()
    assert ["open" in text for text in rig.texts] == [False, True]


def test_without_edit_each_alert_is_a_message(begin, make_alert):
    rig = begin(edit=False)
    rig.put(*incident(make_alert))
    rig.run()
    assert len(rig.server.shown) == 3


def test_an_alert_that_comes_again_is_not_said_again(rig, make_alert):
    """The answer came and was noted, then the process was killed before the outbox knew."""
    opened = incident(make_alert)[0]
    found = document(opened)
    rig.put(opened)
    rig.run()
    requests = len(rig.server.requests)
    data = rig.worker._route.render(msgspec.json.encode(found))
    rig.output.send([Rendered(found["event"]["id"], 8, data, msgspec.json.encode(found))])
    assert len(rig.server.requests) == requests
    assert len(rig.server.shown) == 1


def test_an_edit_whose_answer_was_lost_is_not_an_error(rig, make_alert):
    opened, update, _ = incident(make_alert)
    rig.put(opened)
    rig.run()
    rig.server.faults.append("reset-after")
    rig.put(update)
    rig.run()
    assert rig.server.edits == 1, "the second try was told that nothing had changed"
    assert len(rig.server.shown) == 1
    assert rig.worker.retries == 1


def test_a_late_open_does_not_undo_a_close(rig, make_alert):
    opened, _, closed = incident(make_alert)
    rig.put(closed)
    rig.run()
    rig.put(opened)
    rig.run()
    [message] = rig.server.shown
    assert "closed" in message.text
    assert rig.ledger.delivered == 2


@pytest.mark.parametrize("how", ["deleted", "too old"])
def test_a_message_that_cannot_be_edited_is_followed_by_a_new_one(rig, make_alert, how):
    opened, update, closed = incident(make_alert)
    rig.put(opened)
    rig.run()
    if how == "deleted":
        rig.server.messages.clear()
    else:
        rig.server.too_old.add(1)
    rig.put(update, closed)
    rig.run()
    last = rig.server.shown[-1]
    assert last.id == 2 and len(last.history) == 2 and "closed" in last.text


def test_a_raised_level_is_heard(rig, make_alert):
    """An edit makes no sound."""
    opened, update, closed = incident(make_alert)
    opened.level = "low"
    update.level = closed.level = "critical"
    rig.put(opened)
    rig.run()
    rig.put(update)
    rig.run()
    rig.put(closed)
    rig.run()
    first, second = rig.server.shown
    assert (first.is_silent, second.is_silent) == (True, False)
    assert second.replies_to == first.id
    assert "closed" in second.text


def test_low_levels_make_no_sound_and_a_topic_gets_the_messages(begin, make_alert):
    rig = begin(chat=GROUP, silent_below="high", topic_id=77)
    rig.server.topics.add(77)
    rig.put(make_alert(number=1, level="medium"), make_alert(number=2, level="high"))
    rig.run()
    assert {(m.is_silent, m.topic) for m in rig.server.shown} == {(True, 77), (False, 77)}


def test_a_burst_becomes_a_few_digests_whose_counts_add_up(begin, make_alert):
    rig = begin(chat=GROUP)
    total = 2000
    alerts = [
        make_alert(number=n, level="low", fields={"source.ip": f"198.51.100.{n % 9}"}) for n in range(total)
    ]
    alerts[1234] = make_alert(number=1234, level="critical", title="The needle")
    rig.put(*alerts)
    rig.run()
    singles = [text for text in rig.texts if " alert" not in text.split("\n")[0]]
    counts = [
        int(found[1].replace(",", ""))
        for t in rig.texts
        if (found := re.search(r": ([\d,]+) alerts?$", t.split("\n")[0]))
    ]
    assert len(singles) + sum(counts) == total == rig.ledger.delivered
    assert rig.worker.digested == sum(counts)
    assert len(rig.texts) <= 5
    assert rig.server.floods == 0
    assert "CRITICAL: The needle" in rig.texts[0], "it goes before the digest of the storm"
    assert (
        max(int(re.search(r"([\d,]+)\u00d7 198", text)[1]) for text in rig.texts if "\u00d7 198" in text) > 50
    )


def test_a_digest_belongs_to_no_incident(rig, make_alert):
    rig.put(*[make_alert(number=n, level="low") for n in range(20)])
    rig.run()
    rig.put(*[make_alert(number=n, level="low") for n in range(20, 40)])
    rig.run()
    assert [text.split("\n")[0] for text in rig.texts] == ["🔵 LOW: 20 alerts"] * 2
    assert rig.server.edits == 0


@pytest.mark.parametrize(("chat", "most_per_min"), [(PRIVATE, 60), (GROUP, 20)])
def test_hours_of_alerts_stay_within_the_limits_of_the_chat(begin, make_alert, chat, most_per_min):
    """Telegram never has to say 429, and not one alert is missing."""
    rig = begin(chat=chat, digest_over=3)
    total = 0
    for minute in range(6):
        for second in range(0, 60, 2):
            rig.clock.now_s = max(rig.clock.now_s, minute * 60.0 + second)
            rig.put(*[make_alert(number=total + n, level=["low", "high"][n % 2]) for n in range(4)])
            total += 4
            rig.step()
    rig.run()
    assert rig.server.floods == rig.server.too_early == 0
    assert rig.ledger.delivered == total
    assert len(rig.texts) <= most_per_min * (rig.clock.now_s / 60 + 1) + 1
    counts = [re.search(r": ([\d,]+) alerts?$", text.split("\n")[0]) for text in rig.texts]
    assert sum(int(found[1]) if found else 1 for found in counts) == total


def test_429_holds_the_whole_queue_for_as_long_as_it_says(rig, make_alert):
    answer = {
        "ok": False,
        "error_code": 429,
        "description": "Too Many Requests",
        "parameters": {"retry_after": 37},
    }
    rig.put(*[make_alert(number=n) for n in range(3)])
    rig.server.faults += [
        (200, b'{"ok":true,"result":{"id":1}}', {}),  # getMe
        (429, json.dumps(answer).encode(), {}),
    ]
    assert rig.step() == 37.0
    assert rig.worker.last_error == f"{rig.server.url}: too many messages"
    asked = len(rig.server.requests)
    rig.worker.step(36.9)
    assert len(rig.server.requests) == asked
    rig.run()
    assert len(rig.texts) == 3
    assert rig.server.too_early == 0


def test_markup_that_telegram_does_not_take_is_sent_as_plain_text_and_counted(rig, caplog):
    source = msgspec.json.encode({"kwsiem": {"alert": {"incident_id": "I"}}})
    rig.output.send([Rendered("ID", 8, b"<b>a &lt; b</b> <blink>", source)])
    assert rig.texts == ["a < b "]
    assert rig.output.markup_errors == 1
    assert "sent without markup" in caplog.text


@pytest.mark.parametrize("text", [b" ", b"x" * 4097])
def test_a_text_that_telegram_never_takes_is_a_dead_letter_and_the_others_go_on(rig, make_alert, text):
    rig.worker._route = msgspec.structs.replace(
        rig.worker._route, render=lambda source: text if b'"n1"' in source else b"good"
    )
    rig.put(*[make_alert(number=n, rule_id=f"n{n}") for n in range(3)])
    rig.run()
    assert rig.texts == ["good", "good"]
    assert (rig.ledger.delivered, rig.ledger.dead) == (2, 1)


def test_a_group_that_becomes_a_supergroup_is_followed_also_after_a_restart(begin, make_alert):
    rig = begin(chat=GROUP)
    opened, update, closed = incident(make_alert)
    rig.put(opened)
    rig.run()
    new = -100_200
    rig.server.chats.add(new)
    rig.server._next_id[new] = 1
    rig.server.migrated[GROUP] = new
    rig.put(update)
    rig.run()
    rig.start()
    rig.put(closed)
    rig.run()
    old_message, new_message = rig.server.shown
    assert (old_message.chat, new_message.chat) == (GROUP, new)
    assert len(old_message.history) == 1 and "closed" in new_message.text
    asked = [json.loads(body).get("chat_id") for _, body in rig.server.requests if body != b"{}"]
    assert asked.count(GROUP) == 2, "the new id is noted, and asked for from then on"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("token", "token is wrong or was revoked"),
        ("malformed", "malformed, or url is no Bot API"),
        ("blocked", "blocked or is not in the chat"),
        ("chat", "chat not found; see chat_id and topic_id"),
        ("topic", "message thread not found; see chat_id and topic_id"),
    ],
)
def test_what_an_operator_must_mend_is_said_and_tried_slowly(begin, make_alert, trouble, words):
    rig = begin(topic_id=5 if trouble == "topic" else 0)
    if trouble == "token":
        rig.output._bot._prefix = "/bot1:other/"
    elif trouble == "malformed":
        rig.output._bot._prefix = "/elsewhere/"
    elif trouble == "blocked":
        rig.server.blocked.add(PRIVATE)
    elif trouble == "chat":
        rig.server.chats.clear()
    rig.put(make_alert())
    wait_s = rig.step()
    assert wait_s == 60.0
    assert words in rig.worker.last_error
    assert rig.worker.state == "failing"
    assert rig.ledger.waiting == 1, "nothing is lost meanwhile"
    rig.output._bot._prefix = f"/bot{TOKEN}/"
    rig.server.blocked.clear()
    rig.server.chats.add(PRIVATE)
    rig.server.topics.add(5)
    rig.run()
    assert rig.worker.state == "ready"


@pytest.mark.parametrize(
    "fault",
    [
        "reset",
        (502, b"<html>Bad Gateway</html>", {}),
        (200, b"", {}),
        (200, b'{"ok":true}', {}),
        (500, b'{"ok":false}', {}),
    ],
    ids=["reset", "502", "empty", "no result", "500"],
)
def test_faults_on_the_way_are_tried_again_and_nothing_is_lost(rig, make_alert, fault):
    ids = rig.put(*[make_alert(number=n) for n in range(3)])
    rig.step()
    rig.server.faults.append(fault)
    rig.run()
    assert [text[-8:] for text in rig.texts] == [alert_id[-8:] for alert_id in ids]
    assert rig.worker.retries >= 1


def test_an_answer_that_is_lost_may_make_a_message_come_twice(rig, make_alert):
    rig.put(make_alert())
    rig.output.open()
    rig.server.faults.append("reset-after")
    rig.run()
    assert len(rig.texts) == 2
    assert rig.ledger.delivered == 1


def test_a_server_that_hangs_costs_the_time_out_and_no_more(begin, make_alert):
    rig = begin()
    rig.settings = msgspec.structs.replace(rig.settings, timeout_s=0.3)
    rig.start()
    rig.server.faults.append("hang")
    rig.put(make_alert())
    rig.step()
    assert "timed out after 0.3 s" in rig.worker.last_error
    rig.run()
    assert len(rig.texts) == 1


def test_errors_never_show_the_token(rig, make_alert, caplog):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        rig.settings = msgspec.structs.replace(
            rig.settings, url=f"http://127.0.0.1:{nobody.getsockname()[1]}"
        )
        rig.start()
        rig.put(make_alert())
        rig.step()
    assert "connection refused" in rig.worker.last_error
    answer = {"ok": False, "error_code": 400, "description": f"bad path /bot{TOKEN}/sendMessage"}
    rig.settings = msgspec.structs.replace(rig.settings, url=rig.server.url)
    rig.start()
    rig.server.faults += [(400, json.dumps(answer).encode(), {})]
    with pytest.raises(OutputError) as caught:
        rig.output.open()
    assert "bad path /bot***" in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "chat", "words"),
    [("", "1", "expected a bot's token"), ("1:a/../b", "1", "expected a bot's token"), ("1:ab", "", "chat_id"),
     ("1:ab", "@a/b", "chat_id"), ("1:ab", "12 34", "chat_id")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_without_showing_the_token(token, chat, words):
    with pytest.raises(ConfigError) as caught:
        make_output(TelegramSettings(name="t"), {"token": token, "chat_id": chat})
    assert words in str(caught.value)
    assert "a/../b" not in str(caught.value)


def test_the_limits_are_those_of_the_kind_of_chat():
    assert limits("1000") == ((1, 1.0),)
    assert limits("-200") == limits("@channel") == ((1, 1.0), (5, 20.0))
    route = make_route(TelegramSettings(name="t", rate_per_min=2), limits("-200"))
    sent, now_s = 0, 0.0
    while now_s <= 60:
        sent += route.pace.free(now_s)
        route.pace.take(route.pace.free(now_s), now_s)
        now_s += 0.5
    assert sent <= 4, "the settings tighten it"
