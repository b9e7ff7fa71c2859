"""The whole scoreboard: ``python tests/scoreboard [--only TEXT …] [--part attacks|daily] [--write FILE]``.

Exit 1 when a row was missed or a false alarm came.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "live")]

from scoreboard import page  # noqa: E402
from scoreboard.cases import ROWS, SHORT  # noqa: E402
from scoreboard.daily import play_daily  # noqa: E402
from scoreboard.run import play, say  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="scoreboard", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="attacks whose name holds one of these texts")
    parser.add_argument("--part", choices=("attacks", "daily"), help="one half alone")
    parser.add_argument("--short", action="store_true", help="the attacks of make test alone")
    parser.add_argument("--write", type=Path, help="the document to write, whatever came of it")
    options = parser.parse_args()
    began_s = time.monotonic()
    rows = [row for row in (SHORT if options.short else ROWS) if any(text in row.id for text in options.only)]
    with tempfile.TemporaryDirectory(prefix="kwsiem-scoreboard-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        attacks = play(rows, folder / "attacks") if options.part != "daily" else None
        daily = play_daily(folder / "daily") if options.part != "attacks" else None
    minutes = (time.monotonic() - began_s) / 60
    print(page.tables(attacks, daily))
    failures = [*(attacks.failures if attacks else []), *(daily.failures if daily else [])]
    say(f"{minutes:.1f} minutes, {len(failures)} failures")
    for failure in failures:
        say(f"FAILED {failure}")
    if options.write and attacks and daily:
        options.write.write_text(page.document(attacks, daily, minutes))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
