"""The real courier process, driven over its two links as the sensor and the engine do it."""

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import pytest
from peers import slack_hook, smtp, telegram_api

from kwsiem import courier as courier_module
from kwsiem import rights
from kwsiem.config import Settings
from kwsiem.document import document
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    Acknowledge,
    AlertRaised,
    AlertsDurable,
    ChatAnswer,
    ChatRequest,
    CourierStart,
    CourierToEngine,
    FromCourier,
    JournalEntry,
    OwnEvent,
    Ready,
    SeriesTold,
    Stats,
    Stop,
)
from kwsiem.outbox import Item, Outbox, read_ledger, recent_alerts
from kwsiem.output_settings import (
    ConsoleSettings,
    EmailSettings,
    FileSettings,
    SlackSettings,
    SummarySettings,
    SyslogSettings,
    TelegramSettings,
)
from kwsiem.series import Acknowledged, Journal, Series
from kwsiem.series_file import SeriesFile, SeriesWriter

DEADLINE_S = 20.0
WITHOUT_STDOUT = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Courier:
    """One courier process and our ends of its links."""

    def __init__(self, folder, outputs, *, launcher=()):
        self.folder = folder
        ours, theirs = link_pair()
        engine, courier = link_pair()
        fds = (theirs.fileno(), courier.fileno())
        argv = [sys.executable, *launcher, "-I", "-m", "kwsiem.courier"]
        argv += ["--sensor-fd", str(fds[0]), "--alerts-fd", str(fds[1])]
        self.log = (folder.parent / "log").open("ab")
        self.stdout = (folder.parent / "stdout").open("ab")
        self.process = subprocess.Popen(argv, pass_fds=fds, stdout=self.stdout, stderr=self.log)
        self.raw_engine = engine
        self.sensor = Link(ours, FromCourier)
        self.engine = Link(engine, CourierToEngine)
        theirs.close()
        courier.close()
        self.acknowledged = set()
        self.messages = []
        settings = Settings(state_dir=str(folder), outputs=tuple(outputs))
        self.sensor.send(CourierStart(host="gw01", settings=msgspec.to_builtins(settings)))
        self.wait(lambda: any(isinstance(m, Ready) for m in self.messages))

    def raise_alerts(self, alerts, first=0):
        for number, alert in enumerate(alerts, first):
            while not self.engine.send(AlertRaised(number=number, alert=alert)):
                self.pump(0.1)

    def pump(self, timeout_s):
        ready, _, _ = select.select(
            [link for link in (self.sensor, self.engine) if not link.closed], [], [], timeout_s
        )
        for link in ready:
            while (received := link.receive()) is not None:
                if isinstance(received[0], AlertsDurable):
                    self.acknowledged.update(received[0].numbers)
                else:
                    self.messages.append(received[0])

    def wait(self, condition):
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s and self.process.poll() is None, (
                self.folder.parent / "log"
            ).read_text()
            self.pump(0.2)

    def stats(self):
        """The next counters that the courier sends."""
        before = len(self.messages)
        self.wait(lambda: any(isinstance(m, Stats) for m in self.messages[before:]))
        return next(m for m in reversed(self.messages) if isinstance(m, Stats)).values

    def wait_stats(self, condition):
        while not condition(values := self.stats()):
            pass
        return values

    def stop(self):
        self.sensor.send(Stop())
        return self.ended()

    def ended(self):
        status = self.process.wait(DEADLINE_S)
        self.close()
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.sensor.close()
        self.engine.close()
        self.log.close()
        self.stdout.close()


@pytest.fixture
def folder():
    """A state folder that belongs to the user of the courier and that it can get to."""
    base = Path(tempfile.mkdtemp(prefix="kwsiem-courier-"))
    base.chmod(0o755)
    state = base / "state"
    state.mkdir(mode=0o750)
    if os.geteuid() == 0:
        entry = rights.account("kwsiem")
        os.chown(state, entry.pw_uid, entry.pw_gid)
    yield state
    shutil.rmtree(base)


