"""The _bulk output against a data stream that is as strict as Elasticsearch's; every fate of the table."""

import json

import pytest
from peers.delivery import Delivery
from peers.elastic import API_KEY, PASSWORD, USER, Elastic, error
from peers.web import Cut, Drip, Hang, Reply, Reset, Say

from kwsiem.errors import ConfigError
from kwsiem.output_settings import ElasticsearchSettings
from kwsiem.outputs import elasticsearch
from kwsiem.outputs.elasticsearch import ElasticsearchOutput
from kwsiem.outputs.http import MISCONFIGURED_S

BUSY = (429, "es_rejected_execution_exception", "rejected execution of coordinating operation")
BAD = (400, "document_parsing_exception", "failed to parse field [source.ip] of type [ip]")
FLOOD = (
    403,
    "cluster_block_exception",
    "index blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage]",
)
LARGE = [{"kind": "tcp.syn", "ts_ns": n, "process.command_line": "x" * 1000} for n in range(10)]


@pytest.fixture
def elastic():
    with Elastic() as peer:
        yield peer
    assert peer.violations == []


@pytest.fixture
def make(elastic, tmp_path):
    made = []

    def delivery(*, secrets=None, **changes):
        settings = ElasticsearchSettings(**{"name": "es", "url": elastic.url, "timeout_s": 2.0, **changes})
        made.append(Delivery(tmp_path, settings, {"api_key": API_KEY} if secrets is None else secrets))
        return made[-1]

    yield delivery
    for one in made:
        one.close()


def test_a_batch_is_one_bulk_request_and_each_document_has_its_alerts_id(elastic, make):
    delivery = make()
    ids = delivery.put(5)
    assert delivery.run() == []
    assert elastic.stored == ids
    assert delivery.fates == (5, 0, 0)
    (request,) = elastic.requests
    assert request.path == "/logs-kwsiem.alert-default/_bulk"
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.headers["content-encoding"] == "gzip"
    document = elastic.documents[ids[2]]
    assert document["@timestamp"] == "2026-01-02T03:04:07.123Z"
    assert document["data_stream"] == {"type": "logs", "dataset": "kwsiem.alert", "namespace": "default"}
    assert document["event"]["dataset"] == "kwsiem.alert"
    assert delivery.output.answer == "HTTP 200 (5 documents, errors: false)"


@pytest.mark.parametrize("stream", ["logs-kwsiem.alert-prod_1", "alerts"])
def test_the_fields_of_the_stream_are_those_of_its_name(tmp_path, stream):
    with Elastic(stream=stream if "-" in stream else "a-b-c") as elastic:
        elastic.stream = stream
        elastic._map = lambda document: None
        settings = ElasticsearchSettings(name="es", url=elastic.url, stream=stream)
        with Delivery(tmp_path, settings, {"api_key": API_KEY}) as delivery:
            (found,) = delivery.put(1)
            delivery.run()
        expected = {"type": "logs", "dataset": "kwsiem.alert", "namespace": "prod_1"}
        assert elastic.documents[found].get("data_stream") == (expected if "-" in stream else None)


@pytest.mark.parametrize("form", ["json", "cef", "leef", "ocsf", "gelf"])
def test_every_format_has_the_time_that_a_data_stream_wants(elastic, make, form):
    delivery = make(format=form)
    ids = delivery.put(2)
    delivery.run()
    assert elastic.stored == ids
    assert elastic.documents[ids[0]]["@timestamp"] == "2026-01-02T03:04:05.123Z"
    assert ("message" in elastic.documents[ids[0]]) == (form in {"cef", "leef", "ocsf"})


@pytest.mark.parametrize(
    ("changes", "secrets"),
    [
        ({}, {"api_key": API_KEY}),
        ({}, {"api_key": "kwsiem-id:kwsiem-key"}),
        ({"user": USER}, {"password": PASSWORD}),
    ],
)
def test_an_api_key_in_both_its_forms_or_a_user_with_a_password(elastic, make, changes, secrets):
    delivery = make(secrets=secrets, **changes)
    ids = delivery.put(1)
    delivery.run()
    assert elastic.stored == ids


