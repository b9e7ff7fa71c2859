"""How GELF messages travel: zlib and chunks over UDP, a NUL behind each over TCP and TLS.

The outputs are :class:`kwsiem.outputs.datagram.UdpOutput` and :class:`kwsiem.outputs.stream.StreamOutput`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Final

from kwsiem.errors import OutputError
from kwsiem.outputs.datagram import Split

MAX_CHUNKS: Final = 128
_MAGIC: Final = b"\x1e\x0f"
_HEADER_BYTES: Final = 12


def frame_nul(message: bytes) -> bytes:
    """A message over TCP: never compressed, ended by a NUL and none within, which would split it."""
    return message.replace(b"\0", b" ") + b"\0"


def splitter(chunk_bytes: int, compress: bool) -> Split:
    """Makes datagrams of at most ``chunk_bytes`` each (header included) from a message.

    One that fits is sent without a header. Above 128 chunks there is no way to send it: OutputError.
    """
    room = chunk_bytes - _HEADER_BYTES

    def split(message: bytes) -> Sequence[bytes]:
        data = zlib.compress(message) if compress else message
        if len(data) <= chunk_bytes:
            return (data,)
        count = -(-len(data) // room)
        if count > MAX_CHUNKS:
            raise OutputError(f"{len(data)} bytes need {count} chunks, most is {MAX_CHUNKS}", retryable=False)
        begin = _MAGIC + os.urandom(8)
        return [
            begin + bytes((number, count)) + data[number * room : (number + 1) * room]
            for number in range(count)
        ]

    return split