@pytest.fixture
def start(folder):
    started = []

    def begin(*outputs, **options):
        chosen = outputs or (FileSettings(name="file", path=str(folder / "alerts.jsonl")),)
        started.append(Courier(folder, chosen, **options))
        return started[-1]

    yield begin
    for courier in started:
        courier.close()


def delivered(folder):
    path = folder / "alerts.jsonl"
    return (
        [json.loads(line)["event"]["id"] for line in path.read_text().splitlines()] if path.exists() else []
    )


def test_alerts_are_acknowledged_when_durable_and_reach_the_output(start, folder, make_alert):
    courier = start()
    alerts = [make_alert(number=n) for n in range(300)]
    courier.raise_alerts(alerts)
    courier.wait(lambda: courier.acknowledged == set(range(300)))
    assert {d["event"]["id"] for d in recent_alerts(folder / "kwsiem.db", 1000)} == {a.id for a in alerts}
    values = courier.wait_stats(lambda v: v["outputs"][0]["waiting"] == 0)
    assert values["balanced"] is True
    output = values["outputs"][0]
    assert (output["name"], output["state"], output["label"]) == ("file", "ready", "confirmed")
    assert (output["raised"], output["delivered"]) == (300, 300)
    assert values["alerts"] == {"received": 300, "rejected": 0, "duplicates": 0}
    assert courier.stop() == 0
    assert delivered(folder) == [alert.id for alert in alerts], "in order"
    assert json.loads((folder / "alerts.jsonl").read_text().splitlines()[0]) == document(alerts[0])


def test_a_repeated_alert_is_acknowledged_and_not_delivered_twice(start, folder, make_alert):
    courier = start()
    courier.raise_alerts([make_alert(), make_alert(), make_alert(number=1)])
    courier.wait(lambda: courier.acknowledged == {0, 1, 2})
    assert courier.stats()["alerts"]["duplicates"] == 1
    courier.stop()
    assert delivered(folder) == [make_alert().id, make_alert(number=1).id]


def test_what_is_on_its_way_is_taken_when_told_to_stop(start, folder, make_alert):
    courier = start()
    alerts = [make_alert(number=n) for n in range(500)]
    courier.raise_alerts(alerts)
    assert courier.stop() == 0
    assert set(delivered(folder)) == {alert.id for alert in alerts}


def test_when_the_sensor_was_killed_everything_on_the_link_is_still_taken(start, folder, make_alert):
    courier = start()
    alerts = [make_alert(number=n) for n in range(1500)]
    courier.raise_alerts(alerts)
    courier.sensor.close()
    courier.engine.close()
    assert courier.ended() == 0
    assert set(delivered(folder)) == {alert.id for alert in alerts}


def test_sigint_is_left_to_the_sensor_and_sigterm_ends_cleanly(start, folder, make_alert):
    courier = start()
    courier.process.send_signal(signal.SIGINT)
    courier.raise_alerts([make_alert()])
    courier.wait(lambda: courier.acknowledged == {0})
    courier.process.send_signal(signal.SIGTERM)
    assert courier.ended() == 0
    assert delivered(folder) == [make_alert().id]


def test_malformed_messages_are_counted_and_the_next_alert_goes_through(start, make_alert):
    courier = start()
    good = msgspec.msgpack.encode(AlertRaised(number=7, alert=make_alert(values=[1])))
    nested = good.replace(
        msgspec.msgpack.encode({"values": [1]})[1:],
        msgspec.msgpack.encode("values") + b"\x91" * 50_000 + b"\x01",
    )
    assert len(nested) > 50_000
    for packet in (b"\xc1", b"garbage", good[:-5], nested, msgspec.msgpack.encode({"type": "stop"})):
        courier.raw_engine.send(packet)
    courier.raise_alerts([make_alert()], first=8)
    courier.wait(lambda: courier.acknowledged == {8})
    assert courier.wait_stats(lambda v: v["bad_messages"])["bad_messages"] == 5
    assert courier.stop() == 0


