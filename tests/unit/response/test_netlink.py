"""Messages and attributes are packed as the kernel's headers say, and hostile lengths end the reading."""

import random
import socket
import struct

import pytest

from kwsiem.response import nfnetlink, sockets
from kwsiem.response.firewall import parse
from kwsiem.response.netlink import (
    Message,
    attribute,
    attribute_list,
    attributes,
    error_of,
    message,
    messages,
    nested,
)
from kwsiem.response.sockets import Targets, flow_of, remote_filter, socket_of, within


def test_messages_and_attributes_come_back_as_they_went():
    body = attribute(1, b"abc") + nested(2, attribute(3, b"\1"), attribute(4, b""))
    data = message(16, 5, 7, body) + message(17, 0, 8, b"")
    first, second = messages(data)
    assert first == Message(16, 5, 7, body)
    assert second == Message(17, 0, 8, b"")
    found = attributes(first.body)
    assert found[1] == b"abc"
    assert attributes(found[2]) == {3: b"\1", 4: b""}


def test_the_layout_is_that_of_the_headers():
    assert message(0x10, 0x5, 9, b"xyz").hex() == "1300000010000500090000000000000078797a00"
    assert nested(2, attribute(1, b"\xff")).hex() == "0c00028005000100ff000000"


def test_broken_lengths_end_the_reading():
    chance = random.Random(7)
    good = message(1, 2, 3, attribute(1, b"x" * 30) + attribute(2, b"y" * 9)) * 3
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 3, 255, chance.randrange(256)])
        for each in messages(bytes(data[: chance.randrange(len(data) + 1)])):
            assert len(list(attribute_list(each.body))) <= len(each.body)
            flow_of(each)
    assert list(messages(b"\0" * 64)) == []


def test_an_error_is_an_errno():
    assert error_of(struct.pack("=i", -17)) == 17
    assert error_of(struct.pack("=i", 0)) == 0
    assert error_of(b"") != 0


@pytest.mark.parametrize("network", ["198.51.100.7", "198.51.100.0/24", "2001:db8::/33"])
def test_the_filter_of_sockets_is_one_instruction_whose_refusal_overshoots(network):
    target = parse(network)
    program = remote_filter(target)
    code, yes, no = struct.unpack_from("=BBH", program)
    family, prefix, port = struct.unpack_from("=BBxxi", program, 4)
    assert (code, yes, no) == (8, len(program), len(program) + 4)
    assert (family, prefix, port) == (
        {4: socket.AF_INET, 6: socket.AF_INET6}[target.version],
        target.prefix,
        -1,
    )
    assert program[12:] == target.packed


def test_a_socket_of_a_mapped_address_is_that_of_ipv4():
    remote = b"\0" * 10 + b"\xff\xff" + bytes([198, 51, 100, 7])
    name = struct.pack("!HH", 22, 50000) + b"\0" * 16 + remote + b"\0" * 12
    found = socket_of(struct.pack("=BBBB", socket.AF_INET6, 1, 0, 0) + name + b"\0" * 20)
    assert (found.port, found.remote_port, found.remote) == (22, 50000, bytes([198, 51, 100, 7]))
    assert found.id == name


def test_a_connection_is_named_by_its_original_direction_and_id():
    original = nested(
        1,
        nested(1, attribute(1, bytes([198, 51, 100, 7])), attribute(2, bytes([192, 0, 2, 1]))),
        nested(2, attribute(1, b"\6"), attribute(2, struct.pack("!H", 50000)), attribute(3, b"\0\x16")),
    )
    body = nfnetlink.header(socket.AF_INET) + original + nested(2) + attribute(12, b"\1\2\3\4")
    flow = flow_of(Message(0x100, 0, 1, body))
    assert flow is not None
    assert (flow.protocol, flow.source, flow.source_port) == (6, bytes([198, 51, 100, 7]), 50000)
    assert flow.name == original + attribute(12, b"\1\2\3\4")
    assert body[16:20] == flow.source  # what sockets looks at before it parses
    assert flow_of(Message(0x100, 0, 1, nfnetlink.header(2))) is None


def test_targets_hold_their_addresses_and_no_others():
    targets = Targets([parse("198.51.100.7"), parse("203.0.113.0/25"), parse("2001:db8::/47")])
    inside = ["198.51.100.7", "203.0.113.127", "2001:db8:1:ffff::1"]
    outside = ["198.51.100.8", "203.0.113.128", "2001:db8:2::1", "198.51.100.6"]
    assert all(targets.hold(parse(each).packed) for each in inside)
    assert not any(targets.hold(parse(each).packed) for each in outside)
    assert not within(parse("2001:db8::1").packed, parse("198.51.100.0/24"))


@pytest.mark.parametrize("network", ["", "1.2.3.4; flush", "::/0", "localhost"])
def test_nothing_is_cut_for_what_is_no_network(network):
    with pytest.raises(ValueError, match=r"."):
        sockets.cut(network)


def test_an_element_is_packed_with_its_time_in_ms():
    part = nfnetlink.element(nfnetlink.INET, "kwsiem", "hosts4", b"\1\2\3\4", 600)
    found = attributes(part.body)
    assert (found[1], found[2]) == (b"kwsiem\0", b"hosts4\0")
    element = attributes(attributes(found[3])[1])
    assert attributes(element[1]) == {1: b"\1\2\3\4"}
    assert int.from_bytes(element[4], "big") == 600_000
    assert 4 not in attributes(
        attributes(attributes(nfnetlink.element(1, "k", "s", bytes(4), 9, delete=True).body)[3])[1]
    )