def test_what_is_there_already_counts_as_delivered(elastic, make):
    elastic.faults.append(Reset(30))
    delivery = make()
    ids = delivery.put(4)
    assert len(delivery.run()) == 1
    assert elastic.stored == ids, "stored once"
    assert elastic.conflicts == 4
    assert delivery.fates == (4, 0, 0)


@pytest.mark.parametrize("fault", [Cut(40), Cut(0), Hang(stored=True), Drip(), Drip(body=True)])
def test_whatever_becomes_of_the_answer_each_is_stored_once(elastic, make, fault):
    elastic.faults.append(fault)
    delivery = make(timeout_s=0.4)
    ids = delivery.put(3)
    assert len(delivery.run()) == 1
    assert elastic.stored == ids
    assert delivery.fates == (3, 0, 0)


def test_each_document_of_a_batch_has_a_fate_of_its_own(elastic, make):
    delivery = make()
    ids = delivery.put(6)
    elastic.fates = {
        ids[0]: [BUSY, BUSY, None],
        ids[2]: [BAD],
        ids[3]: [(503, "unavailable_shards_exception", "primary shard is not active"), None],
    }
    assert len(delivery.run()) == 2
    assert elastic.stored == [ids[1], ids[4], ids[5], ids[3], ids[0]]
    assert elastic.conflicts == 0, "only those that were not taken are sent again"
    assert delivery.fates == (5, 1, 0)
    assert delivery.dead == {
        ids[2]: "400 document_parsing_exception: failed to parse field [source.ip] of type [ip]"
    }
    assert "es_rejected_execution_exception" in delivery.states[0]


def test_a_pause_that_the_server_asks_for_holds_for_its_items_too(elastic, make):
    delivery = make()
    ids = delivery.put(2)
    elastic.fates = {ids[1]: [BUSY, None]}
    serve = elastic.serve
    elastic.serve = lambda request: _with(serve(request), "Retry-After", "11")
    assert delivery.run() == [11.0]
    assert elastic.stored == ids


def _with(reply, name, value):
    reply.headers[name] = value
    return reply


@pytest.mark.parametrize(
    "fate",
    [
        FLOOD,
        (404, "index_not_found_exception", "no such index"),
        (403, "security_exception", "action [indices:data/write/bulk[s]] is unauthorized"),
        (
            400,
            "validation_exception",
            "this action would add [2] shards, but this cluster currently has [1000]",
        ),
    ],
)
def test_what_is_wrong_with_the_cluster_keeps_the_alerts_and_is_tried_slowly(elastic, make, fate):
    delivery = make()
    ids = delivery.put(3)
    elastic.fates = {ids[0]: [fate, None], ids[2]: [BAD]}
    assert delivery.step() == MISCONFIGURED_S
    assert fate[1] in delivery.worker.last_error
    assert delivery.fates == (1, 1, 1)
    delivery.now_s = MISCONFIGURED_S
    delivery.run()
    assert elastic.stored == [ids[1], ids[0]]
    assert delivery.fates == (2, 1, 0)


def test_all_items_refused_is_no_outage(elastic, make):
    delivery = make()
    ids = delivery.put(3)
    elastic.fates = {found: [BAD] for found in ids}
    assert delivery.run() == []
    assert delivery.fates == (0, 3, 0)
    assert delivery.worker.state == "ready"


def test_a_request_that_is_too_large_is_halved(elastic, make):
    elastic.max_bytes = 5000
    delivery = make()
    ids = delivery.put(9)
    (large,) = delivery.put(1, evidence=LARGE)
    assert delivery.run() == []
    assert elastic.stored == ids
    assert delivery.dead == {large: "larger than the server takes"}
    assert delivery.fates == (9, 1, 0)


def test_batches_are_cut_into_requests_of_bounded_size(elastic, make, monkeypatch):
    monkeypatch.setattr(elasticsearch, "MAX_REQUEST_BYTES", 20_000)
    delivery = make()
    ids = delivery.put(40)
    delivery.run()
    assert elastic.stored == ids
    assert len(elastic.requests) > 2
    assert all(len(request.body) <= 20_000 for request in elastic.requests)


