"""Correlations in rules.yaml: every type, rules that name others, chains, aliases, and what is refused where."""

import pytest

from kwsiem.errors import RuleFileError
from kwsiem.event import OWN_KINDS, EventKind, parse_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import MAX_CHAIN, MAX_THRESHOLD, And, Compare, Constant, Number, Text, decode_ruleset
from kwsiem.rules.source import Source

TCP = "source.ip:ip source.port:port destination.ip:ip destination.port:port tcp.flags:u8"
AUTH = "event.outcome:str service.name:str user.name:str source.address:str process.pid:u32 pam.result:i64"
SUDO = "process.user.name:str process.pid:u32 process.name:str"
KINDS = {
    **OWN_KINDS,
    **{
        name: EventKind(name, parse_fields(fields))
        for name, fields in (("tcp.syn", TCP), ("tcp.open", TCP), ("auth.attempt", AUTH), ("sudo.run", SUDO))
    },
}
S = 10**9
FAILED = Text("event.outcome", "equals", ("failure",))

PLAIN = """
  - id: failed
    title: A failed sign-in
    level: low
    event: auth.attempt
    detection:
      failure: {event.outcome: failure}
      condition: failure
"""
SUCCESS = """
  - id: signed-in
    name: success
    title: A sign-in
    level: low
    event: auth.attempt
    detection:
      success: {event.outcome: success}
      condition: success
"""
RUN = """
  - id: sudo
    title: sudo was run
    level: low
    event: sudo.run
    detection:
      run: {process.pid|gt: 0}
      condition: run
"""


def rule(rule_id: str, block: str, *, detection: str = "") -> str:
    """A rule with a block of YAML, indented by four."""
    lines = [f"\n  - id: {rule_id}", f"    title: Rule {rule_id}", "    level: high"]
    text = "\n".join(lines) + "\n" + detection
    return text + "".join(f"    {line}\n" for line in block.strip("\n").split("\n"))


SYN = """    event: tcp.syn
    detection:
      ssh: {destination.port: 22}
      web: {destination.port: 80}
      high: {destination.port|gt: 1024}
      condition: ssh or web or high
"""


def files(*texts: str):
    return [
        Source(f"{number}.yaml", ("version: 1\nrules:" + text).encode()) for number, text in enumerate(texts)
    ]


def load(*texts: str):
    ruleset = load_rules(files(*texts), KINDS)
    assert decode_ruleset(ruleset.encode()) == ruleset
    return {rule.id: rule for rule in ruleset.rules}


def problems(*texts: str) -> list[str]:
    with pytest.raises(RuleFileError) as error:
        load_rules(files(*texts), KINDS)
    return [str(problem) for problem in error.value.problems]


# -- types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["gte", "gt", "lt", "lte", "eq", "neq"])
def test_a_count_takes_every_operator(op):
    block = f"correlation: {{type: event_count, timespan: 5s, condition: {{{op}: 4}}}}"
    correlation = load(rule("r", block, detection=SYN))["r"].correlation
    assert (correlation.type, correlation.op, correlation.value) == ("event_count", op, 4)
    assert correlation.settled == (op not in ("gte", "gt"))


@pytest.mark.parametrize("kind", ["value_sum", "value_avg", "value_median"])
@pytest.mark.parametrize("value", [2, 2.5, 100])
def test_numbers_of_a_field(kind, value):
    block = (
        f"correlation: {{type: {kind}, field: destination.port, timespan: 5s, condition: {{gt: {value}}}}}"
    )
    correlation = load(rule("r", block, detection=SYN))["r"].correlation
    assert (correlation.type, correlation.field, correlation.value) == (kind, "destination.port", value)
    assert type(correlation.value) is type(value)


def test_a_negative_number_of_a_signed_field():
    detection = PLAIN[PLAIN.index("    event:") :]
    block = "correlation: {type: value_sum, timespan: 5s, condition: {lt: -1.5, field: pam.result}}"
    correlation = load(rule("r", block, detection=detection))["r"].correlation
    assert (correlation.field, correlation.op, correlation.value) == ("pam.result", "lt", -1.5)


