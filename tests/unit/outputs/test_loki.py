"""The Loki output against a push endpoint with Loki's limits; every fate of its answers."""

import json

import pytest
from peers.delivery import START_NS, Delivery
from peers.loki import _BASIC, HOUR_NS, PASSWORD, TOKEN, USER, Loki
from peers.web import Cut, Hang, Reply, Reset, Say

from kwsiem.errors import ConfigError
from kwsiem.output_settings import LokiSettings
from kwsiem.outputs import loki as loki_module
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.http import MISCONFIGURED_S
from kwsiem.outputs.loki import MAX_LINE_BYTES, LokiOutput


@pytest.fixture
def loki():
    with Loki(now_ns=START_NS) as peer:
        yield peer
    assert peer.violations == []


@pytest.fixture
def make(loki, tmp_path):
    made = []

    def delivery(*, secrets=None, **changes):
        settings = LokiSettings(**{"name": "loki", "url": loki.url, "timeout_s": 2.0, **changes})
        made.append(Delivery(tmp_path, settings, secrets or {}))
        return made[-1]

    yield delivery
    for one in made:
        one.close()


def test_alerts_are_lines_of_streams_with_few_labels_and_the_id_beside_them(loki, make):
    delivery = make(labels={"site": "berlin"})
    ids = delivery.put(3)
    ids += delivery.put(1, level="high", rule_id="ssh-brute-force")
    assert delivery.run() == []
    assert sorted(loki.stored) == sorted(ids)
    assert delivery.fates == (4, 0, 0)
    assert len(loki.requests) == 1
    (labels, stamp, line), metadata = next(iter(loki.entries.items()))
    assert dict(labels) == {
        "job": "kwsiem", "host": "gw01.example.net", "level": "medium", "rule": "tcp-port-scan", "site": "berlin",
    }  # fmt: skip
    assert stamp == "1767323045123000000"
    assert json.loads(line)["id"] == ids[0]
    assert metadata == {"alert_id": ids[0]}
    assert len({labels for labels, _, _ in loki.entries}) == 2


def test_entries_of_a_stream_go_oldest_first(loki, make):
    delivery = make()
    late = delivery.put(1, raised_ns=START_NS + 50_000_000_000)
    early = delivery.put(1, raised_ns=START_NS + 20_000_000_000)
    delivery.run()
    assert loki.stored == [*early, *late]


@pytest.mark.parametrize(
    ("changes", "secrets", "authorization"),
    [
        ({"user": USER, "password_secret": "P"}, {"password": PASSWORD}, _BASIC),
        ({"token_secret": "T"}, {"token": TOKEN}, f"Bearer {TOKEN}"),
    ],
)
def test_a_user_or_a_token(loki, make, changes, secrets, authorization):
    loki.authorization = authorization
    delivery = make(secrets=secrets, **changes)
    ids = delivery.put(1)
    delivery.run()
    assert loki.stored == ids


def test_a_tenant(loki, make):
    loki.tenants = True
    delivery = make(tenant="blue")
    ids = delivery.put(1)
    delivery.run()
    assert loki.stored == ids
    assert loki.requests[0].headers["x-scope-orgid"] == "blue"


def test_what_is_older_than_a_week_is_a_dead_letter_and_the_others_are_stored(loki, make):
    delivery = make()
    fresh = delivery.put(3)
    old = delivery.put(2, raised_ns=START_NS - 169 * HOUR_NS)
    fresh += delivery.put(3)
    assert delivery.run() == []
    assert sorted(loki.stored) == sorted(fresh), "each once, whatever was sent again"
    assert loki.repeated > 0
    assert set(delivery.dead) == set(old)
    assert all("timestamp too old" in reason for reason in delivery.dead.values())
    assert delivery.fates == (6, 2, 0)


