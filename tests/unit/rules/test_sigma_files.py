"""Plain Sigma files: rules and correlations as others write them, and those that are not for this host."""

from pathlib import Path

import pytest

from kwsiem.errors import RuleFileError
from kwsiem.event import OWN_KINDS, EventKind, parse_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import (
    And,
    Cidr,
    Constant,
    Exists,
    Not,
    Number,
    Or,
    Regex,
    Text,
    children,
    decode_ruleset,
)
from kwsiem.rules.sigma import FIELDS, LOGSOURCES, render
from kwsiem.rules.source import Source
from kwsiem.yamltree import Mapping, read_document, read_documents

EXEC = (
    "process.executable:str process.name:str process.command_line:str process.pid:u32"
    " process.working_directory:str process.parent.executable:str process.parent.name:str"
    " process.parent.pid:u32 user.name:str user.id:u32"
)
CONNECT = (
    "source.ip:ip source.port:port destination.ip:ip destination.port:port process.executable:str"
    " process.name:str process.pid:u32 user.name:str"
)
OPEN = "source.ip:ip source.port:port destination.ip:ip destination.port:port"
AUTH = "event.outcome:str service.name:str user.name:str source.address:str process.user.id:u32"
KINDS = {
    **OWN_KINDS,
    **{
        name: EventKind(name, parse_fields(fields))
        for name, fields in (
            ("process.exec", EXEC),
            ("tcp.connect", CONNECT),
            ("tcp.open", OPEN),
            ("auth.attempt", AUTH),
            ("file.change", "file.path:str process.executable:str process.user.name:str process.pid:u32"),
        )
    },
}
S = 10**9

REVERSE_SHELL = r"""title: Shell With A Network Redirection
id: 7a1f2b9c-0f5e-4d5e-9b0e-2f6a0d1c4e11
status: test
description: |
    Detects a shell whose command line opens a connection through /dev/tcp or
    /dev/udp, as reverse shells do.
references:
    - https://example.org/reverse-shells
author: kwsiem
date: 2026-01-02
modified: 2026-02-03
tags:
    - attack.execution
    - attack.T1059.004
    - not a tag
logsource:
    category: process_creation
    product: linux
detection:
    selection_img:
        Image|endswith:
            - '/bash'
            - '/sh'
    selection_cli:
        CommandLine|contains|all:
            - '/dev/tcp/'
            - '>&'
    filter_main_ci:
        ParentImage: '/usr/bin/gitlab-runner'
        User: 1000
    condition: all of selection_* and not 1 of filter_main_*
falsepositives:
    - Unknown
level: high
simulation: {type: custom}
regression_tests_path: nowhere/at/all
"""
MINER = """title: Connection To A Mining Pool Port
id: 1b0d3f6a-27d4-4c9d-9a8e-6a7f1f0a2b33
status: experimental
logsource:
    category: network_connection
    product: linux
detection:
    selection:
        Initiated: 'true'
        DestinationPort:
            - 3333
            - '4444'
    filter_main_local:
        DestinationIp|cidr:
            - '10.0.0.0/8'
            - '127.0.0.0/8'
    condition: selection and not filter_main_local
level: medium
"""
PRELOAD = """title: Preload File Changed
id: 5f2c4b9e-3a1c-4c55-8c1f-3f3f2a9d7e44
logsource: {product: linux, category: file_event}
detection:
    selection:
        TargetFilename:
            - /etc/ld.so.preload
            - /etc/cron.*
    condition: selection
"""
SPRAY = """title: One Source Tries Many Users
id: 6c1f3b2e-0d0d-4a55-9a0e-3f8f6b9f7a11
level: high
correlation:
    type: value_count
    rules:
        - ssh_fail
    group-by:
        - SourceIp
        - ComputerName
    timespan: 10m
    condition:
        gte: 8
        field: User
---
title: Failed SSH Login
name: ssh_fail
logsource: {product: linux, service: sshd}
detection:
    selection: {event.outcome: failure}
    condition: selection
---
title: SSH Login
name: ssh_ok
logsource: {product: linux, service: sshd}
detection:
    selection: {event.outcome: success}
    condition: selection
---
title: Spray Followed By A Login
name: spray_login
level: critical
correlation:
    type: temporal_ordered
    rules:
        - 6c1f3b2e-0d0d-4a55-9a0e-3f8f6b9f7a11
        - ssh_ok
    group-by:
        - SourceIp
    timespan: 30m
    generate: true
"""
RULE = """title: A Rule
logsource: {product: linux, category: process_creation}
detection:
    selection: {Image: /bin/x}
    condition: selection
"""


