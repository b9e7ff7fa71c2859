"""ChatOps over real HTTP: from a button of the Bot API server to the guard, the audit log and the answer."""

import json
from types import SimpleNamespace

import msgspec
import pytest
from blocker_host import Host
from peers.telegram_api import TOKEN, TelegramApi

from kwsiem.chatdesk import MAX_CHANGES_PER_MIN, ChatDesk
from kwsiem.clock import wall_ns
from kwsiem.delivery import make_chatops, make_output, make_route
from kwsiem.document import document
from kwsiem.errors import ConfigError
from kwsiem.messages import ChatRequest
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import ChatOpsSettings, SlackSettings, TelegramSettings
from kwsiem.outputs import chatops, chatstate, chatwords
from kwsiem.outputs.chatstate import MUTE_MOST_S, ChatState
from kwsiem.outputs.worker import Worker

CHAT, ALICE, MALLORY = 1000, 77, 666
OFFENDER, GATEWAY = "198.51.100.7", "192.0.2.1"
HOSTILE = [
    "<b>x</b>",
    "a & b &amp; &#60;",
    "](tg://user?id=1) [x",
    "\x1b[2J\x1b]0;t\x07",
    "A" * 5000,
    "\u202eevil",
]


class Rig:
    """Server, outbox, output, ChatOps, desk and blocker; everything but the processes between them."""

    def __init__(self, folder, patch, mode="on", **chatops_settings):
        self.folder = folder
        self.now_s = 0.0
        # The chat's limits are those of another test: here a minute lies between any two messages.
        self.server = TelegramApi((CHAT,), self.tick, burst=100)
        self.host = Host(folder, patch)
        self.host.start(mode=mode)
        self.settings = TelegramSettings(
            name="chat", url=self.server.url, chat_id=str(CHAT), timeout_s=5.0,
            chatops=ChatOpsSettings(users=(ALICE,)), **chatops_settings,
        )  # fmt: skip
        self.rules = ["tcp-port-scan"]
        self.desk = ChatDesk(
            [self.settings],
            self.host.blocker.answer,
            lambda: {"version": "1", "host": "<gw>", "probes": "9 of 9 ready", "outputs": [{"name": "chat"}]},
            lambda: self.rules,
        )
        self.told = []
        self.asked = []
        self.acknowledged = {}
        self.outbox = Outbox(folder / "kwsiem.db", ["chat"])
        self.worker = self.chat = None
        self.start()

    def tick(self):
        self.now_s += 60.0
        return self.now_s

    def get(self, key):
        return self.outbox.note("chat", key)

    def set(self, key, value):
        self.outbox.set_note("chat", key, value)

    def ask(self, request):
        self.asked.append(request)
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ChatRequest)
        return self.desk.answer(sent)

    def start(self):
        """A new process: only what is on disk is remembered."""
        if self.chat:
            self.chat.close()
            self.worker.close()
        secrets = {"token": TOKEN}
        self.kept = ChatState(self.folder / "chat.json")
        self.output = make_output(self.settings, secrets, notes=self)
        route = make_route(self.settings, self.output.limits, self.kept.is_muted)
        self.worker = Worker("chat", self.output, self.outbox, route)
        self.chat = make_chatops(
            self.settings, secrets, self, self.ask, lambda kind, fields: self.told.append((kind, fields))
        )
        self.chat.begin(self.kept, self.outbox, self.write_down)

    def write_down(self, incident, who):
        """As the courier does: who was first stays."""
        return self.acknowledged.setdefault(incident, who)

    def put(self, alert):
        found = document(alert)
        item = Item(found["event"]["id"], found["event"]["severity"], msgspec.json.encode(found))
        self.outbox.put([item])
        while self.outbox.ledger()["chat"].waiting:
            self.worker.step(self.tick())
        return alert.incident_id

    def step(self):
        """One poll; gives the answers that it led to."""
        before = len(self.server.messages)
        wait_s = self.chat.step(self.tick())
        return SimpleNamespace(texts=self.texts[before:], wait_s=wait_s)

    def press(self, verb, incident, user=ALICE, **more):
        self.server.press(user, f"{verb}:{incident}", **more)
        [text] = self.step().texts
        return text

    def write(self, text, user=ALICE, **more):
        self.server.write(user, text, **more)
        [answer] = self.step().texts
        return answer

    @property
    def texts(self):
        return [message.text for message in self.server.shown]

    @property
    def blocked(self):
        return self.host.firewall.entries

    def close(self):
        self.chat.close()
        self.worker.close()
        self.outbox.close()
        self.host.stop()
        self.server.close()
        assert not self.server.parse_errors


