"""The engine's side of the alerts: kept until they are on disk, whatever becomes of the courier."""

import os
import time

import pytest

from kwsiem.alert import Alert
from kwsiem.correlate.engine import Engine
from kwsiem.engine import MAX_UNACKNOWLEDGED, Blocks, Courier, Figures, Snapshots
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    AlertsDurable,
    BlockRequest,
    BlockWithdrawn,
    CourierToEngine,
    EngineToCourier,
    FromEngine,
    SeriesTold,
    ToEngine,
)
from kwsiem.statefile import StateFiles


def alert(number: int, **changes) -> Alert:
    return Alert(
        **{
            "rule_id": "r", "title": "t", "level": "low", "state": "open", "identity": {"n": number}, "count": 1,
            "first_ns": 1, "last_ns": 1, "raised_ns": 1, "opened_ts_ns": number, **changes,
        }
    )  # fmt: skip


@pytest.fixture
def ends():
    left, right = link_pair()
    ours, theirs = Link(left, CourierToEngine), Link(right, EngineToCourier)
    yield Courier(ours), theirs
    ours.close()
    theirs.close()


def taken(link) -> list:
    messages = []
    while (received := link.receive()) is not None:
        messages.append(received[0])
    return messages


def test_an_alert_is_kept_until_it_is_acknowledged(ends):
    courier, theirs = ends
    courier.raise_alert(alert(1))
    (message,) = taken(theirs)
    assert (courier.raised, courier.waiting) == (1, 1)
    theirs.send(AlertsDurable(numbers=[message.number]))
    courier.receive()
    assert (courier.waiting, courier.acknowledged) == (0, 1)


def test_the_time_until_an_alert_is_on_disk_is_that_of_this_run(ends):
    courier, theirs = ends
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    courier.raise_alert(alert(now_ns))  # of an earlier run
    courier.old_until = courier.number
    courier.raise_alert(alert(now_ns - 60 * 10**9))
    courier.raise_alert(alert(now_ns, state="close"))
    theirs.send(AlertsDurable(numbers=[message.number for message in taken(theirs)]))
    courier.receive()
    figures = courier.durable.figures()
    assert sum(figures["counts"]) == 1
    assert 60 <= figures["sum_s"] < 120


def test_a_new_courier_gets_what_was_not_acknowledged_and_only_that(ends):
    courier, theirs = ends
    for number in range(3):
        courier.raise_alert(alert(number))
    messages = taken(theirs)
    theirs.send(AlertsDurable(numbers=[messages[1].number]))
    courier.receive()
    courier.restart()
    assert [m.alert.identity for m in taken(theirs)] == [{"n": 0}, {"n": 2}]


def test_what_a_full_link_refuses_goes_later_and_in_order(ends):
    courier, theirs = ends
    sent = 0
    while not courier._unsent:
        courier.raise_alert(alert(sent, description="x" * 50_000))
        sent += 1
    courier.raise_alert(alert(sent))
    got = taken(theirs)
    courier.flush()
    got += taken(theirs)
    assert [m.alert.identity["n"] for m in got] == list(range(sent + 1))


def test_acknowledgements_of_an_earlier_run_settle_nothing(ends):
    courier, theirs = ends
    courier.raise_alert(alert(1))
    theirs.send(AlertsDurable(numbers=[1, 2, 3]))
    courier.receive()
    assert courier.waiting == 1


def test_beyond_the_bound_alerts_are_dropped_and_counted(ends, monkeypatch):
    courier, _ = ends
    monkeypatch.setattr("kwsiem.engine.MAX_UNACKNOWLEDGED", 5)
    for number in range(8):
        courier.raise_alert(alert(number))
    assert (courier.raised, courier.waiting, courier.dropped) == (8, 5, 3)
    assert MAX_UNACKNOWLEDGED > 1000


@pytest.mark.parametrize(
    "changes", [{"evidence": [{"x": "y" * 200_000}]}, {"fields": {"user.name": "\ud800"}}]
)
def test_an_alert_that_cannot_be_sent_whole_is_sent_without_what_can_be_spared(ends, changes):
    courier, theirs = ends
    courier.raise_alert(alert(1, **changes))
    (message,) = taken(theirs)
    assert message.alert.rule_id == "r"
    assert message.alert.evidence == []


def test_an_alert_that_cannot_be_sent_at_all_is_counted(ends):
    courier, theirs = ends
    courier.raise_alert(alert(1, title="y" * 200_000))
    assert taken(theirs) == []
    assert (courier.dropped, courier.waiting) == (1, 0)


# -- blocks ------------------------------------------------------------------------------------------


