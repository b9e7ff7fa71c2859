"""The JSON Schema of rules.yaml against an independent validator: what loads is valid, what is broken is not."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kwsiem.alert import LEVELS
from kwsiem.errors import RuleFileError
from kwsiem.rules.correlation import (
    ABSENT_KEYS,
    CONDITION_KEYS,
    CORRELATION_KEYS,
    OPERATORS,
    SEQUENCE_KEYS,
    TYPES,
)
from kwsiem.rules.load import FILE_KEYS, RULE_KEYS, load_rules
from kwsiem.rules.schema import rules_schema
from kwsiem.rules.source import Source
from kwsiem.rules.testing import EVENT_KEYS, TEST_KEYS, Collector
from kwsiem.rules.values import MODIFIERS
from kwsiem.sensor.catalog import read_catalog
from kwsiem.yamltree import read_document

ROOT = Path(__file__).parents[3]
KINDS = read_catalog([ROOT / "probes"]).kinds()
SCHEMA = rules_schema(KINDS)
VALIDATOR = Draft202012Validator(SCHEMA)
RULE = """version: 1
lists: {mine: [192.0.2.0/24], other: [5, true, null, x]}
rules:
  - id: r
    name: short
    title: T
    description: D
    status: test
    author: me
    references: [https://example.net]
    level: high
    tags: [attack.t1046, car.2013-05-002]
    event: [tcp.syn, tcp.probe]
    detection:
      number: {destination.port|gt: 0, destination.port: [1, 2]}
      text: [{source.ip|cidr|expand: '%mine%'}, {source.ip: null}]
      time: {'@timestamp|hour|gte': 22}
      words: [mimikatz, '*cat']
      condition: number and not text or time or 1 of words
    correlation:
      type: value_percentile
      rules: [number, text]
      field: destination.port
      group-by: [who]
      aliases: {who: {number: source.ip, text: destination.ip}}
      timespan: 3s
      condition: {gt: 1.5, percentile: 95}
      generate: false
    suppress: 5m
    falsepositives: One
    tests:
      - name: t
        events: [{kind: tcp.syn, source.ip: 192.0.2.1, destination.port: '1..5', every: 1ms, repeat: 2, wait: 1h}]
        alerts: 0
  - id: blocker
    title: B
    level: low
    event: tcp.syn
    detection: {a: {destination.port: 1}, condition: a}
    block: {field: source.ip, for: 10m, spoofable: allow}
  - id: gone
    title: G
    level: low
    event: sensor.probe
    detection: {a: {probe.state: x}, b: {probe.state|re|i: y}, condition: a or b}
    absent: {group-by: probe.name, timespan: 30s, first: a, then: b}
  - id: steps
    title: S
    level: low
    event: sensor.probe
    detection: {a: {probe.state: x}, b: {probe.state|re|i: y}, condition: a or b}
    sequence: {timespan: 30s, steps: [{selection: a, count: 2}, {selection: b}]}
  - id: chain
    title: C
    level: low
    correlation: {type: temporal_ordered, rules: [gone, gone], timespan: 1h}
"""


def plain(text):
    root, problems = read_document("r.yaml", text.encode())
    assert root is not None and not problems, problems
    return root.plain()


def errors(document):
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)]


def loads(document):
    """Whether the loader takes it; its tests may fail, the schema cannot know that."""
    text = yaml.safe_dump(document, sort_keys=False).encode()
    try:
        return load_rules([Source("r.yaml", text)], KINDS, Collector())
    except RuleFileError:
        return None


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_the_shipped_rules_are_valid():
    assert errors(plain((ROOT / "rules.yaml").read_text())) == []


def test_a_file_with_every_key_loads_and_is_valid():
    assert errors(plain(RULE)) == []
    assert loads(plain(RULE))


def test_every_key_and_word_of_the_loader_is_known():
    defs = SCHEMA["$defs"]
    assert set(SCHEMA["properties"]) == set(FILE_KEYS)
    assert set(defs["rule"]["properties"]) == set(RULE_KEYS)
    assert set(defs["correlation"]["properties"]) == set(CORRELATION_KEYS)
    assert (
        set(defs["correlation"]["properties"]["condition"]["properties"])
        == set(CONDITION_KEYS)
        >= set(OPERATORS)
    )
    assert set(defs["correlation"]["properties"]["type"]["enum"]) == set(TYPES)
    assert set(defs["sequence"]["properties"]) == set(SEQUENCE_KEYS)
    assert set(defs["absent"]["properties"]) == set(ABSENT_KEYS)
    assert set(defs["test"]["properties"]) == set(TEST_KEYS)
    assert set(defs["event sensor.lost"]["properties"]) >= set(EVENT_KEYS)
    assert defs["rule"]["properties"]["level"]["enum"] == list(LEVELS)
    assert defs["rule"]["properties"]["event"]["anyOf"][0]["enum"] == sorted(KINDS)
    (pattern,) = defs["detection of tcp.syn"]["additionalProperties"]["anyOf"][0]["patternProperties"]
    assert all(modifier in pattern for modifier in MODIFIERS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: T", "titel: T"),
        ("    title: T\n", ""),
        ("title: T", "title: ''"),
        ("title: T", "title: 5"),
        ("id: r\n", "id: 'a b'\n"),
        ("level: high", "level: loud"),
        ("level: high", "level: [high]"),
        ("version: 1", "version: 2"),
        ("version: 1\n", ""),
        ("rules:\n", "ruls:\n"),
        ("mine: [192.0.2.0/24]", "mine: 192.0.2.0/24"),
        ("mine: [192.0.2.0/24]", "mine: [[192.0.2.0/24]]"),
        ("[attack.t1046, car.2013-05-002]", "[ATTACK]"),
        ("[attack.t1046, car.2013-05-002]", "[attack.t1046, attack.t1046]"),
        ("event: [tcp.syn, tcp.probe]", "event: [tcp.syn, tcp.nothing]"),
        ("    event: [tcp.syn, tcp.probe]\n", ""),
        ("      condition: number and not text or time or 1 of words\n", ""),
        ("destination.port|gt: 0", "destination.prt|gt: 0"),
        ("destination.port|gt: 0", "destination.port|gtt: 0"),
        ("destination.port|gt: 0, destination.port: [1, 2]", "destination.port: '22'"),
        ("destination.port|gt: 0", "destination.port|gt: []"),
        ("destination.port|gt: 0", "destination.port|gt: {a: 1}"),
        ("'@timestamp|hour|gte': 22", "'@timestamp': 22"),
        ("'@timestamp|hour|gte': 22", "'destination.port|hour': 22"),
        ("type: value_percentile", "type: value_max"),
        ("type: value_percentile", "type: value_sum"),  # takes no percentile
        ("type: value_percentile", "type: event_count"),  # takes no field
        ("      field: destination.port\n", ""),
        ("timespan: 3s", "timespan: 0s"),
        ("timespan: 3s", "timespan: 3"),
        ("timespan: 3s", "timespan: 3 s"),
        ("      timespan: 3s\n", ""),
        ("{gt: 1.5, percentile: 95}", "{gt: 1.5}"),
        ("{gt: 1.5, percentile: 95}", "{gt: 1.5, lt: 3, percentile: 95}"),
        ("{gt: 1.5, percentile: 95}", "{percentile: 95}"),
        ("{gt: 1.5, percentile: 95}", "{gt: 1.5, percentile: 101}"),
        ("{gt: 1.5, percentile: 95}", "5"),
        ("{gt: 1.5, percentile: 95}", "{ge: 1.5, percentile: 95}"),
        ("generate: false", "generate: no"),
        ("aliases: {who: {number: source.ip, text: destination.ip}}", "aliases: {who: source.ip}"),
        ("    suppress: 5m\n", "    suppress: soon\n"),
        ("block: {field: source.ip, for: 10m", "block: {for: 10m"),
        ("block: {field: source.ip, for: 10m", "block: {field: source.ip, for: ever"),
        ("spoofable: allow", "spoofable: yes"),
        ("name: t\n", "nmae: t\n"),
        ("alerts: 0", "alerts: -1"),
        ("alerts: 0", "alerts: none"),
        ("kind: tcp.syn", "kind: tcp.sin"),
        ("source.ip: 192.0.2.1", "source.pi: 192.0.2.1"),
        ("source.ip: 192.0.2.1", "source.ip: 5"),
        ("'1..5'", "70000"),
        ("'1..5'", "many"),
        ("repeat: 2", "repeat: 0"),
        ("wait: 1h", "wait: 1y"),
        ("{group-by: probe.name, timespan: 30s, first: a, then: b}", "{timespan: 30s, first: a}"),
        ("first: a, then: b}", "first: a, than: b}"),
        ("steps: [{selection: a, count: 2}, {selection: b}]", "steps: [{selection: a}]"),
        ("steps: [{selection: a, count: 2}, {selection: b}]", "steps: [a, b]"),
        ("{selection: a, count: 2}", "{selection: a, count: 0}"),
        ("    sequence: {", "    absent: {timespan: 1s, first: a, then: b}\n    sequence: {"),
        ("rules: [gone, gone]", "rules: []"),
        ("rules: [gone, gone], ", ""),
        ("    correlation: {type: temporal_ordered", "    event: tcp.syn\n    correlation: {type: temporal_ordered"),
        ("    correlation: {type: temporal_ordered, rules: [gone, gone], timespan: 1h}\n", ""),
    ],
)  # fmt: skip
def test_what_is_broken_is_not_valid(old, new):
    assert RULE.count(old) >= 1, old
    broken = plain(RULE.replace(old, new, 1))
    assert errors(broken)
    assert loads(broken) is None


@pytest.mark.parametrize(
    "document", [None, [], "rules", {}, {"version": 1}, {"version": 1, "rules": {}}, {"rules": []}]
)
def test_what_is_no_rule_file_is_not_valid(document):
    assert errors(document)


# -- what the loader takes, the schema takes ---------------------------------------------------------


def _places(node, path=()):
    yield path
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield from _places(value, (*path, key))


BASES = [plain(RULE)] * 3
BASES += [
    {"version": 1, "lists": document.get("lists", {}), "rules": [rule]}
    for document in [plain((ROOT / "rules.yaml").read_text())]
    for rule in document["rules"]
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 30), st.sampled_from([0.5, 2.0, 1e9, 2**31, 2**63, 2**70, -(2**63)]),
    st.sampled_from([
        "", " ", "x", "5", "3s", "0s", "1d", "a", "b", "%mine%", "192.0.2.1", "tcp.syn", "source.ip", "destination.port",
        "sensor.probe", "event_count", "temporal", "value_count", "value_sum", "number", "text", "gone", "1 of them", "low",
    ]),
    st.just([]), st.just({}), st.lists(st.sampled_from(["a", "b", "gone", "source.ip", 1, None]), max_size=3),
    st.dictionaries(st.sampled_from(["gte", "lt", "eq", "field", "percentile"]), st.sampled_from([0, 1, 2.5, "x"]), max_size=2),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        *FILE_KEYS,
        *RULE_KEYS,
        *CORRELATION_KEYS,
        *CONDITION_KEYS,
        *SEQUENCE_KEYS,
        *ABSENT_KEYS,
        *TEST_KEYS,
        *EVENT_KEYS,
    ]
    + [
        "",
        "|all",
        "source.ip",
        "destination.port|neq",
        "probe.state|contains|all",
        "@timestamp|week",
        "selection",
        "count",
    ]
)


@st.composite
def mutants(draw):
    document = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([path for path in _places(document) if path]))
        node = document
        for key in parents:
            node = node[key]
        change = draw(st.sampled_from(["set", "set", "delete", "add", "rename"]))
        if change == "delete":
            del node[last]
        elif change == "set":
            node[last] = draw(VALUES)
        elif isinstance(node, dict):
            node[draw(KEYS)] = node.pop(last) if change == "rename" else draw(VALUES)
        else:
            node.insert(last, draw(VALUES))
    return document


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
@given(mutants())
def test_whatever_loads_is_valid(document):
    assume(isinstance(document, dict) and "rules" in document)
    if loads(document) is not None:
        assert errors(plain(yaml.safe_dump(document, sort_keys=False))) == []  # as YAML 1.2 reads it