def test_a_percentile_and_its_field_stand_in_the_condition_as_in_sigma():
    condition = "{gte: 900, percentile: 95, field: destination.port}"
    block = f"correlation: {{type: value_percentile, timespan: 5s, condition: {condition}}}"
    correlation = load(rule("r", block, detection=SYN))["r"].correlation
    assert (correlation.field, correlation.value, correlation.percentile) == ("destination.port", 900, 95)


def test_temporal_needs_all_of_its_selections():
    block = """
correlation:
  type: temporal
  rules: [ssh, web, high]
  group-by: source.ip
  timespan: 1m
"""
    made = load(rule("r", block, detection=SYN))["r"]
    assert made.correlation.type == "temporal"
    assert (made.correlation.op, made.correlation.value) == ("gte", 3)
    assert [step.name for step in made.correlation.steps] == ["ssh", "web", "high"]
    assert made.correlation.steps[0].predicate == Number("destination.port", (22,))
    assert made.correlation.steps[2].predicate == Compare("destination.port", "gt", 1024)
    assert all(step.events == () and step.group_by == () for step in made.correlation.steps)
    assert made.predicate != Constant(True)  # the rule's condition gates its own selections
    assert made.events == ("tcp.syn",)
    assert made.suppress_ns == 60 * S


def test_temporal_of_some_of_its_selections():
    block = "correlation: {type: temporal, rules: [ssh, web, high], timespan: 1m, condition: {gt: 1}}"
    correlation = load(rule("r", block, detection=SYN))["r"].correlation
    assert (correlation.op, correlation.value, correlation.settled) == ("gt", 1, False)


@pytest.mark.parametrize("condition", ["", ", condition: {gte: 2}", ", condition: {eq: 2}"])
def test_temporal_ordered_is_a_sequence_of_one_event_each(condition):
    block = f"correlation: {{type: temporal_ordered, rules: [web, ssh], timespan: 1m{condition}}}"
    correlation = load(rule("r", block, detection=SYN))["r"].correlation
    assert correlation.type == "sequence"
    assert [(step.name, step.count) for step in correlation.steps] == [("web", 1), ("ssh", 1)]
    assert (correlation.op, correlation.value) == ("gte", 1)


def test_what_is_ordered_may_come_twice():
    block = "correlation: {type: temporal_ordered, rules: [web, ssh, web], timespan: 1m}"
    assert len(load(rule("r", block, detection=SYN))["r"].correlation.steps) == 3


def test_a_sequence_is_as_it_was():
    block = """
sequence:
  group-by: [source.ip]
  timespan: 10m
  steps: [{selection: ssh, count: 3}, {selection: web}]
"""
    made = load(rule("r", block, detection=SYN))["r"]
    assert [(step.name, step.count, step.events) for step in made.correlation.steps] == [
        ("ssh", 3, ()),
        ("web", 1, ()),
    ]
    assert made.suppress_ns == 600 * S


def test_absent_has_a_first_and_a_second():
    block = "absent: {group-by: [source.ip], timespan: 30s, first: ssh, then: web}"
    correlation = load(rule("r", block, detection=SYN))["r"].correlation
    assert correlation.type == "absent" and correlation.settled
    assert [step.name for step in correlation.steps] == ["ssh", "web"]
    assert correlation.timespan_ns == 30 * S


def test_absent_may_name_other_rules():
    block = "absent: {group-by: [user.name], timespan: 30s, first: failed, then: signed-in}"
    made = load(PLAIN + SUCCESS + rule("r", block))["r"]
    assert [step.events for step in made.correlation.steps] == [("auth.attempt",), ("auth.attempt",)]


# -- other rules ---------------------------------------------------------------------------------------


