import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.errors import UnavailableError
from kwsiem.response.decisions import Decisions
from kwsiem.response.facts import Protected, network_of

OFFENDER = "198.51.100.7"


def test_an_offender_is_blocked_cut_off_told_and_written_down(host, caplog):
    caplog.set_level(logging.INFO)
    host.start()
    host.ask(OFFENDER)
    assert host.firewall.entries == {OFFENDER: 600}
    assert host.cut == [OFFENDER]
    assert host.told == [("block.decision", "blocked", "")]
    line = next(record for record in caplog.records if record.name == "kwsiem.audit")
    assert (line.getMessage(), line.network, line.for_s, line.alert) == ("blocked", OFFENDER, 600, "A0")
    assert (line.rule, line.evidence, line.origin) == ("ssh-brute-force", "proven", "rule")


def test_a_dry_run_touches_nothing_and_says_what_it_would_do(host):
    host.start(mode="dry-run")
    host.ask(OFFENDER)
    assert host.firewall.entries == {}
    assert host.cut == []
    assert host.actions() == ["would_block"]
    assert host.blocker.answer({"verb": "list"})["blocks"][0]["mode"] == "dry-run"


def test_off_is_off(host):
    host.start(mode="off")
    host.ask(OFFENDER)
    assert (host.firewall.entries, host.told, len(host.blocker.decisions)) == ({}, [], 0)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("192.0.2.1", "gateway"),
        ("127.0.0.1", "loopback"),
        ("198.51.100.0/24", "invalid"),
        ("1.2.3.4; flush", "invalid"),
        ("", "invalid"),
        ("x" * 10_000, "invalid"),
    ],
)
def test_what_the_guard_refuses_is_told_with_the_rule(host, value, rule):
    host.start()
    host.ask(value)
    assert host.firewall.entries == {}
    assert host.actions() == ["refused"]
    assert host.told[0][2].startswith(f"{rule}: ")


@pytest.mark.parametrize("for_s", [0, -1, 2**31, 2**63 - 1])
def test_a_time_that_no_set_can_hold_is_refused(host, for_s):
    host.start()
    host.ask(OFFENDER, for_s=for_s)
    assert host.firewall.entries == {}


def test_lone_packets_block_nobody_unless_rule_and_operator_say_so(host):
    host.start()
    host.ask(OFFENDER, evidence="spoofable", spoofable=True)
    assert host.firewall.entries == {}
    host.stop()
    host.start(spoofable=True)
    host.ask(OFFENDER, evidence="spoofable")
    assert host.firewall.entries == {}
    host.ask(OFFENDER, evidence="spoofable", spoofable=True)
    assert host.firewall.entries == {OFFENDER: 600}
    host.ask("192.0.2.1", evidence="spoofable", spoofable=True)
    assert "192.0.2.1" not in host.firewall.entries


def test_an_ipv6_source_is_blocked_by_its_64_or_by_itself_when_somebody_protected_lives_there(host):
    host.protected.append(Protected(network_of("2001:db8:0:1::1"), "gateway", "test"))
    host.start()
    host.ask("2001:db8:0:1::bad", "2001:db8:0:2::bad", "2001:db8:0:1::1")
    assert set(host.firewall.entries) == {"2001:db8:0:1::bad", "2001:db8:0:2::/64"}


def test_a_source_that_is_blocked_already_is_not_blocked_again(host):
    host.start()
    host.ask(OFFENDER, OFFENDER)
    host.later(1)
    host.ask(OFFENDER)
    assert host.actions() == ["blocked"]
    assert host.blocker.counters["known"] == 2


def test_a_repeat_offender_stays_out_longer_and_is_forgotten_in_the_end(host):
    host.start()
    times = []
    for _ in range(5):
        host.ask(OFFENDER)
        times.append(host.firewall.entries[OFFENDER])
        host.later(times[-1] + 1)
    assert times == [600, 3600, 86_400, 604_800, 604_800]
    assert host.actions() == ["blocked", "ended"] * 5
    host.later(31 * 86_400)
    host.ask(OFFENDER)
    assert host.firewall.entries[OFFENDER] == 600


def test_offences_outlive_a_restart(host):
    host.start()
    host.ask(OFFENDER)
    host.later(601)
    host.stop()
    host.start()
    host.ask(OFFENDER)
    assert host.firewall.entries[OFFENDER] == 3600


def test_neighbours_are_blocked_together_unless_somebody_protected_is_among_them(host):
    host.start()
    host.ask(*(f"198.51.100.{n}" for n in range(8)))
    assert "198.51.100.0/26" in host.firewall.entries
    host.protected.append(Protected(network_of("203.0.113.60"), "resolver", "test"))
    host.blocker.addresses_changed()
    host.ask(*(f"203.0.113.{n}" for n in range(8)))
    assert not any(entry.startswith("203.0.113.") and "/" in entry for entry in host.firewall.entries)
    assert len([entry for entry in host.firewall.entries if entry.startswith("203.0.113.")]) == 8


