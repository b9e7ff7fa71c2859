"""Every Sigma modifier, from the line in the file to the engine's answer; wrong ones are told with their place."""

import json
import re
from base64 import b64encode
from datetime import datetime, timezone
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.correlate.codegen import TIME_PARTS, make_handler
from kwsiem.correlate.engine import Engine
from kwsiem.correlate.incident import Incidents
from kwsiem.correlate.kinds import make_window
from kwsiem.errors import RuleFileError
from kwsiem.event import EventKind, event_class, event_from_fields, parse_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import (
    And,
    Constant,
    Correlation,
    FieldRef,
    Not,
    Or,
    Regex,
    Rule,
    Text,
    TimePart,
    decode_ruleset,
    describe,
)
from kwsiem.rules.source import Source
from kwsiem.rules.values import BASE64, COMPARISONS, FLAGS, MODIFIERS, PARTS, WIDE

FIELDS = (
    "process.command_line:str process.parent.command_line:str file.content:bytes user.name:str"
    " process.pid:u32 process.parent.pid:u32 event.count:u64 event.delta:i64"
    " source.address:str destination.address:str client.ip:ip process.privileged:bool host.virtual:bool"
)
KIND = EventKind("t.e", parse_fields(FIELDS))
OTHER = EventKind("t.o", parse_fields("process.command_line:str user.name:str user.id:u32"))
KINDS = {"t.e": KIND, "t.o": OTHER}
EVENT = event_class(KIND, 1)
HEAD = """version: 1
lists: {none: [], some: [whoami, id]}
rules:
  - id: r
    title: T
    level: low
    event: %s
    detection:
      sel:
        %s
      condition: %s
"""
#: Where the key of the one line under test stands.
LINE, COLUMN = 10, 9


def rule_file(key: str, value, *, condition: str = "sel", event: str = "t.e") -> str:
    return HEAD % (event, f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}", condition)


def load(text: str):
    ruleset = load_rules([Source("rules.yaml", text.encode())], KINDS)
    assert decode_ruleset(ruleset.encode()) == ruleset  # what is loaded can also be handed over
    assert describe(ruleset.rules[0].predicate)
    return ruleset


def predicate(key: str, value):
    return load(rule_file(key, value)).rules[0].predicate


def fires(text: str, ts_ns: int = 1, **fields) -> bool:
    """Whether the file's rule matches an event with these fields (``__`` for the dots)."""
    alerts = []
    engine = Engine(alerts.append, host="h")
    engine.set_rules(load(text))
    engine.bind(EVENT)
    named = {name.replace("__", "."): given for name, given in fields.items()}
    engine.process([event_from_fields(EVENT, KIND, named, ts_ns)])
    assert not engine.counters()["errors"], engine.counters()["last_error"]
    return len(alerts) == 1


def matches(key: str, value, *, condition: str = "sel", ts_ns: int = 1, **fields) -> bool:
    return fires(rule_file(key, value, condition=condition), ts_ns, **fields)


def line_matches(key: str, value, text: str, **more) -> bool:
    return matches(f"process.command_line{key}", value, process__command_line=text, **more)


def problem(key: str, value, **how) -> str:
    with pytest.raises(RuleFileError) as error:
        load(rule_file(key, value, **how))
    (only,) = error.value.problems
    return str(only)


def problems(text: str) -> list[str]:
    try:
        load(text)
    except RuleFileError as error:
        return [str(problem) for problem in error.problems]
    return []


def literal(text: str) -> str:
    """A text as it is written so that none of it is a wildcard."""
    return re.sub(r"([\\*?])", r"\\\1", text)