def test_one_plain_rule_is_folded_into_the_correlation():
    block = "correlation: {type: event_count, rules: failed, group-by: [user.name], timespan: 1m, condition: {gte: 5}}"
    made = load(rule("r", block) + PLAIN)  # named before it stands there
    assert list(made) == ["r"]  # a rule that is named is silent
    assert (made["r"].events, made["r"].predicate, made["r"].correlation.steps) == (
        ("auth.attempt",),
        FAILED,
        (),
    )


def test_one_selection_is_folded_together_with_the_condition():
    detection = SYN.replace("condition: ssh or web or high", "condition: ssh or web")
    block = "correlation: {type: event_count, rules: [high], timespan: 1m, condition: {gte: 5}}"
    made = load(rule("r", block, detection=detection))["r"]
    assert isinstance(made.predicate, And) and Compare("destination.port", "gt", 1024) in made.predicate.items
    assert made.correlation.steps == ()


def test_several_rules_are_steps_with_kinds_and_predicates_of_their_own():
    block = "correlation: {type: event_count, rules: [failed, success], timespan: 1m, condition: {gte: 5}}"
    made = load(PLAIN, SUCCESS, rule("r", block))["r"]
    assert made.predicate == Constant(True)
    assert made.events == ("auth.attempt",)
    assert [(s.name, s.events, s.predicate) for s in made.correlation.steps] == [
        ("failed", ("auth.attempt",), FAILED),
        ("success", ("auth.attempt",), Text("event.outcome", "equals", ("success",))),
    ]


def test_own_selections_beside_other_rules_bring_their_condition_and_kinds():
    block = "correlation: {type: temporal, rules: [ssh, failed], timespan: 1m}"
    made = load(PLAIN + rule("r", block, detection=SYN))["r"]
    own, other = made.correlation.steps
    assert made.predicate == Constant(True)
    assert (own.events, other.events) == (("tcp.syn",), ("auth.attempt",))
    assert isinstance(own.predicate, And) and Number("destination.port", (22,)) in own.predicate.items
    assert set(made.events) == {"tcp.syn", "auth.attempt"}


def test_a_selection_goes_before_a_rule_of_the_same_name():
    block = "correlation: {type: temporal, rules: [ssh, web], timespan: 1m}"
    other = PLAIN.replace("id: failed", "id: ssh")
    made = load(other + rule("r", block, detection=SYN))
    assert set(made) == {"ssh", "r"}  # the rule ssh is not named, so it is not silent
    assert made["r"].events == ("tcp.syn",)


def test_a_rule_of_the_same_file_goes_before_one_of_another():
    named = SUCCESS.replace("id: signed-in", "id: other")
    block = "correlation: {type: event_count, rules: [success], timespan: 1m, condition: {gte: 5}}"
    assert set(load(named, SUCCESS + rule("r", block))) == {"other", "r"}
    assert "1.yaml" not in "".join(problems(named, SUCCESS, rule("r", block)))


def test_generate_keeps_what_is_named():
    block = (
        "correlation: {type: event_count, rules: [failed], timespan: 1m, condition: {gte: 5}, generate: %s}"
    )
    assert set(load(PLAIN + rule("r", block % "false"))) == {"r"}
    made = load(PLAIN + rule("r", block % "true") + rule("q", block % "false"))
    assert set(made) == {"failed", "r", "q"}
    assert made["failed"].suppress_ns == 0


def test_aliases_name_the_field_of_each_rule():
    block = """
correlation:
  type: temporal
  rules: [failed, sudo]
  aliases: {user: {failed: user.name, sudo: process.user.name}}
  group-by: [user, process.pid]
  timespan: 5m
"""
    made = load(PLAIN + RUN + rule("r", block))["r"]
    assert made.correlation.group_by == ("user", "process.pid")
    assert [step.group_by for step in made.correlation.steps] == [
        ("user.name", "process.pid"),
        ("process.user.name", "process.pid"),
    ]