@pytest.fixture
def begin(tmp_path, monkeypatch):
    rigs = []

    def start(**options):
        rigs.append(Rig(tmp_path, monkeypatch.setattr, **options))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(begin):
    return begin()


@pytest.fixture(autouse=True)
def _no_token_anywhere(caplog):
    caplog.set_level("DEBUG")
    yield
    assert TOKEN not in caplog.text


def audits(caplog, message="chat"):
    return [r for r in caplog.records if r.name == "kwsiem.audit" and r.getMessage() == message]


def labels(rig, number=0):
    return [text for text, _ in rig.server.shown[number].buttons]


def test_an_incident_has_buttons_that_hold_no_more_than_an_action_and_its_id(rig, make_alert):
    incident = rig.put(make_alert())
    [message] = rig.server.shown
    assert labels(rig) == [
        "Acknowledge", "Evidence", "Block 1 h", "Block 1 day", "Unblock", "Mute the rule 1 h"
    ]  # fmt: skip
    assert all(data.partition(":")[2] == incident for _, data in message.buttons)


def test_without_users_there_are_no_buttons_and_nobody_polls(tmp_path, monkeypatch):
    settings = TelegramSettings(name="chat", chat_id="1")
    assert make_chatops(settings, {"token": TOKEN}, None, None, None) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"edit": False}, "edit: true"),
        ({"chat_id": "@channel"}, "must be a number"),
        ({"chatops": ChatOpsSettings(users=(0,))}, "above 0"),
    ],
)
def test_settings_with_which_it_cannot_work(changes, words):
    values = {"name": "chat", "chat_id": "1", "chatops": ChatOpsSettings(users=(ALICE,)), **changes}
    with pytest.raises(ConfigError, match=words):
        make_output(TelegramSettings(**values), {"token": TOKEN})


@pytest.mark.parametrize(("verb", "for_s", "words"), [("block1h", 3600, "1 h"), ("block1d", 86_400, "1 day")])
def test_a_block_goes_through_the_guard_and_into_the_audit_log(rig, make_alert, caplog, verb, for_s, words):
    incident = rig.put(make_alert())
    assert rig.press(verb, incident) == f"{OFFENDER} blocked for {words}, by user 77"
    assert rig.blocked == {OFFENDER: for_s}
    [line] = audits(caplog)
    assert (line.action, line.user_id, line.user_name, line.outcome) == ("block", ALICE, "user 77", "done")
    assert (line.network, line.incident) == (OFFENDER, incident)
    [decided] = audits(caplog, "blocked")
    assert (decided.origin, decided.reason) == ("operator", "chat user 77 user 77")
    assert rig.server.answered


def test_what_the_guard_refuses_is_explained(rig, make_alert, caplog):
    incident = rig.put(make_alert(fields={"source.ip": GATEWAY}))
    assert rig.press("block1h", incident).startswith("refused: gateway: ")
    assert rig.blocked == {}
    [line] = audits(caplog)
    assert line.outcome == "refused" and line.reason.startswith("gateway: ")


def test_a_dry_run_says_so(begin, make_alert):
    rig = begin(mode="dry-run")
    assert "would be (dry run) blocked" in rig.press("block1h", rig.put(make_alert()))
    assert rig.blocked == {}