def load_set(*texts: str, names=("a.yml", "b.yml", "c.yml")):
    sources = [Source(name, text.encode()) for name, text in zip(names, texts, strict=False)]
    ruleset = load_rules(sources, KINDS)
    assert decode_ruleset(ruleset.encode()) == ruleset
    return ruleset


def load(*texts: str):
    ruleset = load_set(*texts)
    assert not ruleset.skipped, ruleset.skipped
    return {rule.id: rule for rule in ruleset.rules}


def skipped(*texts: str):
    """Place and reason of the only rule, which is skipped."""
    ruleset = load_set(*texts)
    assert not ruleset.rules
    (found,) = ruleset.skipped
    return found.place, found.reason


def problems(*texts: str) -> list[str]:
    with pytest.raises(RuleFileError) as error:
        load_set(*texts)
    return [str(problem) for problem in error.value.problems]


def leaves(expr):
    return [expr] if not children(expr) else [test for part in children(expr) for test in leaves(part)]


# -- rules ---------------------------------------------------------------------------------------------


def test_a_rule_as_sigmahq_writes_them():
    (rule,) = load(REVERSE_SHELL).values()
    assert (rule.id, rule.level, rule.events) == (
        "7a1f2b9c-0f5e-4d5e-9b0e-2f6a0d1c4e11",
        "high",
        ("process.exec",),
    )
    assert rule.tags == ("attack.execution", "attack.t1059.004")
    assert rule.falsepositives == ("Unknown",)
    assert rule.description.startswith("Detects a shell")
    assert (rule.correlation.type, rule.correlation.group_by, rule.suppress_ns) == ("any", (), 0)
    found = leaves(rule.predicate)
    assert Text("process.executable", "endswith", ("/bash", "/sh")) in found
    assert Text("process.command_line", "contains", ("/dev/tcp/",)) in found
    assert Text("process.parent.executable", "equals", ("/usr/bin/gitlab-runner",)) in found
    assert Text("user.name", "equals", ("1000",)) in found  # a number, for a field of text


def test_what_is_always_so_here_is_a_test_that_always_holds():
    (rule,) = load(MINER).values()
    assert rule.events == ("tcp.connect",)
    found = leaves(rule.predicate)
    assert Exists("source.port") in found
    assert Number("destination.port", (3333, 4444)) in found
    assert Cidr("destination.ip", ("10.0.0.0/8", "127.0.0.0/8")) in found


def test_paths_compare_without_case_and_take_wildcards():
    (rule,) = load(PRELOAD.replace("/etc/ld.so", "/ETC/ld.so")).values()
    assert rule.level == "medium"
    assert isinstance(rule.predicate, Or)
    assert Text("file.path", "equals", ("/etc/ld.so.preload",)) in rule.predicate.items
    assert Text("file.path", "startswith", ("/etc/cron.",)) in rule.predicate.items


def test_a_field_has_another_name_in_another_kind():
    text = PRELOAD.replace("selection:\n", "selection:\n        User: root\n")
    (rule,) = load(text).values()
    assert Text("process.user.name", "equals", ("root",)) in leaves(rule.predicate)


def test_our_own_kinds_and_fields_are_used_as_they_are():
    text = """title: Lost
logsource: {product: kwsiem, category: sensor.lost}
detection:
    lost: {event.reason: ring_buffer, event.count|gt: 5}
    condition: lost
"""
    (rule,) = load(text).values()
    assert rule.events == ("sensor.lost",)
    assert (rule.id, rule.title) == ("lost", "Lost")


def test_kinds_are_those_that_have_all_the_fields():
    text = """title: Far Away
logsource: {category: network, service: connection}
detection:
    far: {destination.port: 4444%s}
    condition: far
"""
    assert load(text % "")["far-away"].events == ("tcp.open", "tcp.connect")
    assert load(text % ", process.name: nc")["far-away"].events == ("tcp.connect",)


def test_a_service_is_a_value_besides():
    rule = load_set(SPRAY.split("---\n")[1]).rules[0]
    assert rule.predicate == And(
        (Text("service.name", "equals", ("sshd",)), Text("event.outcome", "equals", ("failure",)))
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [("id: 5f2c4b9e-aaaa\nname: x", "5f2c4b9e-aaaa"), ("name: some_name", "some_name"), ("", "a-rule")],
)
def test_the_id_is_the_id_or_the_name_or_the_title(keys, expected):
    assert list(load(f"{keys}\n{RULE}")) == [expected]


