"""Whatever a server says about the parts of a batch, each alert has exactly one fate."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.delivery import alert

from kwsiem.document import document
from kwsiem.errors import OutputError
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.push import Verdict, encode, facts, push


def batch(count):
    return [Rendered(str(index), 5, b"x", b"{}") for index in range(count)]


def make(alert):
    return int(alert.id)


def outcome(count, post, *, size=lambda _: 1, most=1000, make=make):
    """The fates as a worker reads them: taken, refused, and the error."""
    try:
        push(batch(count), make, size, most, post)
    except OutputError as error:
        return error.taken, error.refused, error
    return frozenset(range(count)), {}, None


def test_all_taken_is_no_error():
    posted = []
    assert outcome(5, lambda items: posted.append(list(items)) or Verdict(), most=2)[2] is None
    assert posted == [[0, 1], [2, 3], [4]]


def test_an_item_larger_than_a_request_goes_alone():
    posted = []
    outcome(
        4, lambda items: posted.append(list(items)) or Verdict(), size=lambda n: 50 if n == 1 else 1, most=10
    )
    assert posted == [[0], [1], [2, 3]]


def test_an_error_ends_it_and_keeps_what_was_taken_before():
    def post(items):
        if 2 in items:
            raise OutputError("down", retry_after_s=7.0, taken=[2])
        return Verdict(refused={0: "bad"} if 0 in items else {})

    taken, refused, error = outcome(8, post, most=2)
    assert (taken, refused, error.retry_after_s, error.retryable) == ({1, 2}, {0: "bad"}, 7.0, True)


def test_the_longest_pause_of_several_requests_counts():
    def post(items):
        (index,) = items
        return Verdict(left=[index], error=OutputError(f"e{index}", retry_after_s=[None, 9.0, 3.0][index]))

    taken, _, error = outcome(3, post, most=1)
    assert (taken, str(error), error.retry_after_s) == (frozenset(), "e1", 9.0)


def test_an_alert_that_cannot_be_made_into_a_request_does_not_hold_up_the_others():
    def broken(alert):
        if alert.id == "1":
            raise ValueError("odd")
        return int(alert.id)

    taken, refused, error = outcome(3, lambda _: Verdict(), make=broken)
    assert (taken, refused, error.retryable) == ({0, 2}, {1: "cannot be made into a request: odd"}, False)


@given(
    st.integers(0, 40),
    st.sets(st.integers(0, 39)),
    st.sets(st.integers(0, 39)),
    st.sets(st.integers(0, 39)),
    st.integers(1, 12),
)
def test_each_alert_has_exactly_one_fate(count, bad, busy, poison, most):
    """``poison`` makes the server refuse a whole request without saying which alert is to blame."""
    stored = []

    def post(items):
        if set(items) & poison:
            return Verdict(too_much="something in it")
        refused = {index: "bad" for index in items if index in bad}
        left = [index for index in items if index in busy and index not in bad]
        stored.extend(index for index in items if index not in refused and index not in left)
        return Verdict(refused=refused, left=left, error=OutputError("busy") if left else None)

    taken, refused, error = outcome(count, post, most=most)
    assert sorted(stored) == sorted(taken), "each once"
    assert set(refused) == {n for n in range(count) if n in poison or n in bad}
    left = set(range(count)) - taken - set(refused)
    assert left == {n for n in range(count) if n in busy and n not in bad and n not in poison}
    assert (error is not None and error.retryable) == bool(left)


@pytest.mark.parametrize("ms", [0, 1, 999, 1_767_323_045_123, 4_102_444_799_999])
def test_times_are_exact_in_every_unit(ms):
    found = facts(encode(document(alert(raised_ns=ms * 1_000_000, first_ns=0, last_ns=0))))
    assert found.ms == ms
    assert found.seconds == f"{ms // 1000}.{ms % 1000:03d}"
    assert found.ns == str(ms * 1_000_000)


def test_absent_facts_are_empty():
    found = facts(b"{}")
    assert (found.host.name, found.rule.id, found.source.ip, found.kwsiem.alert.level) == ("", "", "", "")


@pytest.mark.parametrize("source", [b"", b"[]", b'{"host":7}', json.dumps({"@timestamp": 7}).encode()])
def test_what_is_no_document_is_an_error(source):
    with pytest.raises(msgspec.DecodeError):
        facts(source)