def test_an_alias_that_is_one_field_everywhere_is_that_field():
    block = """
correlation:
  type: value_count
  rules: [failed]
  aliases: {who: {failed: user.name}}
  field: source.ip
  group-by: [who]
  timespan: 5m
  condition: {gte: 2}
"""
    correlation = load(PLAIN + rule("r", block))["r"].correlation
    assert (correlation.group_by, correlation.field, correlation.steps) == (("user.name",), "source.ip", ())


def test_a_field_of_another_name_in_each_rule():
    block = """
correlation:
  type: value_count
  rules: [failed, sudo]
  aliases: {user: {failed: user.name, sudo: process.user.name}}
  field: user
  timespan: 5m
  condition: {gte: 2}
"""
    correlation = load(PLAIN + RUN + rule("r", block))["r"].correlation
    assert correlation.field == "user"
    assert [step.field for step in correlation.steps] == ["user.name", "process.user.name"]


# -- chains --------------------------------------------------------------------------------------------

MANY = rule(
    "many",
    "correlation: {type: event_count, rules: [failed], group-by: [user.name, source.ip], timespan: 1m,"
    " condition: {gte: 5}}\nsuppress: 2m",
)


def test_a_correlation_over_a_correlation():
    block = (
        "correlation: {type: temporal_ordered, rules: [many, success], group-by: [user.name], timespan: 10m}"
    )
    made = load(rule("r", block) + MANY, SUCCESS + PLAIN)
    assert list(made) == ["r"]
    first, second = made["r"].correlation.steps
    assert first.inner is not None and first.inner.id == "many"
    assert (first.events, first.predicate, first.group_by) == ((), Constant(True), ())
    assert first.inner.suppress_ns == 120 * S
    assert first.inner.correlation.group_by == ("user.name", "source.ip")
    assert second.inner is None and second.events == ("auth.attempt",)
    assert made["r"].correlation.settled
    assert made["r"].predicate == Constant(True)


def test_the_only_rule_of_a_chain_is_a_step():
    block = "correlation: {type: value_count, rules: [many], field: user.name, group-by: [source.ip], timespan: 1h, condition: {gte: 3}}"
    made = load(PLAIN + MANY + rule("r", block))["r"]
    assert len(made.correlation.steps) == 1 and made.correlation.field == "user.name"


def test_the_kinds_of_a_chain_are_those_of_all_its_leaves():
    mixed = rule(
        "mixed", "correlation: {type: temporal, rules: [failed, sudo], group-by: process.pid, timespan: 1m}"
    )
    top = rule("r", "correlation: {type: temporal_ordered, rules: [mixed, ssh], timespan: 1m}", detection=SYN)
    made = load(PLAIN + RUN + mixed + top)["r"]
    assert set(made.events) == {"auth.attempt", "sudo.run", "tcp.syn"}


def test_a_chain_groups_by_the_aliases_below_it():
    lower = rule(
        "both",
        "correlation: {type: temporal, rules: [failed, sudo], group-by: [user], timespan: 1m,"
        " aliases: {user: {failed: user.name, sudo: process.user.name}}}",
    )
    upper = rule(
        "r",
        "correlation: {type: temporal_ordered, rules: [both, success], group-by: [who], timespan: 1m,"
        " aliases: {who: {both: user, success: user.name}}}",
    )
    correlation = load(PLAIN + RUN + SUCCESS + lower + upper)["r"].correlation
    assert correlation.group_by == ("who",)
    assert [step.group_by for step in correlation.steps] == [("user",), ("user.name",)]


def test_what_a_rule_below_says_does_not_matter_above_but_what_it_looks_at_does():
    block = (
        "correlation: {type: temporal_ordered, rules: [many, success], group-by: [user.name], timespan: 10m}"
    )
    text = PLAIN + SUCCESS + MANY + rule("r", block)

    def of(text):
        return load(text)["r"].fingerprint

    assert of(text) == of(text.replace("title: Rule many", "title: Other"))
    assert of(text) != of(text.replace("suppress: 2m", "suppress: 3m"))
    assert of(text) != of(text.replace("event.outcome: failure", "event.outcome: fail"))
    assert of(text) != of(text.replace("condition: {gte: 5}", "condition: {gte: 6}"))