def test_hostile_values_of_a_taken_over_engine_are_stored_or_counted(start, make_alert):
    courier = start()
    odd = [
        make_alert(
            number=1, fields={"source.ip": b"bytes", "user.name": {"a": {"b": 1}}, "x" * 5000: 1, "": None}
        ),
        make_alert(
            number=2,
            raised_ns=-(2**63),
            first_ns=2**64 - 1,
            last_ns=0,
            count=-5,
            level="\x00",
            state="\n" * 999,
        ),
        make_alert(
            number=3, evidence=[{"": 1, "kind": 7}], identity={"a": float("nan")}, values=[None, [], {}]
        ),
    ]
    courier.raise_alerts(odd)
    courier.wait(lambda: courier.acknowledged == {0, 1, 2})
    values = courier.stats()
    assert values["balanced"]
    assert values["alerts"]["received"] == 3
    assert values["alerts"]["rejected"] == 0


def test_a_failing_output_is_told_to_the_sensor_and_holds_up_nobody(start, folder, make_alert):
    file = FileSettings(name="file", path=str(folder / "alerts.jsonl"))
    socket_path = str(folder / "no-such-socket")
    siem = SyslogSettings(name="siem", path=socket_path, level="critical")
    courier = start(siem, file)
    courier.raise_alerts([make_alert(level="critical"), make_alert(number=1)])
    values = courier.wait_stats(lambda v: v["outputs"][1]["delivered"] == 2)
    assert values["outputs"][0]["state"] == "failing"
    assert socket_path in values["outputs"][0]["last_error"]
    assert values["outputs"][0]["waiting"] == 2
    # By the time in the id of the oldest that waits: the factory's alerts are old, how old the clock decides.
    assert values["outputs"][0]["lag_s"] > 0
    assert values["balanced"]
    courier.wait(lambda: sum(isinstance(m, OwnEvent) for m in courier.messages) >= 2)
    events = {m.fields["output.name"]: m for m in courier.messages if isinstance(m, OwnEvent)}
    assert events["siem"].kind == "output.state"
    assert events["siem"].fields["output.state"] == "failing"
    assert events["file"].fields["output.state"] == "ready"
    began_s = time.monotonic()
    assert courier.stop() == 0
    assert time.monotonic() - began_s < 8, "a dead output does not hold up the end"


def test_a_closed_standard_output_is_a_failing_console_and_no_damage(start, folder, make_alert):
    console = ConsoleSettings(name="console")
    file = FileSettings(name="file", path=str(folder / "alerts.jsonl"))
    courier = start(console, file, launcher=["-c", WITHOUT_STDOUT])
    courier.raise_alerts([make_alert()])
    values = courier.wait_stats(lambda v: v["outputs"][1]["delivered"] == 1)
    assert values["outputs"][0]["state"] == "failing"
    assert "no standard output" in values["outputs"][0]["last_error"]
    assert courier.stop() == 0
    assert recent_alerts(folder / "kwsiem.db", 10)[0]["event"]["id"] == make_alert().id


def test_a_restart_counts_no_loss_again(start, folder, make_alert):
    """Ten alerts wait for too long and are dropped, once; the account of their output names them for ever."""
    began_s = time.time_ns() // 10**9
    box = Outbox(folder / "kwsiem.db", ["siem"], max_age_s={"siem": 60.0})
    box.put([Item(make_alert(number=n).id, 5, b"{}") for n in range(10)])
    box._durable.execute("UPDATE arrivals SET at_s = at_s - 100")
    box.close()
    if os.geteuid() == 0:
        entry = rights.account("kwsiem")
        for each in folder.iterdir():
            os.chown(each, entry.pw_uid, entry.pw_gid)
    siem = SyslogSettings(name="siem", path=str(folder / "no-such-socket"), max_age_s=60.0)
    file = FileSettings(name="file", path=str(folder / "alerts.jsonl"))
    for outputs in ((siem,), (siem, file), (file,), (siem,)):
        courier = start(*outputs)
        values = courier.stats()
        assert [o["reasons"] for o in values["outputs"] if o["name"] == "siem"] in ([], [{"age": 10}])
        assert courier.stop() == 0
        lost = Series(folder / "series.db").totals("lost", began_s, began_s + 600)
        assert lost == [("output:age", 10)]


