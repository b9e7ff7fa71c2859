"""The webhook output against a receiver that checks signatures by the specification."""

import base64
import logging

import pytest
from peers.delivery import Delivery
from peers.web import Cut, Hang, Reply, Reset, Say
from peers.webhook import SECRET, Webhook

from kwsiem import clock
from kwsiem.errors import ConfigError
from kwsiem.output_settings import WebhookSettings
from kwsiem.outputs import webhook as webhook_module
from kwsiem.outputs.http import MISCONFIGURED_S
from kwsiem.outputs.webhook import WebhookOutput, signature, signing_key


@pytest.fixture
def receiver():
    with Webhook() as peer:
        yield peer
    assert peer.violations == []


@pytest.fixture
def make(receiver, tmp_path):
    made = []

    def delivery(*, signing=SECRET, path="/hook?team=blue", **changes):
        settings = WebhookSettings(
            **{"name": "hook", "url": receiver.url + path, "timeout_s": 2.0, "allow_http": True, **changes}
        )
        made.append(Delivery(tmp_path, settings, {"signing": signing} if signing else {}))
        return made[-1]

    yield delivery
    for one in made:
        one.close()


def test_the_signature_is_that_of_the_published_example():
    """The test vector of the reference, made with another implementation."""
    body = b'{"id":"01KDYH8W4C5N7Q2R8T0V6X9Z1B","rule":"port_scan_v1","severity":7}'
    assert len(body) == 70
    found = signature(signing_key("hook", SECRET), "01KDYH8W4C5N7Q2R8T0V6X9Z1B", 1767323045, body)
    assert found == "v1,RAj5iBtlXDRNcWRQwRAKfdz8eh/Cm6I1szEBv3aQ/mY="


def test_each_alert_is_a_signed_post_of_its_own(receiver, make):
    delivery = make()
    ids = delivery.put(3)
    assert delivery.run() == []
    assert receiver.stored == ids
    assert receiver.rejected == []
    assert delivery.fates == (3, 0, 0)
    assert [request.target for request in receiver.requests] == ["/hook?team=blue"] * 3
    assert receiver.connections == 1
    assert not receiver.bodies[ids[0]].endswith(b"\n")


def test_a_secret_that_is_plain_text(receiver, make):
    receiver.key = b"correct horse battery staple"
    delivery = make(signing="correct horse battery staple")
    ids = delivery.put(1)
    delivery.run()
    assert receiver.stored == ids


def test_without_a_secret_nothing_is_signed_and_that_is_said(receiver, make, caplog):
    caplog.set_level(logging.WARNING)
    receiver.key = None
    delivery = make(signing="", signing_secret="")
    ids = delivery.put(1)
    delivery.run()
    assert receiver.stored == ids
    assert "webhook-signature" not in receiver.requests[0].headers
    assert "not signed" in caplog.text


def test_a_wrong_secret_is_refused_by_the_receiver(receiver, make):
    delivery = make(signing="whsec_" + base64.b64encode(b"another key").decode())
    ids = delivery.put(2)
    delivery.run()
    assert receiver.stored == []
    assert receiver.rejected == ["signature", "signature"]
    assert set(delivery.dead) == set(ids)


@pytest.mark.parametrize("form", ["cef", "json", "ecs", "leef", "ocsf", "gelf"])
def test_every_format_with_its_media_type(receiver, make, form):
    delivery = make(format=form)
    ids = delivery.put(1)
    delivery.run()
    assert receiver.stored == ids


def test_own_headers_go_with_each_post(receiver, make):
    delivery = make(headers={"X-Api-Key": "abc def"})
    delivery.put(1)
    delivery.run()
    assert receiver.requests[0].headers["x-api-key"] == "abc def"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_the_same_alert_is_tried_again_with_its_id_and_a_new_time(receiver, make, monkeypatch, status):
    now_ns = clock.wall_ns()
    times = iter(range(now_ns, now_ns + 60 * clock.NS_PER_S, clock.NS_PER_S))
    monkeypatch.setattr(webhook_module, "wall_ns", lambda: next(times))
    delivery = make()
    ids = delivery.put(3)
    receiver.fates = {ids[1]: [Reply(status, b"later"), Reply(status, b"later", {"Retry-After": "30"})]}
    pauses = delivery.run()
    assert len(pauses) == 2
    assert pauses[1] == 30.0
    assert receiver.stored == ids
    assert receiver.repeated == []
    tries = [r.headers for r in receiver.requests if r.headers["webhook-id"] == ids[1]]
    assert len({head["webhook-timestamp"] for head in tries}) == 3
    assert delivery.fates == (3, 0, 0)


@pytest.mark.parametrize("status", [400, 413, 415, 422, 451])
def test_what_the_receiver_does_not_want_is_refused_and_the_others_go_on(receiver, make, status):
    delivery = make()
    ids = delivery.put(3)
    receiver.fates = {ids[1]: [Reply(status, b"no\x1b[31m thanks")]}
    assert delivery.run() == []
    assert receiver.stored == [ids[0], ids[2]]
    assert delivery.dead == {ids[1]: f"{receiver.url}: HTTP {status} (no\ufffd[31m thanks)"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (410, "gone for good: remove this output"),
        (404, "nothing at this URL"),
        (401, "not authorized"),
        (403, "forbidden"),
        (405, "takes no POST"),
        (301, "redirects are not followed"),
        (304, "no 2xx"),
    ],
)
def test_a_destination_that_must_be_mended_keeps_the_alerts_and_is_tried_slowly(
    receiver, make, status, words
):
    receiver.faults.extend([None, Say(Reply(status, b"", {"Location": "http://127.0.0.1:1/x"}))])
    delivery = make()
    ids = delivery.put(3)
    assert delivery.step() == MISCONFIGURED_S
    assert words in delivery.worker.last_error
    assert delivery.fates == (1, 0, 2)
    delivery.now_s = MISCONFIGURED_S
    delivery.run()
    assert receiver.stored == ids


@pytest.mark.parametrize("fault", [Cut(3), Reset(3), Hang(stored=True)])
def test_a_lost_answer_repeats_the_id_so_that_the_receiver_knows(receiver, make, fault):
    receiver.faults.extend([None, fault])
    delivery = make(timeout_s=0.3)
    ids = delivery.put(3)
    assert len(delivery.run()) == 1
    assert receiver.stored == ids
    assert receiver.repeated == [ids[1]]
    assert delivery.fates == (3, 0, 0)


def test_plain_http_must_be_allowed():
    with pytest.raises(ConfigError, match="allow_http"):
        WebhookOutput(WebhookSettings(name="hook", url="http://localhost/"), {"signing": SECRET})


def test_a_secret_that_is_no_base64_is_refused_without_showing_it():
    with pytest.raises(ConfigError) as error:
        signing_key("hook", "whsec_not*base64")
    assert "not*base64" not in str(error.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"Webhook-Id": "1"},
        {"Host": "x"},
        {"Content-Length": "5"},
        {"a b": "x"},
        {"X": "a\r\nY: b"},
        {"X": "é"},
        {"X": ""},
    ],
)
def test_headers_that_would_break_the_request_are_refused_at_start(headers):
    settings = WebhookSettings(name="hook", url="https://localhost/", headers=headers)
    with pytest.raises(ConfigError, match="headers"):
        WebhookOutput(settings, {"signing": SECRET})
