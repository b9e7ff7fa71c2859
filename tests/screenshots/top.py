"""Makes docs/images/top.png: ``kwsiem top`` in a real xterm. Needs root, xvfb, xterm, imagemagick, nmap, hping3."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from scene import SOURCE, flood, scene

DISPLAY = ":77"
PICTURE = SOURCE / "docs/images/top.png"
XTERM = [
    "xterm", "-geometry", "132x40+0+0", "-fa", "DejaVu Sans Mono", "-fs", "11", "-b", "12",
    "-bg", "#10151c", "-fg", "#d5dbe3", "+sb", "-xrm", "XTerm*color1: #ff7b72",
    "-xrm", "XTerm*color2: #56d364", "-xrm", "XTerm*color3: #e3b341", "-e",
]  # fmt: skip


def main() -> None:
    """Attack, look, take the picture."""
    with scene() as (lab, appliance):
        screen = subprocess.Popen(
            ["Xvfb", DISPLAY, "-screen", "0", "1400x1000x24"], stderr=subprocess.DEVNULL
        )
        top = [sys.executable, "-m", "kwsiem", "top", "--config", str(appliance.folder / "kwsiem.yaml")]
        terminal = None
        try:
            wait_for(Path(f"/tmp/.X11-unix/X{DISPLAY[1:]}"))
            terminal = subprocess.Popen([*XTERM, *top], env={**os.environ, "DISPLAY": DISPLAY}, cwd=SOURCE)
            flood(lab)
            time.sleep(2)
            PICTURE.parent.mkdir(exist_ok=True)
            subprocess.run(
                ["import", "-display", DISPLAY, "-window", "root", "-trim", "+repage", str(PICTURE)],
                check=True,
            )
        finally:
            for process in (terminal, screen):
                if process:
                    process.terminate()
                    process.wait(10)


def wait_for(path: Path) -> None:
    """Until the screen is there."""
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.1)
    raise SystemExit(f"{path}: no screen after 10 s")


if __name__ == "__main__":
    main()