def _tower(height: int) -> str:
    """So many correlations, each over the one before."""
    text = PLAIN
    for level in range(height):
        below = f"c{level - 1}" if level else "failed"
        text += rule(
            f"c{level}",
            f"correlation: {{type: event_count, rules: [{below}], timespan: 1m, condition: {{gte: 2}}}}",
        )
    return text


def test_chains_are_as_deep_as_the_model_takes():
    assert list(load(_tower(MAX_CHAIN + 1))) == [f"c{MAX_CHAIN}"]
    found = problems(_tower(MAX_CHAIN + 2))
    assert len(found) == 1
    assert (
        f"rule c{MAX_CHAIN + 1}: correlation.rules: at most {MAX_CHAIN} correlations stand below" in found[0]
    )


def test_a_chain_that_branches_is_bounded():
    text = PLAIN + SUCCESS
    for level in range(8):
        below = [f"c{level - 1}-{n}" for n in range(4)] if level else ["failed", "success"]
        for number in range(4):
            names = ", ".join(below)
            text += rule(
                f"c{level}-{number}", f"correlation: {{type: temporal, rules: [{names}], timespan: 1m}}"
            )
    assert any("look at 256 rules at most" in problem for problem in problems(text))


def test_a_rule_that_is_named_still_passes_its_own_tests():
    tests = """    tests:
      - name: one
        events: [{kind: auth.attempt, event.outcome: failure}]
        alerts: 2
"""
    block = "correlation: {type: event_count, rules: [failed], timespan: 1m, condition: {gte: 2}}"
    (problem,) = problems(PLAIN + tests + rule("r", block))
    assert "rule failed: tests: test 'one' failed: expected 2 alerts, got 1" in problem


def test_a_correlation_of_other_rules_has_tests_over_all_kinds():
    block = """
correlation: {type: temporal, rules: [failed, sudo], group-by: [process.pid], timespan: 1m}
tests:
  - name: both
    events: [{kind: auth.attempt, event.outcome: failure, process.pid: 7}, {kind: sudo.run, process.pid: 7}]
    alerts: 1
  - name: another process
    events: [{kind: auth.attempt, event.outcome: failure, process.pid: 7}, {kind: sudo.run, process.pid: 8}]
    alerts: 0
"""
    assert load(PLAIN + RUN + rule("r", block))


# -- mistakes ------------------------------------------------------------------------------------------

BASE = (
    PLAIN
    + SUCCESS
    + RUN
    + MANY
    + """
  - id: r
    title: R
    level: high
    event: tcp.syn
    detection:
      ssh: {destination.port: 22}
      web: {destination.port: 80}
      condition: ssh or web
    correlation:
      type: temporal
      rules: [ssh, web]
      group-by: [source.ip]
      timespan: 1m
      condition: {gte: 2}
"""
)
LINE = BASE[: BASE.index("      type: temporal")].count("\n") + 2  # of 'type: temporal' in the file
OWN = BASE[BASE.index("    event: tcp.syn") : BASE.index("    correlation:\n      type: temporal")]


