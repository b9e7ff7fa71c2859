"""The shipped network rules together: one attack is one alert, and what only looks like one is none."""

import hashlib
from itertools import groupby
from pathlib import Path

import pytest

from kwsiem.correlate.engine import Engine
from kwsiem.event import event_class, event_from_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.source import Source
from kwsiem.sensor.catalog import read_catalog

ROOT = Path(__file__).parents[3]
KINDS = read_catalog([ROOT / "probes"]).kinds()
HOST, SOURCE = "192.0.2.1", "198.51.100.7"
S = 10**9
BEGIN = 10**15


@pytest.fixture(scope="module")
def ruleset():
    return load_rules([Source("rules.yaml", (ROOT / "rules.yaml").read_bytes())], KINDS, lambda *_: None)


@pytest.fixture
def alerted(ruleset):
    """A function that runs events ``(time in ns, kind, fields)`` and gives the rules that alerted, sorted."""

    def run(events):
        alerts = []
        engine = Engine(alerts.append, host="test")
        engine.set_rules(ruleset)
        classes = {name: event_class(KINDS[name], 0) for _, name, _ in events}
        for cls in classes.values():
            engine.bind(cls)
        ordered = sorted(events, key=lambda event: event[0])
        for second, group in groupby(ordered, key=lambda event: event[0] // S):
            made = [event_from_fields(classes[k], classes[k].KIND, f, BEGIN + at) for at, k, f in group]
            engine.process(made)
            engine.advance(BEGIN + (second + 1) * S)
        engine.finish(2**62)
        assert not engine.counters()["errors"], engine.counters()["last_error"]
        return sorted(alert.rule_id for alert in alerts if alert.state == "open")

    return run


def tcp(source=SOURCE, port=80, destination=HOST, **more):
    return {
        "source.ip": source,
        "source.port": 40000,
        "destination.ip": destination,
        "destination.port": port,
        **more,
    }


def scan(ports, every, *, source=SOURCE, refuses=True, begin=0):
    """SYNs to closed ports, and what this host answers."""
    events = []
    for number, port in enumerate(ports):
        at = begin + number * every
        arrives = {"tcp.flags": 2, "observer.ingress.interface.name": "eth0"}
        answers = {"tcp.flags": 20, "observer.egress.interface.name": "eth0"}
        events.append((at, "tcp.syn", tcp(source, port, **arrives)))
        if refuses:
            events.append((at + 1000, "tcp.refused", tcp(source, port, **answers)))
    return events


def asked(names, kind="A", every=100_000_000):
    """Questions of this host and of a client of its name server."""
    events = []
    for number, name in enumerate(names):
        fields = {"dns.question.name": name, "dns.question.type": kind}
        client = {"source.ip": SOURCE, "observer.ingress.interface.name": "eth0"}
        own = {"source.ip": HOST, "observer.egress.interface.name": "eth0"}
        events.append((number * every, "dns.query", {**fields, **client}))
        events.append((number * every, "dns.lookup", {**fields, **own}))
    return events


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def nibbles(number):
    return ".".join(digest(number)[:32])


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([f"r{n % 20}---sn-{digest(n)[:8]}.googlevideo.com" for n in range(900)], "A"),
        ([f"d{digest(n)[:13]}.cloudfront.net" for n in range(900)], "A"),
        ([f"{n % 250}.{n // 250}.0.203.zen.spamhaus.org" for n in range(900)], "A"),
        ([f"{nibbles(n)}.zen.spamhaus.org" for n in range(900)], "TXT"),
        ([f"{digest(n)[:52]}.hbl.dq.spamhaus.net" for n in range(900)], "A"),
        ([f"selector{n}._domainkey.example{n}.com" for n in range(900)], "TXT"),
        ([f"s{digest(n)[:9]}._domainkey.example.com" for n in range(900)], "TXT"),
        ([f"{n % 250}.{n // 250}.0.203.in-addr.arpa" for n in range(900)], "PTR"),
        ([f"{nibbles(n)}.ip6.arpa" for n in range(900)], "PTR"),
        ([f"service-{digest(n)[:9]}.production.svc.cluster.local" for n in range(900)], "A"),
        ([f"www.shop-{n}-{digest(n)[:9]}.example.net.default.svc.cluster.local" for n in range(900)], "A"),
        ([f"host{n}.example.com" for n in range(900)], "A"),
        ([f"mail{n}.shop{n}.co.uk" for n in range(900)], "MX"),
        ([digest(1)[:50] + ".cdn.example.net"] * 900, "A"),
        ([f"{digest(n)[:50]}.cdn.example.net" for n in range(40)] * 9, "A"),
    ],
)
def test_names_that_only_look_like_a_tunnel_are_none(alerted, names, kind):
    assert alerted(asked(names, kind)) == []


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([f"{digest(n)[:50]}.t.example.net" for n in range(60)], "A"),
        ([f"{digest(n)[:30]}.{digest(-n)[:30]}.t.example.co.uk" for n in range(60)], "NULL"),
        ([f"{digest(n)[:18]}.example.net" for n in range(60)], "TXT"),
    ],
)
def test_a_tunnel_is_one_alert_for_each_who_asks(alerted, names, kind):
    assert alerted(asked(names, kind)) == ["dns-tunnel", "dns-tunnel"]


