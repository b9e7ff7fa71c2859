"""``make fuzz``: random streams through the engine and the oracle, until they differ or enough have been seen.

.venv/bin/python tests/fuzz.py [--streams 100000] [--seed 0] [--type sequence]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import streams

CHUNK = 200


def chunk(task: tuple[str, int]) -> tuple[int, str]:
    """Some streams of one type; how many there were, and the first difference in words."""
    kind, start = task
    for seed in range(start, start + CHUNK):
        found = streams.compare(kind, seed)
        if found:
            made, arrivals, expected, got = found
            lines = [f"type {kind}, seed {seed}", f"{made}", *map(str, arrivals)]
            return seed - start + 1, "\n".join([*lines, f"expected {expected}", f"got      {got}"])
    return CHUNK, ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--type", choices=streams.TYPES, action="append")
    options = parser.parse_args()
    kinds = options.type or streams.TYPES
    rounds = -(-options.streams // (CHUNK * len(kinds)))
    tasks = [(kind, options.seed + n * CHUNK) for n in range(rounds) for kind in kinds]
    begun = told = time.monotonic()
    done = 0
    with multiprocessing.Pool() as pool:
        for count, difference in pool.imap_unordered(chunk, tasks):
            done += count
            if difference:
                print(f"after {done:,} streams the engine differs from the oracle:\n{difference}")
                return 1
            if time.monotonic() - told > 3:
                told = time.monotonic()
                print(f"{done:,} streams, {done / (told - begun):,.0f} a second", flush=True)
    print(f"{done:,} streams of {len(kinds)} types in {time.monotonic() - begun:.0f} s: no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