def numbered(column: int, offset: int) -> str:
    return f"0.yaml:{LINE + offset}:{column}: rule r: "


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[ssh, web]", "[ssh, wbe]", numbered(20, 1) + "correlation.rules: no selection and no rule is called 'wbe', did you mean 'web'?"),
        ("[ssh, web]", "[ssh, faild]", "no rule is called 'faild', did you mean 'failed'?"),
        ("[ssh, web]", "[ssh, r]", numbered(20, 1) + "correlation.rules: a rule cannot name itself"),
        ("[ssh, web]", "[ssh, ssh]", "'ssh' stands twice"),
        ("[ssh, web]", "[ssh, signed-in, success]", "'success' stands twice: it is rule signed-in"),
        ("[ssh, web]", "[ssh, 5]", "expected the name of a rule, got 5"),
        ("[ssh, web]", "[]", "expected at least 1 names"),
        ("[ssh, web]", "[" + ", ".join(f"a{n}" for n in range(17)) + "]", "at most 16 rules, got 17"),
        ("rules: [ssh, web]\n      group-by: [source.ip]", "rules: [ssh, failed]\n      group-by: [source.pi]", "has no field 'source.pi', did you mean 'source.ip'?"),
        ("rules: [ssh, web]\n      group-by: [source.ip]", "rules: [ssh, failed]\n      group-by: [source.port]", numbered(18, 2) + "correlation.group-by: event kind auth.attempt has no field 'source.port'"),
        ("rules: [ssh, web]\n      group-by: [source.ip]", "rules: [ssh, many]\n      group-by: [source.port]", "correlation.group-by: rule many groups by user.name, source.ip, not by 'source.port'"),
        ("rules: [ssh, web]\n      group-by: [source.ip]", "rules: [ssh, many]\n      group-by: [source.pi]", "has no field 'source.pi', did you mean 'source.ip'?"),
        ("group-by: [source.ip]", "group-by: [source.ip]\n      aliases: {user: {ssh: source.ip}}", "correlation.aliases: alias 'user' is used nowhere"),
        ("group-by: [source.ip]", "group-by: [who]\n      aliases: {who: {ssh: source.ip}}", "correlation.group-by: alias 'who' has no field for web"),
        ("group-by: [source.ip]", "group-by: [who]\n      aliases: {who: {ssh: source.ip, wbe: source.ip, web: source.ip}}", "correlation.aliases.who: 'wbe' is none of the rules, did you mean 'web'?"),
        ("group-by: [source.ip]", "group-by: [who]\n      aliases: {who: {ssh: source.ip, web: source.port}}", "source.ip (ip) of ssh can never be source.port (port) of web"),
        ("group-by: [source.ip]", "group-by: [who]\n      aliases: {who: source.ip}", "correlation.aliases.who: expected a mapping"),
        ("group-by: [source.ip]", "group-by: ['w o']\n      aliases: {'w o': {ssh: source.ip, web: source.ip}}", "cannot be the name of an alias"),
        ("{gte: 2}", "{gte: 3}", numbered(7, 4) + "correlation.condition: gte 3 is never true: of the 2 rules at least one has matched"),
        ("{gte: 2}", "{lt: 3}", "correlation.condition: lt 3 is always true"),
        ("{gte: 2}", "{eq: 0}", "correlation.condition: eq 0 is never true"),
        ("{gte: 2}", "{gte: 0}", "correlation.condition.gte: expected a whole number from 1 to "),
        ("{gte: 2}", "{gte: 2, lt: 4}", "expected one comparison such as {gte: 5}, got a mapping"),
        ("{gte: 2}", "{gte: 2, percentile: 5}", numbered(27, 4) + "correlation.condition.percentile: type temporal takes no percentile"),
        ("{gte: 2}", "{field: source.ip}", "expected one comparison such as {gte: 5}, got none"),
        ("{gte: 2}", "{gte: 2, field: source.ip}", "type temporal counts events and takes no field"),
        ("{gte: 2}", "{ge: 2}", "unknown comparison 'ge', did you mean 'gte'?"),
        ("{gte: 2}", "{gte: 2}\n      generate: perhaps", "correlation.generate: expected true or false, got 'perhaps'"),
        ("type: temporal\n", "type: temporal_ordered\n", None),
        ("type: temporal\n      rules: [ssh, web]", "type: temporal_ordered\n      rules: [ssh]", "expected at least 2 names, got 1"),
        ("{gte: 2}\n", "{gte: 2}\n    absent: {first: ssh, then: web, timespan: 1m}\n", "a rule has one of correlation, sequence, absent"),
        (OWN, OWN.replace("    event: tcp.syn\n", ""), "key 'event' is missing"),
        ("[ssh, web]\n      group-by: [source.ip]", "[failed, success]", "detection: is not used: the correlation names other rules only"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_place(old, new, says):
    assert old in BASE
    text = BASE.replace(old, new, 1) if old != "{gte: 2}" else new.join(BASE.rsplit(old, 1))
    if says is None:
        assert load(text)
        return
    found = problems(text)
    assert any(says in problem for problem in found), found
    assert all(problem.startswith("0.yaml:") for problem in found)


@pytest.mark.parametrize(
    ("correlation", "says"),
    [
        ("{type: value_sum, field: source.ip, timespan: 1s, condition: {gt: 5}}", "type value_sum needs a number, source.ip is ip"),
        ("{type: value_avg, timespan: 1s, condition: {gt: 5}}", "type value_avg needs the key 'field'"),
        ("{type: value_avg, field: source.port, timespan: 1s, condition: {gt: 65535}}", "gt 65535 is never true: source.port (port) is 0 to 65535"),
        ("{type: value_median, field: source.port, timespan: 1s, condition: {gte: 0}}", "gte 0 is always true"),
        ("{type: value_sum, field: source.port, timespan: 1s, condition: {lt: 0}}", "lt 0 is never true"),
        ("{type: value_sum, field: source.port, timespan: 1s, condition: {gt: many}}", "expected a number"),
        ("{type: value_sum, field: source.port, timespan: 1s, condition: {gt: true}}", "expected a number"),
        ("{type: value_percentile, field: source.port, timespan: 1s, condition: {gt: 5}}", "type value_percentile needs the key 'percentile'"),
        ("{type: value_percentile, field: source.port, timespan: 1s, condition: {gt: 5, percentile: 101}}", "expected a whole number from 0 to 100, got 101"),
        ("{type: value_count, field: source.port, timespan: 1s, condition: {gt: 5, field: source.port}}", "'field' stands in the correlation already"),
        ("{type: event_count, timespan: 1s, condition: {gt: 1.5}}", "expected a whole number from 0 to "),
        ("{type: event_count, timespan: 1s, condition: {lte: 0}}", "lte 0 is never true: it is looked at when an event comes; what did not happen at all is 'absent'"),
        (f"{{type: event_count, timespan: 1s, condition: {{gte: {MAX_THRESHOLD + 1}}}}}", f"to {MAX_THRESHOLD}, got {MAX_THRESHOLD + 1}"),
        ("{type: event_count, timespan: 1s}", "key 'condition' is missing"),
        ("{type: temporal, timespan: 1s}", "key 'rules' is missing"),
        ("{type: temporal_ordered, rules: [ssh, web, high], timespan: 1s, condition: {gte: 2}}", "needs all of its 3 rules"),
    ],
)  # fmt: skip
def test_each_condition_can_be_met_and_missed(correlation, says):
    found = problems(rule("r", f"correlation: {correlation}", detection=SYN))
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("absent: {timespan: 1s, first: ssh}", "absent: key 'then' is missing"),
        ("absent: {timespan: 1s, first: ssh, then: ssh}", "absent.then: 'first' and 'then' are the same"),
        ("absent: {timespan: 1s, first: ssh, then: wbe}", "absent: no selection and no rule is called 'wbe', did you mean 'web'?"),
        ("absent: {timespan: 1s, first: ssh, after: web}", "absent: unknown key 'after'"),
        ("sequence: {timespan: 1s, steps: [{selection: ssh}, {selection: wbe}]}", "unknown selection 'wbe', did you mean 'web'?"),
    ],
)  # fmt: skip
def test_mistakes_of_the_other_blocks(block, says):
    found = problems(rule("r", block, detection=SYN))
    assert any(says in problem for problem in found), found