def test_an_hour_of_an_office_behind_one_address_is_no_alert(alerted):
    """A hundred browsers and mail programs, and someone who administers; ports in turn, never many at once."""
    ports = [443, 443, 443, 80, 443, 993, 587, 443, 143, 443, 22, 8443, 8080, 465]
    events = []
    for number in range(3600):
        port = ports[number % len(ports)]
        at = number * S
        arrives = {"tcp.flags": 2, "observer.ingress.interface.name": "eth0"}
        events.append((at, "tcp.syn", tcp(port=port, **arrives)))
        events.append((at + 1000, "tcp.open", tcp(port=port, **{"flow.connections": 600})))
        ended = {"event.duration": 5 * S, "source.bytes": 3000, "destination.bytes": 50_000}
        if port not in (993, 143, 587, 465):
            events.append((at + 5 * S, "tcp.close", tcp(port=port, **ended)))
    assert alerted(events) == []


def test_a_restart_of_a_mail_server_is_no_alert(alerted):
    """Forty clients go on trying their three or four ports of it, which refuse for half a minute."""
    events = []
    for client in range(40):
        ports = (25, 143, 465, 587, 993, 995, 110, 80, 443)[client % 6 :][:4]
        for number, port in enumerate(ports):
            begin = client * S // 9 + number * S // 3
            events += scan([port] * 6, 5 * S, source=f"203.0.113.{client + 1}", begin=begin)
    assert alerted(events) == []


def doublings(kind, most, begin, *, sources, half_open, source):
    """What the probe tells of one count within one second: at 256, 512, 1024 … up to ``most``."""
    count = 256
    while count <= most:
        yield (
            begin + count * S // (most + 1),
            {
                "flow.kind": kind,
                "source.ip": source if sources == 1 else f"203.0.113.{count % 251}",
                "destination.ip": HOST,
                "destination.port": 80,
                "observer.ingress.interface.name": "" if kind == "http.request" else "eth0",
                "event.count": count // 2,
                "flow.packets": count,
                "flow.half_open": min(half_open, count),
            },
        )
        count *= 2


