"""Rule files from anybody who can write them: each is refused in a sentence, soon, or does no harm."""

import json
import os
import socket
import time
import tracemalloc
from pathlib import Path

import pytest

from kwsiem.cli import main
from kwsiem.correlate.engine import Engine
from kwsiem.errors import ConfigError, RuleFileError
from kwsiem.event import EventKind, event_class, event_from_fields, parse_fields
from kwsiem.rules.files import MAX_FILE_BYTES, read_rule_file
from kwsiem.rules.load import load_rules
from kwsiem.rules.report import MAX_MESSAGE
from kwsiem.rules.source import Source
from kwsiem.yamltree import MAX_PROBLEMS

KIND = EventKind(
    "auth.attempt", parse_fields("user.name:str source.address:str source.port:port process.pid:u64")
)
KINDS = {KIND.name: KIND}
RULE = """version: 1
rules:
  - id: r
    title: T
    level: low
    event: auth.attempt
    detection:
      a: {user.name: root}
      condition: a
"""
#: What any of these files may take; the slowest takes a quarter, and nothing may take minutes.
PATIENCE_S = 10.0


def load(text):
    data = text if isinstance(text, bytes) else text.encode()
    begun = time.monotonic()
    try:
        return load_rules([Source("r.yaml", data)], KINDS)
    finally:
        assert time.monotonic() - begun < PATIENCE_S


def problems(text):
    with pytest.raises(RuleFileError) as error:
        load(text)
    found = [str(problem) for problem in error.value.problems]
    assert 0 < len(found) <= MAX_PROBLEMS
    assert all(len(problem) < MAX_MESSAGE + 300 for problem in found)
    return found


def with_test(test):
    """The rule with another line in its selection."""
    return RULE.replace("{user.name: root}", "{" + test + "}")


# -- form --------------------------------------------------------------------------------------------


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor():
    bomb = "a: &a [x, x]\n" + "".join(
        f"k{n}: &k{n} [*{'a' if not n else f'k{n - 1}'}, *a]\n" for n in range(60)
    )
    assert problems(bomb) == ["r.yaml:1:4: anchors and aliases (& and *) are not allowed here"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{user.name: root}", "*elsewhere", "r.yaml:8:10: anchors and aliases"),
        ("    title: T", "    title: &t T", "r.yaml:4:12: anchors and aliases"),
        ("    title: T", "    <<: *base\n    title: T", "anchors and aliases"),
        ("    title: T", "    title: !!python/object/apply:os.system [id]", "tags are not allowed here"),
        ("    title: T", "    title: !!binary aGk=", "tags are not allowed here"),
        ("    title: T", "    ? [a, b]\n    : c", "the name of a key is text"),
        ("    title: T", "    title:\tT\n\tlevel: low", "a tab cannot indent YAML"),
        ("    title: T", "    title: 'T", "not valid YAML"),
        ("    title: T", "    title: T\n   level: low", "not valid YAML"),
        ("user.name: root", "user.name: root, user.name: toor", "r.yaml:8:28: key 'user.name' stands twice, first in line 8"),
        ("version: 1\n", "version: 1\nversion: 1\n", "r.yaml:2:1: key 'version' stands twice"),
        ("      condition: a\n", "      condition: a\n      condition: not a\n", "'condition' stands twice"),
        ("rules:\n", "rules:\n  - " + "[" * 30 + "]" * 30 + "\n", "nested deeper than 24 levels"),
        ("{user.name: root}", "{user.name: " + "[" * 30 + "]" * 30 + "}", "nested deeper than 24 levels"),
        ("condition: a", "condition: a\n---\nversion: 1\nrules: []", "one document a file"),
        ("version: 1\n", "version: 1\n...\n---\n", "r.yaml"),
    ],
)  # fmt: skip
def test_what_yaml_may_do_and_rules_may_not(old, new, says):
    assert old in RULE
    found = problems(RULE.replace(old, new, 1))
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# a\n# b\n", "---\n", "---\n# a\n---\n", "\ufeff", "null\n", "~"]
)
def test_nothing_in_the_file(text):
    assert problems(text)