def test_too_many_blocks_a_minute_are_held_and_told_once(host):
    host.start(max_per_min=10, aggregate=0)
    host.ask(*(f"198.51.{n}.1" for n in range(25)))
    assert len(host.firewall.entries) == 10
    assert [action for action in host.actions() if action == "throttled"] == ["throttled"]
    host.later(61)
    host.ask("198.51.99.1")
    assert "198.51.99.1" in host.firewall.entries


def test_above_the_rate_a_network_with_several_offenders_is_blocked_instead(host):
    host.start(max_per_min=2, aggregate=0)
    host.ask("198.51.100.1")
    host.ask("203.0.113.1")
    host.ask("198.51.100.9", "192.0.2.9", "203.0.114.9")
    assert set(host.firewall.entries) == {"198.51.100.1", "203.0.113.1", "198.51.100.0/24"}
    assert host.actions().count("refused") == 2, (
        "no other offender in the one network, the gateway in the other"
    )


def test_after_a_restart_the_blocks_are_back_with_the_time_that_is_left(host):
    host.start()
    host.ask(OFFENDER)
    host.ask("198.51.100.8", for_s=100)
    host.stop()
    host.firewall.entries = {}
    host.wall_ns += 200 * 10**9
    host.start()
    assert host.firewall.entries == {OFFENDER: 400}
    assert host.firewall.calls[-1] == "repair"


def test_who_became_protected_meanwhile_is_not_put_back(host):
    host.start()
    host.ask(OFFENDER)
    host.stop()
    host.protected.append(Protected(network_of(OFFENDER), "gateway", "test"))
    host.start()
    assert host.firewall.entries == {}


def test_who_becomes_protected_is_released_at_once(host):
    host.start()
    host.ask(OFFENDER)
    host.protected.append(Protected(network_of(OFFENDER), "gateway", "test"))
    host.blocker.addresses_changed()
    host.blocker.tick()
    assert host.firewall.entries == {}
    assert host.actions() == ["blocked", "released"]


def test_what_somebody_else_removes_is_put_back_and_told(host):
    host.start()
    host.ask(OFFENDER)
    host.firewall.entries = {}
    host.firewall.broken = "set kwsiem4 is gone"
    host.later(0.6)
    assert host.firewall.entries == {OFFENDER: 600}
    assert ("block.firewall", "repaired", "set kwsiem4 is gone") in host.told


def test_a_full_set_is_told_and_nothing_is_claimed(host):
    host.firewall.full = {OFFENDER}
    host.start()
    host.ask(OFFENDER)
    assert host.told == [("block.firewall", "full", "set is full")]
    assert len(host.blocker.decisions) == 0


def test_a_firewall_that_fails_is_told_once_and_comes_back(host):
    host.start(aggregate=0)
    host.firewall.error = UnavailableError("ipset has gone")
    host.ask(OFFENDER)
    host.ask("198.51.100.8")
    assert len(host.blocker.decisions) == 0
    assert host.blocker.status()["firewall_error"] == "ipset has gone"
    host.firewall.error = None
    host.ask(OFFENDER)
    assert host.firewall.entries == {OFFENDER: 600}
    assert host.blocker.status()["firewall_error"] == ""


def test_on_without_confirmation_is_a_dry_run_and_clears_what_was_there(host):
    host.start(confirmed=False)
    assert host.firewall.calls == ["remove"]
    host.ask(OFFENDER)
    assert host.firewall.entries == {}
    assert host.blocker.status()["mode"] == "dry-run"


def test_arming_asks_for_an_allow_list_and_rolls_back_unless_confirmed(host):
    host.start(confirmed=False)
    assert "allow" in host.blocker.answer({"verb": "arm", "confirm_within_s": 300})["error"]
    host.stop()
    host.start(confirmed=False, allow=("192.0.2.99",))
    assert host.blocker.answer({"verb": "arm", "confirm_within_s": 300})["mode"] == "on"
    host.ask(OFFENDER, "192.0.2.99")
    assert host.firewall.entries == {OFFENDER: 600}
    host.later(301)
    assert host.firewall.entries == {}
    assert host.blocker.mode == "dry-run"
    assert "rolled_back" in host.actions()
    assert "error" in host.blocker.answer({"verb": "confirm"})


def test_a_confirmed_trial_lasts_also_over_a_restart(host):
    host.start(confirmed=False, allow=("192.0.2.99",))
    host.blocker.answer({"verb": "arm", "confirm_within_s": 300})
    assert host.blocker.answer({"verb": "confirm"}) == {"mode": "on"}
    host.ask(OFFENDER)
    host.stop()
    host.start(confirmed=False, allow=("192.0.2.99",))
    assert host.blocker.mode == "on"
    assert host.firewall.entries == {OFFENDER: 600}
    assert host.blocker.answer({"verb": "disarm"})["released"] == 1
    assert host.firewall.entries == {}


def test_a_block_is_withdrawn_when_its_alert_turns_out_to_be_nothing(host):
    host.start(aggregate=0)
    host.ask(OFFENDER, "198.51.100.8")
    host.blocker.withdraw(OFFENDER, "another alert")
    host.blocker.withdraw("junk", "A0")
    assert OFFENDER in host.firewall.entries
    host.blocker.withdraw(OFFENDER, "A0")
    assert set(host.firewall.entries) == {"198.51.100.8"}
    assert host.actions()[-1] == "released"