def test_rules_that_name_each_other_in_a_circle():
    def over(rule_id: str, below: str) -> str:
        return rule(
            rule_id,
            f"correlation: {{type: event_count, rules: [{below}], timespan: 1m, condition: {{gte: 2}}}}",
        )

    found = problems(over("a", "b"), over("b", "c") + over("c", "a") + over("above", "a"))
    assert found == [
        "0.yaml:6:46: rule a: correlation.rules: rules name each other in a circle: a -> b -> c -> a"
    ]


def test_a_broken_rule_is_told_once_and_not_by_those_that_name_it():
    block = "correlation: {type: event_count, rules: [failed], timespan: 1m, condition: {gte: 2}}"
    (problem,) = problems(PLAIN.replace("event.outcome", "event.outcom") + rule("r", block))
    assert "rule failed" in problem


def test_an_ambiguous_name_is_refused():
    block = "correlation: {type: event_count, rules: [success], timespan: 1m, condition: {gte: 2}}"
    found = problems(SUCCESS, SUCCESS.replace("signed-in", "other"), rule("r", block))
    assert found == [
        "2.yaml:6:46: rule r: correlation.rules: 'success' is the name of signed-in and other, use an id"
    ]


def test_an_id_stands_once_in_all_files():
    (problem,) = problems(PLAIN, PLAIN)
    assert problem == "1.yaml:3:5: rule failed: id: 'failed' stands twice, first in 0.yaml:3"


