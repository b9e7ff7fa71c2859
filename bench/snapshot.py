"""What a snapshot costs the engine: the fork that stops it, and what the copy has to write.

taskset -c 1 python bench/snapshot.py
"""

from __future__ import annotations

import gc
import os
import statistics
import time

from engine import KINDS, rules

from kwsiem.correlate.engine import Engine
from kwsiem.event import event_class


def main() -> None:
    cls = event_class(KINDS.numbers[1], 1)
    gc.freeze()
    gc.disable()
    for keys in (1_000, 10_000, 100_000):
        engine = Engine(lambda _: None, host="bench")
        engine.set_rules(rules(10))
        engine.bind(cls)
        for n in range(keys * 3):
            engine.process(
                [
                    cls(
                        1,
                        0,
                        "proc1",
                        80,
                        f"10.{n % keys >> 16}.{n % keys >> 8 & 255}.{n % keys & 255}",
                        n * 1000,
                    )
                ]
            )
        begun = time.perf_counter()
        size = len(engine.save())
        write_s = time.perf_counter() - begun
        forks = []
        for _ in range(20):
            begun = time.perf_counter()
            child = os.fork()
            if not child:
                os._exit(0)
            forks.append(time.perf_counter() - begun)
            os.waitpid(child, 0)
        begun = time.perf_counter()
        again = Engine(lambda _: None, host="bench")
        again.offer(engine.save())
        again.set_rules(rules(10))
        restore_s = time.perf_counter() - begun - write_s
        print(
            f"{engine.counters()['keys']:>7,} groups: fork {statistics.median(forks) * 1000:.1f} ms"
            f" (longest {max(forks) * 1000:.1f}), the copy writes {size / 2**20:.1f} MiB in {write_s * 1000:.0f} ms,"
            f" read again in {restore_s * 1000:.0f} ms"
        )


if __name__ == "__main__":
    main()
