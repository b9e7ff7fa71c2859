"""The HEC output against a collector that is as strict as Splunk's; every fate of its table of codes."""

import logging

import pytest
from peers.delivery import Delivery
from peers.splunk import TOKEN, Splunk, reply
from peers.web import Bytes, Cut, Hang, Reply, Reset, Say

from kwsiem.errors import ConfigError
from kwsiem.output_settings import SplunkHecSettings
from kwsiem.outputs import splunk_hec
from kwsiem.outputs.http import MISCONFIGURED_S
from kwsiem.outputs.splunk_hec import SplunkHecOutput

LARGE = [{"kind": "tcp.syn", "ts_ns": n, "process.command_line": "x" * 1000} for n in range(10)]


@pytest.fixture
def splunk():
    with Splunk() as peer:
        yield peer
    assert peer.violations == []


@pytest.fixture
def make(splunk, tmp_path):
    """Deliveries to the collector, with any key of the settings changed."""
    made = []

    def delivery(*, token=TOKEN, **changes):
        settings = SplunkHecSettings(**{"name": "siem", "url": splunk.url, "timeout_s": 2.0, **changes})
        made.append(Delivery(tmp_path, settings, {"token": token}))
        return made[-1]

    yield delivery
    for one in made:
        one.close()


def test_a_batch_is_concatenated_envelopes_with_exact_times(splunk, make):
    delivery = make(index="security")
    ids = delivery.put(3)
    assert delivery.run() == []
    assert splunk.stored == ids
    assert delivery.fates == (3, 0, 0)
    assert len(splunk.requests) == 1
    event = splunk.events[1]
    assert str(event["time"]) == "1767323046.123"
    assert {key: event[key] for key in ("host", "source", "sourcetype", "index")} == {
        "host": "gw01.example.net", "source": "kwsiem", "sourcetype": "kwsiem:alert", "index": "security",
    }  # fmt: skip
    assert event["event"]["event"]["id"] == ids[1], "the document is an object, not a text"
    assert splunk.requests[0].headers["content-encoding"] == "gzip"
    assert splunk.requests[0].headers["content-type"] == "application/json"


def test_without_an_index_the_tokens_own_is_used(splunk, make):
    make().put(1)
    delivery = make()
    delivery.run()
    assert "index" not in splunk.events[0]


@pytest.mark.parametrize("form", ["cef", "leef", "ocsf", "gelf", "json"])
def test_objects_are_sent_as_objects_and_text_as_a_string(splunk, make, form):
    delivery = make(format=form)
    ids = delivery.put(2)
    delivery.run()
    assert splunk.stored == ids
    event = splunk.events[0]["event"]
    assert isinstance(event, str if form in {"cef", "leef"} else dict)
    assert form != "cef" or (event.startswith("CEF:0|") and not event.endswith("\n"))


def test_what_is_above_the_rate_comes_in_a_digest(splunk, make):
    delivery = make(rate_per_min=3)
    delivery.put(30)
    delivery.run()
    assert len(splunk.events) == 3
    assert delivery.fates == (30, 0, 0)


def test_large_batches_are_cut_into_requests_that_the_cloud_takes(splunk, make):
    delivery = make()
    splunk.max_bytes = splunk_hec.MAX_REQUEST_BYTES
    ids = delivery.put(120, evidence=LARGE)
    delivery.run()
    assert splunk.stored == ids
    assert len(splunk.requests) > 1
    assert all(len(request.body) <= splunk_hec.MAX_REQUEST_BYTES for request in splunk.requests)


def test_a_smaller_limit_of_the_server_halves_the_batch_and_refuses_what_is_too_large_alone(splunk, make):
    delivery = make()
    splunk.max_bytes = 6000
    ids = delivery.put(8)
    (large,) = delivery.put(1, evidence=LARGE)
    delivery.run()
    assert sorted(splunk.stored) == sorted(ids)
    assert delivery.dead == {large: "larger than the server takes"}


def test_gzip_is_switched_off_where_it_is_not_taken(splunk, make):
    splunk.takes_gzip = False
    delivery = make()
    ids = delivery.put(2)
    assert delivery.run() == []
    ids += delivery.put(2)
    delivery.run()
    assert splunk.stored == ids
    assert len(splunk.requests) == 3, "tried once"


