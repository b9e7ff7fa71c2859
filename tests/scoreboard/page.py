"""docs/detection.md from what was measured: the template is the text, this makes the tables."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoreboard.field import TOOLS
from scoreboard.usage import Share

if TYPE_CHECKING:
    from scoreboard.daily import DailyScore
    from scoreboard.run import Result, Score

TEMPLATE = Path(__file__).resolve().parent / "detection.template.md"
INSTALLED = ("bpftrace", "nmap", "hping3", "hydra", "nginx-light", "openssh-server", "curl")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def attack_table(results: Sequence[Result]) -> str:
    """Found by what and how soon; false alarms."""
    return table(
        ("attack", "IP", "found", "seconds", "by", "false alarms"),
        [
            (
                result.row.name,
                f"v{result.row.family}",
                "yes" if result.hits else "**error**" if result.error else "**no**",
                f"{min(result.hits.values()):.3f}" if result.hits else "",
                ", ".join(sorted(result.found, key=result.found.__getitem__)),
                ", ".join(result.false) or "none",
            )
            for result in results
        ],
    )


def flood_table(results: Sequence[Result]) -> str:
    """What a flood cost: share of one core over the row, held back, lost."""

    def rows() -> Iterable[Sequence[str]]:
        for result in results:
            if result.row.phase != "alone" or not result.ended_ns:
                continue
            seconds = (result.ended_ns - result.began_ns) / 1e9
            probes = sum(s for name, s in result.cpu.items() if name.startswith("bpftrace"))
            costs = (probes, *(result.cpu.get(name, 0.0) for name in ("engine", "courier", "sensor")))
            told = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(result.lost.items()))
            yield (
                result.row.id,
                f"{result.packets:,}",
                f"{result.packets / max(result.tool_s, 0.1) / 1000:,.0f}",
                *(f"{100 * cost / seconds:.1f} %" for cost in costs),
                told or "none",
            )

    head = ("flood", "packets", "1,000/s", "bpftrace", "engine", "courier", "sensor", "held back or lost")
    return table(head, rows())


def process_table(shares: dict[str, Share], seconds: float) -> str:
    return table(
        ("process", "CPU", "PSS", "private", "most PSS"),
        [
            (
                name,
                f"{share.cpu_s:.1f} s, {100 * share.cpu_s / seconds:.1f} %",
                *(f"{kib / 1024:.0f} MiB" for kib in (share.pss_kib, share.private_kib, share.peak_pss_kib)),
            )
            for name, share in shares.items()
        ],
    )


def daily_table(daily: DailyScore) -> str:
    return table(
        ("work", "done", "false alarms"),
        [(work.name, work.done or "**failed**", ", ".join(work.false) or "none") for work in daily.works],
    )


def ledger(score: Score | DailyScore) -> str:
    ring = ", ".join(f"{name} {count:,}" for name, count in score.ring_buffer.items())
    held = ", ".join(f"{reason} {count:,}" for reason, count in sorted(score.lost.items())) or "nothing"
    own = ", ".join(f"{rule} ({count})" for rule, count in sorted(score.own.items())) or "none"
    return (
        f"Lost in the kernel's buffers: {ring}. Said by the probes as `sensor.lost`: {held}. "
        f"Alerts about the appliance itself: {own}."
    )


def versions() -> str:
    """Kernel, distribution and programs of this run."""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *INSTALLED],
        capture_output=True,
        text=True,
        check=False,
    )
    programs = done.stdout.splitlines()
    unpacked = TOOLS / "versions"
    if unpacked.exists():
        programs += unpacked.read_text().splitlines()
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    return (
        f"Linux {platform.release()}, {release}, Python {platform.python_version()}. "
        + ", ".join(programs)
        + "."
    )


def not_found(score: Score) -> str:
    missed = [f"- {r.row.id}{': ' + r.row.note if r.row.note else ''}" for r in score.results if not r.hits]
    return "\n".join(missed) or "Every attack of the table was found."


def summary(attacks: Score, daily: DailyScore, minutes: float) -> str:
    found = sum(bool(result.hits) for result in attacks.results)
    false = sum(len(r.false) for r in attacks.results) + len(attacks.nobodys) + len(daily.false)
    return f"{found} of {len(attacks.results)} attacks found, {false} false alarms, {minutes:.1f} minutes."


def tables(attacks: Score | None, daily: DailyScore | None) -> str:
    parts = []
    if attacks:
        parts += [attack_table(attacks.results), flood_table(attacks.results)]
        parts += [process_table(attacks.shares, attacks.seconds), ledger(attacks)]
    if daily:
        parts += [daily_table(daily), process_table(daily.shares, daily.seconds), ledger(daily)]
    return "\n\n".join(parts)


def document(attacks: Score, daily: DailyScore, minutes: float) -> str:
    places = {
        "@@SUMMARY@@": summary(attacks, daily, minutes),
        "@@VERSIONS@@": versions(),
        "@@ATTACKS@@": attack_table(attacks.results),
        "@@FLOODS@@": flood_table(attacks.results),
        "@@PROCESSES@@": process_table(attacks.shares, attacks.seconds),
        "@@LEDGER@@": ledger(attacks),
        "@@DAILY@@": daily_table(daily),
        "@@DAILY_PROCESSES@@": process_table(daily.shares, daily.seconds),
        "@@DAILY_LEDGER@@": ledger(daily),
        "@@MISSED@@": not_found(attacks),
    }
    text = TEMPLATE.read_text()
    for place, found in places.items():
        text = text.replace(place, found)
    return text
