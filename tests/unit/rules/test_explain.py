"""Rules in words: every type of correlation has its sentence."""

from typing import get_args

import pytest

from kwsiem.rules.explain import fires, sentence, step_lines
from kwsiem.rules.model import (
    VALUE_TYPES,
    Constant,
    Correlation,
    CorrelationType,
    Number,
    Operator,
    Rule,
    Step,
)

M = 60 * 10**9
A, B = Step("a", Number("pam.result", (7,))), Step("b", events=("tcp.syn",), group_by=("source.ip",), count=3)


ALWAYS = Constant(True)


def rule(correlation, rule_id="r", predicate=ALWAYS):
    return Rule(
        id=rule_id,
        title="t",
        level="low",
        events=("auth.attempt",),
        predicate=predicate,
        correlation=correlation,
        suppress_ns=M,
        fingerprint="f",
    )


def of(kind, **values):
    values.setdefault("group_by", ("user.name",))
    values.setdefault("field", "pam.result" if kind in VALUE_TYPES else "")
    return rule(Correlation(kind, timespan_ns=M if kind != "any" else 0, **values))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (of("any", group_by=()), "fires on each event that matches"),
        (of("any"), "fires on each event that matches (apart by user.name)"),
        (of("event_count", op="gt", value=4), "fires when one user.name has more than 4 matching events within 1m"),
        (of("event_count", group_by=()), "fires when there are at least 1 matching event within 1m"),
        (
            of("event_count", value=2, steps=(A, B)),
            "fires when one user.name has at least 2 matching events of a, b within 1m",
        ),
        (of("value_count", op="lt", value=9), "fires when one user.name has less than 9 distinct pam.result within 1m"),
        (of("value_sum", op="gte", value=1.5), "fires when one user.name has a sum of pam.result of at least 1.5 within 1m"),
        (of("value_avg", op="eq", value=2.0), "fires when one user.name has a mean of pam.result of exactly 2 within 1m"),
        (
            of("value_percentile", percentile=95, op="lte", value=9),
            "fires when one user.name has a percentile 95 of pam.result of at most 9 within 1m",
        ),
        (
            of("value_median", op="neq", value=1),
            "fires when one user.name has a median of pam.result of anything but 1 within 1m",
        ),
        (of("temporal", steps=(A, B), value=2), "fires when one user.name has each of a, b in any order within 1m"),
        (of("temporal", steps=(A, B), value=1), "fires when one user.name has at least 1 of a, b in any order within 1m"),
        (of("sequence", steps=(B, A)), "fires when one user.name has 3 times b, then a within 1m"),
        (of("absent", steps=(A, B)), "fires when one user.name has a and no b within 1m after it"),
        (of("absent", steps=(A, B), group_by=()), "fires when there is a and no b within 1m after it"),
    ],
)  # fmt: skip
def test_each_type_has_its_words(made, says):
    assert fires(made) == says


def test_no_type_and_no_operator_is_without_words():
    for kind in get_args(CorrelationType):
        for op in get_args(Operator):
            text = sentence(
                of(kind, op=op, steps=(A, B) if kind in ("temporal", "sequence", "absent") else ())
            )
            assert "{" not in text and "None" not in text, text


def test_steps_and_the_rules_below_are_explained():
    inner = rule(Correlation("sequence", ("user.name",), timespan_ns=M, steps=(A, B)), "inner")
    lines = step_lines(
        rule(Correlation("temporal", timespan_ns=M, steps=(Step("in", inner=inner), A), value=2))
    )
    assert lines == [
        "in: an incident of inner, which fires when one user.name has a, then 3 times b within 1m;"
        " looks at auth.attempt",
        "  a: auth.attempt where pam.result is 7",
        "  b: tcp.syn by source.ip",
        "a: auth.attempt where pam.result is 7",
    ]


def test_the_predicate_is_in_the_sentence():
    assert sentence(rule(Correlation(), predicate=Number("pam.result", (7,)))).endswith(
        "; looks at auth.attempt where pam.result is 7"
    )