@pytest.mark.parametrize("code", [6, 12, 13, 15])
def test_a_bad_event_is_refused_those_before_and_behind_it_are_stored_once(splunk, make, code):
    delivery = make()
    ids = delivery.put(7)
    splunk.bad = {ids[0]: code, ids[3]: code, ids[6]: code}
    assert delivery.run() == []
    assert splunk.stored == [ids[1], ids[2], ids[4], ids[5]]
    assert delivery.fates == (4, 3, 0)
    assert set(delivery.dead) == {ids[0], ids[3], ids[6]}
    assert all(f"code {code}" in reason for reason in delivery.dead.values())


def test_a_bad_event_without_its_number_is_found_by_halves(splunk, make):
    splunk.numbers = False
    delivery = make()
    ids = delivery.put(9)
    splunk.bad = {ids[4]: 12}
    delivery.run()
    assert set(splunk.stored) == set(ids) - {ids[4]}
    assert delivery.fates == (8, 1, 0)


@pytest.mark.parametrize("number", [-5, 3, 10**12])
def test_a_number_that_names_no_event_is_not_believed(splunk, make, number):
    delivery = make()
    ids = delivery.put(3)
    splunk.faults.append(Say(reply(6, **{"invalid-event-number": number})))
    delivery.run()
    assert splunk.stored == ids


def test_an_index_that_is_not_allowed_keeps_the_alerts_until_it_is_mended(splunk, make):
    delivery = make(index="locked")
    ids = delivery.put(3)
    assert delivery.step() == MISCONFIGURED_S
    assert "may not write to this index, code 7" in delivery.worker.last_error
    assert delivery.fates == (0, 0, 3)
    splunk.indexes.add("locked")
    delivery.now_s = MISCONFIGURED_S
    delivery.run()
    assert splunk.stored == ids


@pytest.mark.parametrize(
    ("token", "enabled", "words"),
    [
        ("wrong-token-0000", True, "the token is not valid, code 4"),
        (TOKEN, False, "the token is disabled, code 1"),
    ],
)
def test_a_bad_token_is_said_and_tried_slowly(splunk, make, token, enabled, words):
    splunk.token_enabled = enabled
    delivery = make(token=token)
    delivery.put(1)
    assert delivery.step() == MISCONFIGURED_S
    assert words in delivery.worker.last_error
    assert token not in delivery.worker.last_error
    assert delivery.fates == (0, 0, 1)


def test_a_token_that_wants_acknowledgement_is_said(splunk, make):
    splunk.acks = True
    delivery = make()
    delivery.put(1)
    assert delivery.step() == MISCONFIGURED_S
    assert "acknowledge: true, code 10" in delivery.worker.last_error


@pytest.mark.parametrize("code", [8, 9])
def test_a_busy_collector_is_tried_again_after_the_pause_it_asks_for(splunk, make, code):
    busy = reply(code)
    busy.headers["Retry-After"] = "17"
    splunk.faults.append(Say(busy))
    delivery = make()
    ids = delivery.put(2)
    assert delivery.run() == [17.0]
    assert splunk.stored == ids
    assert delivery.fates == (2, 0, 0)


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [
        (Reply(429, b"slow down", {"Retry-After": "3"}), 3.0),
        (Reply(502, b"<html>bad gateway</html>"), None),
        (Reply(408, b""), None),
        (Reply(200, b"<html>please log in</html>"), MISCONFIGURED_S),
        (Reply(200, b'{"text":"odd","code":99}'), MISCONFIGURED_S),
        (Reply(400, b"a proxy's page"), MISCONFIGURED_S),
        (Reply(404, b"not found"), MISCONFIGURED_S),
        (Reply(302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), MISCONFIGURED_S),
    ],
)  # fmt: skip
def test_no_other_answer_loses_or_loses_sight_of_an_alert(splunk, make, answer, pause_s):
    splunk.faults.append(Say(answer))
    delivery = make()
    ids = delivery.put(2)
    pauses = delivery.run()
    assert len(pauses) == 1
    assert pauses[0] == pause_s if pause_s else pauses[0] <= 0.2
    assert splunk.stored == ids
    assert delivery.fates == (2, 0, 0)
    assert delivery.states[0].startswith(f"failing {splunk.url}: HTTP {answer.status}")


