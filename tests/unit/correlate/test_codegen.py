"""Generated functions say what a plain evaluation of the tree says, in logic of three values."""

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.correlate.codegen import MIN_GROUP
from kwsiem.correlate.engine import Engine
from kwsiem.derive import as_ip
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import (
    And,
    Cidr,
    Compare,
    Constant,
    Correlation,
    Exists,
    Keyword,
    Not,
    Number,
    Or,
    Regex,
    Rule,
    RuleSet,
    Text,
)

KIND = EventKind("t.e", parse_fields("user.name:str source.address:str destination.port:port"))
EVENT = event_class(KIND, 1)
FIELDS = {
    "user.name": "user_name",
    "source.address": "source_address",
    "destination.port": "destination_port",
}


def fired(predicate, *events) -> list[int]:
    """The times of the events that a rule with this predicate matches."""
    alerts = []
    engine = Engine(alerts.append, host="h")
    made = Rule(
        id="r", title="t", level="low", events=("t.e",), predicate=predicate, correlation=Correlation(),
        suppress_ns=0, fingerprint="f",
    )  # fmt: skip
    engine.set_rules(RuleSet(rules=(made,)))
    engine.bind(EVENT)
    engine.process(list(events))
    return [alert.opened_ts_ns for alert in alerts]


def evaluate(expr, event) -> bool | None:
    """The oracle: True, False, or None for unknown."""
    if isinstance(expr, Not):
        inner = evaluate(expr.item, event)
        return None if inner is None else not inner
    if isinstance(expr, (And, Or)):
        parts = [evaluate(item, event) for item in expr.items]
        decisive = isinstance(expr, Or)
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    if isinstance(expr, Constant):
        return expr.value
    if isinstance(expr, Keyword):
        return any(re.search(expr.pattern, text) for text in (event.user_name, event.source_address))
    if expr.field == "source.ip":
        value = as_ip(event.source_address)
        if isinstance(expr, Exists):
            return bool(value) is expr.present
        if value is None:
            return None
    else:
        value = getattr(event, FIELDS[expr.field])
    if isinstance(expr, Exists):
        return (value != "") is expr.present
    if isinstance(expr, Compare):
        return {
            "gt": value > expr.value,
            "gte": value >= expr.value,
            "lt": value < expr.value,
            "lte": value <= expr.value,
        }[expr.op]
    if isinstance(expr, Number):
        return value in expr.values
    if isinstance(expr, Cidr):
        address = ipaddress.ip_address(value)
        return any(address in ipaddress.ip_network(n) for n in expr.networks)
    if isinstance(expr, Regex):
        return re.search(expr.pattern, value) is not None
    subject = value if expr.cased else value.lower()
    test = {
        "equals": str.__eq__,
        "contains": str.__contains__,
        "startswith": str.startswith,
        "endswith": str.endswith,
    }[expr.match]
    return any(test(subject, wanted) for wanted in expr.values)


TESTS = st.one_of(
    st.builds(Compare, st.just("destination.port"), st.sampled_from(["gt", "gte", "lt", "lte"]), st.integers(-1, 5)),
    st.builds(Number, st.just("destination.port"), st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)),
    st.builds(
        Text, st.just("user.name"), st.sampled_from(["equals", "contains", "startswith", "endswith"]),
        st.lists(st.sampled_from(["a", "ab", "b", "é", "'", '"', "\\", "\n"]), min_size=1, max_size=3).map(tuple), st.booleans(),
    ),
    st.builds(Cidr, st.just("source.ip"), st.lists(st.sampled_from(["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]), min_size=1, max_size=2).map(tuple)),
    st.builds(Exists, st.sampled_from(["user.name", "source.ip"]), st.booleans()),
    st.builds(Regex, st.just("user.name"), st.sampled_from(["a", "^b", "é$", "."])),
    st.builds(Keyword, st.sampled_from(["ab", "192"])),
    st.builds(Constant, st.booleans()),
)  # fmt: skip
TREES = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
EVENTS = st.builds(
    EVENT,
    st.sampled_from(["", "a", "A", "ab", "xaby", "é", "b'", '"', "\n"]),
    st.sampled_from(["", "host.example", "192.0.2.5", "198.51.100.7", "2001:db8::1", "::ffff:192.0.2.9"]),
    st.integers(0, 5),
    st.just(1),
)


@settings(max_examples=500)
@given(TREES, EVENTS)
def test_generated_code_agrees_with_the_oracle(tree, event):
    assert bool(fired(tree, event)) is (evaluate(tree, event) is True)


def test_a_negation_is_not_met_by_what_is_unknown():
    stranger = EVENT("root", "no-address.example", 22, 1)
    assert fired(Not(Cidr("source.ip", ("192.0.2.0/24",))), stranger) == []
    assert fired(Cidr("source.ip", ("192.0.2.0/24",)), stranger) == []


def test_rules_grouped_by_an_equality_fire_like_the_others():
    rules = tuple(
        Rule(
            id=f"r{n}", title="t", level="low", events=("t.e",), correlation=Correlation(), suppress_ns=0,
            predicate=And((Text("user.name", "equals", (f"user{n % 5}",)), Compare("destination.port", "lt", n))),
            fingerprint=f"f{n}",
        )
        for n in range(4 * MIN_GROUP)
    )  # fmt: skip
    alerts = []
    engine = Engine(alerts.append, host="h")
    engine.set_rules(RuleSet(rules=rules))
    engine.bind(EVENT)
    engine.process([EVENT("USER3", "", 7, 1), EVENT("nobody", "", 0, 2)])
    assert sorted(a.rule_id for a in alerts) == sorted(
        f"r{n}" for n in range(4 * MIN_GROUP) if n % 5 == 3 and n > 7
    )


@pytest.mark.parametrize("text", ["'); import os; ('", '"""', "\\", "{x}", "__import__('os')"])
def test_no_text_of_a_rule_becomes_code(text):
    event = EVENT(text.lower(), "", 1, 5)
    assert fired(Text("user.name", "equals", (text.lower(),)), event) == [5]


def test_a_rule_that_names_a_field_the_class_lacks_does_not_apply_to_it():
    assert fired(Compare("no.such.field", "gt", 0), EVENT("", "", 1, 1)) == []