def test_unblock(rig, make_alert):
    incident = rig.put(make_alert())
    assert rig.press("unblock", incident) == f"refused: {OFFENDER} is not blocked"
    rig.press("block1h", incident)
    assert rig.press("unblock", incident) == f"{OFFENDER} is released, by user 77"
    assert rig.blocked == {}


def test_acknowledge_once_and_the_message_shows_it(rig, make_alert):
    incident = rig.put(make_alert())
    assert rig.press("ack", incident) == "acknowledged by user 77"
    assert rig.press("ack", incident) == "already acknowledged by user 77"
    rig.put(make_alert(state="update", count=9, raised_ns=make_alert().raised_ns + 10**9))
    assert rig.texts[0].endswith("acknowledged by user 77")
    assert "Acknowledge" not in labels(rig)


def test_who_acknowledged_elsewhere_was_first(rig, make_alert):
    first, second = (rig.put(make_alert(first_ns=n, opened_ts_ns=n)) for n in (1, 2))
    rig.acknowledged[first] = "<b>root</b>"
    assert rig.press("ack", first) == "already acknowledged by <b>root</b>"
    rig.chat.acknowledged(second, "anna")
    assert rig.press("ack", second) == "already acknowledged by anna"
    rig.chat.acknowledged("no-such-incident", "anna")
    assert rig.acknowledged == {first: "<b>root</b>"}


def test_evidence(rig, make_alert):
    text = rig.press("evidence", rig.put(make_alert()))
    assert "tcp.syn" in text and "198.51.100.7" in text
    assert len(text.splitlines()) == 2


def test_a_muted_rule_is_filtered_also_after_a_restart_until_its_time_is_over(rig, make_alert, monkeypatch):
    incident = rig.put(make_alert())
    assert rig.press("mute", incident).startswith("tcp-port-scan is muted in chats until ")
    rig.start()
    shown = len(rig.texts)
    rig.put(make_alert(number=1))
    assert len(rig.texts) == shown
    assert rig.outbox.ledger()["chat"].filtered == 1
    rig.put(make_alert(number=2, rule_id="another"))
    assert len(rig.texts) == shown + 1
    assert "muted tcp-port-scan until" in rig.write("/status")
    assert "muted tcp-port-scan until" in rig.write("/mute").replace("\n", " ")
    later_ns = wall_ns() + 3601 * 10**9
    monkeypatch.setattr(chatstate, "wall_ns", lambda: later_ns)
    rig.put(make_alert(number=3))
    assert len(rig.texts) == shown + 4


def test_only_chats_are_muted(make_alert):
    data = msgspec.json.encode(document(make_alert()))
    slack = make_route(SlackSettings(name="s"), (), lambda rule: rule == "tcp-port-scan")
    assert not slack.wants(data)
    slack = make_route(SlackSettings(name="s", not_rules=("x",)), (), lambda rule: rule == "x")
    assert slack.wants(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/mute tcp-port-scan", "is muted"),
        ("/mute tcp-port-scan 24h", "is muted"),
        ("/mute tcp-port-scan 25h", "refused: a rule is muted for 24 h at most"),
        ("/mute tcp-port-scan 9999h", "refused"),
        ("/mute no-such-rule 1h", "refused: no such rule runs"),
        ("/mute tcp-port-scan soon", "say /mute RULE 30m"),
        ("/mute <b> 1h", "say /mute RULE 30m"),
        ("/unmute tcp-port-scan", "was not muted"),
        ("/MUTE x", "no such command"),
        ("/nonsense", "no such command"),
        ("/", "no such command"),
    ],
)
def test_mute_commands(rig, text, words):
    assert words in rig.write(text)


def test_unmute(rig):
    rig.write("/mute tcp-port-scan 8h")
    assert "speaks again" in rig.write("/unmute tcp-port-scan")
    assert rig.kept.mutes() == {}


