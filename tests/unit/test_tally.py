"""What the engine counts for the history: exact where the probe is, never too much, and bounded."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from kwsiem import tally
from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, event_from_fields, parse_fields
from kwsiem.sensor.catalog import read_probe
from kwsiem.tally import Tally

SPEC = read_probe(Path(__file__).parents[2] / "probes" / "net.bt")
CLASSES = {kind.name: event_class(kind, number) for number, kind in SPEC.kinds.items() if number}
SECOND = 2**30
TCP, UDP, HTTP = 1, 3, 6


@pytest.fixture
def counts():
    return Tally()


def see(counts, kind, ts_ns=SECOND, times=1, **fields):
    cls = CLASSES[kind]
    named = {
        name.replace("_", ".", 1) if name != "network_transport" else "network.transport": v
        for name, v in fields.items()
    }
    event = event_from_fields(cls, cls.KIND, named, ts_ns)
    counts.looker(cls)([event] * times)


def syn(counts, port=22, source="192.0.2.1", times=1, ts_ns=SECOND):
    see(counts, "tcp.syn", ts_ns, times, source_ip=source, destination_port=port)


def total(counts, sort, count):
    see(counts, "flow.total", network_transport=sort, event_count=count)


def taken(counts):
    """Two tellings: what is of others is told by the second."""
    counts.advance(2**60)
    found = [counts.take(), counts.take()]
    return {
        name: {
            label: sum(each[name].get(label, 0) for each in found) for each in found for label in each[name]
        }
        for name in found[0]
    }


def test_single_packets_are_counted_by_port_and_source(counts):
    syn(counts, 22, times=3)
    syn(counts, 80, "192.0.2.2", times=2)
    see(counts, "tcp.probe", source_ip="192.0.2.2", destination_port=80)
    see(counts, "icmp.echo", source_ip="192.0.2.3", times=4)
    see(counts, "dns.query", source_ip="192.0.2.4", times=5)
    see(counts, "udp.unreachable", source_ip="192.0.2.5", destination_port=9)
    see(counts, "ip.probe", source_ip="192.0.2.6")
    for sort, count in {"tcp": 6, "icmp": 4, "udp": 6, "other": 1}.items():
        total(counts, sort, count)
    assert taken(counts) == {
        "packets": {"tcp": 6, "icmp": 4, "udp": 6, "other": 1},
        "ports": {"tcp/22": 3, "tcp/80": 3, "udp/53": 5, "udp/9": 1},
        "sources": {f"192.0.2.{n}": count for n, count in enumerate((3, 3, 4, 5, 1, 1), 1)},
    }


def test_a_source_counts_what_was_printed_or_what_its_flow_told_not_both(counts):
    syn(counts, times=100)
    for packets in (128, 256, 512):
        see(
            counts, "flow.source", flow_class=TCP, source_ip="192.0.2.1", destination_port=22,
            event_count=max(128, packets // 2), flow_packets=packets,
        )  # fmt: skip
    syn(counts, times=7, ts_ns=2 * SECOND)
    total(counts, "tcp", 700)
    assert taken(counts)["sources"] == {"192.0.2.1": 519, "other": 181}


def test_a_port_counts_by_a_rate_that_named_it_twice(counts):
    syn(counts, 443, times=60)
    for packets in (256, 512, 1024):
        see(
            counts, "flow.rate", flow_class=TCP, source_ip="192.0.2.1", destination_ip="192.0.2.9",
            destination_port=443, event_count=max(256, packets // 2), flow_packets=packets,
        )  # fmt: skip
    total(counts, "tcp", 1500)
    assert taken(counts)["ports"] == {"tcp/443": 768, "other": 732}


def test_a_scan_gives_no_port_what_all_of_them_got(counts):
    for number, packets in enumerate((256, 512, 1024)):
        see(
            counts, "flow.rate", flow_class=TCP, source_ip="192.0.2.1", destination_ip="192.0.2.9",
            destination_port=1000 + number, event_count=max(256, packets // 2), flow_packets=packets,
        )  # fmt: skip
    total(counts, "tcp", 1500)
    assert taken(counts)["ports"] == {"other": 1500}


def test_datagrams_that_nobody_answers_are_known_by_their_flows(counts):
    see(counts, "flow.source", flow_class=UDP, source_ip="192.0.2.1", event_count=128, flow_packets=128)
    total(counts, "udp", 200)
    assert taken(counts)["sources"] == {"192.0.2.1": 128, "other": 72}


def test_requests_are_no_packets(counts):
    for kind in ("flow.source", "flow.rate"):
        see(counts, kind, flow_class=HTTP, source_ip="192.0.2.1", event_count=256, flow_packets=256)
    assert taken(counts) == {"packets": {}, "ports": {}, "sources": {}}


@pytest.mark.parametrize("total_first", [True, False])
def test_names_and_totals_may_come_one_behind_the_other(counts, total_first):
    steps = [lambda: total(counts, "tcp", 50), lambda: syn(counts, times=50)]
    found = []
    for second, step in enumerate(steps if total_first else reversed(steps), 2):
        step()
        counts.advance(second * SECOND)
        found.append(counts.take()["sources"])
    found.append(counts.take()["sources"])
    assert [each for each in found if each] == [{"192.0.2.1": 50}]


def test_a_total_that_was_lost_takes_nothing_from_later_ones(counts):
    syn(counts, times=50)
    assert taken(counts)["sources"] == {"192.0.2.1": 50}
    total(counts, "udp", 30)
    assert taken(counts)["sources"] == {"other": 30}


def test_at_the_end_all_is_told_at_once(counts):
    total(counts, "udp", 30)
    syn(counts, times=2)
    total(counts, "tcp", 2)
    assert counts.take(last=True)["sources"] == {"192.0.2.1": 2, "other": 30}


def test_forged_sources_take_bounded_memory_and_hide_nobody(counts):
    for second in range(1, 41):
        for start in range(0, 2000, 500):
            cls = CLASSES["tcp.syn"]
            counts.looker(cls)(
                [
                    event_from_fields(
                        cls, cls.KIND,
                        {"source.ip": f"10.{second}.{n // 256}.{n % 256}", "destination.port": n * second % 65536},
                        second * SECOND,
                    )
                    for n in range(start, start + 500)
                ]
            )  # fmt: skip
            assert len(counts._sources.single) <= 2 * tally.PLACES
        see(
            counts, "flow.source", second * SECOND, flow_class=TCP, source_ip="192.0.2.1",
            event_count=512, flow_packets=512,
        )  # fmt: skip
        total(counts, "tcp", 3000)
        counts.advance((second + 1) * SECOND)
        assert len(counts._sources._sum) <= 2 * tally.PLACES
        assert len(counts._ports._sum) <= 2 * tally.PLACES
    found = taken(counts)
    assert len(found["sources"]) <= tally.TOLD + 1
    assert 40 * 512 * 0.9 < found["sources"]["192.0.2.1"] <= 40 * 512
    assert sum(found["sources"].values()) == sum(found["ports"].values()) == 40 * 3000


def test_no_more_than_so_many_are_looked_at_in_a_second(counts):
    syn(counts, times=tally.MAX_LOOKED + 500)
    syn(counts, times=500)
    counts.advance(2 * SECOND)
    assert counts.take()["sources"] == {"192.0.2.1": tally.MAX_LOOKED}
    syn(counts, times=5, ts_ns=3 * SECOND)
    counts.advance(4 * SECOND)
    assert counts.take()["sources"] == {"192.0.2.1": 5}


def test_a_sort_that_is_none_is_other_and_targets_are_bounded(counts):
    total(counts, "<b>", 3)
    assert counts.take()["packets"] == {"other": 3}
    for number in range(3000):
        see(counts, "flow.rate", flow_class=TCP, source_ip="a", destination_ip=f"t{number}", event_count=256)
    assert len(counts._last_port) <= tally.PLACES


def test_kinds_that_tell_of_no_arrival_or_lack_the_fields_are_not_looked_at(counts):
    for name in (
        "tcp.open",
        "tcp.close",
        "tcp.refused",
        "http.request",
        "tcp.connect",
        "tcp.forward",
        "sensor.lost",
    ):
        assert counts.looker(CLASSES[name]) is None
    for name in ("tcp.syn", "flow.total", "flow.source", "flow.rate", "icmp.echo"):
        kind = EventKind(name, parse_fields("user.name:str"))
        assert counts.looker(event_class(kind, 1)) is None


def test_the_engine_shows_each_class_its_own_events(counts):
    engine = Engine(lambda alert: None, host="h")
    seen = []
    for name in ("tcp.syn", "tcp.open"):
        engine.bind(CLASSES[name])
    engine.look_at(CLASSES["tcp.syn"], seen.append)
    a, b = (event_from_fields(CLASSES["tcp.syn"], CLASSES["tcp.syn"].KIND, {}, n) for n in (1, 2))
    other = event_from_fields(CLASSES["tcp.open"], CLASSES["tcp.open"].KIND, {}, 3)
    engine.process([a, other, b])
    engine.process([a])
    engine.process([other])
    engine.unbind(CLASSES["tcp.syn"])
    engine.bind(CLASSES["tcp.syn"])
    engine.process([a])
    assert seen == [[a, b], [a]]


def test_a_look_that_fails_is_an_error_and_the_rules_see_the_events(counts):
    engine = Engine(lambda alert: None, host="h")
    engine.bind(CLASSES["tcp.syn"])
    engine.look_at(CLASSES["tcp.syn"], lambda events: events[0].nothing)
    event = event_from_fields(CLASSES["tcp.syn"], CLASSES["tcp.syn"].KIND, {}, 1)
    handled = []
    engine._handlers[CLASSES["tcp.syn"]] = SimpleNamespace(all=handled.extend)
    engine.process([event])
    assert handled == [event]
    assert engine.counters()["errors"] == {"tcp.syn": 1}


def test_a_flow_without_a_port_is_not_looked_at(counts):
    fields = "flow.class:u8 flow.packets:u64 event.count:u64 source.ip:ip destination.ip:ip"
    assert counts.looker(event_class(EventKind("flow.rate", parse_fields(fields)), 1)) is None
    assert counts.looker(event_class(EventKind("flow.source", parse_fields(fields)), 1)) is not None
