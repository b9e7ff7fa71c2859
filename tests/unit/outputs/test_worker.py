import random
import sqlite3
import threading

import pytest

from kwsiem.errors import OutputError
from kwsiem.outbox import Item, Outbox
from kwsiem.outputs.base import UNCONFIRMED, BaseOutput
from kwsiem.outputs.pace import Pace
from kwsiem.outputs.worker import BACKOFF_FIRST_S, BACKOFF_MOST_S, CHECK_S, Route, Worker, WorkerThread

BATCH_ALERTS = BaseOutput.batch_alerts


class FakeOutput(BaseOutput):
    """Takes what it is told to take; ``script`` holds the errors of the next calls of send."""

    label = UNCONFIRMED

    def __init__(self):
        self.taken = []
        self.script = []
        self.opened = self.checked = self.closed = 0
        self.down = ""

    def open(self):
        if self.down:
            raise OutputError(self.down)
        self.opened += 1

    def check(self):
        self.checked += 1
        if self.down:
            raise OutputError(self.down)

    def send(self, batch):
        if self.down:
            raise OutputError(self.down)
        error = self.script.pop(0) if self.script else None
        taken = [alert for index, alert in enumerate(batch) if error is None or index in error.taken]
        self.taken += [alert.data for alert in taken]
        if error:
            raise error

    def close(self):
        self.closed += 1


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "kwsiem.db", ["out"])
    yield box
    box.close()


@pytest.fixture
def output():
    return FakeOutput()


@pytest.fixture
def states():
    return []


@pytest.fixture
def worker(outbox, output, states):
    return Worker(
        "out", output, outbox, Route(bytes.upper, min_severity=5),
        on_state=lambda *change: states.append(change), random_source=random.Random(1),
    )  # fmt: skip


def put(outbox, *names, severity=8):
    outbox.put([Item(name, severity, name.encode()) for name in names])


def account(outbox):
    found = outbox.ledger()["out"]
    assert found.balanced
    return found


def test_alerts_are_rendered_sent_in_order_and_counted(worker, outbox, output):
    put(outbox, "a", "b", "c")
    assert worker.step(0.0) == 0.0
    assert output.taken == [b"A", b"B", b"C"]
    assert account(outbox).delivered == 3
    assert worker.step(0.0) == CHECK_S, "nothing waits any more"


def test_what_is_below_the_level_is_counted_as_filtered(worker, outbox, output):
    put(outbox, "a")
    put(outbox, "low", severity=3)
    put(outbox, "b", severity=5)
    worker.step(0.0)
    assert output.taken == [b"A", b"B"]
    assert (account(outbox).delivered, account(outbox).filtered) == (2, 1)


def test_a_failed_batch_waits_and_is_tried_again_with_growing_back_off(worker, outbox, output):
    put(outbox, "a", "b")
    output.down = "connection refused"
    now_s, waits = 0.0, []
    for _ in range(40):
        waits.append(worker.step(now_s))
        assert worker.step(now_s) == pytest.approx(waits[-1]), "not before its time"
        now_s += waits[-1]
    assert all(BACKOFF_FIRST_S <= wait <= BACKOFF_MOST_S for wait in waits)
    assert max(waits[:3]) <= 0.4
    assert max(waits[15:]) > 30
    assert account(outbox).waiting == 2
    output.down = ""
    assert worker.step(now_s) == 0.0
    assert output.taken == [b"A", b"B"]
    put(outbox, "c")
    output.down = "again"
    assert worker.step(now_s) <= 0.2, "the back-off begins anew after a success"


def test_the_part_that_was_taken_is_not_sent_again(worker, outbox, output):
    put(outbox, "a", "b", "c")
    output.script = [OutputError("gone", sent=2)]
    wait_s = worker.step(0.0)
    assert account(outbox).delivered == 2
    worker.step(wait_s)
    assert output.taken == [b"A", b"B", b"C"]