def test_lists_of_the_first_file_may_be_used_in_others():
    first = "version: 1\nlists: {mine: [192.0.2.0/24]}\nrules: []\n"
    second = "version: 1\nrules:" + PLAIN.replace("event.outcome: failure", "source.ip|cidr|expand: '%mine%'")
    ruleset = load_rules([Source("a.yaml", first.encode()), Source("b.yaml", second.encode())], KINDS)
    assert len(ruleset.rules) == 1


# -- through the engine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "events", "alerts"),
    [
        ("correlation: {type: temporal, rules: [ssh, web], group-by: source.ip, timespan: 1m}", "22 80", 1),
        ("correlation: {type: temporal_ordered, rules: [ssh, web], timespan: 1m}", "80 22", 0),
        ("correlation: {type: temporal_ordered, rules: [ssh, web], timespan: 1m}", "22 80", 1),
        ("correlation: {type: event_count, rules: [ssh, web], timespan: 1m, condition: {gte: 3}}", "22 80 22", 1),
        ("correlation: {type: event_count, rules: [ssh], timespan: 1m, condition: {gte: 3}}", "22 80 22", 0),
        ("correlation: {type: value_sum, field: destination.port, timespan: 1m, condition: {gt: 101}}", "22 80", 1),
        ("correlation: {type: value_avg, field: destination.port, timespan: 1m, condition: {gte: 51}}", "22 80", 1),
        ("correlation: {type: value_median, field: destination.port, timespan: 1m, condition: {gt: 80}}", "22 80 80", 0),
        ("correlation: {type: value_percentile, field: destination.port, timespan: 1m, condition: {lt: 30, percentile: 50}}", "22 80", 1),
        ("absent: {timespan: 1m, first: ssh, then: web}", "22", 1),
        ("absent: {timespan: 1m, first: ssh, then: web}", "22 80", 0),
        ("correlation: {type: temporal, rules: [twice, web], group-by: source.ip, timespan: 1m}", "22 22 80", 1),
        ("correlation: {type: temporal, rules: [twice, web], group-by: source.ip, timespan: 1m}", "22 80", 0),
    ],
)  # fmt: skip
def test_what_is_read_is_what_is_evaluated(block, events, alerts):
    lower = """
  - id: twice
    title: Twice
    level: low
    event: tcp.syn
    detection: {any_ssh: {destination.port: 22}, condition: any_ssh}
    correlation: {type: event_count, group-by: [source.ip], timespan: 1m, condition: {gte: 2}}
"""
    entries = ", ".join(
        f"{{kind: tcp.syn, source.ip: 192.0.2.1, destination.port: {port}, every: 1s}}"
        for port in events.split()
    )
    tests = f"\ntests: [{{name: x, events: [{entries}], alerts: {alerts}}}]"
    assert load(lower + rule("r", block + tests, detection=SYN))