def test_a_title_without_latin_letters_has_an_id_too():
    (rule_id,) = load(RULE.replace("A Rule", "规则"))
    assert rule_id.startswith("sigma-")


@pytest.mark.parametrize("key", ["taxonomy: sigma", "scope: [server]", "license: MIT", "related: [{id: x, type: similar}]", "fields: [Image]", "version: 3", "my.own: {a: [1]}", "level: null"])  # fmt: skip
def test_any_other_key_is_allowed(key):
    assert load(f"{key}\n{RULE}")


def test_values_need_not_be_quoted_as_our_fields_want_them():
    text = RULE.replace(
        "{Image: /bin/x}", "{ProcessId: '7', CommandLine|contains: 0.5, User: true, UserId|exists: 'true'}"
    )
    found = leaves(load(text)["a-rule"].predicate)
    assert Number("process.pid", (7,)) in found and Exists("user.id") in found
    assert Text("process.command_line", "contains", ("0.5",)) in found
    assert Text("user.name", "equals", ("true",)) in found


def test_a_list_of_conditions_is_any_of_them():
    text = RULE.replace(
        "condition: selection", "other: {Image: /bin/y}\n    condition: [selection, not other]"
    )
    predicate = load(text)["a-rule"].predicate
    assert isinstance(predicate, Or) and any(isinstance(item, Not) for item in predicate.items)


def test_a_selection_may_have_a_name_that_only_a_pattern_can_mean():
    text = RULE.replace("selection\n", "selection and not 1 of filter_*\n").replace(
        "    condition", "    filter_x.conf: {User: root}\n    condition"
    )
    assert Text("user.name", "equals", ("root",)) in leaves(load(text)["a-rule"].predicate)


def test_lists_of_rules_yaml_stand_for_placeholders():
    ours = "version: 1\nlists: {shells: [/bin/sh]}\nrules: []\n"
    text = RULE.replace("Image: /bin/x", "Image|expand: '%shells%'")
    rule = load(ours, text)["a-rule"]
    assert rule.predicate == Text("process.executable", "equals", ("/bin/sh",))


def test_keywords_are_looked_for_in_the_texts_of_an_event():
    assert load(RULE.replace("{Image: /bin/x}", "[evil, 31337]"))


def test_field_references_are_of_our_fields():
    text = RULE.replace("Image: /bin/x", "Image|fieldref: ParentImage")
    (test,) = leaves(load(text)["a-rule"].predicate)
    assert (test.field, test.other) == ("process.executable", "process.parent.executable")


# -- correlations --------------------------------------------------------------------------------------


def test_several_documents_that_name_each_other():
    rules = load(SPRAY)
    assert set(rules) == {"6c1f3b2e-0d0d-4a55-9a0e-3f8f6b9f7a11", "ssh_ok", "spray_login"}  # generate: true
    spray = rules["6c1f3b2e-0d0d-4a55-9a0e-3f8f6b9f7a11"]
    assert spray.correlation.group_by == ("source.ip",)  # all events are of this host
    assert (spray.correlation.field, spray.correlation.value, spray.suppress_ns) == ("user.name", 8, 600 * S)
    top = rules["spray_login"]
    assert (top.level, top.title, top.events) == ("critical", "Spray Followed By A Login", ("auth.attempt",))
    assert [step.name for step in top.correlation.steps] == ["One Source Tries Many Users", "ssh_ok"]
    assert top.correlation.steps[0].inner is not None


def test_fields_are_of_each_rule():
    text = f"""title: Both
correlation:
    type: temporal
    rules: [a-rule, {PRELOAD.split("id: ")[1].split(maxsplit=1)[0]}]
    group-by: User
    timespan: 5m
---
{RULE}
---
{PRELOAD}"""
    correlation = load(text)["both"].correlation
    assert (correlation.value, correlation.group_by) == (2, ("user.name",))
    assert [step.group_by for step in correlation.steps] == [(), ("process.user.name",)]
    assert [step.name for step in correlation.steps] == ["A Rule", "Preload File Changed"]