def test_a_block_that_is_asked_for_and_withdrawn_reaches_the_sensor_in_that_order():
    left, right = link_pair()
    ours, theirs = Link(left, ToEngine), Link(right, FromEngine)
    blocks = Blocks(ours)
    wanted = {"value": "192.0.2.1", "for_s": 60, "evidence": "proven", "spoofable": False}
    opened = alert(1, block=wanted)
    blocks.ask(opened)
    blocks.withdraw(opened.id, "r", "192.0.2.1")
    asked, withdrawn = taken(theirs)
    ours.close()
    theirs.close()
    assert isinstance(asked, BlockRequest)
    assert withdrawn == BlockWithdrawn(alert_id=asked.alert_id, rule_id="r", value="192.0.2.1")
    assert (blocks.asked, blocks.withdrawn, blocks.dropped) == (1, 1, 0)


# -- snapshots ---------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b")]
    yield fds
    for fd in fds:
        os.close(fd)


def snapshots(fds, courier) -> Snapshots:
    return Snapshots(StateFiles(fds), Engine(courier.raise_alert, host="h"), courier, courier.raise_alert)


def test_alerts_that_are_not_on_disk_yet_outlive_the_engine(ends, files):
    courier, theirs = ends
    for number in range(3):
        courier.raise_alert(alert(number))
    messages = taken(theirs)
    theirs.send(AlertsDurable(numbers=[messages[0].number]))
    courier.receive()
    snapshots(files, courier).finish()
    left, right = link_pair()
    again, after = Courier(Link(left, CourierToEngine)), Link(right, EngineToCourier)
    snapshots(files, again).restore()
    assert [m.alert for m in taken(after)] == [m.alert for m in messages[1:]]
    again.link.close()
    after.close()


def test_a_state_that_cannot_be_read_is_counted_and_nothing_more(ends, files):
    courier, _ = ends
    StateFiles(files).write(files[0], b"no snapshot", 1)
    made = snapshots(files, courier)
    made.restore()
    assert made.failed == 1


def test_the_copy_that_writes_is_counted_and_never_two_at_once(ends, files):
    courier, _ = ends
    made = snapshots(files, courier)
    made.begin(1)
    write(made, 2)
    assert made.written >= 1
    made.finish()
    assert StateFiles(files).read() is not None


def write(made, counts) -> None:
    """Begin again until one more has been written."""
    before = made.written
    deadline_s = time.monotonic() + 10
    while made.written == before and time.monotonic() < deadline_s:
        time.sleep(0.01)
        made.begin(counts)


def test_what_has_not_changed_is_not_written_again(ends, files):
    courier, _ = ends
    made = snapshots(files, courier)
    made.begin("a")
    write(made, "a")
    made.begin("a")
    assert (made.written, made.unchanged) == (1, 2)
    write(made, "b")
    made.begin("b")
    assert (made.written, made.unchanged) == (2, 4)
    made.finish()


def test_a_write_that_failed_is_done_again_though_nothing_changed(ends, files):
    courier, _ = ends
    made = snapshots(files, courier)
    made._write = lambda fd: False
    made.begin("a")
    deadline_s = time.monotonic() + 10
    while not made.failed and time.monotonic() < deadline_s:
        time.sleep(0.01)
        made.begin("a")
    del made._write
    write(made, "a")
    assert made.written == 1 and made.failed >= 1
    made.finish()


def test_a_fork_that_fails_costs_only_the_snapshot(ends, files, monkeypatch):
    courier, _ = ends
    made = snapshots(files, courier)

    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    made.begin(1)
    assert (made.failed, made.written) == (1, 0)


def test_figures_are_what_is_new_since_the_telling_before(ends):
    _, theirs = ends
    figures = Figures(ends[0].link)
    counters = {
        "engine": {"events": {"tcp.syn": 5}, "lost": {"net": {"budget": 3, "aggregated": 99}, "pam": {"ring_buffer": 4}}},
        "lines": {"net": {"rejected": {"not_json": 2}}, "pam": {"rejected": {"not_json": 1}}},
        "failed_batches": 0, "alerts": {"dropped": 7}, "blocks": {"dropped": 0}, "series_lost": 0,
    }  # fmt: skip
    figures.alerts["high"] += 2
    figures.tell(counters)
    counters["engine"]["events"]["tcp.syn"] = 9
    figures.tell(counters)
    figures.tell(counters)
    first, second = taken(theirs)
    assert first.figures == {
        "events": {"tcp.syn": 5},
        "alerts": {"high": 2},
        "lost": {
            "sensor:budget": 3,
            "sensor:ring_buffer": 4,
            "decode:not_json": 3,
            "engine:unacknowledged": 7,
        },
    }
    assert second.figures == {"events": {"tcp.syn": 4}}


def test_figures_are_told_when_it_is_time_and_what_cannot_be_sent_is_counted(ends, monkeypatch):
    figures = Figures(ends[0].link)
    now = {"s": 0.0}
    monkeypatch.setattr("kwsiem.clock.monotonic_s", lambda: now["s"])
    figures._due_s = 10.0
    told = []
    monkeypatch.setattr(figures, "tell", told.append)
    for second in range(31):
        now["s"] = float(second)
        figures.every_second({}, second * 10**9)
    assert len(told) == 3
    assert figures._send(SeriesTold(at_s=0, figures={"x": {f"{n}" * 100: 1 for n in range(5000)}}))
    assert figures.feed.lost == 1