# -- text: dashes, encodings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "text", "expected"),
    [
        ("|windash", "cmd -enc", "cmd /enc", True),
        ("|windash", "cmd -enc", "cmd \u2013ENC", True),
        (
            "|windash",
            "cmd \u2013enc",
            "cmd -enc",
            True,
        ),  # a Unicode dash in the rule stands for the others too
        ("|windash", "cmd -enc", "cmd +enc", False),
        ("|windash", "cmd -enc", "cmd -enc x", False),
        ("|windash", "a-b", "a/b", False),  # no option: the dash is in a word
        ("|windash", "-a-b /c", "/a-b ―c", True),
        ("|windash", "cmd", "cmd", True),
        ("|windash", "* -e?c*", "cmd —enc x", True),
        ("|windash|contains", " -e ", "x /e y", True),
        ("|contains|windash", " -e ", "x /e y", True),
        ("|contains|windash|cased", " -e ", "x /E y", False),
        ("|windash|contains|all", [" -a ", " -b "], "x /a /b y", True),
        ("|windash|contains|all", [" -a ", " -b "], "x /a y", False),
        ("|windash|startswith", "-a", "/ab", True),
        ("|windash|endswith", "-a", "b /a", True),
        ("|windash|base64", "-a", b64encode(b"/a").decode(), True),
        ("|base64", "whoami", "d2hvYW1p", True),
        ("|base64", "whoami", "echo d2hvYW1p", False),
        ("|base64|contains", "whoami", "echo d2hvYW1p | base64 -d", True),
        ("|base64|contains|cased", "whoami", "echo D2HVYW1P", False),
        ("|base64|contains", ["nothing", "whoami"], "echo d2hvYW1p", True),
        ("|base64|startswith", "who", "d2hvYW1p", True),
        ("|base64|endswith", "ami", "d2hvYW1p", True),
        ("|base64", "é*".replace("*", "\\*"), b64encode("é*".encode()).decode(), True),
        ("|base64offset|contains", "foobar", "xxZm9vYmFyxx", True),
        ("|base64offset|contains", "foobar", "xxZvb2Jhcxx", True),
        ("|base64offset|contains", "foobar", "xxmb29iYXxx", True),
        ("|base64offset|contains", "foobar", "foobar", False),
        ("|base64offset|contains|expand", "%some%", b64encode(b"run whoami").decode(), True),
        ("|wide|base64", "cmd", b64encode(b"c\0m\0d\0").decode(), True),
        ("|utf16le|base64", "cmd", b64encode(b"c\0m\0d\0").decode(), True),
        ("|utf16be|base64", "cmd", b64encode(b"\0c\0m\0d").decode(), True),
        ("|utf16|base64", "cmd", b64encode(b"\xff\xfec\0m\0d\0").decode(), True),
        ("|utf16|base64", "cmd", b64encode(b"c\0m\0d\0").decode(), False),
        ("|wide|base64|contains", "cmdé", "x" + b64encode("cmdé".encode("utf-16-le")).decode(), True),
        ("|windash|wide|base64offset|contains", "-a", b64encode(b"1\0/\0a\0" * 2).decode(), True),
    ],
)
def test_text_that_is_changed_before_it_is_compared(key, value, text, expected):
    assert line_matches(key, value, text) is expected
    assert line_matches(key, value, text, condition="not sel") is not expected


ENCODINGS = {"": "utf-8", "wide|": "utf-16-le", "utf16le|": "utf-16-le", "utf16be|": "utf-16-be"}
#: What may stand in a YAML file as it is.
PLAIN = st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\ufeff\u2028\u2029")


@given(
    st.text(PLAIN, min_size=1, max_size=12),
    st.binary(max_size=9),
    st.binary(max_size=9),
    st.sampled_from(sorted(ENCODINGS)),
)
def test_an_encoded_text_is_found_at_any_offset(text, before, after, wide):
    """The property that base64offset is for: whatever stands before and after, the encoded text matches."""
    coded = b64encode(before + text.encode(ENCODINGS[wide]) + after).decode()
    assert line_matches(f"|{wide}base64offset|contains|cased", literal(text), coded)


@given(st.text(PLAIN, min_size=1, max_size=12), st.sampled_from(sorted(ENCODINGS)))
def test_an_encoded_text_is_equal_to_itself_alone(text, wide):
    coded = b64encode(text.encode(ENCODINGS[wide])).decode()
    assert line_matches(f"|{wide}base64|cased", literal(text), coded)
    assert not line_matches(f"|{wide}base64|cased", literal(text), coded + "A")


