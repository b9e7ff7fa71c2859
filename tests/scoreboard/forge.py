"""Floods over IPv6 as fast as one process can; a program of its own.

``python forge.py KIND DEVICE TARGET-MAC SOURCE TARGET PORT SECONDS``, KIND is ``syn``, ``udp`` or ``icmp``, SOURCE an
address or ``random``. hping3 has no IPv6, and nping makes neither random IPv6 sources nor whole UDP and ICMPv6 packets.
4,096 frames are made before the first is sent; the flood ends after the seconds whatever happens.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live"))

import frames

_FRAMES = 4096
_NUMBER = {"syn": 6, "udp": 17, "icmp": 58}


def payload(kind: str, source: str, target: str, port: int, chance: random.Random) -> bytes:
    """What follows the IPv6 header, with its checksum (RFC 8200, section 8.1)."""
    sport = chance.randrange(1024, 65536)
    if kind == "syn":
        return frames.tcp(source, target, sport, port, frames.SYN, chance.getrandbits(32))
    head = struct.pack("!HHH", sport, port, 16) if kind == "udp" else b"\x80\0"  # echo request, RFC 4443
    body = struct.pack("!HH", sport, 1) + bytes(4) if kind == "icmp" else bytes(8)
    number, length = _NUMBER[kind], len(head) + 2 + len(body)
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in (source, target))
    total = frames.checksum(addresses + struct.pack("!II", length, number) + head + b"\0\0" + body)
    return head + struct.pack("!H", total) + body


def made(kind: str, link: bytes, source: str, target: str, port: int) -> list[bytes]:
    chance = random.Random(6)
    found = []
    for _ in range(_FRAMES):
        words = [f"{chance.getrandbits(16):x}" for _ in range(6)]
        address = ":".join(["2001", "db9", *words]) if source == "random" else source
        data = payload(kind, address, target, port, chance)
        fixed = struct.pack("!IHBB", 6 << 28, len(data), _NUMBER[kind], 64)
        ends = b"".join(socket.inet_pton(socket.AF_INET6, end) for end in (address, target))
        found.append(link + fixed + ends + data)
    return found


def main() -> None:
    kind, device, mac, source, target, port, seconds = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, 0))
        link = bytes.fromhex(mac.replace(":", "")) + wire.getsockname()[4] + b"\x86\xdd"
        packets = made(kind, link, source, target, int(port))
        deadline_s = time.monotonic() + float(seconds)
        sent = 0
        while time.monotonic() < deadline_s:
            for packet in packets:
                wire.send(packet)
            sent += len(packets)
    print(f"{sent} packets")


if __name__ == "__main__":
    main()
