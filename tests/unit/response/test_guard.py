import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.response.facts import RESERVED, Protected, key_of, key_of_text, network_of, text_of
from kwsiem.response.guard import Guard, Index, Request, allowed_networks


def protected(text, rule="gateway"):
    return Protected(network_of(text), rule, "test")


def guard(*entries, **options):
    return Guard(sources={"reserved": lambda: list(RESERVED), "test": lambda: list(entries)}, **options)


def verdict(found, text, evidence="proven", *, spoofable=False):
    return found.verdict(Request(network_of(text), evidence, spoofable))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "reserved"),
        ("169.254.169.254", "reserved"),
        ("fe80::1", "reserved"),
        ("224.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:192.0.2.1", "gateway"),
        ("192.0.2.1", "gateway"),
        ("192.0.2.0/24", "gateway"),
        ("192.0.2.0/28", "gateway"),
        ("10.0.0.0/8", "too wide"),
        ("2001:db8::/32", "too wide"),
        ("2001:db8:1::/64", "gateway"),
        ("2001:db8:1::53", "gateway"),
    ],
)
def test_who_is_never_blocked(text, rule):
    found = verdict(guard(protected("192.0.2.1"), protected("2001:db8:1::53")), text)
    assert (found.allowed, found.rule) == (False, rule)


def test_others_may_be_blocked_on_proven_evidence():
    assert verdict(guard(protected("192.0.2.1")), "192.0.2.2").allowed
    assert verdict(guard(protected("192.0.2.1")), "2001:db8:2::/64").allowed


@pytest.mark.parametrize(
    ("evidence", "rule_wants", "permitted", "allowed"),
    [
        ("spoofable", False, False, False),
        ("spoofable", True, False, False),
        ("spoofable", False, True, False),
        ("spoofable", True, True, True),
        ("proven", False, False, True),
        ("whatever an engine that was taken over says", True, False, False),
    ],
)
def test_evidence_that_can_be_forged_needs_the_word_of_rule_and_operator(
    evidence, rule_wants, permitted, allowed
):
    found = verdict(guard(spoofable_permitted=permitted), "198.51.100.7", evidence, spoofable=rule_wants)
    assert found.allowed is allowed
    if not allowed:
        assert found.rule == "spoofable"


def test_a_source_that_cannot_be_read_keeps_what_it_said_and_is_told():
    answers = [[protected("192.0.2.1")], OSError("no netlink"), [protected("192.0.2.9")]]

    def source():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    found = Guard(sources={"gateways": source})
    assert not found.refresh()
    assert found.degraded == {"gateways": "no netlink"}
    assert not verdict(found, "192.0.2.1").allowed
    assert found.refresh()
    assert not found.degraded
    assert verdict(found, "192.0.2.1").allowed
    assert not verdict(found, "192.0.2.9").allowed


def test_the_allow_list_holds_addresses_networks_and_names():
    networks, names = allowed_networks(["192.0.2.7", "10.0.0.0/8", "2001:db8::/32", "admin.example.net"])
    assert [str(entry.network) for entry in networks] == ["192.0.2.7/32", "10.0.0.0/8", "2001:db8::/32"]
    assert names == ["admin.example.net"]
    found = guard()
    found.protect("allow", networks)
    assert verdict(found, "10.9.9.9").rule == "allow list"
    assert verdict(found, "2001:db8:5::/64").rule == "allow list"


NETWORKS = st.one_of(
    st.builds(
        lambda bits, prefix: ipaddress.ip_network((bits, prefix), strict=False),
        st.integers(0, 2**12 - 1).map(lambda n: n << 20 | 0x0A00),
        st.integers(4, 32),
    ),
    st.builds(
        lambda bits, prefix: ipaddress.ip_network((0x2001 << 112 | bits << 60, prefix), strict=False),
        st.integers(0, 2**12 - 1),
        st.integers(16, 128),
    ),
)


@given(st.lists(NETWORKS, max_size=20), NETWORKS)
def test_the_index_finds_an_overlap_exactly_when_there_is_one(entries, asked):
    found = Index(Protected(entry, "x", "") for entry in entries).overlapping(key_of(asked))
    wanted = any(entry.version == asked.version and entry.overlaps(asked) for entry in entries)
    assert (found is not None) is wanted
    if found:
        assert found.network.overlaps(asked)


@given(NETWORKS)
def test_the_key_of_a_text_is_that_of_its_network(network):
    assert key_of_text(text_of(network)) == key_of(network)


@pytest.mark.parametrize("text", ["192.0.2.7/24", "x", "", "1.2.3", "::/129", "1.2.3.4/-1", "fe80::1%eth0"])
def test_a_text_that_is_no_network_has_no_key(text):
    with pytest.raises(ValueError, match=r"."):
        key_of_text(text)
