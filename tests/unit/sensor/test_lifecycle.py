"""The states of a probe, as stories with a clock of numbers."""

import pytest

from kwsiem.sensor.lifecycle import (
    BACKOFF_MOST_S,
    SILENCE_S,
    START_TIMEOUT_S,
    STEADY_S,
    Lifecycle,
    State,
    verdict,
)


def ready(now_s: float = 0.0) -> Lifecycle:
    life = Lifecycle(now_s)
    life.spawned(now_s)
    assert life.heartbeat(now_s + 0.3)
    return life


def test_the_first_heartbeat_is_readiness():
    life = Lifecycle(0)
    assert life.due(0)
    life.spawned(0)
    assert life.state is State.STARTING
    assert not life.due(10)
    assert life.heartbeat(0.3)
    assert life.state is State.READY
    assert not life.heartbeat(1.3)


def test_a_silent_probe_is_overdue_and_one_that_beats_is_not():
    life = ready()
    life.heartbeat(100)
    assert life.overdue(100 + SILENCE_S - 0.1) == ""
    assert "no heartbeat" in life.overdue(100 + SILENCE_S + 0.1)


def test_silence_does_not_count_while_nobody_listens():
    life = ready()
    life.forgive(50)
    assert life.overdue(51) == ""


def test_a_probe_that_never_beats_is_overdue():
    life = Lifecycle(0)
    life.spawned(0)
    assert life.overdue(START_TIMEOUT_S - 1) == ""
    assert life.overdue(START_TIMEOUT_S + 1)


def test_deaths_are_answered_with_growing_and_bounded_back_off():
    life = Lifecycle(0)
    now_s = 0.0
    delays = []
    for _ in range(10):
        life.spawned(now_s)
        life.heartbeat(now_s)
        life.exited("", now_s)
        assert life.state is State.BACKOFF
        delay_s = next(d / 10 for d in range(1, 10000) if life.due(now_s + d / 10))
        delays.append(delay_s)
        now_s += delay_s
    assert delays[0] == pytest.approx(1)
    assert delays[1] == pytest.approx(2)
    assert max(delays) <= BACKOFF_MOST_S + 0.1
    assert life.restarts == 9


def test_a_long_good_run_is_forgiven():
    life = ready()
    life.exited("", 1)
    life.spawned(2)
    life.heartbeat(2)
    life.heartbeat(3 + STEADY_S)
    life.exited("", 100)
    assert life.due(101.1)


@pytest.mark.parametrize(
    ("console", "state"),
    [
        (
            "probe.bt:1:1-33: ERROR: tracepoint not found: net:x\ntracepoint:net:x {\n~~~~~~~",
            State.UNSUPPORTED,
        ),
        ("ERROR: No matches for tracepoint net:x.", State.UNSUPPORTED),
        ("ERROR: uprobe target file '/lib/x.so' does not exist or is not executable", State.UNSUPPORTED),
        ("ERROR: Could not resolve symbol: /lib/x:y", State.UNSUPPORTED),
        ("x.bt:3:1-2: ERROR: syntax error, unexpected }", State.FAILED),
        ("ERROR: Struct/union of type 'struct x' does not contain a field named 'y'", State.FAILED),
        ("ERROR: Error loading program: tracepoint:x (try -v)", State.FAILED),
        ("", State.BACKOFF),
        ("Killed", State.BACKOFF),
    ],
)
def test_an_exit_before_the_first_heartbeat_tells_unsupported_from_broken(console, state):
    life = Lifecycle(0)
    life.spawned(0)
    life.exited(console, 1)
    assert life.state is state
    assert verdict(console) is state
    assert life.due(1000) is (state is State.BACKOFF)


def test_the_reason_is_the_error_and_not_the_harmless_one():
    life = Lifecycle(0)
    life.spawned(0)
    life.exited("ERROR: couldn't set RLIMIT_MEMLOCK\nERROR: syntax error, unexpected }\nx\n~~~", 1)
    assert life.reason == "ERROR: syntax error, unexpected }"


def test_a_removed_probe_goes_whether_it_runs_or_not():
    running = ready()
    running.stop(True, 1)
    assert running.state is State.STOPPING
    running.exited("", 2)
    assert running.state is State.GONE
    idle = Lifecycle(0)
    idle.stop(False, 1)
    assert idle.state is State.GONE


def test_a_transition_that_is_not_in_the_table_is_a_bug():
    life = Lifecycle(0)
    life.refused(State.UNSUPPORTED, "no tracepoint", 0)
    with pytest.raises(AssertionError):
        life.spawned(1)
