"""The public vectors of ``tests/sigma-correlation`` through the real loader and the real engine."""

from pathlib import Path

import pytest
import yaml

from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, event_from_fields, parse_fields
from kwsiem.rules.correlation import TYPES
from kwsiem.rules.duration import parse_duration
from kwsiem.rules.load import load_rules
from kwsiem.rules.source import Source

FOLDER = Path(__file__).parents[2] / "sigma-correlation"
BEGIN_NS = 10**15
OPERATORS = ("gte", "gt", "lt", "lte", "eq", "neq")
OWN = ("time", "arrives", "kind", "repeat", "forged")


def vectors():
    for path in sorted(FOLDER.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        for case in document["cases"]:
            yield pytest.param(document, case, id=f"{path.stem}: {case['name']}")


def nanoseconds(text: str) -> int:
    """``1.5s`` as the vectors write it."""
    unit = "ms" if text.endswith("ms") else text[-1]
    number = text.removesuffix(unit)
    if number.strip("0.") == "":
        return 0
    return round(float(number) * parse_duration(f"1{unit}"))


def events_of(case, kinds):
    """(events of one line, when they arrive)."""
    now_ns = 0
    classes = {name: event_class(kind, 0) for name, kind in kinds.items()}
    for line in case["events"]:
        at_ns = nanoseconds(line["time"])
        now_ns = max(now_ns, nanoseconds(line["arrives"]) if "arrives" in line else at_ns)
        fields = {name: value for name, value in line.items() if name not in OWN}
        forged = line.get("forged", 0)
        rows = [fields] * line.get("repeat", 1)
        if forged:
            rows = [{**fields, "source.ip": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"} for n in range(forged)]
        cls = classes[line["kind"]]
        yield [event_from_fields(cls, cls.KIND, row, BEGIN_NS + at_ns) for row in rows], BEGIN_NS + now_ns


@pytest.mark.parametrize(("document", "case"), list(vectors()))
def test_vector(document, case):
    kinds = {name: EventKind(name, parse_fields(fields)) for name, fields in document["kinds"].items()}
    ruleset = load_rules([Source("vector.yml", document["rules"].encode())], kinds)
    assert not ruleset.skipped
    names = {doc["title"]: doc["name"] for doc in yaml.safe_load_all(document["rules"])}
    alerts: list = []
    engine = Engine(alerts.append, host="h")
    engine.set_rules(ruleset)
    classes = set()
    for events, now_ns in events_of(case, kinds):
        for cls in {type(event) for event in events} - classes:
            engine.bind(cls)
            classes.add(cls)
        engine.process(events, now_ns)
        engine.advance(now_ns)
    engine.finish()
    assert engine.counters()["errors"] == {}
    got = [(names[a.title], a.raised_ns - BEGIN_NS, a.identity) for a in alerts if a.state == "open"]
    for expected in case["alerts"]:
        times = expected["time"] if isinstance(expected["time"], list) else [expected["time"]]
        right = [
            g for g in got if g in [(expected["rule"], nanoseconds(t), expected["group"]) for t in times]
        ]
        assert len(right) == 1, f"{expected}, got {got}"
        got.remove(right[0])
    assert got == []


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_there_are_vectors_of_each_type(kind):
    assert kind in {correlation["type"] for correlation in correlations()}


@pytest.mark.parametrize("operator", OPERATORS)
def test_there_are_vectors_of_each_comparison(operator):
    """One that alerts in some case; of counts and of what is measured."""
    said = {each["type"] for each in correlations() if operator in each.get("condition", {})}
    assert said & {"event_count", "value_count"}
    assert said & {"value_sum", "value_avg", "value_median", "value_percentile"}


def correlations():
    """The correlations of all files that alert in some case."""
    for path in sorted(FOLDER.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        said = {alert["rule"] for case in document["cases"] for alert in case["alerts"]}
        for rule in yaml.safe_load_all(document["rules"]):
            if "correlation" in rule and rule["name"] in said:
                yield rule["correlation"]