DASHES = "-/\u2013\u2014\u2015"
OPTIONS = st.lists(
    st.tuples(
        st.sampled_from(DASHES), st.sampled_from(DASHES), st.from_regex(r"[a-z0-9]{1,4}", fullmatch=True)
    ),
    max_size=3,
)


@given(OPTIONS, st.booleans())
def test_dashes_before_options_stand_for_each_other_and_nothing_else_does(options, other_word):
    value = "cmd " + " ".join(one + word for one, _, word in options)
    text = "cmd " + " ".join(other + word for _, other, word in options) + ("x" if other_word else "")
    assert line_matches("|windash", value, text) is not other_word


# -- regular expressions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "text", "expected"),
    [
        ("|re", "^who", "whoami", True),
        ("|re", "^who", "WHOAMI", False),
        ("|re|i", "^who", "WHOAMI", True),
        ("|re|ignorecase", "^who", "WHOAMI", True),
        ("|re", "^b", "a\nb", False),
        ("|re|m", "^b", "a\nb", True),
        ("|re|multiline", "^b", "a\nb", True),
        ("|re", "a.b", "a\nb", False),
        ("|re|s", "a.b", "a\nb", True),
        ("|re|dotall", "a.b", "a\nb", True),
        ("|re|i|m|s", "^B.c", "a\nb\nC", True),
        ("|re|i", "x|who", "WHO", True),  # the flag is for every alternative
        ("|re|i|all", ["WHO", "AMI"], "whoami", True),
        ("|re|i|expand", "%some%", "WHOAMI", True),
        ("|re", r"C:\\x\*", r"C:\x*", True),  # nothing in it is Sigma's
        ("|re", r"\pN", "5", True),  # re2's syntax, not Python's
    ],
)
def test_regular_expressions(key, value, text, expected):
    assert line_matches(key, value, text) is expected
    assert line_matches(key, value, text, condition="not sel") is not expected


PATTERNS = st.lists(
    st.sampled_from(["a", "b", ".", "^", "$", r"\n", "[ab]", "(?:a|b)", "A", "|", "é"]), min_size=1, max_size=4
).map("".join)  # fmt: skip


@given(PATTERNS, st.text("abAB\né", max_size=5), st.sets(st.sampled_from("ims")))
def test_flags_mean_what_they_mean_in_python(pattern, text, flags):
    # Python alone lets $ stand before a last newline.
    known = pattern if "m" in flags else pattern.replace("$", r"\Z")
    expected = re.search(known, text, sum(getattr(re, flag.upper()) for flag in flags)) is not None
    key = "|".join(["|re", *sorted(flags)])
    assert line_matches(key, pattern, text) is expected


# -- neq ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "fields", "expected"),
    [
        ("user.name|neq", "root", {"user__name": "Root"}, False),
        ("user.name|neq", "root", {"user__name": "eve"}, True),
        ("user.name|neq", "root", {}, True),
        ("user.name|neq", ["root", "adm*"], {"user__name": "admin"}, False),
        ("user.name|neq", ["root", "adm*"], {"user__name": "eve"}, True),
        ("user.name|neq|all", ["*a*", "*b*"], {"user__name": "ab"}, False),
        ("user.name|neq|all", ["*a*", "*b*"], {"user__name": "a"}, True),
        ("user.name|neq", None, {"user__name": "a"}, True),
        ("user.name|neq", None, {}, False),
        ("user.name|neq|expand", "%none%", {}, True),
        ("user.name|expand", "%none%", {}, False),
        ("user.name|contains|neq", "oo", {"user__name": "root"}, False),
        ("user.name|cased|neq", "root", {"user__name": "Root"}, True),
        ("user.name|re|i|neq", "^R", {"user__name": "root"}, False),
        ("process.pid|neq", [1, 2], {"process__pid": 2}, False),
        ("process.pid|neq", [1, 2], {"process__pid": 3}, True),
        ("process.privileged|neq", True, {"process__privileged": False}, True),
        ("client.ip|neq", "192.0.2.1", {"client__ip": "192.0.2.2"}, True),
        ("client.ip|neq", "192.0.2.1", {"client__ip": "192.0.2.1"}, False),
        ("client.ip|cidr|neq", "192.0.2.0/24", {"client__ip": "198.51.100.1"}, True),
    ],
)
def test_neq(key, value, fields, expected):
    assert matches(key, value, **fields) is expected
    assert matches(key, value, condition="not sel", **fields) is not expected


