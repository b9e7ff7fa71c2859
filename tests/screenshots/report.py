"""Makes docs/images/report.png: the real appliance under real attacks for some minutes, then its report.

    sudo .venv/bin/python tests/screenshots/report.py [--minutes 16] [--html FILE]

Everything happens in network namespaces of its own. Needs nmap, hydra, hping3, sshd and chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "live"))

import services  # noqa: E402
from appliance import RunningAppliance  # noqa: E402
from lab import Lab  # noqa: E402

GUESSERS = ("guesser", "robot", "visitor", "stranger", "worm")
PEERS = ("scanner", "flooder", "mapper", "friend", *GUESSERS)
SETTINGS = "blocking: {mode: 'on', confirmed: true, allow: [203.0.113.77], firewall: nftables}\n"
QUIETLY = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
SIZE = (1100, 2700)
SHOW = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
]
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=16)
    parser.add_argument("--html", type=Path, help="keep the page here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kwsiem-screenshot-") as name, Lab("host", *PEERS) as lab:
        folder = Path(name)
        folder.chmod(0o755)
        page = folder / "report.html"
        web = folder / "web"
        web.mkdir()
        lab.popen("host", [sys.executable, "-m", "http.server", "80", "--directory", str(web)], **QUIETLY)
        with (
            services.sshd(lab, folder),
            RunningAppliance(lab, folder, settings=SETTINGS, record=False),
        ):
            began_s = time.monotonic()
            while time.monotonic() - began_s < options.minutes * 60:
                attack(lab, folder, random.Random(int(time.monotonic() - began_s)))
            span = f"{int(time.monotonic() - began_s)}s"
            argv = ["report", "--since", span, "--config", str(folder / "kwsiem.yaml"), "--output", str(page)]
            subprocess.run([sys.executable, "-m", "kwsiem", *argv], check=True)
        if options.html:
            options.html.write_bytes(page.read_bytes())
        screenshot(page, ROOT / "docs" / "images" / "report.png", *SIZE)


def attack(lab: Lab, folder: Path, chance: random.Random) -> None:
    """Some seconds of what a host on the network sees: mostly daily work, and now and then an attack."""
    words = folder / "words"
    words.write_text("".join(f"wrong{number}\n" for number in range(9)))
    first, guesser = chance.randrange(1, 900), chance.choice(GUESSERS)
    hydra = f"hydra -I -t 4 -W 1 -w 5 -l root -P {words} ssh://HOST"
    attacks = [
        (4, "scanner", f"nmap -n -Pn -sS -T4 -p {first}-{first + 40} HOST"),
        (2, "mapper", f"nmap -n -Pn -sX -p {first}-{first + 6} HOST"),
        (1, "mapper", "nmap -n -Pn -sU --max-retries 0 -p 53,123,161,500,1900 HOST"),
        (3, guesser, hydra),
        (1, "flooder", "hping3 -q -S -p 80 -i u1500 -c 1500 HOST"),
        (2, "friend", "ping -q -c 5 -i 0.3 HOST"),
    ]
    if chance.random() < 0.6:
        ((_, name, line),) = chance.choices(attacks, [weight for weight, _, _ in attacks])
        run(lab, folder, name, line)
    for _ in range(chance.randrange(3)):
        run(lab, folder, "friend", "curl -s -m 1 http://HOST/")
    time.sleep(chance.uniform(1, 8))


def run(lab: Lab, folder: Path, name: str, line: str) -> None:
    """A command of a peer against the host; it ends in time, as the peer may have been blocked."""
    host = lab.ip4(name).removesuffix(".2") + ".1"
    with contextlib.suppress(subprocess.TimeoutExpired):
        lab.run(name, line.replace("HOST", host).split(), check=False, timeout=10, cwd=str(folder))


def screenshot(page: Path, picture: Path, width: int, height: int, *flags: str) -> None:
    """What Chromium shows of a page; the page is copied to where its user may read it."""
    with tempfile.TemporaryDirectory(prefix="kwsiem-chromium-") as profile:
        picture.parent.mkdir(parents=True, exist_ok=True)
        argv = ["chromium", *SHOW, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        argv += [*flags, f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run(
            argv, check=True, timeout=120, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": profile}
        )


if __name__ == "__main__":
    main()
