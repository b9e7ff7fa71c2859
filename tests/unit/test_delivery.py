import msgspec
import pytest

from kwsiem.delivery import make_filter, make_output, make_route
from kwsiem.output_settings import (
    DEFAULT_FORMATS,
    OUTPUT_TYPES,
    ConsoleSettings,
    FileSettings,
    SyslogSettings,
    format_of,
    type_of,
)
from kwsiem.outputs.datagram import UdpOutput, UnixOutput
from kwsiem.outputs.relp import RelpOutput
from kwsiem.outputs.stream import StreamOutput


def source(rule="tcp-port-scan", tags=("attack.t1046",)):
    return msgspec.json.encode(
        {"rule": {"id": rule, "name": "x"}, "tags": list(tags), "kwsiem": {"alert": {}}}
    )


def wants(**patterns):
    found = make_filter(ConsoleSettings(name="c", **patterns))
    assert found is not None
    return found


def test_without_patterns_nothing_is_looked_at():
    assert make_filter(ConsoleSettings(name="c")) is None


def test_a_rule_must_match_one_pattern_and_no_exception():
    chosen = wants(rules=("tcp-*", "ssh-brute-force"), not_rules=("*-stealth",))
    assert chosen(source("tcp-port-scan"))
    assert chosen(source("ssh-brute-force"))
    assert not chosen(source("ssh-brute-force-2")), "a pattern is for the whole id"
    assert not chosen(source("tcp-stealth"))
    assert not chosen(source("icmp"))


def test_one_of_the_tags_must_match_and_none_the_exception():
    chosen = wants(tags=("attack.t1046", "attack.credential*"), not_tags=("team.test",))
    assert chosen(source(tags=["x", "attack.credential-access"]))
    assert not chosen(source(tags=["attack.t1046", "team.test"]))
    assert not chosen(source(tags=[]))
    assert not chosen(b"{}")


def test_a_pattern_is_no_regular_expression():
    assert not wants(rules=("a.c",))(source("abc"))
    assert wants(rules=("a.c", "[x]"))(source("a.c"))


def test_the_level_becomes_the_least_severity():
    assert make_route(ConsoleSettings(name="c", level="high")).min_severity == 8


@pytest.mark.parametrize(
    ("settings", "cls"),
    [
        (SyslogSettings(name="s"), UnixOutput),
        (SyslogSettings(name="s", transport="udp"), UdpOutput),
        (SyslogSettings(name="s", transport="tcp"), StreamOutput),
        (SyslogSettings(name="s", transport="relp"), RelpOutput),
    ],
)
def test_the_transport_chooses_the_output(settings, cls):
    assert type(make_output(settings, {})) is cls


def test_every_type_has_a_name_and_those_with_a_choice_a_default_format():
    assert [type_of(cls(name="x")) for cls in OUTPUT_TYPES.values()] == list(OUTPUT_TYPES)
    assert set(OUTPUT_TYPES) - set(DEFAULT_FORMATS) == {"telegram", "slack", "email"}
    assert format_of(FileSettings(name="f")) == "ecs"
    assert format_of(FileSettings(name="f", format="cef")) == "cef"
