"""The whole matrix: ``python tests/faults [--alerts N] [--jobs N] [--only TEXT] [--write FILE]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "live")]

from faults.cases import MATRIX  # noqa: E402
from faults.matrix import Runner, scale_for, table  # noqa: E402

TEMPLATE = HERE / "delivery.template.md"
PLACE = "@@TABLE@@"


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--alerts", type=int, default=1_000_000, help="alerts over the whole matrix")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="cases at a time")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--write", type=Path, help="the document to write; all cases must be good")
    options = parser.parse_args()
    cases = [case for case in MATRIX if options.only in case.name]
    scale = scale_for(options.alerts)
    began_s = time.monotonic()
    rows, failed = [], []
    runner = Runner(options.jobs)
    try:
        running = [(case, runner.start(case.name, scale)) for case in cases]
        for case, future in running:
            found, error = future.result()
            rows += found
            if error:
                failed.append(case.name)
            print(
                f"{'FAILED' if error else 'good':6} {case.name}\n{error}"
                if error
                else f"good   {case.name}: {found[0].seconds:.1f} s",
                flush=True,
            )
    finally:
        runner.close()
    took_s = time.monotonic() - began_s
    alerts = sum(case.count(scale) for case in cases)
    print(table(rows))
    print(f"{alerts:,} alerts in {took_s:.0f} s, {len(cases)} cases, {len(failed)} failed: {failed}")
    if options.write and not failed:
        summary = f"{alerts:,} alerts, {len(cases)} cases, {took_s / 60:.1f} minutes, {options.jobs} cases at a time."
        options.write.write_text(TEMPLATE.read_text().replace(PLACE, f"{summary}\n\n{table(rows)}"))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