def test_what_is_refused_for_good_becomes_a_dead_letter_and_the_rest_goes_on(worker, outbox, output):
    put(outbox, "a", "b", "c", "d")
    output.script = [
        OutputError("too\nlong", retryable=False, sent=1),
        OutputError("odd", retryable=False, sent=1),
    ]
    assert worker.step(0.0) == 0.0
    assert output.taken == [b"A", b"C"]
    assert (account(outbox).delivered, account(outbox).dead) == (2, 2)
    assert [(letter.id, letter.reason) for letter in outbox.dead_letters("out")] == [
        ("b", "too long"),
        ("d", "odd"),
    ]
    assert worker.state == "ready"


def test_a_refusal_and_then_an_outage_in_one_batch_are_both_accounted_for(worker, outbox, output):
    put(outbox, "a", "b", "c", "d")
    put(outbox, "low", severity=0)
    output.script = [OutputError("odd", retryable=False, sent=1), OutputError("gone", sent=1)]
    wait_s = worker.step(0.0)
    assert (account(outbox).delivered, account(outbox).dead, account(outbox).waiting) == (2, 1, 2)
    worker.step(wait_s)
    assert output.taken == [b"A", b"C", b"D"]
    assert (account(outbox).delivered, account(outbox).dead, account(outbox).filtered) == (3, 1, 1)


def test_an_alert_that_cannot_be_rendered_does_not_hold_up_the_others(outbox, output, caplog):
    def render(document):
        if document == b"b":
            raise KeyError("event")
        if document == b"c":
            raise OutputError("larger than 10 bytes", retryable=False)
        return document

    put(outbox, "a", "b", "c", "d")
    Worker("out", output, outbox, Route(render)).step(0.0)
    assert output.taken == [b"a", b"d"]
    assert {letter.id: letter.reason for letter in outbox.dead_letters("out")} == {
        "b": "cannot be rendered: KeyError: 'event'",
        "c": "larger than 10 bytes",
    }
    assert account(outbox).balanced
    assert "alert b cannot be rendered" in caplog.text


def test_changes_of_state_are_told_once_with_the_reason(worker, outbox, output, states):
    worker.step(0.0)
    worker.step(1.0)
    output.down = "refused"
    wait_s = worker.step(2.0)
    worker.step(2.0 + wait_s)
    output.down = ""
    worker.step(100.0)
    assert states == [("ready", "starting", ""), ("failing", "ready", "refused"), ("ready", "failing", "")]
    assert worker.stats()["last_error"] == "refused"
    assert worker.stats()["label"] == "sent, unconfirmed"


def test_an_idle_output_is_checked_and_opened_again_after_a_failure(worker, output):
    worker.step(0.0)
    assert (output.opened, output.checked) == (1, 1)
    output.down = "closed by peer"
    worker.step(1.0)
    output.down = ""
    worker.step(10.0)
    assert output.opened == 2


def test_an_unexpected_fault_of_an_output_is_a_failure_not_an_end(worker, outbox, output, caplog):
    put(outbox, "a")
    output.send = lambda batch: 1 / 0
    assert worker.step(0.0) > 0
    assert worker.state == "failing"
    assert "ZeroDivisionError" in worker.last_error
    assert "failed unexpectedly" in caplog.text
    assert account(outbox).waiting == 1


def test_an_outbox_that_cannot_be_read_is_a_failure_not_an_end(worker, outbox, monkeypatch, caplog):
    def broken(*_):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(outbox, "waiting", broken)
    assert worker.step(0.0) > 0
    assert worker.last_error == "outbox: disk I/O error"


def test_large_backlogs_go_in_bounded_batches(worker, outbox, output):
    put(outbox, *[f"a{n}" for n in range(BATCH_ALERTS * 2 + 1)])
    rounds = 0
    while worker.step(0.0) == 0.0:
        rounds += 1
    assert rounds == 3
    assert len(output.taken) == BATCH_ALERTS * 2 + 1


