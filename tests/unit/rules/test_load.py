"""rules.yaml: what is right becomes rules, what is wrong is told at once with file, line, column and value."""

from pathlib import Path

import pytest

from kwsiem.errors import RuleFileError
from kwsiem.event import OWN_KINDS, EventKind, parse_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import And, Cidr, Compare, Not, decode_ruleset
from kwsiem.rules.source import Source
from kwsiem.sensor.catalog import read_catalog

TCP = (
    "source.ip:ip source.port:port destination.ip:ip destination.port:port tcp.flags:u8"
    " observer.ingress.interface.name:str"
)
AUTH = "event.outcome:str service.name:str user.name:str source.address:str process.pid:u32 process.user.id:u32 pam.result:i64"
RETRACTED = "service.name:str process.pid:u32 event.retracted_ns:ts"
KINDS = {
    **OWN_KINDS,
    **{
        name: EventKind(name, parse_fields(fields))
        for name, fields in (("tcp.syn", TCP), ("tcp.probe", TCP), ("auth.attempt", AUTH))
    },
    "auth.retracted": EventKind("auth.retracted", parse_fields(RETRACTED), retracts="auth.attempt"),
}
SHIPPED = Path(__file__).parents[3] / "rules.yaml"
RULE = """version: 1
lists:
  mine: [192.0.2.0/24]
rules:
  - id: scan
    title: Scan
    level: high
    tags: [attack.t1046]
    event: tcp.syn
    detection:
      ports: {destination.port|gt: 0}
      own: {source.ip|cidr|expand: '%mine%'}
      condition: ports and not own
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 3s
      condition: {gte: 5}
"""


def load(text: str):
    return load_rules([Source("rules.yaml", text.encode())], KINDS)


def problems(text: str) -> list[str]:
    with pytest.raises(RuleFileError) as error:
        load(text)
    return [str(problem) for problem in error.value.problems]


def test_the_shipped_rules_load_and_their_tests_pass():
    kinds = read_catalog([SHIPPED.parent / "probes"]).kinds()
    ruleset = load_rules([Source("rules.yaml", SHIPPED.read_bytes())], kinds)
    assert {"tcp-port-scan", "ssh-brute-force", "password-spray", "login-after-failures"} <= {
        r.id for r in ruleset.rules
    }
    assert all(rule.description and rule.tags and rule.falsepositives for rule in ruleset.rules)
    assert decode_ruleset(ruleset.encode()) == ruleset