def test_no_mute_is_longer_than_a_day_whatever_the_clock_did(tmp_path, monkeypatch):
    path = tmp_path / "chat.json"
    now_ns = wall_ns()
    path.write_text(json.dumps({"mutes": {"x": now_ns * 2}}))
    kept = ChatState(path)
    assert kept.mutes()["x"] <= wall_ns() + MUTE_MOST_S * 10**9
    for content in ("", "{", '{"mutes": 7}', "\x00" * 100):
        path.write_text(content)
        assert ChatState(path).mutes() == {}


def test_the_commands_that_ask(rig, make_alert, caplog):
    rig.press("block1h", rig.put(make_alert()))
    assert "kwsiem 1 on <gw>" in rig.write("/status")
    assert "high tcp-port-scan 198.51.100.7 open" in rig.write("/alerts")
    assert "blocking is on, 1 blocks" in rig.write("/blocks@kbot")
    assert "/unmute RULE" in rig.write("/help")
    assert [line.action for line in audits(caplog)] == ["block", "status", "alerts", "blocks", "help"]


def test_what_people_say_to_each_other_and_to_other_bots_is_passed_over(rig):
    for text in ("hello", "/blocks@otherbot", "", "look: /status"):
        rig.server.write(MALLORY, text)
    assert rig.step().texts == []
    assert rig.told == [] and rig.chat.denied == 0


@pytest.mark.parametrize("replays", [False, True])
def test_an_update_acts_once_also_when_it_comes_again_after_a_crash(rig, make_alert, replays):
    incident = rig.put(make_alert())
    update = rig.server.press(ALICE, f"block1h:{incident}")
    rig.server.updates.append(update)  # twice in one answer
    rig.server.replays = replays
    assert len(rig.step().texts) == 1
    rig.host.firewall.entries.clear()
    for _ in range(2):
        rig.start()
        rig.server.updates.append(update)
        assert rig.step().texts == []
    assert len(rig.asked) == 1 and rig.blocked == {}


def test_killed_between_noting_and_acting_it_does_not_act_later(rig, make_alert, monkeypatch):
    incident = rig.put(make_alert())
    rig.server.press(ALICE, f"block1h:{incident}")

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    monkeypatch.setattr(rig.chat, "_press", killed)
    with pytest.raises(Killed):
        rig.step()
    rig.start()
    assert rig.step().texts == [] and rig.blocked == {}


def test_what_cannot_be_noted_does_not_act_and_acts_when_it_can(rig, make_alert, monkeypatch):
    incident = rig.put(make_alert())
    rig.server.press(ALICE, f"block1h:{incident}")
    with monkeypatch.context() as full:
        full.setattr(chatstate, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert rig.step().wait_s > 0
    assert rig.blocked == {} and rig.chat.state == "failing" and "noted" in rig.chat.last_error
    assert len(rig.step().texts) == 1
    assert rig.blocked == {OFFENDER: 3600}


def test_after_a_week_of_silence_numbers_may_begin_anew(rig, monkeypatch):
    rig.kept.taken("chat", 10**9)
    rig.server.write(ALICE, "/help")
    rig.server.replays = True  # as Telegram: the old offset is of another count
    assert rig.step().texts == []
    later_ns = wall_ns() + 7 * 86_400 * 10**9
    monkeypatch.setattr(chatstate, "wall_ns", lambda: later_ns)
    assert len(rig.step().texts) == 1


@pytest.mark.parametrize(
    ("user", "chat", "reason"),
    [
        (MALLORY, CHAT, "user"),
        (ALICE, 4242, "chat"),
        (MALLORY, MALLORY, "chat"),
        ({"id": ALICE, "is_bot": True, "first_name": "b"}, CHAT, "user"),
    ],
)
@pytest.mark.parametrize("how", ["button", "command"])
def test_a_stranger_gets_no_answer_and_is_told_of(rig, make_alert, user, chat, reason, how):
    incident = rig.put(make_alert())
    if how == "button":
        rig.server.press(user, f"block1h:{incident}", chat=chat)
    else:
        rig.server.write(user, "/status", chat=chat)
    assert rig.step().texts == []
    assert rig.server.answered == [] and rig.asked == [] and rig.blocked == {}
    [(kind, fields)] = rig.told
    assert kind == "chat.denied"
    assert (fields["event.reason"], fields["chat.id"], fields["event.count"]) == (reason, str(chat), 1)


def test_a_flood_of_strangers_is_counted_and_told_in_portions(rig):
    for number in range(400):
        rig.server.write(10_000 + number % 150, "/status", chat=5)
    for _ in range(40):
        rig.step()
    assert rig.chat.denied == 400
    assert sum(fields["event.count"] for _, fields in rig.told) == 400
    assert len(rig.told) <= 10 * 40
    assert rig.step().texts == []


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:8]))
def test_a_hostile_name_is_harmless_in_the_chat_and_in_the_log(rig, make_alert, caplog, name):
    alice = {"id": ALICE, "is_bot": False, "first_name": name, "last_name": name}
    incident = rig.put(make_alert())
    answer = rig.press("ack", incident, user=alice)
    assert answer.startswith("acknowledged by ") and len(answer) < 100
    rig.put(make_alert(state="update", count=9, raised_ns=make_alert().raised_ns + 10**9))
    assert "acknowledged by" in rig.texts[0]
    message = rig.server.messages[CHAT, 2]
    assert [tag for tag, *_ in message.entities] == ["code"], (
        "the name stands in a code span, and nothing else"
    )
    [line] = audits(caplog)
    assert len(line.user_name) <= 64 and line.user_name.isprintable()
    rig.server.press({**alice, "id": MALLORY}, f"ack:{incident}")
    rig.step()
    assert len(rig.told[0][1]["user.name"]) <= 64