def test_names_of_the_allow_list_are_followed(host):
    host.names["admin.example.net"] = [OFFENDER]
    host.start(allow=("admin.example.net",))
    host.blocker._names.changed.wait(10)
    host.blocker.tick()
    host.ask(OFFENDER)
    assert host.firewall.entries == {}
    assert host.told[-1][2] == f"allow list: {OFFENDER}/32 admin.example.net"


def test_the_operators_commands(host):
    host.start()
    answer = host.blocker.answer(
        {
            "verb": "add",
            "entries": [{"network": "203.0.113.0/24", "for_s": 60}, {"network": "192.0.2.1"}, "x", {}],
        }
    )
    assert [result["blocked"] for result in answer["results"]] == [True, False, False, False]
    assert host.firewall.entries == {"203.0.113.0/24": 60}
    found = host.blocker.answer({"verb": "explain", "network": "203.0.113.9"})
    assert (found["proven"]["allowed"], found["blocked_by"]) == (True, "203.0.113.0/24")
    assert (
        "within 203.0.113.0/24" in host.blocker.answer({"verb": "remove", "network": "203.0.113.9"})["error"]
    )
    assert host.blocker.answer({"verb": "remove", "network": "203.0.113.0/24"})["left_s"] == 60
    assert host.firewall.entries == {}
    assert host.blocker.answer({"verb": "explain", "network": "192.0.2.1"})["proven"]["rule"] == "gateway"
    assert "error" in host.blocker.answer({"verb": "explain", "network": "junk"})
    assert "error" in host.blocker.answer({"verb": "frobnicate"})


def test_the_list_comes_in_pages(host):
    host.start(aggregate=0)
    host.ask(*(f"198.51.{n // 200}.{n % 200 + 1}" for n in range(1000)))
    seen, after = [], ""
    while page := host.blocker.answer({"verb": "list", "after": after, "limit": 300})["blocks"]:
        seen += [block["network"] for block in page]
        after = seen[-1]
    assert len(seen) == len(set(seen)) == 1000


def test_a_damaged_file_of_decisions_is_moved_aside(tmp_path):
    path = tmp_path / "blocks" / "blocks.db"
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)
    decisions = Decisions(path)
    assert len(decisions) == 0
    decisions.close()
    assert len(list(path.parent.glob("blocks.db.corrupt-*"))) == 1
    assert path.parent.stat().st_mode & 0o777 == 0o700


REQUESTS = st.fixed_dictionaries(
    {
        "value": st.one_of(
            st.sampled_from(
                [
                    "192.0.2.1",
                    "127.0.0.1",
                    "::1",
                    "::ffff:192.0.2.1",
                    "198.51.100.7",
                    "fe80::1",
                    "192.0.2.0/24",
                    "0.0.0.0/0",
                    "::/0",
                ]
            ),
            st.integers(0, 2**32 - 1).map(lambda n: ".".join(str(n >> s & 255) for s in (24, 16, 8, 0))),
            st.integers(0, 255).map(lambda n: f"192.0.2.{n}"),
            st.ip_addresses(v=6).map(str),
            st.text(max_size=80),
        ),
        "for_s": st.one_of(st.integers(), st.integers(1, 10_000)),
        "evidence": st.one_of(st.sampled_from(["proven", "spoofable"]), st.text(max_size=20)),
        "spoofable": st.booleans(),
        "rule_id": st.text(max_size=300),
        "alert_id": st.text(max_size=300),
        "reason": st.text(max_size=600),
    }
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_asked_nobody_protected_is_ever_in_the_firewall(tmp_path_factory, make_host, data):
    """Requests as a taken-over engine could send them: any text, any number, networks, forged grades."""
    from kwsiem.messages import BlockRequest

    with pytest.MonkeyPatch.context() as monkeypatch:
        host = make_host(tmp_path_factory.mktemp("host"), monkeypatch)
        blocker = host.start(spoofable=data.draw(st.booleans()), aggregate=2, collateral=1000)
        try:
            for _ in range(data.draw(st.integers(1, 4))):
                for fields in data.draw(st.lists(REQUESTS, max_size=30)):
                    blocker.request(BlockRequest(**fields))
                blocker.flush()
                host.later(data.draw(st.sampled_from([0.2, 61.0, 700.0])))
            guarded = [entry.network for entry in blocker.guard.protected()]
            for text, timeout_s in host.firewall.entries.items():
                network = network_of(text)
                assert not any(g.version == network.version and g.overlaps(network) for g in guarded), text
                assert network.prefixlen >= (24 if network.version == 4 else 48)
                assert 1 <= timeout_s <= 2_147_483
        finally:
            host.stop()


def test_a_thousand_sources_within_a_second_are_one_call_of_the_firewall(host):
    host.start(aggregate=0)
    values = [f"198.{random.Random(n).randrange(51, 99)}.{n % 250}.{n // 250 + 1}" for n in range(1000)]
    host.ask(*values)
    assert len(host.firewall.entries) == len(set(values))
    assert host.firewall.calls.count("block") <= 2
