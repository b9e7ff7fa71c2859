"""What is written for iptables-restore out of any state, and what counts as damage."""

import sys

import pytest

from kwsiem.response.firewall import FirewallError, parse
from kwsiem.response.ipset import IpsetFirewall
from kwsiem.response.leftovers import _in_use
from kwsiem.response.nfnetlink import DEL_ELEMENT, DEL_RULE, Change
from kwsiem.response.nftables import NftFirewall, _length, _match, _told
from kwsiem.response.pipe import Pipe, _sound, reason
from kwsiem.response.xtables import FILTER, MANGLE, _misplaced, _placing, _removing, _shape

OURS = ["-A KWSIEM -m set --match-set kwsiem4 src -j DROP", "-A KWSIEM-OUT -j DROP"]
EMPTY = "*mangle\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
PLACED = (
    "*mangle\n:PREROUTING ACCEPT [7:9]\n:POSTROUTING ACCEPT [0:0]\n:KWSIEM - [0:0]\n:KWSIEM-OUT - [0:0]\n"
    "-A PREROUTING -j KWSIEM\n-A PREROUTING -s 192.0.2.1/32 -j ACCEPT\n-A POSTROUTING -j KWSIEM-OUT\n"
    + "\n".join(OURS)
    + "\nCOMMIT\n"
)


def test_an_empty_table_gets_chains_jumps_and_rules():
    assert _placing(MANGLE, EMPTY, OURS).splitlines() == [
        "*mangle",
        ":KWSIEM - [0:0]",
        ":KWSIEM-OUT - [0:0]",
        "-I POSTROUTING 1 -j KWSIEM-OUT",
        "-I PREROUTING 1 -j KWSIEM",
        *OURS,
        "COMMIT",
    ]


def test_jumps_of_ours_that_are_there_are_moved_and_no_other_rule_is_named():
    text = _placing(MANGLE, PLACED, OURS)
    assert text.count("-D PREROUTING -j KWSIEM\n") == text.count("-I PREROUTING 1 -j KWSIEM\n") == 1
    assert "192.0.2.1" not in text


def test_the_filter_table_has_docker_user_only_where_it_exists():
    saved = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n"
    assert "DOCKER-USER" not in _placing(FILTER, saved, OURS)
    assert "-I DOCKER-USER 1 -j KWSIEM\n" in _placing(FILTER, saved + ":DOCKER-USER - [0:0]\n", OURS)
    jumps = [line for line in _placing(FILTER, saved, OURS).splitlines() if " FORWARD " in line]
    assert jumps == ["-I FORWARD 1 -j KWSIEM-OUT", "-I FORWARD 1 -j KWSIEM"]  # the last one stands first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-A PREROUTING -j KWSIEM\n", ""),
        ("-A PREROUTING -j KWSIEM\n", "-A PREROUTING -j ACCEPT\n-A PREROUTING -j KWSIEM\n"),
        ("-A PREROUTING -j KWSIEM\n", "-A PREROUTING -s 192.0.2.0/24 -j KWSIEM\n"),
        ("-A POSTROUTING -j KWSIEM-OUT\n", ""),
        (OURS[0], "-A KWSIEM -j RETURN\n" + OURS[0]),
        (OURS[0] + "\n", ""),
    ],
)
def test_what_was_changed_is_seen(old, new):
    before, after = (_shape(MANGLE, text) for text in (PLACED, PLACED.replace(old, new)))
    assert not _misplaced(MANGLE, before)
    assert before != after


def test_foreign_rules_behind_ours_are_not_seen_as_damage():
    more = PLACED.replace(
        "-A POSTROUTING -j KWSIEM-OUT\n", "-A POSTROUTING -j KWSIEM-OUT\n-A POSTROUTING -j OTHER\n"
    )
    assert _shape(MANGLE, more) == _shape(MANGLE, PLACED)


def test_removing_takes_jumps_of_any_kind_and_leaves_the_rest():
    text = _removing(MANGLE, PLACED.replace("-A POSTROUTING", "-A OTHER -p tcp -j KWSIEM\n-A POSTROUTING", 1))
    assert "-D OTHER -p tcp -j KWSIEM\n" in text
    assert "-X KWSIEM\n" in text
    assert "192.0.2.1" not in text
    assert _removing(MANGLE, EMPTY) == ""


def test_a_chain_is_in_use_when_it_has_rules_or_drops():
    saved = ":A ACCEPT [0:0]\n:B DROP [0:0]\n:C ACCEPT [0:0]\n-A C -j ACCEPT\n"
    assert [_in_use(name, saved) for name in "ABC"] == [False, True, True]


