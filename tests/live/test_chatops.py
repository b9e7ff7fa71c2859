"""ChatOps of a running appliance: from a scan to a button, the guard and the audit log, over kill -9."""

import contextlib
import json
import os
import signal
import socket

import pytest
from appliance import RunningAppliance, whole_lines
from lab import Lab, wait_until
from peers.telegram_api import TOKEN, TelegramApi

from kwsiem.clock import wall_ns

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
CHAT, ALICE, MALLORY = 1000, 77, 666
RULES = """version: 1
rules:
  - id: scan
    title: Scan
    level: high
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 3s
      condition: {gte: 5}
  - id: denied
    title: Denied
    level: low
    event: chat.denied
    detection: {some: {event.count|gt: 0}, condition: some}
    correlation: {type: event_count, group-by: [user.id], timespan: 3s, condition: {gte: 1}}
"""


@pytest.fixture
def lab():
    with Lab("host", "peer") as made:
        yield made


@pytest.fixture
def server(lab):
    with lab.inside("host"):
        made = TelegramApi((CHAT,), burst=30)
    with made:
        yield made


def audits(appliance: RunningAppliance) -> list[dict]:
    lines = [json.loads(line) for line in whole_lines(appliance.log) if line.startswith("{")]
    return [line for line in lines if line.get("log.logger") == "kwsiem.audit" and line["message"] == "chat"]


def test_a_button_reaches_the_guard_once_and_a_stranger_reaches_nobody(lab, server, tmp_path):
    (tmp_path / "env").write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\n")
    (tmp_path / "env").chmod(0o600)
    outputs = (
        f"  - {{name: tg, type: telegram, url: '{server.url}', chat_id: '{CHAT}', level: high,"
        f" summary: {{every: day, at: '00:00'}}, chatops: {{users: [{ALICE}]}}}}\n"
    )
    # The last summary was days ago: one comes at the start, for all of them, and none after the kill.
    (tmp_path / "state").mkdir(exist_ok=True)
    ago_ns = wall_ns() - 3 * 86_400 * 10**9
    (tmp_path / "state" / "chat.json").write_text(json.dumps({"summaries": {"tg": {"until_ns": ago_ns}}}))
    settings = f"env_file: {tmp_path}/env\n"

    def says(words: str) -> bool:
        return any(words in message.text for message in server.shown)

    with RunningAppliance(
        lab, tmp_path, rules=RULES, outputs=outputs, settings=settings, record=False
    ) as appliance:
        for port in range(20, 30):
            with lab.inside("peer"), contextlib.suppress(OSError):
                socket.create_connection((lab.ip4("host"), port), timeout=5).close()
        appliance.wait_alert("scan")
        wait_until(lambda: any(m.buttons for m in server.shown), 10, "the message of the incident")
        buttons = dict(next(m.buttons for m in server.shown if m.buttons))
        source = lab.ip4("peer")
        pressed = server.press({"id": ALICE, "is_bot": False, "first_name": "<b>&]("}, buttons["Block 1 h"])
        wait_until(lambda: says(f"{source} would be (dry run) blocked for 1 h, by <b>&]("), 10, "the answer")
        server.press(ALICE, buttons["Mute the rule 1 h"])
        wait_until(lambda: says("scan is muted in chats"), 10, "the mute")
        os.kill(appliance.pid("courier"), signal.SIGKILL)
        server.updates.append(pressed)  # Telegram says it again
        server.press(MALLORY, buttons["Block 1 day"])
        server.write(ALICE, "/status")
        wait_until(lambda: says("muted scan until"), 20, "the status, with the mute of before")
        wait_until(lambda: appliance.alerts("denied"), 10, "the alert of the stranger")
        assert [(line["action"], line["user_id"]) for line in audits(appliance)] == [
            ("block", ALICE), ("mute", ALICE), ("status", ALICE)
        ]  # fmt: skip
        assert list(appliance.status()["courier"]["mutes"]) == ["scan"]
        assert sum("DAILY SUMMARY" in message.text for message in server.shown) == 1
        assert TOKEN not in appliance.log.read_text()
    assert appliance.process.returncode == 0
