"""GELF over UDP read back by a strict receiver written from the specification alone."""

import os
import random
import socket
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.errors import OutputError
from kwsiem.outputs import datagram
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.datagram import UdpOutput
from kwsiem.outputs.gelf import frame_nul, splitter
from kwsiem.outputs.stream import StreamOutput

TIMEOUT_S = 5.0


class Graylog:
    """Datagrams in any order to messages (GELF: magic 1e0f, 8-byte id, number, count); refuses what it may."""

    def __init__(self):
        self.parts = {}
        self.messages = []

    def take(self, data):
        if data[:2] != b"\x1e\x0f":
            self.messages.append(self.inflated(data))
            return
        message_id, number, count = struct.unpack_from("!8sBB", data, 2)
        assert 1 <= count <= 128
        assert number < count
        assert len(data) > 12, "an empty chunk"
        have = self.parts.setdefault(message_id, (count, {}))
        assert have[0] == count, "the count changed"
        assert number not in have[1], "a chunk came twice"
        have[1][number] = data[12:]
        if len(have[1]) == count:
            del self.parts[message_id]
            self.messages.append(self.inflated(b"".join(have[1][n] for n in range(count))))

    @staticmethod
    def inflated(data):
        if data[:1] == b"\x78":  # zlib (RFC 1950)
            inflater = zlib.decompressobj()
            found = inflater.decompress(data) + inflater.flush()
            assert inflater.eof and not inflater.unused_data
            return found
        assert data[:2] != b"\x1f\x8b", "gzip was not asked for"
        return data


@given(st.integers(1, 40_000), st.integers(512, 9000), st.booleans(), st.integers(0, 2**32), st.randoms())
def test_what_is_split_is_put_together_again_in_any_order(size, chunk_bytes, compress, seed, order):
    message = b"{" + random.Random(seed).randbytes(size)
    datagrams = list(splitter(chunk_bytes, compress)(message))
    assert all(len(each) <= chunk_bytes for each in datagrams)
    order.shuffle(datagrams)
    receiver = Graylog()
    for each in datagrams:
        receiver.take(each)
    assert receiver.messages == [message]
    assert not receiver.parts


def test_the_example_of_the_specification():
    """20,000 bytes in datagrams of 8,192: three chunks with numbers 0 to 2 of 3."""
    found = splitter(8192, False)(b"{" + b"x" * 19_999)
    assert [each[10:12] for each in found] == [b"\x00\x03", b"\x01\x03", b"\x02\x03"]
    assert len({each[2:10] for each in found}) == 1
    assert [len(each) for each in found] == [8192, 8192, 20_000 - 2 * 8180 + 12]


@pytest.mark.parametrize(("size", "count"), [(1420, 1), (1421, 2), (1408 * 128, 128)])
def test_what_fits_has_no_header_and_128_chunks_are_the_most(size, count):
    found = splitter(1420, False)(b"{" * size)
    assert len(found) == count
    assert (found[0][:2] == b"\x1e\x0f") is (count > 1)
    with pytest.raises(OutputError, match="129 chunks") as error:
        splitter(1420, False)(b"{" * (1408 * 128 + 1))
    assert not error.value.retryable


def test_message_ids_differ():
    split = splitter(512, False)
    assert len({split(b"x" * 1000)[0][2:10] for _ in range(100)}) == 100


def test_over_udp_with_one_too_large_in_the_middle(monkeypatch):
    monkeypatch.setattr(datagram, "FIRST_ANSWER_S", 0.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(TIMEOUT_S)
        output = UdpOutput("127.0.0.1", sock.getsockname()[1], TIMEOUT_S, splitter(512, True))
        output.open()
        sent = [b"{}", b"{" + os.urandom(3000), b"{" + os.urandom(128 * 512), b"{last}"]
        with pytest.raises(OutputError, match="chunks") as error:
            output.send([Rendered(str(n), 5, data) for n, data in enumerate(sent)])
        assert (error.value.taken, list(error.value.refused)) == ({0, 1}, [2])
        output.send([Rendered("3", 5, sent[3])])
        receiver = Graylog()
        while len(receiver.messages) < 3:
            receiver.take(sock.recv(65536))
        assert receiver.messages == [sent[0], sent[1], sent[3]]
        output.close()


@given(st.lists(st.binary(max_size=50), min_size=1))
def test_over_tcp_as_many_messages_arrive_as_were_sent(messages):
    stream = b"".join(map(frame_nul, messages))
    assert stream.endswith(b"\0")
    assert stream.split(b"\0")[:-1] == [message.replace(b"\0", b" ") for message in messages]


def test_over_tcp_messages_are_plain_and_sent_again_after_a_reconnect(server, accept, alerts):
    output = StreamOutput("127.0.0.1", server.getsockname()[1], TIMEOUT_S, frame_nul)
    assert output.replays
    output.open()
    output.send(alerts('{"a":1}', '{"b":"' + "x" * 20_000 + '"}'))
    peer = accept()
    data = b""
    while data.count(b"\0") < 2:
        data += peer.recv(65536)
    assert data == b'{"a":1}\0{"b":"' + b"x" * 20_000 + b'"}\0'
    output.close()