@pytest.mark.parametrize("fault", [Reset(30), Cut(30), Cut(0), Hang(stored=True)])
def test_an_answer_that_does_not_come_is_at_least_once(splunk, make, fault):
    splunk.faults.append(fault)
    delivery = make(timeout_s=0.3)
    ids = delivery.put(2)
    assert len(delivery.run()) == 1
    assert splunk.stored == ids + ids, "stored, and sent again with the same ids"
    assert delivery.fates == (2, 0, 0)


def test_with_acknowledgement_an_alert_is_delivered_when_the_indexer_says_so(splunk, make):
    splunk.acks, splunk.ack_after = True, 2
    delivery = make(acknowledge=True)
    pauses = []
    delivery.output._sleep = pauses.append
    ids = delivery.put(4)
    assert delivery.run() == []
    assert splunk.stored == ids
    assert pauses == [0.1, 0.2]
    assert [request.path.rpartition("/")[2] for request in splunk.requests] == ["event", "ack", "ack", "ack"]


def test_what_is_not_acknowledged_in_time_is_sent_again_over_a_new_channel(splunk, make):
    splunk.acks, splunk.lost_acks = True, {0}
    delivery = make(acknowledge=True, acknowledge_timeout_s=0.0)
    ids = delivery.put(3)
    wait_s = delivery.step()
    assert delivery.fates == (0, 0, 3)
    assert "not acknowledged within 0 s" in delivery.worker.last_error
    splunk.lost_acks = set()
    delivery.now_s += wait_s
    delivery.run()
    assert splunk.stored == ids + ids
    channels = {r.headers.get("x-splunk-request-channel") for r in splunk.requests} - {None}
    assert len(channels) == 2


def test_of_several_requests_only_the_one_without_acknowledgement_is_sent_again(splunk, make, monkeypatch):
    monkeypatch.setattr(splunk_hec, "MAX_REQUEST_BYTES", 2500)
    splunk.acks, splunk.lost_acks = True, {1}
    delivery = make(acknowledge=True, acknowledge_timeout_s=0.0)
    ids = delivery.put(3)
    delivery.step()
    assert len(splunk.requests) == 4, "one event each, and one question"
    assert delivery.fates == (2, 0, 1)
    splunk.lost_acks = set()
    delivery.now_s += 1
    delivery.run()
    assert splunk.stored == [*ids, ids[1]]


def test_questions_that_fail_are_asked_again(splunk, make):
    splunk.acks = True
    delivery = make(acknowledge=True)
    delivery.output._sleep = lambda _: None
    splunk.faults.extend([None, Say(reply(9)), Say(Reply(200, b"[]")), Bytes(b"no HTTP\r\n\r\n")])
    ids = delivery.put(2)
    assert delivery.run() == []
    assert splunk.stored == ids


def test_a_bad_event_and_missing_acknowledgement_together(splunk, make):
    splunk.acks, splunk.lost_acks = True, {0}
    delivery = make(acknowledge=True, acknowledge_timeout_s=0.0)
    ids = delivery.put(4)
    splunk.bad = {ids[1]: 12}
    delivery.step()
    assert delivery.fates == (1, 1, 2), "0 is in, 1 refused, 2 and 3 have the number that is lost"
    splunk.lost_acks = set()
    delivery.now_s += 1
    delivery.run()
    assert splunk.stored == [ids[0], ids[2], ids[3], ids[2], ids[3]]


def test_a_token_without_acknowledgement_is_said_once_and_its_answer_taken_as_it_is(splunk, make, caplog):
    caplog.set_level(logging.WARNING)
    delivery = make(acknowledge=True)
    delivery.put(1)
    assert delivery.run() == []
    delivery.put(1)
    delivery.run()
    assert delivery.fates == (2, 0, 0)
    assert caplog.text.count("gives no acknowledgements") == 1


def test_acknowledgement_switched_off_meanwhile(splunk, make):
    splunk.acks = True
    delivery = make(acknowledge=True)
    splunk.faults.extend([None, Say(reply(14))])
    ids = delivery.put(1)
    assert delivery.run() == []
    assert splunk.stored == ids


def test_a_token_is_needed():
    with pytest.raises(ConfigError, match="token_secret"):
        SplunkHecOutput(SplunkHecSettings(name="siem", url="https://localhost:8088"), {})