def test_the_console_gets_a_line_for_each_alert(start, folder, make_alert):
    courier = start(ConsoleSettings(name="console"))
    courier.raise_alerts([make_alert(), make_alert(number=1)])
    courier.stop()
    lines = (folder.parent / "stdout").read_text().splitlines()
    assert [line.split(" ")[1:3] for line in lines] == [["HIGH", "tcp-port-scan:"]] * 2


def test_a_corrupt_outbox_is_reported_and_the_courier_goes_on(start, folder, make_alert):
    (folder / "kwsiem.db").write_bytes(b"garbage" * 1000)
    if os.geteuid() == 0:
        entry = rights.account("kwsiem")
        os.chown(folder / "kwsiem.db", entry.pw_uid, entry.pw_gid)
    courier = start()
    courier.raise_alerts([make_alert()])
    values = courier.wait_stats(lambda v: v["outputs"][0]["delivered"] == 1)
    assert "kwsiem.db.corrupt-" in values["corrupt_outbox"]
    assert courier.stop() == 0


def test_figures_entries_and_acknowledgements_go_to_the_series(start, folder, make_alert):
    courier = start()
    now_s = time.time_ns() // 10**9
    for _ in range(2):
        courier.engine.send(SeriesTold(at_s=now_s, figures={"packets": {"tcp": 5}}))
    courier.sensor.send(SeriesTold(at_s=now_s, figures={"blocks": {"on": 3}}))
    courier.engine.send(SeriesTold(at_s=0, journal=[JournalEntry(7, "sensor.probe", {"probe.name": "net"})]))
    courier.sensor.send(Acknowledge(incident_id="i1", who="anna", at_ns=9))
    courier.raise_alerts([make_alert()])
    courier.wait(lambda: courier.acknowledged == {0})
    assert courier.stats()["series"]["lost"] == {}
    assert courier.stop() == 0
    series = Series(folder / "series.db")
    assert series.totals("packets", now_s, now_s + 1) == [("tcp", 10)]
    assert series.totals("blocks", now_s, now_s + 1) == [("on", 3)]
    assert series.journal(0, 8) == [Journal(7, "sensor.probe", {"probe.name": "net"})]
    assert series.acknowledged(["i1"]) == {"i1": Acknowledged(9, "anna")}
    assert set(dict(series.totals("output_up_s", now_s, now_s + 60))) <= {"file"}


@pytest.mark.parametrize("damage", ["garbage", "folder"])
def test_series_that_cannot_be_written_hold_up_no_alert(start, folder, make_alert, damage):
    path = folder / "series.db"
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"garbage" * 1000)
        if os.geteuid() == 0:
            entry = rights.account("kwsiem")
            os.chown(path, entry.pw_uid, entry.pw_gid)
    courier = start()
    courier.engine.send(SeriesTold(at_s=1, figures={"packets": {"tcp": 5, "udp": 1}}))
    courier.raise_alerts([make_alert()])
    courier.wait_stats(lambda v: v["outputs"][0]["delivered"] == 1)
    if damage == "folder":
        series = courier.wait_stats(lambda v: v["series"]["lost"])["series"]
        assert series["lost"]["disk"] == 2
        assert series["error"]
    else:
        series = courier.stats()["series"]
        assert (series["damaged"], series["lost"], series["error"]) == (1, {}, "")
    assert courier.stop() == 0


