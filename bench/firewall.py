"""Blocking: how long a block takes, 1,000 at once, 100,000 again after a flush, and what watching costs.

    python bench/firewall.py [--million]

Each firewall runs in an empty network namespace of its own, never in the machine's. A block is timed from the
call until the kernel has confirmed it. A pause is the longest that one step of repair kept the caller waiting.
"""

from __future__ import annotations

import argparse
import ipaddress
import resource
import subprocess
import sys
import time
from pathlib import Path

from kwsiem.response.detect import detect
from kwsiem.response.firewall import Entry
from kwsiem.response.sockets import cut

SETTINGS = ("iptables-nft", "iptables-legacy", "nftables")
SINGLE = 5000


def sources(count: int, first: str = "11.0.0.1", timeout_s: int = 6000) -> list[Entry]:
    start = int(ipaddress.ip_address(first))
    return [Entry(str(ipaddress.ip_address(start + 7 * number)), timeout_s) for number in range(count)]


def quantiles(times_s: list[float]) -> str:
    times_s.sort()
    p50, p99 = (times_s[int(len(times_s) * part)] * 1e6 for part in (0.5, 0.99))
    return f"p50 {p50:,.0f} us  p99 {p99:,.0f} us  max {times_s[-1] * 1e6:,.0f} us"


def timed(call, *arguments) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def kilobytes(path: str, key: str) -> int:
    with open(path, encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def show(what: str, value: str) -> None:
    print(f"  {what:<34} {value}", flush=True)


def damage(firewall, held: str) -> None:
    began_cpu, times = cpu_s(), []
    for _ in range(40):
        times.append(timed(firewall.damage))
        assert not firewall.damage()
        time.sleep(0.02)
    cpu_ms = (cpu_s() - began_cpu) / 80 * 1000
    show(f"damage() with {held}", f"{quantiles(times)}  cpu {cpu_ms:.2f} ms, without the ipset child")


def bulk(firewall, count: int) -> None:
    many = sources(count)
    firewall.flush()
    before_kb = kilobytes("/proc/self/status", "VmRSS"), kilobytes("/proc/meminfo", "Slab")
    steps, longest = firewall.repair_steps(many), 0.0
    began = last = time.perf_counter()
    for refused in steps:
        assert not refused, list(refused.items())[:3]
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    show(f"{count:,} restored", f"{last - began:.2f} s, longest pause {longest * 1000:.1f} ms")
    rss_kb, slab_kb = (
        kilobytes("/proc/self/status", "VmRSS") - before_kb[0],
        kilobytes("/proc/meminfo", "Slab") - before_kb[1],
    )
    show("memory for them", f"process {rss_kb / 1024:.0f} MiB, kernel slab {slab_kb / 1024:.0f} MiB")
    show("repair of what is whole", f"{timed(firewall.repair, sources(count, timeout_s=5000)) * 1000:.0f} ms")
    show("entries()", f"{timed(firewall.entries) * 1000:.0f} ms")
    damage(firewall, f"{count:,}")


def measure(setting: str, million: bool) -> None:
    firewall = detect(setting)
    print(f"{setting}:")
    show("init()", f"{timed(firewall.init) * 1000:.0f} ms")
    show("one block", quantiles([timed(firewall.block, [each]) for each in sources(SINGLE)]))
    show(
        "the same, prolonged",
        quantiles([timed(firewall.block, [each]) for each in sources(SINGLE, timeout_s=7000)]),
    )
    show("one release", quantiles([timed(firewall.release, [each.network]) for each in sources(SINGLE)]))
    show("1,000 at once", f"{timed(firewall.block, sources(1000, '12.0.0.1')) * 1000:.1f} ms")
    damage(firewall, "1,000")
    bulk(firewall, 100_000)
    show(
        "one block among them",
        quantiles([timed(firewall.block, [each]) for each in sources(SINGLE, "13.0.0.1")]),
    )
    show("cut() of one, of nothing", quantiles([timed(cut, "198.51.100.7") for _ in range(100)]))
    names = [each.network for each in sources(1000)]
    show("cut() of 1,000, of nothing", f"{timed(cut, *names) * 1000:.1f} ms")
    if million:
        bulk(firewall, 1_000_000)
    show("close(remove=True)", f"{timed(lambda: firewall.close(remove=True)) * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true", help="also 1,000,000 entries")
    parser.add_argument("--inside", nargs=2, metavar=("SETTING", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    here = Path("/proc/self/ns/net").stat().st_ino
    if options.inside:
        setting, home = options.inside
        assert here != int(home), "this is the machine's own firewall"
        measure(setting, options.million)
        return
    for setting in SETTINGS:
        argv = ["unshare", "--net", sys.executable, __file__, "--inside", setting, str(here)]
        subprocess.run([*argv, *(["--million"] if options.million else [])], check=True)


if __name__ == "__main__":
    main()
