"""Incident against incident: what is the same, moved, gone and new."""

from hypothesis import given
from hypothesis import strategies as st

from kwsiem.compare import Difference, Opened, difference

S = 10**9


def opened(second, rule="r", identity="a", level="low", host="h"):
    return Opened(rule, level, host, {"source.ip": identity}, int(second * S))


def seconds(incidents):
    return [one.raised_ns // S for one in incidents]


def test_near_ones_of_one_identity_are_changed_far_ones_are_not():
    found = difference([opened(0), opened(100)], [opened(5), opened(300)], {"r": 10 * S})
    assert [(old.raised_ns // S, new.raised_ns // S) for old, new in found.changed] == [(0, 5)]
    assert (seconds(found.removed), seconds(found.added)) == ([100], [300])


def test_identities_hosts_and_rules_are_kept_apart():
    found = difference(
        [opened(0), opened(0, host="g"), opened(0, rule="q")],
        [opened(0, identity="b"), opened(0, host="f"), opened(0, rule="p")],
        {},
    )
    assert (len(found.removed), len(found.added), found.changed) == (3, 3, [])


def test_equal_ones_are_counted_one_for_one():
    found = difference([opened(0)] * 3, [opened(0)] * 5, {})
    assert (len(found.added), len(found.removed), len(found.changed)) == (2, 0, 0)
    assert found.by_rule() == {"r": (3, 5, 2, 0, 0)}


def test_no_difference_is_false():
    assert not Difference()
    assert not difference([opened(1), opened(0)], [opened(0), opened(1)], {})
    assert difference([], [opened(0)], {})


INCIDENTS = st.lists(
    st.builds(
        opened,
        st.integers(0, 60),
        st.sampled_from("rq"),
        st.sampled_from("ab"),
        st.sampled_from(["low", "high"]),
    ),
    max_size=30,
)


@given(INCIDENTS, INCIDENTS)
def test_every_incident_is_accounted_for(before, after):
    found = difference(before, after, {"r": 5 * S})
    for old, new, added, removed, changed in found.by_rule().values():
        assert new == old + added - removed
        assert changed + removed <= old
    mirrored = difference(after, before, {"r": 5 * S})
    assert (mirrored.added, mirrored.removed) == (found.removed, found.added)
    assert len(mirrored.changed) == len(found.changed)


@given(INCIDENTS)
def test_nothing_differs_from_itself(incidents):
    assert not difference(incidents, incidents[::-1], {"r": 5 * S})