@pytest.mark.parametrize("key", ["source.ip|neq", "source.ip|cidr|neq", "source.ip|fieldref|neq"])
def test_an_unknown_address_is_neither_equal_nor_different(key):
    value = "destination.ip" if "fieldref" in key else "192.0.2.0" + ("/24" if "cidr" in key else "")
    fields = {"source__address": "a.example", "destination__address": "192.0.2.0"}
    assert not matches(key, value, **fields)
    assert not matches(key, value, condition="not sel", **fields)


# -- numbers and addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2**53, 2**53 + 1, 2**63, 2**64 - 1])
def test_large_numbers_are_exact(number):
    for near in {number - 1, number, min(number + 1, 2**64 - 1)}:
        fields = {"event__count": near}
        assert matches("event.count", number, **fields) is (near == number)
        assert matches("event.count", [7, number], **fields) is (near == number)
        assert matches("event.count|neq", number, **fields) is (near != number)
        assert matches("event.count|gt", number, **fields) is (near > number)
        assert matches("event.count|gte", number, **fields) is (near >= number)
        assert matches("event.count|lt", number, **fields) is (near < number)
        assert matches("event.count|lte", number, **fields) is (near <= number)
    assert matches("event.delta|gt", -(2**63), event__delta=-(2**63) + 1)


def test_an_address_is_compared_as_an_address_however_it_is_written():
    assert matches("source.ip", "2001:DB8:0:0:0:0:0:1", source__address="2001:db8::1")
    assert matches("source.ip", "::ffff:192.0.2.1", source__address="192.0.2.1")


# -- fieldref ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "fields", "expected"),
    [
        ("process.pid|fieldref", "process.parent.pid", {"process__pid": 7, "process__parent__pid": 7}, True),
        ("process.pid|fieldref", "process.parent.pid", {"process__pid": 7, "process__parent__pid": 8}, False),
        ("event.count|fieldref", "process.pid", {"process__pid": 7, "event__count": 7}, True),
        ("process.privileged|fieldref", "host.virtual", {"process__privileged": True}, False),
        ("process.privileged|fieldref", "host.virtual", {}, True),
        ("user.name|fieldref", "source.address", {"user__name": "A", "source__address": "a"}, True),
        ("user.name|fieldref|cased", "source.address", {"user__name": "A", "source__address": "a"}, False),
        ("user.name|fieldref|cased", "source.address", {"user__name": "A", "source__address": "A"}, True),
        ("user.name|fieldref|contains", "source.address", {"user__name": "xAy", "source__address": "a"}, True),
        ("user.name|contains|fieldref", "source.address", {"user__name": "xAy", "source__address": "a"}, True),
        ("user.name|fieldref|contains|cased", "source.address", {"user__name": "xAy", "source__address": "a"}, False),
        ("user.name|fieldref|startswith", "source.address", {"user__name": "ay", "source__address": "A"}, True),
        ("user.name|fieldref|startswith", "source.address", {"user__name": "xa", "source__address": "A"}, False),
        ("user.name|fieldref|endswith", "source.address", {"user__name": "xa", "source__address": "A"}, True),
        ("user.name|fieldref|endswith", "source.address", {"user__name": "ay", "source__address": "A"}, False),
        ("user.name|fieldref|endswith", "file.content", {"user__name": "xa", "file__content": "a"}, True),
        # Nothing is not a part of everything.
        ("user.name|fieldref|contains", "source.address", {"user__name": "a"}, False),
        ("user.name|fieldref|startswith", "source.address", {"user__name": "a"}, False),
        ("user.name|fieldref", "source.address", {}, True),
        ("user.name|fieldref", ["file.content", "source.address"], {"user__name": "a", "source__address": "a"}, True),
        ("user.name|fieldref|all", ["file.content", "source.address"], {"user__name": "a", "source__address": "a"}, False),
        ("user.name|fieldref|neq", "source.address", {"user__name": "a", "source__address": "b"}, True),
        ("source.ip|fieldref", "destination.ip", {"source__address": "192.0.2.1", "destination__address": "::ffff:192.0.2.1"}, True),
        ("source.ip|fieldref", "destination.ip", {"source__address": "192.0.2.1", "destination__address": "192.0.2.2"}, False),
        ("client.ip|fieldref", "source.ip", {"source__address": "192.0.2.1", "client__ip": "192.0.2.1"}, True),
    ],
)  # fmt: skip
def test_fieldref(key, value, fields, expected):
    assert matches(key, value, **fields) is expected
    assert matches(key, value, condition="not sel", **fields) is not expected