def test_hostile_evidence_and_alerts_stay_one_message_of_whole_markup(rig, make_alert):
    events = [{"kind": "x", "ts_ns": 1, "user.name": "<b>&](" + "\x1b" * 50 + "x" * 5000} for _ in range(10)]
    incident = rig.put(make_alert(evidence=events))
    assert "<b>&](" in rig.press("evidence", incident)
    assert chatwords.fitted(["\U0001f600" * 1000] * 50).count("\n") < 3


@pytest.mark.parametrize(
    "data", ["", "ack", "ack:", "rm -rf:x", "ack:" + "0" * 25 + "!", "block9y:" + "0" * 26, "\x00" * 64]
)
def test_a_forged_button_does_nothing(rig, data):
    rig.server.press(ALICE, data)
    assert rig.step().texts == ["this button is not known here"]
    assert rig.asked == []


def test_a_button_of_an_unknown_incident_does_nothing(rig):
    assert "not known any more" in rig.press("block1h", "0" * 26)


def test_an_old_button_of_a_closed_incident_says_so(rig, make_alert):
    incident = rig.put(make_alert())
    rig.put(make_alert(state="close", count=9, raised_ns=make_alert().raised_ns + 10**9))
    assert labels(rig) == ["Evidence", "Unblock"]
    for verb in ("ack", "block1h", "block1d", "mute"):
        assert "this incident is closed" in rig.press(verb, incident)
    assert rig.asked == []
    assert "tcp.syn" in rig.press("evidence", incident)


def test_what_was_pressed_or_written_long_ago_is_not_done(rig, make_alert):
    incident = rig.put(make_alert())
    update = rig.server.press(ALICE, f"block1h:{incident}")
    rig.server.old_queries.add(update["callback_query"]["id"])
    assert "too long ago" in rig.step().texts[0]
    assert "long ago: nothing was done" in rig.write("/mute tcp-port-scan", date=1)
    assert "long ago: nothing was done" in rig.write("/mute tcp-port-scan", date=2**40)
    assert rig.chat.stale == 3 and rig.asked == []