def test_a_rule_is_translated_through_sigma():
    (rule,) = load(RULE).rules
    assert rule.predicate == And(
        (Compare("destination.port", "gt", 0), Not(Cidr("source.ip", ("192.0.2.0/24",))))
    )
    assert (rule.correlation.type, rule.correlation.field, rule.correlation.value) == (
        "value_count",
        "destination.port",
        5,
    )
    assert rule.correlation.timespan_ns == 3 * 10**9
    assert rule.suppress_ns == 60 * 10**9


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "timespan: 3s",
            "timespan: 0s",
            "rules.yaml:18:7: rule scan: correlation.timespan: must be > 0, got '0s'",
        ),
        (
            "timespan: 3s",
            "timespan: 3 s",
            "rules.yaml:18:7: rule scan: correlation.timespan: expected a duration",
        ),
        (
            "level: high",
            "level: hihg",
            "rules.yaml:7:5: rule scan: level: unknown level 'hihg', did you mean 'high'?",
        ),
        (
            "title: Scan",
            "titel: Scan",
            "rules.yaml:6:5: rule scan: unknown key 'titel', did you mean 'title'?",
        ),
        ("event: tcp.syn", "event: []", "rules.yaml:9:5: rule scan: event: expected at least one event kind"),
        ("event: tcp.syn", "event: tcp.sin", "unknown event kind 'tcp.sin', did you mean 'tcp.syn'?"),
        (
            "destination.port|gt",
            "destination.prt|gt",
            "has no field 'destination.prt', did you mean 'destination.port'?",
        ),
        ("field: destination.port", "field: destination.prot", "did you mean 'destination.port'?"),
        ("[source.ip]", "[source.pi]", "did you mean 'source.ip'?"),
        ("gt: 0", "gt: many", "destination.port is a number (port), got 'many'"),
        ("|gt:", "|cidr:", "does not apply"),
        ("|gt:", "|gtt:", "unknown modifier 'gtt', did you mean"),
        ("|gt:", "|windash:", "is a number (port), 'windash' does not apply"),
        ("'%mine%'", "'%mien%'", "there is no list called 'mien', did you mean 'mine'?"),
        ("ports and not own", "ports and nto own", "rules.yaml:13:7: rule scan: detection.condition"),
        ("ports and not own", "prots", "no selection is called 'prots', did you mean 'ports'?"),
        ("type: value_count", "type: value_cont", "unknown type 'value_cont', did you mean 'value_count'?"),
        ("type: value_count", "type: temporal", "key 'rules' is missing"),
        ("{gte: 5}", "{gte: 0}", "expected a whole number from 1"),
        ("{gte: 5}", "{lt: 1}", "is never true"),
        ("{gte: 5}", "5", "expected one comparison such as {gte: 5}"),
        ("version: 1", "version: 2", "version"),
        ("- id: scan", "- id: 'a b'", "letters, digits"),
        ("192.0.2.0/24", "192.0.2.1/24", "not a network"),
        ("    title: Scan\n", "    title: Scan\n    block: {for: 10m}\n", "key 'field' is missing"),
        ("    title: Scan\n", "    title: Scan\n    block: {field: source.ip}\n", "key 'for' is missing"),
        (
            "    title: Scan\n",
            "    title: Scan\n    block: {field: source.ip, for: 0s}\n",
            "block.for: must be > 0",
        ),
        (
            "    title: Scan\n",
            "    title: Scan\n    block: {field: destination.ip, for: 10m}\n",
            "block.field: a rule blocks what it groups by (source.ip), got 'destination.ip'",
        ),
        (
            "    title: Scan\n",
            "    title: Scan\n    block: {field: source.ip, for: 10m, spoofable: yes}\n",
            "unknown word 'yes', expected one of allow",
        ),
        (
            "    title: Scan\n",
            "    title: Scan\n    title: Again\n",
            "rules.yaml:7:5: key 'title' stands twice, first in line 6",
        ),
        ("lists:", "\tlists:", "a tab cannot indent YAML"),
        ("[192.0.2.0/24]", "&x [192.0.2.0/24]", "anchors and aliases"),
        ("[attack.t1046]", "[ATTACK]", "expected a tag such as attack.t1046"),
    ],
)
def test_each_mistake_is_told_with_its_place(old, new, says):
    assert old in RULE
    found = problems(RULE.replace(old, new, 1))
    assert any(says in problem for problem in found), found
    assert all(problem.startswith("rules.yaml:") for problem in found)


def test_all_mistakes_are_told_at_once():
    text = (
        RULE.replace("level: high", "level: loud")
        .replace("timespan: 3s", "timespan: x")
        .replace("{gte: 5}", "{ge: 5}")
    )
    assert len(problems(text)) == 3


@pytest.mark.parametrize("pattern", ["(", "(?=x)y", "(a)\\1"])
def test_a_regular_expression_that_does_not_run_in_linear_time_is_refused(pattern):
    text = RULE.replace("event: tcp.syn", "event: auth.attempt").replace(
        "ports: {destination.port|gt: 0}", f"ports: {{user.name|re: '{pattern}'}}"
    )
    assert any("linear time" in problem for problem in problems(text))


@pytest.mark.parametrize(
    "text", ["", "- 1", "rules: [", "version: 1\nrules: 5", "\x00", "a" * 1000, "[" * 5000, "{a: " * 3000]
)
def test_no_file_at_all_raises_anything_but_its_problems(text):
    assert problems(text)


def test_a_test_that_fails_refuses_its_rule():
    tests = """    tests:
      - name: five ports
        events: [{kind: tcp.syn, source.ip: 198.51.100.7, destination.port: "20..24", every: 200ms}]
        alerts: 2
"""
    (problem,) = problems(RULE + tests)
    assert problem == "rules.yaml:21:9: rule scan: tests: test 'five ports' failed: expected 2 alerts, got 1"
    assert load(RULE + tests.replace("alerts: 2", "alerts: 1"))


def test_two_rules_cannot_have_one_id():
    again = RULE[RULE.index("  - id") :]
    assert "'scan' stands twice, first in line 5" in problems(RULE + again)[0]


def test_the_fingerprint_changes_with_what_gives_state_its_meaning():
    def of(text):
        return load(text).rules[0].fingerprint

    assert of(RULE) == of(RULE.replace("title: Scan", "title: Other"))
    assert of(RULE) == of(RULE.replace("level: high", "level: low"))
    assert of(RULE) != of(RULE.replace("{gte: 5}", "{gte: 3}"))
    assert of(RULE) != of(RULE.replace("timespan: 3s", "timespan: 4s"))
