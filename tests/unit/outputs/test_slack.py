"""The Slack output against an incoming webhook that checks what Slack checks."""

import re

import msgspec
import pytest
from peers.slack_hook import SlackHook

from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.errors import ConfigError
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import SlackSettings
from kwsiem.outputs.worker import Worker

SECRET = "test-secret-of-a-hook"


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hook(clock):
    with SlackHook(clock, burst=1) as server:
        yield server


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "kwsiem.db", ["chat"])
    yield box
    box.close()


@pytest.fixture
def worker(hook, outbox):
    settings = SlackSettings(name="chat", timeout_s=5.0)
    output = make_output(settings, {"url": hook.hook})
    made = Worker("chat", output, outbox, make_route(settings, output.limits))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_secret_anywhere(caplog, capfd):
    caplog.set_level("DEBUG")
    yield
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def put(outbox, *alerts):
    found = [document(alert) for alert in alerts]
    outbox.put(
        [Item(one["event"]["id"], one["event"]["severity"], msgspec.json.encode(one)) for one in found]
    )
    return [one["event"]["id"] for one in found]


def run(worker, outbox, clock, most_s=600.0):
    end_s = clock.now_s + most_s
    while outbox.ledger()["chat"].waiting:
        assert clock.now_s < end_s, worker.stats()
        clock.now_s += worker.step(clock.now_s)
    assert outbox.ledger()["chat"].balanced


def test_each_alert_is_one_message_with_its_id(hook, worker, outbox, clock, make_alert):
    ids = put(outbox, *[make_alert(number=n) for n in range(5)])
    run(worker, outbox, clock)
    assert [
        re.search("id `(.*)`", body["blocks"][-1]["elements"][0]["text"])[1] for body in hook.bodies
    ] == ids
    assert hook.bodies[0]["text"] == (
        "HIGH: TCP port scan on gw01.example.net (open) 198.51.100.7 \N{RIGHTWARDS ARROW} 192.0.2.1"
    )
    assert hook.floods == 0
    assert worker._output.answer == "ok"


def test_a_burst_becomes_a_few_digests_whose_counts_add_up(hook, worker, outbox, clock, make_alert):
    put(outbox, *[make_alert(number=n, level="medium") for n in range(2000)])
    run(worker, outbox, clock)
    heads = [body["blocks"][0]["text"]["text"] for body in hook.bodies]
    assert heads == ["\N{LARGE YELLOW CIRCLE} MEDIUM: 1,000 alerts"] * 2
    assert (outbox.ledger()["chat"].delivered, worker.digested, hook.floods) == (2000, 2000, 0)


def test_429_is_waited_for_as_long_as_it_says(hook, worker, outbox, clock, make_alert):
    put(outbox, make_alert())
    hook.faults.append((429, b"rate_limited", {"Retry-After": "30"}))
    assert worker.step(0.0) == 30.0
    assert "429" in worker.last_error
    clock.now_s = 30.0
    run(worker, outbox, clock)
    assert len(hook.bodies) == 1


@pytest.mark.parametrize(
    ("status", "word"),
    [(403, "action_prohibited"), (404, "no_service"), (404, "channel_not_found"), (410, "channel_is_archived"),
     (400, "user_not_found"), (302, ""), (200, "<html>Log in</html>")],
)  # fmt: skip
def test_a_webhook_that_is_gone_is_said_and_nothing_is_lost(
    hook, worker, outbox, clock, make_alert, status, word
):
    hook.trouble = (status, word)
    put(outbox, make_alert())
    assert worker.step(0.0) == 60.0
    assert f"HTTP {status}" in worker.last_error
    hook.trouble = None
    clock.now_s = 60.0
    run(worker, outbox, clock)
    assert len(hook.bodies) == 1


def test_a_message_that_slack_never_takes_is_a_dead_letter(hook, worker, outbox, clock, make_alert):
    ids = put(outbox, *[make_alert(number=n) for n in range(3)])
    hook.faults.append((400, b"invalid_blocks", {}))
    run(worker, outbox, clock)
    assert [letter.id for letter in outbox.dead_letters("chat")] == ids[:1]
    assert len(hook.bodies) == 2


@pytest.mark.parametrize("fault", ["reset", "reset-after", (500, b"rollup_error", {}), (503, b"", {})])
def test_faults_on_the_way_are_tried_again(hook, worker, outbox, clock, make_alert, fault):
    put(outbox, *[make_alert(number=n) for n in range(2)])
    hook.faults.append(fault)
    run(worker, outbox, clock)
    assert len(hook.bodies) == (3 if fault == "reset-after" else 2), "a lost answer may bring one twice"
    assert worker.retries == 1


@pytest.mark.parametrize("url", ["", "hooks.slack.com/services/x", f"ftp://x/{SECRET}"])
def test_a_url_that_is_none_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match="SLACK_WEBHOOK_URL") as caught:
        make_output(SlackSettings(name="chat"), {"url": url})
    assert SECRET not in str(caught.value)