ADDRESSES = st.sampled_from(["", "a.example", "192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1"])


@given(ADDRESSES, ADDRESSES, st.booleans())
def test_an_address_against_an_unknown_one_is_neither_true_nor_false(one, other, known_port):
    """Unknown in an Or with what is true is true, in an And with what is false is false."""
    known = [re.sub("^::ffff:", "", text) for text in (one, other)]
    unknown = any(text in ("", "a.example") for text in known)
    same = None if unknown else known[0] == known[1]
    fields = {"source__address": one, "destination__address": other, "process__pid": int(known_port)}
    for condition, expected in (
        ("sel", same is True),
        ("not sel", same is False),
        ("not not sel", same is True),
        ("sel or port", known_port or same is True),
        ("not (sel or port)", not known_port and same is False),
        ("not (sel and port)", not known_port or same is False),
    ):
        text = rule_file("source.ip|fieldref", "destination.ip", condition=condition)
        text = text.replace("      condition", "      port: {process.pid|gt: 0}\n      condition")
        assert fires(text, **fields) is expected, condition


def test_the_model_holds_what_was_read():
    assert predicate("user.name|fieldref|endswith|cased", "source.address") == FieldRef(
        "user.name", "endswith", "source.address", cased=True
    )
    assert predicate("@timestamp|hour", [22, 23]) == TimePart("hour", (22, 23))
    assert predicate("@timestamp|hour|gte", 22) == TimePart("hour", (22, 23))
    assert predicate("user.name|re|s|i", "a.b") == Regex("user.name", "(?is)a.b")
    assert predicate("user.name|neq", ["a", "b"]) == Not(Text("user.name", "equals", ("a", "b")))
    assert predicate("user.name|all", ["a", "b"]) == And(
        (Text("user.name", "equals", ("a",)), Text("user.name", "equals", ("b",)))
    )
    assert predicate("user.name", ["a*", "a", "b*"]) == Or(
        (Text("user.name", "startswith", ("a", "b")), Text("user.name", "equals", ("a",)))
    )
    assert predicate("user.name|neq|expand", "%none%") == Not(Constant(value=False))


# -- time --------------------------------------------------------------------------------------------


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("key", "value", "when", "expected"),
    [
        ("minute", 5, "2026-01-02T03:05:59", True),
        ("minute", 5, "2026-01-02T03:06:00", False),
        ("hour", [3, 4], "2026-01-02T03:59:59", True),
        ("hour", [3, 4], "2026-01-02T05:00:00", False),
        ("hour|gte", 22, "2026-01-02T22:00:00", True),
        ("hour|gt", 22, "2026-01-02T22:59:59", False),
        ("hour|lt", 6, "2026-01-02T05:59:59", True),
        ("hour|lt", 6, "2026-01-02T06:00:00", False),
        ("hour|lte", 6, "2026-01-02T06:00:00", True),
        ("hour|lte", 6, "2026-01-02T07:00:00", False),
        ("hour|neq", 3, "2026-01-02T03:00:00", False),
        ("day", 31, "2026-01-31T00:00:00", True),
        ("week", 53, "2027-01-03T00:00:00", True),  # ISO 8601: the week of the year before
        ("week", 1, "2027-01-03T00:00:00", False),
        ("month", 2, "2024-02-29T23:59:59", True),
        ("year", 2026, "2026-12-31T23:59:59", True),
        ("year|gte", 2027, "2026-12-31T23:59:59", False),
    ],
)
def test_parts_of_the_time(key, value, when, expected):
    assert matches(f"@timestamp|{key}", value, ts_ns=at(when) + 999_999_999) is expected
    assert matches(f"@timestamp|{key}", value, ts_ns=at(when), condition="not sel") is not expected