def flood(kind, packets, *, sources, processors=1, half_open=10**9, source=SOURCE):
    """Three seconds of so many packets a second: flow.rate of each processor, flow.source when there is one."""
    events = []
    for second in range(3):
        seen = {"sources": sources, "half_open": half_open, "source": source}
        for processor in range(processors):
            begin = second * S + processor * 1000
            for at, fields in doublings(kind, packets // processors, begin, **seen):
                told = min(sources, fields["flow.packets"])
                events.append((at, "flow.rate", {**fields, "flow.sources": told}))
        if sources == 1:
            events += [(at, "flow.source", f) for at, f in doublings(kind, packets, second * S, **seen)]
    return events


@pytest.mark.parametrize("processors", [1, 4, 8])
@pytest.mark.parametrize(
    ("kind", "packets", "rule"),
    [
        ("tcp.syn", 60_000, "syn-flood"),
        ("udp", 100_000, "udp-flood"),
        ("icmp.echo", 60_000, "icmp-flood"),
        ("http.request", 60_000, "http-flood"),
    ],
)
@pytest.mark.parametrize("sources", [1, 50_000])
def test_a_flood_is_one_alert(alerted, kind, packets, rule, sources, processors):
    events = flood(kind, packets, sources=sources, processors=processors)
    assert alerted(events) == [rule if sources > 1 else f"{rule}-source"]


def test_a_flood_of_one_ipv6_network_is_one_alert_though_each_packet_has_another_address(alerted):
    events = flood("tcp.syn", 60_000, sources=1)
    for number, (_, _, fields) in enumerate(events):
        fields.update({"source.ip": f"2001:db8::{number:x}", "destination.ip": "2001:db8:1::1"})
    assert alerted(events) == ["syn-flood"]


@pytest.mark.parametrize("refuses", [True, False])
def test_a_fast_scan_is_one_alert(alerted, refuses):
    assert alerted(scan(range(1, 1001), S // 100, refuses=refuses)) == ["tcp-port-scan"]


@pytest.mark.parametrize(
    ("every", "number", "rule"),
    [
        (5 * S, 60, "tcp-port-scan-minute"),
        (40 * S, 40, "tcp-port-scan-slow"),
        (600 * S, 60, "tcp-port-scan-day"),
    ],
)
@pytest.mark.parametrize("refuses", [True, False])
def test_a_slow_scan_is_told_by_its_failures_and_once_by_its_speed(alerted, every, number, rule, refuses):
    found = alerted(scan(range(200, 200 + number), every, refuses=refuses))
    assert found == [rule, "tcp-scan-sequential"]


def test_a_stealth_scan_that_is_refused_is_one_alert(alerted):
    events = []
    for number, (at, _, fields) in enumerate(scan(range(1, 101), S // 50)):
        kind = "tcp.refused" if number % 2 else "tcp.probe"
        events.append((at, kind, fields if number % 2 else {**fields, "tcp.flags": 1}))
    assert alerted(events) == ["tcp-stealth-scan-fin"]


def test_a_scan_with_decoys_says_so_beside_the_scan_of_each_source(alerted):
    sources = [SOURCE, *(f"203.0.113.{number}" for number in range(1, 10))]
    events = []
    for number, source in enumerate(sources):
        events += scan(range(1, 101), S // 25, source=source, begin=number * 10_000)
    assert alerted(events) == ["scan-with-decoys", *["tcp-port-scan"] * 10]


def test_a_flood_of_questions_is_one_alert(alerted):
    for sources, rule in ((1, "dns-flood-source"), (5000, "dns-flood")):
        events = flood("dns.query", 60_000, sources=sources) + flood("udp", 60_000, sources=sources)
        assert alerted(events) == [rule]


def test_a_scan_from_many_sources_that_each_stay_below_is_one_alert(alerted):
    events = []
    for source in range(16):
        ports = range(200 + source * 4, 204 + source * 4)
        events += scan(ports, 7 * S, source=f"203.0.113.{source + 1}", begin=source * S)
    assert alerted(events) == ["distributed-scan"]


@pytest.mark.parametrize("processors", [1, 8])
def test_ten_thousand_connections_a_second_that_complete_are_no_flood(alerted, processors):
    busy = {"processors": processors, "half_open": 200}
    assert alerted(flood("tcp.syn", 16_384, sources=900, **busy)) == []
    assert alerted(flood("tcp.syn", 16_384, sources=1, **busy)) == []
