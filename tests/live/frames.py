"""Hand-made Ethernet frames for live tests: what no ordinary client sends."""

import socket
import struct
from collections.abc import Sequence

from lab import Lab

SYN, FIN, RST, ACK = 2, 1, 4, 16


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(source: str, target: str, sport: int, dport: int, flags: int, seq: int = 1) -> bytes:
    """A TCP header with a good checksum over the pseudo header of either family."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, 1 if flags & ACK else 0, 5 << 4, flags, 1024, 0, 0)
    pseudo = addresses + struct.pack("!IHBB", len(header), 0, 0, 6)
    return header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]


def ip4(source: str, target: str, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    """An IPv4 packet with TCP inside; ``fragment`` is the whole field of flags and offset."""
    length = 20 + len(options)
    head = struct.pack(
        *("!BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(payload), 7, fragment, 64, 6, 0),
        *(socket.inet_aton(source), socket.inet_aton(target)),
    )
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(source: str, target: str, payload: bytes, headers: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """An IPv6 packet with TCP behind extension headers, each (its number, its bytes without the first)."""
    numbers = [*(number for number, _ in headers), 6]
    chain = b"".join(bytes([after]) + rest for (_, rest), after in zip(headers, numbers[1:], strict=True))
    addresses = (socket.inet_pton(socket.AF_INET6, address) for address in (source, target))
    fixed = struct.pack("!IHBB", 6 << 28, len(chain) + len(payload), numbers[0], 64)
    return fixed + b"".join(addresses) + chain + payload


#: Extension headers: hop-by-hop and destination options (padding only), and a fragment header.
HOP_BY_HOP = (0, b"\0\1\4\0\0\0\0")
OPTIONS = (60, b"\0\1\4\0\0\0\0")


def fragment(offset: int, more: bool) -> tuple[int, bytes]:
    return 44, b"\0" + struct.pack("!HI", offset << 3 | more, 99)


def vlan(ethertype: int, packet: bytes, *tags: int) -> tuple[int, bytes]:
    """A packet behind VLAN tags (outermost first): the ethertype of the frame, and what follows it."""
    for tag in reversed(tags):
        packet = struct.pack("!HH", 10, ethertype) + packet
        ethertype = tag
    return ethertype, packet


class Wire:
    """Sends frames from a namespace over one of its devices to a hardware address."""

    def __init__(self, lab: Lab, name: str, device: str, target: str) -> None:
        self._source = hardware_address(lab, name, device)
        self._target = bytes.fromhex(target.replace(":", ""))
        with lab.inside(name):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.bind((device, 0))

    def send(self, packet: bytes, ethertype: int = 0, target: bytes = b"") -> None:
        """One frame; the ethertype is that of the packet's IP version unless given."""
        ethertype = ethertype or (0x0800 if packet[0] >> 4 == 4 else 0x86DD)
        self._socket.send((target or self._target) + self._source + struct.pack("!H", ethertype) + packet)

    def close(self) -> None:
        self._socket.close()


def hardware_address(lab: Lab, name: str, device: str) -> bytes:
    words = lab.ip(name, "-o", "link", "show", "dev", device).split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))
