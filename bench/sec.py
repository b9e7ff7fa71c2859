"""Side by side with SEC (simple event correlator, Debian package ``sec``) on the same events, in one run.

    python bench/sec.py [--events 300000]

The same stream for both, 5 events of a source within 300 s at 1, 10 and 100 rules: rule 0 counts every event,
each further rule those of one process name. SEC reads a line of text and matches one regular expression for each
rule, as it must; ours reads bpftrace's JSON. SEC's windows run on the wall clock and its input is a file, so all
of it lies in one window, and so does ours here. CPU time of the whole process, start-up subtracted.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from engine import KINDS, NAMES

from kwsiem.alert import Alert
from kwsiem.correlate.engine import Engine
from kwsiem.decode import LineDecoder
from kwsiem.rules.model import Compare, Correlation, Rule, RuleSet, Text

S = 10**9


def stream(count: int) -> list[tuple[int, int, str, int, str, int]]:
    """pid, uid, name, port, source, time; 10,000 sources, 1 us apart."""
    choose = random.Random(1)
    return [
        (
            8000 + n % 500,
            n % 3,
            NAMES[n % 100],
            1 + n % 1000,
            f"10.{choose.randrange(4)}.{choose.randrange(50)}.{choose.randrange(50)}",
            S + n * 1000,
        )
        for n in range(count)
    ]


def cpu_s() -> float:
    """CPU time of children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_sec(folder: Path, rules: int, lines: Path) -> tuple[float, int]:
    """CPU seconds of SEC over the file, and how often it fired."""
    parts = []
    for number in range(rules):
        name = r"\S+" if number == 0 else NAMES[number % 100]
        parts.append(
            "type=SingleWithThreshold\ncontinue=TakeNext\nptype=RegExp\n"
            rf"pattern=pid=\d+ uid=\d+ comm={name} port=\d+ src=(\S+)"
            f"\ndesc=rule {number} $1\naction=write {folder}/out fired %s\nwindow=300\nthresh=5\n"
        )
    (folder / "rules").write_text("\n".join(parts))
    (folder / "out").write_text("")
    before = cpu_s()
    argv = ["sec", f"--conf={folder}/rules", f"--input={lines}", "--notail", "--quiet", "--intevents"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return cpu_s() - before, len((folder / "out").read_text().splitlines())


def our_rules(count: int) -> RuleSet:
    """The same rules in our language; incidents stay open for the window, as SEC's operations do."""
    correlation = Correlation("event_count", ("source.ip",), timespan_ns=300 * S, value=5)
    predicates = [
        Compare("destination.port", "gt", 0),
        *(Text("process.name", "equals", (NAMES[n % 100],)) for n in range(1, count)),
    ]
    made = [
        Rule(
            id=f"r{n}",
            title="r",
            level="low",
            events=("bench.event",),
            predicate=predicate,
            correlation=correlation,
            suppress_ns=300 * S,
            fingerprint=f"r{n}",
        )
        for n, predicate in enumerate(predicates)
    ]
    return RuleSet(rules=tuple(made))


def ours(rules: int, lines: Path) -> int:
    """Runs in a process of its own: bytes to alerts; how many incidents opened."""
    gc.freeze()
    gc.disable()  # as the engine process does
    alerts: list[Alert] = []
    engine = Engine(alerts.append, host="bench")
    decoder = LineDecoder(KINDS)
    engine.set_rules(our_rules(rules))
    for cls in decoder.classes:
        engine.bind(cls)
    with lines.open("rb") as file:
        while data := file.read(256 * 1024):
            engine.process(decoder.feed(data))
    return sum(alert.state == "open" for alert in alerts)


def run_ours(rules: int, lines: Path) -> tuple[float, int]:
    """CPU seconds of our engine over the file, and how many incidents opened."""
    before = cpu_s()
    argv = [sys.executable, __file__, "--ours", str(rules), str(lines)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return cpu_s() - before, int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--ours", nargs=2, metavar=("RULES", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(ours(int(options.ours[0]), Path(options.ours[1])))
        return
    if not shutil.which("sec"):
        sys.exit("sec is not installed: apt-get install sec")
    events = stream(options.events)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, json, empty = folder / "events.txt", folder / "events.json", folder / "empty"
        empty.write_text("")
        text.write_text(
            "".join(f"kernel: pid={p} uid={u} comm={c} port={d} src={s}\n" for p, u, c, d, s, _ in events)
        )
        json.write_text(
            "".join(
                f'{{"type": "value", "data": [1,{p},{u},"{c}",{d},"{s}",{t}]}}\n'
                for p, u, c, d, s, t in events
            )
        )
        print(f"{options.events:,} events, 10,000 sources, 5 in 300 s by source; events/s of CPU time")
        for rules in (1, 10, 100):
            their_s, theirs = run_sec(folder, rules, text)
            their_s -= run_sec(folder, rules, empty)[0]
            our_s, found = run_ours(rules, json)
            our_s -= run_ours(rules, empty)[0]
            print(
                f"{rules:>3} rules   SEC {options.events / their_s:>9,.0f}/s, fired {theirs:,}   "
                f"kwsiem {options.events / our_s:>9,.0f}/s, fired {found:,}   {their_s / our_s:.0f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
