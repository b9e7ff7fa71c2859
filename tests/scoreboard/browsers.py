"""A hundred browsers, as a program of its own: ``python browsers.py ADDRESS SECONDS``.

Each opens up to six connections that it keeps (and one that it opens in advance and hardly uses), loads a page with
what belongs to it, asks in vain for /favicon.ico the first time, reads for some seconds, and goes on. They arrive
spread over half of the time.
"""

from __future__ import annotations

import asyncio
import random
import sys

BROWSERS = 100
CONNECTIONS = 6


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, address: str) -> Connection:
        return cls(*await asyncio.open_connection(address, 80))

    async def get(self, path: str) -> int:
        head = f"GET {path} HTTP/1.1\r\nHost: intranet.test\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n\r\n"
        self._writer.write(head.encode())
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.partition(":")[2])
            for line in answer.split("\r\n")
            if line.lower().startswith("content-length:")
        )
        await self._reader.readexactly(length)
        return int(answer.split()[1])

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def browse(address: str, seconds: float, chance: random.Random, counts: dict[int, int]) -> None:
    await asyncio.sleep(chance.uniform(0, seconds / 2))
    end = asyncio.get_running_loop().time() + seconds / 2
    first = await Connection.to(address)
    rest = [await Connection.to(address) for _ in range(CONNECTIONS - 1)]
    idle = await Connection.to(address)
    paths = ["/style.css", "/picture", "/picture?2", "/picture?3", "/style.css?2"]
    fresh = True
    while asyncio.get_running_loop().time() < end:
        found = [await first.get("/")]
        found += await asyncio.gather(*(c.get(path) for c, path in zip(rest, paths, strict=True)))
        if fresh:
            found.append(await first.get("/favicon.ico"))
            fresh = False
        for status in found:
            counts[status] = counts.get(status, 0) + 1
        await asyncio.sleep(chance.uniform(2, 8))
    for connection in (first, *rest, idle):
        await connection.close()


async def main() -> None:
    address, seconds = sys.argv[1], float(sys.argv[2])
    counts: dict[int, int] = {}
    await asyncio.gather(*(browse(address, seconds, random.Random(n), counts) for n in range(BROWSERS)))
    print(counts)
    assert counts.get(200, 0) > BROWSERS * CONNECTIONS and counts[404] == BROWSERS


if __name__ == "__main__":
    asyncio.run(main())