def test_hostile_figures_are_bounded_and_their_time_is_now(start, folder, make_alert):
    courier = start()
    now_s = time.time_ns() // 10**9
    figures = {
        "sources": {f"\x1b{n}" * 20: 2**62 for n in range(1000)},
        "x" * 500: {"y": 1},
        "ports": {"a": -5},
    }
    for at_s in (-(2**63), 2**63 - 1):
        courier.engine.send(SeriesTold(at_s=at_s, figures=figures))
    odd = {"a": None, "b": [1], "c": {"d": b"\xff"}, "e" * 5000: 2**63}
    courier.engine.send(SeriesTold(at_s=0, journal=[JournalEntry(-(2**63), "k" * 5000, odd)] * 5))
    courier.raise_alerts([make_alert()])
    courier.wait(lambda: courier.acknowledged == {0})
    assert courier.stop() == 0
    series = Series(folder / "series.db")
    assert series.totals("ports", 0, now_s + 600) == []
    sources = series.totals("sources", now_s - 60, now_s + 600)
    assert len(sources) <= 201
    assert all("\x1b" not in label and len(label) <= 128 for label, _ in sources)
    assert len(series.journal(0, 1)) == 5


def lost_events(courier):
    events = [m for m in courier.messages if isinstance(m, OwnEvent) and m.kind == "output.lost"]
    return [(e.fields["output.name"], e.fields["event.reason"], e.fields["event.count"]) for e in events]


def test_alerts_lost_by_damage_are_counted_and_told(start, folder, make_alert):
    siem = SyslogSettings(name="siem", path=str(folder / "no-such-socket"))
    courier = start(siem)
    courier.raise_alerts([make_alert(number=n) for n in range(20)])
    courier.wait(lambda: len(courier.acknowledged) == 20)
    courier.stats()
    courier.stats()  # the cursors beside the file are of this second now
    courier.process.kill()
    courier.process.wait()
    courier.close()
    for name in ("kwsiem.db", "kwsiem.db-wal"):
        (folder / name).write_bytes(bytes((folder / name).stat().st_size))
    courier = start(siem)
    courier.wait(lambda: lost_events(courier))
    assert lost_events(courier) == [("siem", "corrupt", 20)]
    values = courier.stats()
    assert values["outputs"][0]["reasons"] == {"corrupt": 20}
    assert values["outputs"][0]["raised"] == values["outputs"][0]["dropped"] == 20
    assert values["balanced"]
    assert values["outbox"]["salvaged"] == 1
    assert courier.stop() == 0
    assert read_ledger(folder / "kwsiem.db")["siem"].dropped == 20


def test_alerts_too_old_for_an_output_are_dropped_and_told(start, folder, make_alert):
    siem = SyslogSettings(name="siem", path=str(folder / "no-such-socket"), max_age_s=1.0)
    courier = start(siem, FileSettings(name="file", path=str(folder / "alerts.jsonl")))
    courier.raise_alerts([make_alert(number=n) for n in range(20)])
    courier.wait(lambda: sum(count for _, _, count in lost_events(courier)) == 20)
    assert {(name, reason) for name, reason, _ in lost_events(courier)} == {("siem", "age")}
    assert courier.wait_stats(lambda v: v["outputs"][0]["dropped"] == 20)["balanced"]
    assert courier.stop() == 0
    assert len(delivered(folder)) == 20