def test_some_of_a_batch_taken_some_refused_some_to_be_tried_again(worker, outbox, output):
    """As _bulk answers: each alert has a fate of its own, and none is sent twice or lost."""
    put(outbox, "a", "b", "c", "d", "e")
    output.script = [OutputError("busy", taken=[0, 3], refused={2: "malformed"}, retry_after_s=7.5)]
    assert worker.step(0.0) == 7.5, "the pause that the destination asked for"
    found = account(outbox)
    assert (found.delivered, found.dead, found.waiting) == (2, 1, 2)
    worker.step(7.5)
    assert output.taken == [b"A", b"D", b"B", b"E"]
    assert (account(outbox).delivered, account(outbox).waiting) == (4, 0)


def test_a_new_high_alert_does_not_wait_behind_a_long_queue(worker, outbox, output):
    put(outbox, *[f"m{n}" for n in range(BATCH_ALERTS * 3)], severity=5)
    put(outbox, "high")
    worker.step(0.0)
    assert output.taken[:2] == [b"HIGH", b"M0"]
    while worker.step(0.0) == 0.0:
        pass
    assert len(output.taken) == len(set(output.taken)) == BATCH_ALERTS * 3 + 1
    assert account(outbox).waiting == 0


def test_what_was_sent_over_an_unconfirmed_connection_is_sent_again_after_a_reconnect(worker, outbox, output):
    output.replays = True
    put(outbox, "a", "b")
    put(outbox, "low", severity=0)
    worker.step(0.0)
    put(outbox, "c")
    output.down = "gone"
    wait_s = worker.step(0.1)
    output.down = ""
    while (wait := worker.step(wait_s + 0.1)) == 0.0:
        pass
    assert wait == CHECK_S
    assert output.taken == [b"A", b"B", b"A", b"B", b"C"]
    assert worker.replayed == 2
    assert (account(outbox).delivered, account(outbox).filtered) == (3, 1)


def test_above_its_rate_an_output_gets_a_digest_and_nothing_is_lost(outbox, output):
    route = Route(bytes.upper, pace=Pace([(3, 60.0)]), digest=b"+".join, digest_over=2)
    worker = Worker("out", output, outbox, route)
    put(outbox, "a", "b", "c", "d", severity=5)
    put(outbox, "high", severity=8)
    assert worker.step(0.0) == 0.0
    assert output.taken == [b"HIGH", b"A", b"B+C+D"], "the most severe ones by themselves, and first"
    assert account(outbox).delivered == 5
    assert worker.digested == 3
    put(outbox, "e")
    assert worker.step(1.0) > 0
    assert account(outbox).waiting == 1
    assert worker.step(20.0) == 0.0
    assert output.taken[-1] == b"E"


def test_few_alerts_wait_their_turn_instead_of_a_digest(outbox, output):
    route = Route(bytes.upper, pace=Pace([(1, 1.0)]), digest=b"+".join, digest_over=3)
    worker = Worker("out", output, outbox, route)
    put(outbox, "a", "b", "c")
    now_s = 0.0
    while account(outbox).waiting:
        now_s += worker.step(now_s)
    assert output.taken == [b"A", b"B", b"C"]
    assert now_s == pytest.approx(2.0)


def test_with_one_message_at_a_time_a_critical_alert_goes_before_the_digest_of_a_storm(outbox, output):
    route = Route(bytes.upper, pace=Pace([(1, 1.0)]), digest=b"+".join, digest_over=2)
    worker = Worker("out", output, outbox, route)
    put(outbox, "a", "b", "c", severity=3)
    put(outbox, "crit", severity=10)
    worker.step(0.0)
    assert output.taken == [b"CRIT"]
    worker.step(1.0)
    assert output.taken == [b"CRIT", b"A+B+C"]
    assert (account(outbox).delivered, worker.digested) == (4, 3)