def test_too_many_changes_within_a_minute_are_refused(rig, make_alert):
    incident = rig.put(make_alert())
    for _ in range(MAX_CHANGES_PER_MIN):
        rig.press("unblock", incident)
    assert "changes within a minute" in rig.press("block1h", incident)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"user_id": MALLORY}, "may not"),
        ({"output": "other"}, "may not"),
        ({"address": "198.51.100.0/24"}, "single"),
        ({"address": "0.0.0.0/0"}, "single"),
        ({"address": "; flush"}, "does not appear"),
        ({"for_s": 30 * 86_400}, "1 hour or 1 day"),
        ({"for_s": -1}, "1 hour or 1 day"),
        ({"action": "mute", "for_s": 10**9}, "24 h"),
    ],
)
def test_the_sensor_does_not_trust_a_courier_that_was_taken_over(rig, changes, error):
    values = {"number": 1, "output": "chat", "user_id": ALICE, "user_name": "a" * 9999, "action": "block"}
    values |= {"address": OFFENDER, "for_s": 3600, "rule_id": "tcp-port-scan"}
    answer = rig.desk.answer(ChatRequest(**{**values, **changes}))
    assert error in answer.error
    assert rig.blocked == {}


def test_a_second_consumer_is_said_and_not_quarrelled_with(rig):
    fault = {
        "ok": False,
        "error_code": 409,
        "description": "Conflict: terminated by other getUpdates request",
    }
    rig.step()
    rig.server.faults.append((409, json.dumps(fault).encode(), {}))
    assert rig.step().wait_s == 60.0
    assert rig.chat.state == "failing" and "somebody else reads" in rig.chat.last_error
    rig.step()
    assert rig.chat.state == "ready"


def test_too_many_messages_wait_and_the_answer_is_not_lost(rig):
    rig.step()
    rig.server.write(ALICE, "/help")
    fault = {"ok": False, "error_code": 429, "description": "x", "parameters": {"retry_after": 300}}
    real = rig.server.take

    def take(path, body):
        if path.endswith("sendMessage"):
            rig.server.take = real
            return 429, json.dumps(fault).encode(), {}
        return real(path, body)

    rig.server.take = take
    found = rig.step()
    assert (found.texts, found.wait_s) == ([], 300.0)
    rig.now_s += 300
    assert len(rig.step().texts) == 1
    assert len(rig.asked) == 1


@pytest.mark.parametrize("fault", ["reset", (500, b"oops", {}), (200, b"[]", {}), (200, b"\xff", {})])
def test_a_server_that_fails_is_asked_again_later(rig, fault):
    rig.server.faults.append(fault)
    assert rig.step().wait_s >= 1.0
    assert rig.chat.state == "failing"
    rig.now_s += 60
    rig.step()
    assert rig.chat.state == "ready"


def test_an_update_that_cannot_be_read_is_passed_over(rig):
    rig.step()
    body = b'{"ok": true, "result": [{"update_id": 1000, "message": "\\ud800" ' + b"x" * 100
    rig.server.faults += [(200, body, {})] * 2
    rig.server.updates.append({"update_id": 1001, "message": 7})
    rig.server._next_update = 1002
    rig.server.write(ALICE, "/help")
    assert sum(len(rig.step().texts) for _ in range(4)) == 1
    assert rig.chat.skipped == 2


def test_the_sensor_that_does_not_answer(rig, make_alert):
    incident = rig.put(make_alert())
    rig.chat._ask = lambda _: None
    for verb in ("ack", "block1h", "mute", "evidence"):
        assert rig.press(verb, incident) == "no answer of the sensor: look whether it was done"
    assert rig.kept.mutes() == {}


def test_a_group_that_moved_is_the_chat_from_then_on(rig, make_alert):
    rig.set(f"chat {CHAT}", "-5000")
    rig.server.chats.add(-5000)
    rig.server.write(ALICE, "/help", chat=-5000)
    assert len(rig.step().texts) == 1
    rig.server.write(ALICE, "/help")
    assert rig.step().texts == []


def test_an_empty_answer_is_not_asked_for_without_pause(rig):
    assert rig.step().wait_s == chatops.POLL_LEAST_S