def test_all_rights_are_given_up_and_files_are_closed_to_others(start, folder, make_alert):
    courier = start()
    courier.raise_alerts([make_alert()])
    courier.wait_stats(lambda v: v["outputs"][0]["delivered"] == 1)
    status = Path(f"/proc/{courier.process.pid}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines())
    assert found["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == "0" * 16
        assert "0" not in found["Uid"].split()
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o007 == 0, path


def test_nothing_is_lost_when_the_courier_is_killed_in_a_storm(start, folder, make_alert):
    """As the engine does it: what is not acknowledged goes again to the next courier."""
    alerts = [make_alert(number=n) for n in range(1500)]
    waiting = dict(enumerate(alerts))
    for kill_after in (1, 400, 900):
        courier = start()
        for number, alert in list(waiting.items()):
            courier.raise_alerts([alert], first=number)
            if number % 50 == 0:
                courier.pump(0)
        enough = min(kill_after, len(waiting))
        while len(courier.acknowledged) < enough:
            courier.pump(0.2)
        courier.process.kill()
        courier.process.wait()
        courier.pump(0)
        courier.close()
        waiting = {n: a for n, a in waiting.items() if n not in courier.acknowledged}
    last = start()
    for number, alert in waiting.items():
        last.raise_alerts([alert], first=number)
    last.wait(lambda: set(waiting) <= last.acknowledged)
    assert last.wait_stats(lambda v: v["outputs"][0]["waiting"] == 0)["balanced"]
    assert last.stop() == 0
    assert set(delivered(folder)) == {alert.id for alert in alerts}


@pytest.fixture
def secrets(monkeypatch):
    """As the service has them, in its environment."""
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", telegram_api.TOKEN)
    monkeypatch.setenv("TELEGRAM_CHAT_ID", "1000")


def test_an_incident_edits_its_message_in_telegram_also_after_kill_9(start, folder, make_alert, secrets):
    """Without rights, with what was noted in the outbox, and nothing but what was imported before."""
    with telegram_api.TelegramApi() as server:
        settings = TelegramSettings(name="telegram", url=server.url)
        for number, state in enumerate(("open", "close")):
            courier = start(settings)
            courier.raise_alerts([make_alert(state=state, count=5 + number)], first=number)
            courier.wait_stats(lambda v, n=number: v["outputs"][0]["delivered"] == n + 1)
            courier.process.kill()
            courier.process.wait()
            courier.close()
        [message] = server.shown
        assert len(message.history) == 2 and "closed" in message.text
    assert telegram_api.TOKEN not in (folder.parent / "log").read_text()


def test_a_courier_without_rights_sends_mail_and_posts_to_slack(start, folder, make_alert, monkeypatch):
    with smtp.SmtpServer() as mail, slack_hook.SlackHook() as hook:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", hook.hook)
        courier = start(
            EmailSettings(
                name="mail", host="localhost", port=mail.port, security="none",
                sender="kwsiem@gw01.example.net", to=("admin@example.net",),
            ),
            SlackSettings(name="slack"),
        )  # fmt: skip
        courier.raise_alerts([make_alert(title="Türzahl \N{FOX FACE}")])
        courier.wait_stats(lambda v: [o["delivered"] for o in v["outputs"]] == [1, 1])
        assert courier.stop() == 0
        assert "Türzahl" in mail.mails[0][0]["Subject"]
        assert "Türzahl" in hook.bodies[0]["text"]
    assert hook.hook not in (folder.parent / "log").read_text()


def test_a_summary_comes_once_to_all_three_also_over_kill_9(start, folder, make_alert, secrets, monkeypatch):
    """Without rights and over real sockets: for the days in which the appliance was down, and not again."""
    daily = SummarySettings(every="day", at="00:00")
    ago_ns = time.time_ns() - 3 * 86_400 * 10**9
    ours = {"until_ns": ago_ns, "ledgers": {}}
    kept = folder / "chat.json"
    with (
        telegram_api.TelegramApi() as server,
        slack_hook.SlackHook() as hook,
        smtp.SmtpServer() as mail,
    ):
        monkeypatch.setenv("SLACK_WEBHOOK_URL", hook.hook)
        outputs = (
            TelegramSettings(name="telegram", url=server.url, summary=daily),
            SlackSettings(name="slack", summary=daily),
            EmailSettings(
                name="mail", host="localhost", port=mail.port, security="none", summary=daily,
                sender="kwsiem@gw01.example.net", to=("admin@example.net",),
            ),
        )  # fmt: skip
        courier = start(*outputs)
        courier.raise_alerts([make_alert(raised_ns=ago_ns + 3600 * 10**9, title="Türzahl")])
        courier.wait_stats(lambda v: [o["delivered"] for o in v["outputs"]] == [1, 1, 1])
        assert courier.stop() == 0
        kept.write_text(json.dumps({"summaries": {output.name: ours for output in outputs}}))
        for taken in (1, 0):
            courier = start(*outputs)
            values = courier.wait_stats(
                lambda v, n=taken: all(
                    o["state"] == "ready" and o["summaries"]["taken"] == n for o in v["outputs"]
                )
            )
            assert values["balanced"] and [o["delivered"] for o in values["outputs"]] == [1, 1, 1]
            courier.process.kill()
            courier.process.wait()
            courier.close()
        assert [len(server.shown), len(hook.bodies), len(mail.mails)] == [2, 2, 2]
        message, body, (letter, _) = server.shown[1], hook.bodies[1], mail.mails[1]
    assert "DAILY SUMMARY: 1 alert" in message.text and "Türzahl" in message.text
    assert "telegram: 1 delivered, 0 waiting, 0 dead, 0 dropped" in message.text
    assert "DAILY SUMMARY: 1 alert on gw01" in body["text"]
    assert "Türzahl" in letter.get_body(("html",)).get_content()
    assert "failed unexpectedly" not in (folder.parent / "log").read_text()


def test_dead_letters_are_tried_again_when_the_operator_says_so(folder, start, make_alert):
    """A real HTTP receiver refuses one alert; mended, it gets it, and the ledger tells it all."""
    from peers.web import Reply
    from peers.webhook import Webhook

    from kwsiem.messages import RetryDead
    from kwsiem.output_settings import WebhookSettings

    alerts = [make_alert(opened_ts_ns=number) for number in range(3)]
    with Webhook(key=None) as receiver:
        receiver.fates = {alerts[1].id: [Reply(400, b"no")]}
        courier = start(WebhookSettings(name="hook", url=receiver.url, signing_secret="", allow_http=True))
        courier.raise_alerts(alerts)
        courier.wait_stats(lambda v: (v["outputs"][0]["delivered"], v["outputs"][0]["dead"]) == (2, 1))
        courier.sensor.send(RetryDead(output="no such output"))
        courier.sensor.send(RetryDead(output="hook"))
        found = courier.wait_stats(lambda v: v["outputs"][0]["delivered"] == 3)["outputs"][0]
        assert (found["dead"], found["waiting"], found["balanced"]) == (0, 0, True)
        assert sorted(receiver.stored) == sorted(alert.id for alert in alerts)
        assert courier.stop() == 0


def test_a_chat_that_got_no_answer_in_time_is_not_acted_on_later(monkeypatch):
    monkeypatch.setattr(courier_module, "ASK_S", 0.01)
    asked = courier_module._Asked()
    ours, theirs = (Link(end, FromCourier) for end in link_pair())
    request = ChatRequest(number=0, output="c", user_id=7, user_name="a", action="block")
    assert asked.ask(request) is None
    asked.send(ours)
    assert theirs.take_message() is None
    asked.answered(ChatAnswer(number=request.number))  # too late: nobody waits for it
    ours.close()
    theirs.close()


def test_two_chats_get_their_own_answers():
    asked = courier_module._Asked()
    ours, theirs = (Link(end, FromCourier) for end in link_pair())
    found = {}

    def chat(user):
        request = ChatRequest(number=0, output="c", user_id=user, user_name="a", action="help")
        found[user] = asked.ask(request)

    threads = [threading.Thread(target=chat, args=(user,)) for user in (1, 2)]
    for thread in threads:
        thread.start()
    requests = []
    end_s = time.monotonic() + DEADLINE_S
    while len(requests) < 2 and time.monotonic() < end_s:
        asked.send(ours)
        requests += [message] if (message := theirs.take_message()) else []
    for request in reversed(requests):
        asked.answered(ChatAnswer(number=request.number, error=str(request.user_id)))
    for thread in threads:
        thread.join()
    assert {user: answer.error for user, answer in found.items()} == {1: "1", 2: "2"}
    ours.close()
    theirs.close()


def test_a_chat_that_ends_while_its_request_is_sent_takes_away_no_other(monkeypatch):
    asked = courier_module._Asked()
    found = {}

    def chat(user):
        found[user] = asked.ask(ChatRequest(number=0, output="c", user_id=user, user_name="a", action="help"))

    threads = {user: threading.Thread(target=chat, args=(user,)) for user in (1, 2)}
    end_s = time.monotonic() + DEADLINE_S
    for number, thread in threads.items():
        thread.start()
        while len(asked._outgoing) < number and time.monotonic() < end_s:
            time.sleep(0.001)

    class Full:
        send = staticmethod(lambda request: False)

    sent = []

    class Sensor:
        def send(self, request):
            """The asker has its answer, and is gone, before the loop is back."""
            sent.append(request.user_id)
            asked.answered(ChatAnswer(number=request.number, error=str(request.user_id)))
            threads[request.user_id].join()
            return True

    asked.send(Full)
    asked.send(Sensor())
    assert sent == [1, 2]
    assert {user: answer.error for user, answer in found.items()} == {1: "1", 2: "2"}
    assert not asked._outgoing


def test_what_is_too_large_for_the_link_is_left_out_and_the_next_goes():
    asked = courier_module._Asked()
    ours, theirs = (Link(end, FromCourier) for end in link_pair())
    for number, rule in enumerate(("r" * 200_000, "r")):
        request = ChatRequest(
            number=number, output="c", user_id=7, user_name="a", action="mute", rule_id=rule
        )
        asked._waiting[number] = queue.SimpleQueue()
        asked._outgoing.append(request)
    asked.send(ours)
    assert theirs.take_message() == request
    assert theirs.take_message() is None
    ours.close()
    theirs.close()


def test_a_state_of_chats_that_somebody_filled_up_does_not_end_the_courier(start, folder):
    until_ns = time.time_ns() + 3600 * 10**9
    kept = folder / "chat.json"
    kept.write_text(json.dumps({"mutes": {f"{n}" + "r" * 5000: until_ns for n in range(110)}}))
    kept.chmod(0o644)
    mail = EmailSettings(
        name="mail", host="localhost", port=1, security="none", summary=SummarySettings(every="day"),
        sender="kwsiem@gw01.example.net", to=("admin@example.net",),
    )  # fmt: skip
    courier = start(mail)
    mutes = courier.stats()["mutes"]
    assert len(mutes) == courier_module.MUTES_SHOWN
    assert max(map(len, mutes)) < 200
    assert courier.stop() == 0


def test_of_two_who_acknowledge_the_first_is_told_to_both(tmp_path):
    """In a chat and by the control socket, whose word goes on to the chats."""
    courier = object.__new__(courier_module.CourierProcess)
    courier.series = SeriesWriter(SeriesFile(tmp_path / "series.db", max_age_s=0, max_bytes=1 << 28))
    told = []

    class Chat:
        class chat:
            name = "chat"
            acknowledged = staticmethod(lambda *words: told.append(words))

    courier._chats = [Chat]
    name = "an\x1bna (chat user 7)"
    assert courier._acknowledge_chat("i1", name) == name
    assert courier._acknowledge_chat("i1", name) == name
    assert courier._acknowledge_chat("i1", "bert") == "an\ufffdna (chat user 7)"
    courier._acknowledged(Acknowledge(incident_id="i2", who="root", at_ns=5))
    courier.series.close(20)
    assert told == [("i2", "root")]
    assert Series(tmp_path / "series.db").acknowledged(["i2"])["i2"].who == "root"
    assert courier._acknowledge_chat("i2", "bert") == "root"
    courier.series.file.close()
    shutil.rmtree(tmp_path)
    assert courier._acknowledge_chat("i3", "bert") == "bert", "what cannot be written is said all the same"