def test_different_parts_of_the_time_stay_apart():
    text = rule_file("@timestamp|hour", 3, condition="1 of s*").replace(
        "      condition", "      second: {'@timestamp|minute': 4}\n      condition"
    )
    assert [fires(text, at(f"2026-01-02T{when}:00")) for when in ("03:00", "00:04", "04:03")] == [
        True,
        True,
        False,
    ]


@given(st.integers(0, 2**64 - 1), st.sampled_from(TIME_PARTS))
def test_the_parts_of_any_time_are_those_of_the_calendar(ts_ns, part):
    when = datetime.fromtimestamp(ts_ns // 10**9, timezone.utc)
    value = when.isocalendar()[1] if part == "week" else getattr(when, part)
    assert matches(f"@timestamp|{part}", value, ts_ns=ts_ns)
    assert not matches(f"@timestamp|{part}|neq", value, ts_ns=ts_ns)


def timed_handler(test: TimePart, offset, alerts: list):
    rule = Rule(
        id="r", title="t", level="low", events=("t.e",), predicate=test, correlation=Correlation(),
        suppress_ns=0, fingerprint="f",
    )  # fmt: skip
    return make_handler(EVENT, [make_window(rule, Incidents(rule, alerts.append))], offset=offset).one


def test_the_time_is_the_wall_clock_as_it_is_set_now():
    """Kernel time begins with the boot; the offset to wall time is asked for with each event."""
    now, alerts = {"offset_ns": at("2026-01-02T03:00:00")}, []
    handler = timed_handler(TimePart("hour", (3,)), lambda: now["offset_ns"], alerts)
    event = event_from_fields(EVENT, KIND, {}, 59 * 60 * 10**9)
    handler(event)
    assert len(alerts) == 1
    now["offset_ns"] += 60 * 10**9
    handler(event)
    assert len(alerts) == 1


@pytest.mark.parametrize("ts_ns", [-(2**70), 2**80])
def test_a_time_that_no_calendar_has_is_no_failure(ts_ns):
    alerts = []
    timed_handler(TimePart("year", (1970, 9999)), lambda: 0, alerts)(
        event_from_fields(EVENT, KIND, {}, ts_ns)
    )
    assert len(alerts) == 1


# -- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("process.pid|base64", 5, "process.pid is a number (u32), 'base64' does not apply"),
        ("process.pid|windash", 5, "process.pid is a number (u32), 'windash' does not apply"),
        ("process.pid|re|i", "5", "process.pid is a number (u32), 're' does not apply"),
        ("process.pid|fieldref|contains", "event.count", "is a number (u32), 'contains' does not apply"),
        ("process.privileged|gt", 1, "process.privileged is true or false, 'gt' does not apply"),
        ("process.privileged|neq", 1, "process.privileged is true or false, got 1"),
        ("source.ip|base64", "x", "source.ip is an address, use 'cidr' instead of 'base64'"),
        ("source.ip|cidr", "fe80::%1/64", "a network has no zone"),
        ("source.ip|cidr", "192.0.2.1/24", "not a network: 192.0.2.1/24 has host bits set"),
        ("source.ip|cased", "192.0.2.1", "source.ip is an address, use 'cidr' instead of 'cased'"),
        ("user.name|gt", 5, "user.name is text, 'gt' does not apply"),
        ("user.name|cidr", "192.0.2.0/24", "user.name is text, 'cidr' does not apply"),
        ("user.name|windash", 5, "user.name is text, quote the value, got 5"),
        ("user.name|base64", True, "user.name is text, quote the value, got True"),
        ("user.name|base64", None, "null goes with no modifier, got it with 'base64'"),
        ("user.name|windash|neq", None, "null goes with no modifier, got it with 'windash'"),
        ("user.name|base64", "", "an empty value with 'base64' matches everything"),
        ("user.name|base64", "a*", "a value with wildcards cannot be encoded"),
        ("user.name|base64offset|contains", "a?", "a value with wildcards cannot be encoded"),
        ("user.name|base64offset", "a", "'base64offset' finds a part of a text and needs 'contains' after it"),
        ("user.name|wide", "a", "modifier 'wide' needs 'base64' or 'base64offset' after it"),
        ("user.name|utf16|contains", "a", "modifier 'utf16' needs 'base64' or 'base64offset' after it"),
        ("user.name|base64|wide", "a", "modifier 'wide' must stand before 'base64'"),
        ("user.name|contains|base64offset", "a", "modifier 'base64offset' must stand before 'contains'"),
        ("user.name|base64|windash", "a", "modifier 'windash' must stand before 'base64'"),
        ("user.name|i|re", "a", "modifier 're' must stand before 'i'"),
        ("user.name|i", "a", "modifier 'i' needs 're' before it"),
        ("user.name|re|i|ignorecase", "a", "modifiers 'i' and 'ignorecase' say the same"),
        ("user.name|re|re", "a", "modifier 're' stands twice"),
        ("user.name|re|contains", "a", "modifiers 're' and 'contains' exclude each other"),
        ("user.name|re|windash", "a", "modifiers 're' and 'windash' exclude each other"),
        ("user.name|base64|base64offset", "a", "modifiers 'base64' and 'base64offset' exclude each other"),
        ("user.name|wide|utf16be|base64", "a", "modifiers 'wide' and 'utf16be' exclude each other"),
        ("user.name|fieldref|windash", "a", "modifiers 'fieldref' and 'windash' exclude each other"),
        ("process.pid|gt|neq", 5, "modifiers 'gt' and 'neq' exclude each other"),
        ("process.pid|gt|fieldref", "event.count", "modifiers 'gt' and 'fieldref' exclude each other"),
        ("user.name|exists|neq", True, "modifiers 'exists' and 'neq' exclude each other"),
        ("@timestamp|hour|day", 5, "modifiers 'hour' and 'day' exclude each other"),
        ("user.name|bas64", "a", "unknown modifier 'bas64', did you mean 'base64'?"),
        ("user.name|re|i", "(", "not a regular expression that runs in linear time"),
        ("user.name|windash", "-a -b -c -d", "'windash' stands for at most 3 options in one value, got 4"),
        ("user.name|wide|base64", "a" * 2000, "at most 4096 characters, as a pattern or encoded it has 5336"),
        ("user.name|re|i", "a" * 4096, "at most 4096 characters, as a pattern or encoded it has 4100"),
        ("user.name", "*é?" * 1300, "at most 4096 characters, as a pattern"),
        ("process.pid|fieldref", 5, "'fieldref' needs the name of a field, got 5"),
        ("process.pid|fieldref", None, "'fieldref' needs the name of a field, got None"),
        ("process.pid|fieldref", "process.pid", "'fieldref' compares process.pid with itself"),
        ("process.pid|fieldref", "process.parent.pit", "has no field 'process.parent.pit', did you mean 'process.parent.pid'?"),
        ("process.pid|fieldref", "user.name", "process.pid is a number (u32), user.name is text"),
        ("source.address|fieldref", "source.ip", "source.address is text, source.ip is an address"),
        ("@timestamp|hour", 24, "'hour' is 0 to 23, got 24"),
        ("@timestamp|hour", "3", "'hour' is 0 to 23, got '3'"),
        ("@timestamp|hour", True, "'hour' is 0 to 23, got True"),
        ("@timestamp|minute", 60, "'minute' is 0 to 59, got 60"),
        ("@timestamp|day", 0, "'day' is 1 to 31, got 0"),
        ("@timestamp|week", 54, "'week' is 1 to 53, got 54"),
        ("@timestamp|month", 13, "'month' is 1 to 12, got 13"),
        ("@timestamp|year", 26, "'year' is 1970 to 2554, got 26"),
        ("@timestamp|hour|gt", 23, "'hour' is 0 to 23, none is gt 23"),
        ("@timestamp|gte|hour", 3, "modifier 'hour' must stand before 'gte'"),
        ("@timestamp", 3, "@timestamp needs one of the modifiers minute, hour, day, week, month, year"),
        ("@timestamp|exists", True, "@timestamp needs one of the modifiers"),
        ("user.name|hour", 3, "modifier 'hour' is for @timestamp only, got 'user.name'"),
        ("event.count", 2**64, "event.count (u64) is 0 to 18446744073709551615, never 18446744073709551616"),
        ("event.count|gt", 2**64, "event.count (u64) is 0 to 18446744073709551615, got 18446744073709551616"),
        ("process.pid|neq", -1, "process.pid (u32) is 0 to 4294967295, never -1"),
        ("event.count|gt", 1.5, "event.count is a number (u64), got 1.5"),
        ("user.name|exists", 1, "'exists' is true or false, got 1"),
        ("|contains", "a", "keywords take no modifier but 'all' and 'expand'"),
        ("|all", [5, "a"], "a keyword is text, quote it, got 5"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_place(key, value, says):
    told = problem(key, value)
    # A value in a list has its own place; else the key's is told, as everywhere in the file.
    column = COLUMN + len(key) + len("'': [") if isinstance(value, list) else COLUMN
    assert told.startswith(f"rules.yaml:{LINE}:{column}: rule r: detection.sel.")
    assert says in told


def test_of_several_values_the_wrong_one_is_pointed_at():
    for key, right, wrong in (
        ("@timestamp|hour", 3, 24),
        ("process.pid|fieldref", "event.count", "user.name"),
    ):
        column = COLUMN + len(f'"{key}": [{json.dumps(right)}, ')
        assert problem(key, [right, wrong]).startswith(f"rules.yaml:{LINE}:{column}: ")


def test_every_kind_of_the_rule_must_have_the_field_that_is_referred_to():
    told = problem("user.name|fieldref", "source.address", event="[t.e, t.o]")
    assert "event kind t.o has no field 'source.address'" in told
    assert load(rule_file("user.name|fieldref", "process.command_line", event="[t.e, t.o]"))


def a_value(modifiers) -> object:
    if "exists" in modifiers:
        return True
    if "fieldref" in modifiers:
        return "process.parent.command_line"
    if set(TIME_PARTS) & set(modifiers):
        return 3
    return 5 if COMPARISONS & set(modifiers) else "%some%" if "expand" in modifiers else "192.0.2.0/24"


@pytest.mark.parametrize(
    "modifiers", [*combinations(sorted(MODIFIERS), 2), *((m,) for m in sorted(MODIFIERS))], ids="|".join
)
def test_any_two_modifiers_work_or_are_refused(modifiers):
    """No combination raises anything but the file's problems, in either order and on any field."""
    for order in (modifiers, modifiers[::-1]):
        for field in ("process.command_line", "process.pid", "source.ip", "process.privileged", "@timestamp"):
            text = rule_file("|".join([field, *order]), a_value(order))
            told = problems(text)
            assert all(line.startswith(f"rules.yaml:{LINE}:") for line in told)
            if not told:
                fires(text)  # what is loaded also runs


def test_the_tables_name_the_modifiers_of_the_specification():
    assert PARTS | COMPARISONS | BASE64 | WIDE.keys() | FLAGS.keys() | set(TIME_PARTS) | {
        "all", "cased", "cidr", "exists", "expand", "fieldref", "neq", "re", "windash",
    } == MODIFIERS  # fmt: skip