def test_a_large_batch_in_several_requests_of_which_one_fails(elastic, make, monkeypatch):
    monkeypatch.setattr(elasticsearch, "MAX_REQUEST_BYTES", 20_000)
    elastic.faults.extend([None, Say(Reply(503))])
    delivery = make()
    ids = delivery.put(40)
    delivery.step()
    taken = len(elastic.stored)
    assert 0 < taken < 40
    assert delivery.fates == (taken, 0, 40 - taken)
    delivery.now_s += 1.0
    delivery.run()
    assert elastic.stored == ids


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [
        (Reply(429, b"", {"Retry-After": "4"}), 4.0),
        (error(503, "no_master_exception", "no master"), None),
        (Reply(504, b"<html>gateway time-out</html>"), None),
        (error(401, "security_exception", "unable to authenticate"), MISCONFIGURED_S),
        (error(403, "security_exception", "unauthorized"), MISCONFIGURED_S),
        (error(404, "index_not_found_exception", "no such index"), MISCONFIGURED_S),
        (error(400, "illegal_argument_exception", "no write index"), MISCONFIGURED_S),
        (error(406, "media_type_header_exception", "odd"), MISCONFIGURED_S),
        (Reply(301, b"", {"Location": "https://127.0.0.1:1/"}), MISCONFIGURED_S),
        (Reply(200, b"<html>log in</html>"), MISCONFIGURED_S),
        (Reply.json({"errors": False, "items": []}), MISCONFIGURED_S),
        (Reply.json({"error": ["odd"]}, 500), None),
        (Reply(200, b"[" * 100_000), MISCONFIGURED_S),
    ],
)  # fmt: skip
def test_answers_to_the_whole_request_keep_all_alerts(elastic, make, answer, pause_s):
    elastic.faults.append(Say(answer))
    delivery = make()
    ids = delivery.put(2)
    pauses = delivery.run()
    assert len(pauses) == 1
    assert pauses[0] == pause_s if pause_s else pauses[0] <= 0.2
    assert elastic.stored == ids
    assert delivery.fates == (2, 0, 0)


def test_a_request_that_cannot_be_read_because_of_one_document_is_halved_until_it_is_found(elastic, make):
    delivery = make()
    ids = delivery.put(6)
    serve = elastic.serve

    def picky(request):
        if ids[4].encode() in request.body:
            return error(400, "x_content_parse_exception", "unexpected character")
        return serve(request)

    elastic.serve = picky
    assert delivery.run() == []
    assert elastic.stored == [*ids[:4], ids[5]]
    assert delivery.dead == {ids[4]: "x_content_parse_exception: unexpected character"}


def test_gzip_is_left_off_where_it_is_not_taken(elastic, make):
    elastic.takes_gzip = False
    delivery = make()
    ids = delivery.put(3)
    assert delivery.run() == []
    assert elastic.stored == ids


def test_the_reason_of_a_refusal_is_bounded_and_clean(elastic, make):
    delivery = make()
    (found,) = delivery.put(1)
    elastic.fates = {found: [(400, "mapper_parsing_exception", "\x1b[2J\n" + "x" * 5000)]}
    delivery.run()
    assert len(delivery.dead[found]) <= 256
    assert "\x1b" not in delivery.dead[found]
    assert "\n" not in delivery.dead[found]


@pytest.mark.parametrize("stream", ["", "Logs-A-b", "a/b", "../x", "_all", "a,b", "logs-*", "a b", "x" * 256])
def test_names_that_are_no_data_stream_are_refused_at_start(stream):
    with pytest.raises(ConfigError, match="stream"):
        ElasticsearchOutput(ElasticsearchSettings(name="es", url="http://localhost:9200", stream=stream), {})


def test_a_user_needs_a_password():
    with pytest.raises(ConfigError, match="password_secret"):
        ElasticsearchOutput(ElasticsearchSettings(name="es", url="http://localhost:9200", user="u"), {})


def test_what_is_sent_is_pure_lines(elastic, make):
    delivery = make()
    delivery.put(2)
    delivery.run()
    body = elastic.requests[0].body
    assert body.endswith(b"}\n")
    assert body.count(b"\n") == 4
    assert [list(json.loads(line)) for line in body.split(b"\n")[:-1:2]] == [["create"], ["create"]]