@pytest.mark.parametrize(
    "data",
    [
        RULE.encode().replace(b"title: T", b"title: \xff\xfe"),
        RULE.encode().replace(b"title: T", b"title: \xed\xa0\x80"),  # a lone surrogate
        RULE.encode().replace(b"title: T", b"title: \xc0\xaf"),  # an overlong slash
        RULE.encode().replace(b"title: T", b"title: T\0"),
        RULE.encode().replace(b"title: T", b"title: \x1b[2J"),
        RULE.encode() + b"\xf0\x9f",  # cut in a character
        b"\xff\xfe" + RULE.encode(),
        b"\x7fELF\x02\x01\x01" + bytes(100),
        b"\x1f\x8b\x08\x00" + os.urandom(100),
    ],
)
def test_bytes_that_are_no_text(data):
    assert problems(data)[0].startswith("r.yaml")


def test_a_byte_order_mark_and_dos_lines_are_no_harm():
    plain = load(RULE).rules
    assert load("\ufeff" + RULE).rules == plain
    assert load(RULE.replace("\n", "\r\n")).rules == plain
    assert load(("\ufeff" + RULE).encode("utf-16-le")).rules == plain


@pytest.mark.parametrize(
    "data",
    [
        b"#" * (MAX_FILE_BYTES - 1),
        b"\n" * MAX_FILE_BYTES,
        b"\0" * MAX_FILE_BYTES,
        b"[" * MAX_FILE_BYTES,
        b"- " * (MAX_FILE_BYTES // 2),
        b"---\n" * (MAX_FILE_BYTES // 4),
        b"a: 1\n" * (MAX_FILE_BYTES // 5),  # the same key again and again
        b"version: 1\nrules: '" + b"x" * (MAX_FILE_BYTES - 100) + b"'\n",
        b"version: 1\nrules: [" + b"1," * 400_000 + b"]",
        b"version: 1\nrules: [" + b"1," * 600_000 + b"]",
        b"version: 1\nrules:\n  - id: x\n" + b"".join(b"    falseposi%d: 1\n" % n for n in range(200_000)),
        RULE.encode() + b"    tags: [" + b",".join(b"A%d" % n for n in range(200_000)) + b"]\n",
        RULE.encode() + b"    ? '" + b"k" * 10**6 + b"'\n    : 1\n",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_the_largest_files_are_refused_soon_and_in_few_words(data):
    assert problems(data)


# -- the file itself ---------------------------------------------------------------------------------


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_file_of_a_hundred_megabytes_is_not_read_to_its_end(tmp_path):
    path = sparse(tmp_path / "big.yaml", 100 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="has more than 16777216 bytes"):
            read_rule_file(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_FILE_BYTES
    finally:
        tracemalloc.stop()


def fifo(path):
    os.mkfifo(path)


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: sparse(path, 100 * 2**20), "has more than 16777216 bytes"),
        (lambda path: sparse(path, 2**40), "has more than 16777216 bytes"),
        (fifo, "is not a regular file"),
        (bound_socket, "cannot be read"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/tty0"), ""),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("/no/such/file"), "cannot be read"),
        (lambda path: None, "cannot be read"),
    ],
    ids=["100 MB", "1 TB", "fifo", "socket", "folder", "zero", "tty", "loop", "dangling", "none"],
)
@pytest.mark.parametrize("command", [("check", "--no-probes", "--rules"), ("rules", "test")])
def test_what_stands_in_place_of_the_file(make, says, command, tmp_path, capsys):
    path = tmp_path / "rules.yaml"
    make(path)
    begun = time.monotonic()
    assert main([*command, str(path)]) == 78
    assert time.monotonic() - begun < PATIENCE_S
    out, err = capsys.readouterr()
    assert f"{path}: {says}" in out + err


# -- regular expressions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(a|aa)+$", "([a-z]+)*$", "(.*a){20}$", "^(([a-z])+.)+[A-Z]([a-z])+$"]
)
def test_an_expression_that_never_ends_in_other_engines_takes_linear_time(pattern):
    ruleset = load(with_test(f"user.name|re: '^{pattern}'"))
    cls = event_class(KIND, 0)
    engine = Engine(lambda alert: None, host="h")
    engine.set_rules(ruleset)
    engine.bind(cls)
    events = [
        event_from_fields(cls, KIND, {"user.name": "a" * size + "!"}, 1) for size in (64, 5_000, 50_000)
    ]
    begun = time.monotonic()
    engine.process(events)
    assert time.monotonic() - begun < 2
    assert engine.counters()["errors"] == {}


@pytest.mark.parametrize(
    "pattern", ["(a)\\1", "(?P<n>a)(?P=n)", "a(?!b)", "(?<=a)b", "(?>a+)b", "a++b", "(?(1)a|b)", "\\Z(?#x)"]
)
def test_what_needs_backtracking_is_refused(pattern):
    (found,) = problems(with_test(f"user.name|re: '{pattern}'"))
    assert found.startswith("r.yaml:8:11: rule r: detection.a.user.name|re: not a regular expression")


@pytest.mark.parametrize(
    "pattern", ["a{1001}", "((((a{1,100}){1,100}){1,100}){1,100})", "((a{0,999}){0,999}b){0,999}", "x" * 5000]
)
def test_an_expression_that_would_need_too_much_is_refused(pattern):
    assert len(problems(with_test(f"user.name|re: '{pattern}'"))) == 1


def test_wildcards_do_not_backtrack():
    with pytest.raises(RuleFileError):
        load(with_test("user.name: '" + "*?" * 2000 + "'"))
    ruleset = load(with_test("user.name: '" + "*a" * 100 + "'"))
    cls = event_class(KIND, 0)
    engine = Engine(lambda alert: None, host="h")
    engine.set_rules(ruleset)
    engine.bind(cls)
    begun = time.monotonic()
    engine.process([event_from_fields(cls, KIND, {"user.name": "a" * 50_000 + "b"}, 1)])
    assert time.monotonic() - begun < 2


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("source.port: 65536", "source.port (port) is 0 to 65535, never 65536"),
        ("source.port: -1", "never -1"),
        ("source.port|gt: 1e999", "is a number (port), got '1e999'"),
        ("source.port: .inf", "is a number (port), got '.inf'"),
        ("source.port: 22.0", "is a number (port), got 22.0"),
        ("source.port: 0x1_0", "is a number (port), got '0x1_0'"),
        ("source.port: 0o26", "is a number (port), got '0o26'"),
        ("process.pid: 18446744073709551616", "never 18446744073709551616"),
        ("process.pid|gt: 99999999999999999999", "got 99999999999999999999"),
        (f"process.pid|gt: {'9' * 5000}", "is a number (u64), got '999"),
        (f"process.pid: -{'9' * 5000}", "is a number (u64), got '-999"),
        ("process.pid: 0xffffffffffffffffff", "is a number (u64), got '0xff"),
    ],
)
def test_numbers_beyond_their_field(test, says):
    (found,) = problems(with_test(test))
    assert says in found


@pytest.mark.parametrize(
    "value", ["99999999999999999999", "1e3", "-1", "0", "2.5", "true", "'5'", "null", "9" * 400]
)
def test_thresholds_beyond_their_bounds(value):
    correlation = f"    correlation: {{type: event_count, timespan: 1s, condition: {{gte: {value}}}}}\n"
    assert "correlation.condition.gte: expected a whole number" in problems(RULE + correlation)[0]


@pytest.mark.parametrize(
    "value", ["367d", "9999999999999999d", "1e9s", "-1s", "1.5s", "0ms", "٣s", "1ns", "inf"]
)
def test_timespans_beyond_their_bounds(value):
    correlation = f"    correlation: {{type: event_count, timespan: '{value}', condition: {{gte: 2}}}}\n"
    assert problems(RULE + correlation)[0].startswith("r.yaml:10:38: rule r: correlation.timespan: ")


@pytest.mark.parametrize("version", ["2", "0", "-1", "1.0", "'1'", "true", "99999999999999999999", "[1]"])
def test_versions_of_another_kind(version):
    assert (
        "version: expected a whole number from 1 to 1"
        in problems(RULE.replace("version: 1", f"version: {version}"))[0]
    )


@pytest.mark.parametrize(
    "test",
    [
        "user.name: [{}]",
        "user.name|contains: [{}]",
        "user.name|re: [{}]",
        "source.address|fieldref: user.name, user.name|cased: [{}]",
    ],
)
def test_a_rule_with_ten_thousand_values_runs(test):
    values = ", ".join(f"v{n}x" for n in range(10_000))
    ruleset = load(with_test(test.replace("[{}]", f"[{values}]")))
    cls = event_class(KIND, 0)
    alerts = []
    engine = Engine(alerts.append, host="h")
    engine.set_rules(ruleset)
    engine.bind(cls)
    same = {"user.name": "v9999x", "source.address": "v9999x"}
    engine.process(
        [event_from_fields(cls, KIND, same, 1), event_from_fields(cls, KIND, {"user.name": "w"}, 1)]
    )
    assert [alert.fields["user.name"] for alert in alerts] == ["v9999x"]


def test_more_values_than_that_are_refused():
    assert (
        "20000 values" in problems(with_test(f"user.name: [{', '.join(f'v{n}' for n in range(20_001))}]"))[0]
    )
    lists = f"lists: {{many: [{', '.join(map(str, range(10_001)))}]}}\n"
    assert "at most 10000 values" in problems(lists + RULE)[0]


@pytest.mark.parametrize(
    "condition",
    [
        "(" * 17 + "a" + ")" * 17,
        "not " * 1000 + "a",
        "a and " * 1000 + "a",
        "a" * 5000,
        "( a",
        "a )",
        "1 of",
        "of of of",
    ],
)
def test_conditions_that_are_too_deep_or_none(condition):
    assert "detection.condition" in problems(RULE.replace("condition: a", f"condition: {condition}"))[0]


def test_a_condition_that_repeats_everything_is_bounded():
    selections = "".join(f"      s{n}: {{user.name: v{n}}}\n" for n in range(500))
    condition = " or ".join(["1 of s*"] * 100)
    found = problems(RULE.replace("      condition: a\n", f"{selections}      condition: {condition}\n"))
    assert "20000 values" in found[0]


def test_tests_cannot_ask_for_more_events_than_their_bound():
    entry = "{kind: auth.attempt, repeat: 10000}"
    tests = f"    tests:\n      - {{name: t, alerts: 0, events: [{', '.join([entry] * 5_000)}]}}\n"
    assert "at most 10000 events" in problems(RULE + tests)[0]
    wide = "    tests:\n      - {name: t, alerts: 0, events: [{kind: auth.attempt, source.port: '0..9999999999'}]}\n"
    assert "one range of 1 to 10000 numbers" in problems(RULE + wide)[0]


def test_rules_that_name_each_other_in_a_great_circle():
    rules = "".join(
        f"  - {{id: r{n}, title: t, level: low, correlation: "
        f"{{type: event_count, rules: [r{(n + 1) % 5000}], timespan: 1s, condition: {{gte: 1}}}}}}\n"
        for n in range(5000)
    )
    (found,) = problems("version: 1\nrules:\n" + rules)
    assert "in a circle: r0 -> r1 -> r2" in found
    chain = rules.replace("[r0]", "[none]")
    assert any("'none'" in problem for problem in problems("version: 1\nrules:\n" + chain))


# -- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version: 1\n", "version: 1\nlist: {}\n", "r.yaml:2:1: unknown key 'list', did you mean 'lists'?"),
        ("condition: a", "conditon: a", "detection: key 'condition' is missing"),
        ("user.name:", "user.nam|contains:", "has no field 'user.nam', did you mean 'user.name'?"),
        ("user.name:", "USER.NAME:", "has no field 'USER.NAME'"),
        ("user.name:", "user.name|startwith:", "unknown modifier 'startwith', did you mean 'startswith'?"),
        ("condition: a", "condition: all of b*", "condition"),
        ("    level: low", "    levels: low\n    level: low", "unknown key 'levels', did you mean 'level'?"),
        ("    event: auth.attempt", "    event: auth.attempts", "'auth.attempts', did you mean 'auth.attempt'?"),
        ("", "    suppres: 1s\n", "unknown key 'suppres', did you mean 'suppress'?"),
        ("", "    correlation: {type: event_count, timspan: 1s, timespan: 1s, condition: {gte: 2}}\n",
         "correlation: unknown key 'timspan', did you mean 'timespan'?"),
        ("", "    sequence: {timespan: 1s, steps: [{selction: a}, {selection: a}]}\n",
         "sequence.steps.0: unknown key 'selction', did you mean 'selection'?"),
        ("", "    absent: {timespan: 1s, first: a, than: a}\n", "absent: unknown key 'than', did you mean 'then'?"),
        ("", "    tests: [{name: t, event: [], alerts: 0}]\n", "tests.0: unknown key 'event', did you mean 'events'?"),
        ("", "    tests: [{name: t, events: [{kind: auth.atempt}], alerts: 0}]\n", "'auth.atempt', did you mean 'auth.attempt'?"),
        ("", "    tests: [{name: t, events: [{kind: auth.attempt, user.nme: x}], alerts: 0}]\n",
         "has no field 'user.nme', did you mean 'user.name'?"),
    ],
)  # fmt: skip
def test_a_word_that_is_not_known_is_told_with_the_nearest(old, new, says):
    text = RULE.replace(old, new, 1) if old else RULE + new
    found = problems(text)
    assert any(says in problem for problem in found), found