def test_rules_of_one_title_are_told_apart():
    other = "id: other\n" + RULE.replace("/bin/x", "/bin/y")
    text = f"title: Both\ncorrelation: {{type: temporal, rules: [a-rule, other], timespan: 5m}}\n---\n{RULE}\n---\n{other}"
    assert [step.name for step in load(text)["both"].correlation.steps] == ["a-rule", "other"]


def test_our_own_correlation_may_name_a_sigma_rule():
    ours = """version: 1
rules:
  - id: many
    title: Many
    level: low
    correlation: {type: event_count, rules: [a-rule], group-by: [user.name], timespan: 1s, condition: {gte: 3}}
    tests:
      - name: three
        events: [{kind: process.exec, process.executable: /bin/x, user.name: eve, repeat: 3}]
        alerts: 1
"""
    assert list(load(ours, RULE)) == ["many"]
    found = problems(ours.replace("user.name]", "User]"), RULE)
    assert "correlation.group-by: event kind process.exec has no field 'User'" in found[0]


def test_a_file_of_rules_d_may_be_ours():
    ours = "version: 1\nrules:\n  - {id: x, title: X, level: low, event: tcp.open, detection: {a: {source.port|gt: 0}, condition: a}}\n"
    assert set(load(RULE, ours)) == {"a-rule", "x"}
    assert "one document a file" in problems(f"{ours}---\n{RULE}")[0]


# -- skipped -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("product: linux", "product: windows", "a.yml:2:1", "logsource: product: windows, category: process_creation is not of this host"),
        ("category: process_creation", "service: auditd", "a.yml:2:1", "no event kind stands for product: linux, service: auditd"),
        ("category: process_creation", "category: process_access", "a.yml:2:1", "no event kind stands for"),
        ("category: process_creation", "category: dns_query", "a.yml:2:1", "no probe emits dns.query"),
        ("product: linux, category: process_creation", "product: kwsiem, category: tcp.sin", "a.yml:2:1", "no probe emits tcp.sin"),
        ("product: linux, category: process_creation", "definition: nothing", "a.yml:2:1", "stands for nothing"),
        ("{Image: /bin/x}", "{Image: /bin/x, OriginalFileName: x}", "a.yml:4:32", "event kind process.exec has no field for 'OriginalFileName'"),
        ("{Image: /bin/x}", "{ProcessId|contains: '7'}", "a.yml:4:17", "does not apply"),
        ("{Image: /bin/x}", "{ProcessId: many}", "a.yml:4:17", "is a number"),
        ("{Image: /bin/x}", "{Image|re: '(?=x)y'}", "a.yml:4:17", "linear time"),
        ("{Image: /bin/x}", "{Image|expand: '%shells%'}", "a.yml:4:17", "there is no list called 'shells'"),
        ("{Image: /bin/x}", "{Image: /bin/x, process.executable: /bin/y}", "a.yml:4:32", "two fields of this selection are process.executable"),
        ("{Image: /bin/x}", "{Image|fieldref: Hashes}", "a.yml:4:17", "has no field for 'Hashes'"),
        ("    condition", "    timeframe: 5m\n    condition", "a.yml:5:5", "detection.timeframe: counting in a rule is Sigma 1"),
        ("condition: selection", "condition: selection | count() > 5", "a.yml:5:5", "detection.condition: counting in a rule is Sigma 1"),
        ("    selection:", "    _hidden: {Image: y}\n    selection:", "a.yml:4:5", "names that begin with _"),
        ("title: A Rule", "title: A Rule\nstatus: deprecated", "a.yml:2:1", "status: the rule is deprecated"),
        ("title: A Rule", "title: A Rule\nstatus: unsupported", "a.yml:2:1", "status: the rule is unsupported"),
        ("title: A Rule", "title: A Rule\naction: global", "a.yml:2:1", "action: collections are Sigma 1"),
    ],
)  # fmt: skip
def test_what_is_right_but_not_for_here_is_skipped(old, new, place, says):
    assert old in RULE
    found = skipped(RULE.replace(old, new, 1))
    assert found[0] == place
    assert says in found[1]


def test_a_filter_is_skipped():
    text = "title: F\nlogsource: {product: linux}\nfilter: {rules: [x], selection: {a: b}, condition: selection}\n"
    assert skipped(text) == ("a.yml:3:1", "filter: filters of other rules are not supported")