def test_an_entry_that_is_refused_does_not_cost_the_others(loki, make):
    delivery = make()
    ids = delivery.put(7)
    loki.bad = {ids[2], ids[6]}
    delivery.run()
    assert set(loki.stored) == set(ids) - loki.bad
    assert set(delivery.dead) == loki.bad


def test_a_loki_without_structured_metadata_gets_none(loki, make, caplog):
    loki.structured_metadata = False
    delivery = make()
    ids = delivery.put(4)
    assert delivery.run() == []
    ids += delivery.put(1)
    delivery.run()
    assert loki.stored == ids
    assert len(loki.requests) == 3, "tried once"
    assert "no structured metadata" in caplog.text


def test_a_line_that_loki_never_takes_is_not_sent(loki, make):
    output = make().output
    source = json.dumps({"@timestamp": "2026-01-02T03:04:05.123Z"}).encode()
    entry = output._entry(Rendered("a", 5, b"x" * MAX_LINE_BYTES + b"\n", source))
    assert len(entry.line) == MAX_LINE_BYTES
    with pytest.raises(ValueError, match="262145 bytes"):
        output._entry(Rendered("a", 5, b"x" * (MAX_LINE_BYTES + 1), source))


def test_a_push_that_is_too_large_is_halved(loki, make, monkeypatch):
    loki.max_bytes = 3000
    delivery = make()
    ids = delivery.put(20)
    assert delivery.run() == []
    assert sorted(loki.stored) == sorted(ids)
    assert loki.repeated == 0


def test_batches_are_cut_into_requests_of_bounded_size(loki, make, monkeypatch):
    monkeypatch.setattr(loki_module, "MAX_REQUEST_BYTES", 10_000)
    delivery = make()
    ids = delivery.put(30)
    delivery.run()
    assert loki.stored == ids
    assert len(loki.requests) > 1


@pytest.mark.parametrize("fault", [Cut(5), Cut(0), Reset(5), Hang(stored=True)])
def test_a_lost_answer_stores_nothing_twice(loki, make, fault):
    loki.faults.append(fault)
    delivery = make(timeout_s=0.3)
    ids = delivery.put(3)
    assert len(delivery.run()) == 1
    assert loki.stored == ids
    assert loki.repeated == 3
    assert delivery.fates == (3, 0, 0)


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [
        (Reply(429, b"ingestion rate limit exceeded", {"Retry-After": "9"}), 9.0),
        (Reply(500, b"rpc error"), None),
        (Reply(503, b""), None),
        (Reply(401, b"no org id"), MISCONFIGURED_S),
        (Reply(403, b""), MISCONFIGURED_S),
        (Reply(404, b"page not found"), MISCONFIGURED_S),
        (Reply(200, b"<html>Grafana, please log in</html>"), MISCONFIGURED_S),
        (Reply(302, b"", {"Location": "/login"}), MISCONFIGURED_S),
    ],
)  # fmt: skip
def test_other_answers_keep_all_alerts(loki, make, answer, pause_s):
    loki.faults.append(Say(answer))
    delivery = make()
    ids = delivery.put(2)
    pauses = delivery.run()
    assert len(pauses) == 1
    assert pauses[0] == pause_s if pause_s else pauses[0] <= 0.2
    assert loki.stored == ids


@pytest.mark.parametrize(
    "labels",
    [
        {"rule": "x"},
        {"a-b": "x"},
        {"__name__": "x"},
        {"1a": "x"},
        {"a": ""},
        {"a": "x\ny"},
        {f"l{n}": "x" for n in range(12)},
    ],
)
def test_labels_that_loki_would_refuse_are_refused_at_start(labels):
    with pytest.raises(ConfigError, match="labels"):
        LokiOutput(LokiSettings(name="loki", url="http://localhost:3100", labels=labels), {})


def test_as_many_labels_as_loki_takes(loki, make):
    delivery = make(labels={f"l{n}": "x" * 50 for n in range(11)})
    ids = delivery.put(1, host="h" * 5000)
    delivery.run()
    assert loki.stored == ids