def test_a_key_cannot_write_on_the_terminal(capsys, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(RULE.replace("title: T", '"ti\\e[2Jtle\\r\\n\\u202e": T'))
    assert main(["check", "--no-probes", "--rules", str(path)]) == 78
    out, _ = capsys.readouterr()
    assert "\x1b[2J" not in out and "\r" not in out and "\u202e" not in out


# -- all at once -------------------------------------------------------------------------------------


def test_check_tells_every_mistake_with_file_line_and_column_and_exits_78(capsys, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        """version: 1
lists: {mine: 5}
rules:
  - id: one
    title: T
    level: loud
    event: sensor.lost
    detection:
      a: {event.cuont: 1}
      condition: b
    tags: [NO]
  - id: two
    titel: T
    level: low
    event: sensor.lost
    detection: {a: {event.count: x}, condition: a}
    correlation: {type: event_cuont, timespan: 0s, condition: {gte: 0}}
  - five
"""
    )
    assert main(["check", "--no-probes", "--rules", str(path)]) == 78
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(path))]
    places = [tuple(map(int, line.removeprefix(f"{path}:").split(":")[:2])) for line in lines]
    assert places == sorted(places)
    assert {
        (2, 9),
        (6, 5),
        (9, 11),
        (11, 5),
        (13, 5),
        (16, 21),
        (17, 19),
        (17, 38),
        (17, 64),
        (18, 5),
    } <= set(places), lines
    assert main(["check", "--no-probes", "--json", "--rules", str(path)]) == 78
    assert json.loads(capsys.readouterr().out)["rules"]["problems"] == lines


def test_a_thousand_mistakes_are_told_up_to_a_bound(tmp_path, capsys):
    path = tmp_path / "rules.yaml"
    path.write_text("version: 1\nrules:\n" + "  - {id: 5}\n" * 1000)
    assert main(["check", "--no-probes", "--rules", str(path)]) == 78
    assert sum(line.startswith(str(path)) for line in capsys.readouterr().out.splitlines()) == MAX_PROBLEMS


def test_a_good_file_still_loads():
    assert Path(__file__).is_file() and len(load(RULE).rules) == 1
