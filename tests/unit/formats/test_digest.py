import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.alert import LEVELS, MAX_DOCUMENT_BYTES
from kwsiem.document import document
from kwsiem.formats import FORMATS
from kwsiem.formats.digest import MAX_IDS, MAX_RULES, MAX_SOURCES, digest
from kwsiem.formats.fit import fit

X = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def many(make_alert):
    """37 alerts within two minutes: 20 scans, 17 password attacks."""
    found = []
    for n in range(37):
        rule = (
            {} if n < 20 else {"rule_id": "ssh-brute-force", "title": "SSH brute force", "level": "critical"}
        )
        alert = make_alert(number=n, fields={"source.ip": f"198.51.100.{n % 3}"}, **rule)
        alert.raised_ns += n * 3_300_000_000
        found.append(document(alert))
    return found


def test_words_name_the_counts(many):
    found = digest(many)
    words = f"37 alerts in 119 s: 20{X} TCP port scan (high), 17{X} SSH brute force (critical)"
    assert found["message"] == found["event"]["reason"] == words
    assert (found["rule"]["id"], found["event"]["kind"]) == ("digest", "alert")
    assert (found["event"]["severity"], found["kwsiem"]["alert"]["level"]) == (10, "critical")
    assert found["kwsiem"]["alert"]["state"] == "open"
    assert found["@timestamp"] == many[-1]["@timestamp"]
    assert found["event"]["start"] == many[0]["event"]["start"]
    assert found["event"]["end"] == many[-1]["event"]["end"]


def test_what_it_holds_is_counted(many):
    found = digest(many)["kwsiem"]["digest"]
    assert found["count"] == 37
    assert found["rules"] == [
        {"id": "tcp-port-scan", "name": "TCP port scan", "level": "high", "count": 20},
        {"id": "ssh-brute-force", "name": "SSH brute force", "level": "critical", "count": 17},
    ]
    assert found["levels"] == [{"level": "critical", "count": 17}, {"level": "high", "count": 20}]
    assert found["sources"] == [
        {"address": "198.51.100.0", "count": 13},
        {"address": "198.51.100.1", "count": 12},
        {"address": "198.51.100.2", "count": 12},
    ]
    assert found["ids"] == [alert["event"]["id"] for alert in many]
    assert not [name for name in found if name.startswith("more_")]


def test_the_same_alerts_have_the_same_id_in_whatever_order(many):
    assert digest(many)["event"]["id"] == digest(many[::-1])["event"]["id"]
    assert digest(many)["event"]["id"] != digest(many[1:])["event"]["id"]
    assert digest([*many, many[0]]) == digest(many), "an alert that is there twice counts once"
    assert digest(many) == digest(many)


def test_ids_go_first_where_there_is_little_room(many):
    found = digest(many)
    assert len(json.loads(fit(FORMATS["ecs"], found, 8000))["kwsiem"]["digest"]["ids"]) == 37
    short = json.loads(fit(FORMATS["ecs"], found, 1900))["kwsiem"]["digest"]
    assert "ids" not in short
    assert (short["count"], len(short["rules"])) == (37, 2)


def test_one_source_alone_is_the_source(many):
    assert "source" not in digest(many)
    assert digest(many[::3])["source"] == {"address": "198.51.100.0", "ip": "198.51.100.0"}
    assert digest(many)["related"]["ip"] == ["198.51.100.0", "198.51.100.1", "198.51.100.2"]


def test_lists_are_bounded_and_say_what_is_beyond(make_alert):
    text = '🦊"\\' * 500
    alerts = [
        document(make_alert(number=n, rule_id=f"{n % 70}{text}", title=f"{n % 70}{text}", host=text, tags=[f"{n}{text}"],
                            identity={}, fields={"source.address": f"{n}{text}"}))
        for n in range(1200)
    ]  # fmt: skip
    found = digest(alerts)
    own = found["kwsiem"]["digest"]
    assert own["count"] == 1200
    assert (len(own["ids"]), own["more_ids"]) == (MAX_IDS, 200)
    assert (len(own["rules"]), own["more_rules"]) == (MAX_RULES, 20)
    assert (len(own["sources"]), own["more_sources"]) == (MAX_SOURCES, 1180)
    assert "of 65 more rules" in found["message"]
    assert len(json.dumps(found, ensure_ascii=False).encode()) <= 2 * MAX_DOCUMENT_BYTES
    for name, render in FORMATS.items():
        for size in (8000, 1024 - 110):
            line = fit(render, found, size)
            assert line is not None, name
            assert found["event"]["id"] in line


@pytest.mark.parametrize(
    ("span_s", "words"),
    [(0, "1 s"), (1, "1 s"), (119, "119 s"), (120, "2 min"), (121, "3 min"), (7200, "2 h")],
)
def test_spans_in_words(make_alert, span_s, words):
    first, last = make_alert(), make_alert(number=1)
    last.raised_ns += span_s * 10**9
    assert digest([document(first), document(last)])["message"].startswith(f"2 alerts in {words}: ")


def test_a_single_alert(scan):
    assert digest([scan])["message"] == f"1 alert in 1 s: 1{X} TCP port scan (high)"


def test_no_alert_is_no_digest():
    with pytest.raises(ValueError, match="no alerts"):
        digest([])


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_of_an_alert_that_says_none_is_that_of_its_severity(level):
    assert digest([{"event": {"severity": LEVELS[level]}}])["kwsiem"]["alert"]["level"] == level


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=5))
def test_hostile_alerts_make_a_digest_that_every_format_takes(make_alert, texts):
    alerts = [
        document(make_alert(number=n, title=title, rule_id=rule, fields={"source.address": source}))
        for n, (title, rule, source) in enumerate(texts)
    ]
    found = digest(alerts)
    assert found["kwsiem"]["digest"]["count"] == len(alerts)
    for render in FORMATS.values():
        assert len(render(found).splitlines()) == 1