@pytest.mark.parametrize(
    ("line", "answer", "sound"),
    [
        ("add kwsiem4 192.0.2.1 timeout 5", "", True),
        ("add kwsiem4 192.0.2.1 timeout 5", "ipset v7.17: Hash is full, cannot add more elements", True),
        ("add kwsiem4 192.0.2.1 timeout 5", "ipset v7.17: Internal protocol error", False),
        ("add kwsiem4 192.0.2.1 timeout 5", "Name: kwsiem4", False),
        ("list -t kwsiem4", "ipset v7.17: The set with the given name does not exist", False),
        ("list -t kwsiem4", "Name: kwsiem4", True),
        ("test kwsiem4 255.255.255.255", "Warning: 255.255.255.255 is in set kwsiem4.", True),
        ("test kwsiem4 255.255.255.255", "ipset v7.17: The set with the given name does not exist", False),
    ],
)
def test_a_child_is_trusted_only_after_an_answer_that_is_known(line, answer, sound):
    assert _sound(line, answer) is sound


def test_an_error_is_told_without_the_program():
    assert reason("ipset v7.17: Error in line 3: Hash is full") == "Hash is full"


#: Answers each line with a prompt, as ipset does; "die" ends it, "wait" hangs, "error" is an error it goes on after.
CHILD = """
import sys, time
sys.stdout.write("ipset> "); sys.stdout.flush()
for line in sys.stdin:
    if "die" in line: sys.exit()
    if "wait" in line: time.sleep(60)
    sys.stdout.write(("ipset v7: Hash is full\\n" if "error" in line else "") + "ipset> "); sys.stdout.flush()
"""


@pytest.fixture
def pipe():
    pipe = Pipe([sys.executable, "-c", CHILD])
    yield pipe
    pipe.close()


def test_each_line_has_its_own_answer(pipe):
    assert pipe.ask(["add a", "add error", "add b"]) == ["", "ipset v7: Hash is full", ""]
    assert pipe.ask([f"add {number}" for number in range(1000)]) == [""] * 1000
    assert pipe.restarts == 0


def test_a_child_that_keeps_dying_is_an_error(pipe):
    with pytest.raises(FirewallError, match="ended"):
        pipe.ask(["add a", "add die"])
    assert pipe.ask(["add a"]) == [""]
    assert pipe.restarts == 2


def test_a_child_that_hangs_is_an_error_and_is_replaced(pipe, monkeypatch):
    monkeypatch.setattr("kwsiem.response.pipe.ANSWER_S", 0.2)
    pipe.ask(["add a"])
    with pytest.raises(FirewallError, match="did not answer"):
        pipe.ask(["add wait"])
    assert pipe.pid == 0


@pytest.mark.parametrize("line", ["add a\nflush", "", "add \0", "add " + "1" * 200, "add \u00e9"])
def test_a_line_that_is_not_one_never_leaves(pipe, line):
    with pytest.raises(FirewallError, match="not a line"):
        pipe.ask([line])


def test_a_program_that_is_not_there_is_an_error():
    with pytest.raises(FirewallError, match="cannot start"):
        Pipe(["/nonexistent/ipset"]).ask(["add a"])


def test_networks_have_a_set_for_each_prefix_length_in_nftables():
    set_of = NftFirewall.set_of
    names = [
        set_of(None, parse(text)) for text in ("192.0.2.1", "10.0.0.0/8", "2001:db8::1", "2001:db8::/64")
    ]
    assert names == ["hosts4", "net4_8", "hosts6", "net6_64"]
    assert [_length(name) for name in [*names, "net4_99", "other"]] == [0, 8, 0, 64, 0, 0]
    assert _match("net4_23", "saddr") == "ip saddr & 255.255.254.0 @net4_23"
    assert _match("net6_64", "daddr") == "ip6 daddr & ffff:ffff:ffff:ffff:: @net6_64"
    assert _match("hosts6", "saddr") == "ip6 saddr @hosts6"


def test_sets_of_ipset_are_four():
    names = [
        IpsetFirewall.set_of(None, parse(text))
        for text in ("192.0.2.1", "10.0.0.0/8", "::1", "2001:db8::/64")
    ]
    assert names == ["kwsiem4", "kwsiem4net", "kwsiem6", "kwsiem6net"]


def test_changes_are_told_with_their_author():
    changes = [Change(DEL_ELEMENT, 1, "kwsiem", "nft (pid 7)")] * 3 + [
        Change(DEL_RULE, 1, "kwsiem", "nft (pid 7)")
    ]
    assert _told(changes) == "table kwsiem: 3 entries taken out, 1 rules or sets changed by nft (pid 7)"