def test_a_run_of_high_alerts_does_not_hold_back_the_others(outbox, output):
    """One message at a time: the most severe alert and a digest of all others take turns."""
    route = Route(bytes.upper, pace=Pace([(1, 1.0)]), digest=b"+".join, digest_over=2)
    worker = Worker("out", output, outbox, route)
    put(outbox, "a", "b", "c", severity=3)
    for second in range(4):
        put(outbox, f"h{second}", f"i{second}", f"j{second}")
        worker.step(float(second))
    assert output.taken == [b"H0", b"I0+J0+H1+I1+J1+A+B+C", b"H2", b"I2+J2+H3+I3+J3"]
    assert account(outbox).waiting == 0


def test_a_digest_leads_with_the_most_severe(outbox, output):
    route = Route(bytes.upper, pace=Pace([(1, 1.0)]), digest=b"+".join, digest_over=2)
    worker = Worker("out", output, outbox, route)
    for number, severity in enumerate([3, 5, 3, 0, 5]):
        put(outbox, f"a{number}", severity=severity)
    worker.step(0.0)
    assert output.taken == [b"A1+A4+A0+A2+A3"], "nothing urgent: all at once, the oldest of a level first"


def test_alerts_go_one_by_one_when_no_digest_can_be_made(outbox, output, caplog):
    def broken(sources):
        raise ValueError("a digest of no alerts")

    route = Route(bytes.upper, pace=Pace([(1, 1.0)]), digest=broken, digest_over=2)
    worker = Worker("out", output, outbox, route)
    put(outbox, "a", "b", "c", severity=5)
    now_s = 0.0
    while account(outbox).waiting:
        now_s += worker.step(now_s)
    assert output.taken == [b"A", b"B", b"C"]
    assert "no digest of 3 alerts" in caplog.text


def test_a_storm_of_low_alerts_delays_a_critical_one_by_one_message_at_most(outbox, output):
    """Minutes of 2,000 low alerts a minute at 20 messages a minute, and now and then a critical one."""
    route = Route(bytes.upper, pace=Pace([(1, 1.0), (20, 60.0)]), digest=b"+".join, digest_over=5)
    worker = Worker("out", output, outbox, route)
    raised_s = {}
    now_s = next_s = 0.0
    for tick in range(4 * 180):
        now_s = tick / 4
        put(outbox, *[f"low{tick}-{n}" for n in range(8)], severity=3)
        if tick % 97 == 50:
            put(outbox, f"crit{tick}", severity=10)
            raised_s[f"CRIT{tick}".encode()] = now_s
        if now_s >= next_s:
            before = len(output.taken)
            next_s = now_s + worker.step(now_s)
            for taken in output.taken[before:]:
                if taken in raised_s:
                    assert now_s - raised_s.pop(taken) <= 2 * 3.0 + 0.5, (
                        "two places in the queue of 20 a minute"
                    )
    assert not raised_s, "each critical alert was said by itself"
    assert len(output.taken) <= 20 + 180 / 3 + 1
    assert account(outbox).balanced


def test_a_thread_carries_what_waits_and_ends_when_nothing_does(worker, outbox, output):
    from kwsiem.clock import monotonic_s

    thread = WorkerThread(worker)
    put(outbox, "a", "b")
    thread.stop(monotonic_s() + 20)
    assert thread.join(20)
    assert output.taken == [b"A", b"B"]
    assert output.closed


def test_a_thread_with_a_dead_output_ends_at_its_deadline(worker, outbox, output):
    from kwsiem.clock import monotonic_s

    failed = threading.Event()
    worker._on_state = lambda state, *_: failed.set() if state == "failing" else None
    output.down = "refused"
    put(outbox, "a")
    thread = WorkerThread(worker)
    assert failed.wait(20)
    before_s = monotonic_s()
    thread.stop(before_s + 0.05)
    assert thread.join(20)
    assert monotonic_s() - before_s < 10
    assert account(outbox).waiting == 1