def test_words_of_a_log_are_not_to_be_had():
    text = RULE.replace("category: process_creation", "service: sshd").replace(
        "{Image: /bin/x}", "['error in libcrypto']"
    )
    assert "words of a log's lines" in skipped(text)[1]


def test_what_never_is_so_here_is_skipped():
    place, reason = skipped(MINER.replace("Initiated: 'true'", "Initiated: 'false'"))
    assert place == "a.yml:9:9"
    assert "Initiated is always true in tcp.connect" in reason


CORRELATION = f"""title: Many
correlation:
    type: event_count
    rules: [a-rule]
    timespan: 5m
    condition: {{gte: 3}}
---
{RULE}"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("type: event_count", "type: value_max", "correlation.type: unknown type 'value_max'"),
        ("{gte: 3}", "{gt: 3, lte: 9}", "expected one comparison"),
        ("{gte: 3}", "{gte: 1000000}", "expected a whole number from 1 to "),
        ("timespan: 5m", "timespan: 5m\n    window: session", "correlation: unknown key 'window'"),
        ("timespan: 5m", "timespan: 5m\n    group-by: Hashes", "event kind process.exec has no field 'Hashes'"),
        ("type: event_count", "type: value_sum\n    field: User", "type value_sum needs a number, user.name is str"),
        ("{gte: 3}", "{eq: 0}", "eq 0 is never true"),
    ],
)  # fmt: skip
def test_a_correlation_that_is_not_for_here_is_skipped(old, new, says):
    assert old in CORRELATION
    ruleset = load_set(CORRELATION.replace(old, new, 1))
    assert not ruleset.rules  # the rule that it names stays silent
    (found,) = ruleset.skipped
    assert found.rule == "many"
    assert says in found.reason


def test_boolean_conditions_of_temporal_are_skipped():
    text = CORRELATION.replace("event_count", "temporal").replace("{gte: 3}", "a-rule and not b")
    assert "expected one comparison" in load_set(text).skipped[0].reason


def test_who_names_a_skipped_rule_is_skipped():
    text = CORRELATION.replace("category: process_creation", "category: dns_query")
    over = "title: Over\ncorrelation: {type: event_count, rules: [many], timespan: 5m, condition: {gte: 2}}\n"
    ours = "version: 1\nrules:\n  - {id: own, title: Own, level: low, correlation: {type: event_count, rules: [a-rule], timespan: 1s, condition: {gte: 2}}}\n"
    ruleset = load_set(text, over, ours)
    reasons = {found.rule: found.reason for found in ruleset.skipped}
    assert not ruleset.rules
    assert reasons["a-rule"] == "logsource: no probe emits dns.query"
    assert reasons["many"] == f"correlation.rules: names rule a-rule, which is skipped: {reasons['a-rule']}"
    assert reasons["over"].startswith("correlation.rules: names rule many, which is skipped: ")
    assert reasons["own"].startswith("correlation.rules: names rule a-rule, which is skipped: ")


def test_the_other_rules_of_a_file_are_loaded():
    ruleset = load_set(
        RULE + "---\n" + RULE.replace("A Rule", "B").replace("linux", "windows") + "---\n" + MINER
    )
    assert [rule.title for rule in ruleset.rules] == ["A Rule", "Connection To A Mining Pool Port"]
    assert [(found.rule, found.place) for found in ruleset.skipped] == [("b", "a.yml:8:1")]


# -- wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("title: A Rule", "name: x", "a.yml:1:1: key 'title' is missing"),
        ("title: A Rule", "title: [a]", "a.yml:1:1: title: expected text, got a list"),
        ("title: A Rule", "title: A Rule\nid: a b", "a.yml:2:1: id: letters, digits"),
        ("title: A Rule", "title: A Rule\nlevel: hihg", "a.yml:2:1: rule a-rule: level: unknown level 'hihg', did you mean 'high'?"),
        ("logsource:", "logsorce:", "a.yml:1:1: rule a-rule: key 'logsource' is missing"),
        ("detection:", "detecton:", "key 'detection' is missing"),
        ("    condition: selection", "    condtion: selection", "rule a-rule: detection: key 'condition' is missing"),
        ("condition: selection", "condition: selecton", "a.yml:5:5: rule a-rule: detection.condition: no selection is called 'selecton', did you mean 'selection'?"),
        ("condition: selection", "condition: selection and", "a.yml:5:5: rule a-rule: detection.condition"),
        ("condition: selection", "condition: {a: b}", "expected text, got a mapping"),
        ("{Image: /bin/x}", "{Image|endswth: /bin/x}", "a.yml:4:17: rule a-rule: detection.selection.Image|endswth: unknown modifier 'endswth', did you mean 'endswith'?"),
        ("{Image: /bin/x}", "{Image|re: '('}", "not a regular expression"),
        ("{Image: /bin/x}", "{Image: {a: b}}", "expected a value, got a mapping"),
        ("{Image: /bin/x}", "{Image: []}", "the list of values is empty"),
        ("{Image: /bin/x}", "{}", "a.yml:4:5: rule a-rule: detection.selection: the selection is empty"),
        ("{Image: /bin/x}", "[{Image: /bin/x}, y]", "a list holds mappings or keywords, not both"),
        ("{Image: /bin/x}", "{Image: /bin/x", "not valid YAML"),
        ("    condition", "\tcondition", "a tab cannot indent YAML"),
        ("detection:", "correlation: {}\ndetection:", "a document has a detection or a correlation, not both"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_place(old, new, says):
    assert old in RULE
    found = problems(RULE.replace(old, new, 1))
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[a-rule]", "[b-rule]", "a.yml:4:13: rule many: correlation.rules: no rule is called 'b-rule', did you mean 'a-rule'?"),
        ("[a-rule]", "[many]", "a rule cannot name itself"),
        ("    rules: [a-rule]\n", "", "correlation: key 'rules' is missing"),
        ("5m", "5 minutes", "correlation.timespan: expected a duration"),
        ("    condition: {gte: 3}\n", "", "key 'condition' is missing"),
    ],
)  # fmt: skip
def test_mistakes_of_a_correlation(old, new, says):
    found = problems(CORRELATION.replace(old, new, 1))
    assert any(says in problem for problem in found), found


def test_two_documents_cannot_have_one_id():
    assert problems(RULE, RULE) == ["b.yml:1:1: rule a-rule: id: 'a-rule' stands twice, first in a.yml:1"]


def test_mistakes_of_all_files_are_told_at_once():
    found = problems(RULE.replace("title", "titel"), RULE.replace("selection\n", "nothing\n"), "- 1")
    assert [problem.split(":")[0] for problem in found] == ["a.yml", "b.yml", "c.yml"]


# -- documents and tables ------------------------------------------------------------------------------


def test_empty_documents_are_left_out():
    documents, found = read_documents("x", b"---\na: 1\n---\n---\n# nothing\n---\nb: 2\n---\n")
    assert [list(document.items) for document in documents if isinstance(document, Mapping)] == [["a"], ["b"]]
    assert (len(documents), found) == (2, [])
    assert documents[1].line == 7
    assert read_documents("x", b"# nothing\n")[1][0].message == "the file is empty"


def test_bounds_hold_for_all_documents_together(monkeypatch):
    monkeypatch.setattr("kwsiem.yamltree.MAX_NODES", 10)
    assert read_documents("x", b"[1, 2, 3]\n---\n[1, 2, 3]\n")[1] == []
    found = read_documents("x", b"[1, 2, 3]\n---\n[1, 2, 3]\n---\n[1, 2, 3]\n")
    assert found[0] == [] and "more than 10 values" in found[1][0].message
    monkeypatch.setattr("kwsiem.yamltree.MAX_DOCUMENTS", 2)
    assert "more than 2 documents" in read_documents("x", b"1\n---\n1\n---\n1\n")[1][0].message


def test_a_single_document_is_as_strict_as_before():
    root, found = read_document("x", b"a: 1\n---\nb: 2\n")
    assert root is None and "one document a file" in found[0].message


def test_the_page_is_made_from_the_tables():
    page = Path(__file__).parents[3] / "docs" / "sigma-fields.md"
    assert page.read_text() == render(), "write it anew with kwsiem.rules.sigma.render"


def test_no_row_of_the_table_hides_behind_another():
    assert len({(row.category, row.service) for row in LOGSOURCES}) == len(LOGSOURCES)
    assert all(row.ours or row.fixed for row in FIELDS.values())


def test_constants_are_not_built():
    assert Constant(True) not in leaves(load(MINER)["1b0d3f6a-27d4-4c9d-9a8e-6a7f1f0a2b33"].predicate)
    assert not any(
        isinstance(test, Regex)
        for test in leaves(load(PRELOAD)[PRELOAD.split("id: ")[1].split(maxsplit=1)[0]].predicate)
    )
