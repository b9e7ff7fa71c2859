"""Pictures for the documentation, of the real appliance under real attacks: needs root and the test packages.

    sudo .venv/bin/python tests/screenshots/dashboard.py [FOLDER]

The appliance runs in a network namespace of its own; nmap and a password guesser attack it from others. What
lies behind it, a day of alerts and figures, is written into its files before it starts.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests" / "live"), str(SOURCE)]

import msgspec
import services
from appliance import RunningAppliance, listen
from browser import RunningDashboard, chromium, resize
from lab import Lab, wait_until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kwsiem import rights
from kwsiem.alert import LEVELS, Alert
from kwsiem.control import ask
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox
from kwsiem.series_file import SeriesFile

IMAGES = SOURCE / "docs" / "images"
SETTINGS = "blocking: {mode: 'on', confirmed: true, allow: [203.0.113.77]}\n"
NS = 10**9
#: Rule, title, level, source, reason, tags: what has been seen in the day before.
BEFORE = (
    ("ssh-bruteforce", "SSH password guessing", "high", "198.18.4.17", "8 failures in 5m", "attack.t1110.001"),
    ("tcp-port-scan", "TCP port scan", "medium", "198.18.7.201", "31 ports in 3s", "attack.t1046"),
    ("dns-tunnel", "DNS tunnel", "high", "2001:db8:7::23", "412 names below cdn.example.net", "attack.t1572"),
    ("host-sweep", "Host sweep", "low", "198.18.9.5", "18 addresses in 10s", "attack.t1018"),
    ("syn-flood", "SYN flood", "critical", "198.18.3.88", "41280 SYNs in 1s", "attack.t1499.001"),
    ("ssh-spray", "Password spraying", "medium", "198.18.4.90", "root<b>&](, admin, git and 9 more", "attack.t1110.003"),
    ("sensor-lost", "Events were lost", "informational", "", "37 events of net", "attack.t1562.006"),
)  # fmt: skip


def alerts(now_ns: int) -> Iterator[Alert]:
    """A day of incidents, most of them over."""
    dice = random.Random(7)
    for number in range(48):
        rule, title, level, source, reason, tag = BEFORE[min(dice.randrange(9), 6)]
        at_ns = now_ns - (48 - number) * 1750 * NS + dice.randrange(900) * NS
        fields = {"source.ip": source, "destination.port": 22} if source else {}
        for state in ("open", "close")[: 1 if number > 44 else 2]:
            yield Alert(
                rule_id=rule, title=title, level=level, state=state, count=dice.randrange(5, 900),
                identity={"source.ip": source} if source else {"probe": "net"}, first_ns=at_ns, last_ns=at_ns,
                raised_ns=at_ns + (state == "close") * 60 * NS, opened_ts_ns=number, reason=reason,
                tags=["attack.discovery", tag], fields=fields, host="gw01.example.net",
            )  # fmt: skip


def fill(state: Path) -> None:
    """A day of history, in files that belong to the courier's user."""
    state.mkdir()
    now_ns = time.time_ns()
    box = Outbox(state / "kwsiem.db", ["console", "file"])
    listed = sorted(alerts(now_ns), key=lambda alert: alert.raised_ns)
    box.put([Item(a.id, LEVELS[a.level], msgspec.json.encode(document(a))) for a in listed])
    box.close()
    dice = random.Random(3)
    series = SeriesFile(state / "series.db", max_age_s=30 * 86400, max_bytes=1 << 28)
    first_s = now_ns // NS // 60 * 60 - 86_400
    by_minute: dict[int, dict[str, int]] = {}
    for alert in listed:
        minute = by_minute.setdefault(alert.raised_ns // NS // 60 * 60, {})
        minute[alert.level] = minute.get(alert.level, 0) + 1
    for at_s in range(first_s, first_s + 86_400, 300):
        wave = 1.2 + math.sin(at_s / 86_400 * 2 * math.pi)
        tcp = int(26_000 * wave * dice.uniform(0.8, 1.25)) + 90_000 * (dice.random() > 0.985)
        figures = {
            "packets": {
                "tcp": tcp,
                "udp": int(tcp * 0.34),
                "icmp": int(tcp * 0.03),
                "other": int(tcp * 0.01),
            },
            "sources": {f"198.18.{n}.{n * 17 % 250}": int(tcp * 0.3 / n) for n in range(1, 12)},
        }
        for minute in range(at_s, at_s + 300, 60):
            series.add(minute, {**(figures if minute == at_s else {}), "alerts": by_minute.get(minute, {})})
    series.close()
    owner = rights.account("kwsiem").pw_uid
    for path in (state, *state.iterdir()):
        shutil.chown(path, owner)


def attack(lab: Lab) -> None:
    """A scan, and passwords for users who do not exist."""
    lab.run("scanner", ["nmap", "-n", "-Pn", "-sS", "-p", "1-200", lab.ip4("host")])
    guess = [
        "timeout",
        "10",  # it is blocked in the middle of it, and would wait for answers
        "hydra",
        "-I",
        "-t",
        "4",
        "-L",
        "users",
        "-p",
        "secret",
        f"ssh://{lab.ip4('guesser').removesuffix('.2')}.1",
    ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "users").write_text(
            "\n".join(("oracle", "postgres", "git", "deploy", "ubuntu", "test", "pi", "www"))
        )
        lab.run("guesser", guess, check=False, cwd=folder)


def dashboard(images: Path) -> None:
    """The page on a desk and on a telephone, light and dark."""
    folder = Path(tempfile.mkdtemp(prefix="kwsiem-pictures-"))
    folder.chmod(0o755)
    fill(folder / "state")
    with Lab("host", "scanner", "guesser", "quiet") as lab, services.sshd(lab, folder):
        appliance = RunningAppliance(lab, folder, settings=SETTINGS, record=False)
        config = folder / "kwsiem.yaml"
        config.write_text(config.read_text().replace("host: testhost", "host: gw01.example.net"))
        with (
            appliance,
            RunningDashboard(config, folder / "log-dashboard") as page,
            chromium(1440, 1180) as driver,
        ):
            for _ in listen(lab, "host", 80, 443):
                attack(lab)
            entry = {"network": lab.ip4("quiet"), "for_s": 86_400, "reason": "asked by the network team"}
            ask(appliance.runtime / "control.sock", {"command": "blocks", "verb": "add", "entries": [entry]})
            driver.get(page.url)
            driver.find_element(By.ID, "token").send_keys(page.token, Keys.ENTER)
            wait_until(lambda: driver.find_elements(By.CSS_SELECTOR, "#attack .technique"), 10, "the page")
            wait_until(lambda: driver.find_element(By.ID, "live").text == "live", 10, "live updates")
            for button in driver.find_elements(By.CSS_SELECTOR, "#alerts .seen button")[3:9:2]:
                button.click()
            time.sleep(3)  # the state comes every 2 s
            taken(driver, images / "dashboard.png", 1440, 1180)
            taken(driver, images / "dashboard-phone.png", 360, 740, 2)
            driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia",
                {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
            )
            taken(driver, Path(tempfile.gettempdir()) / "dashboard-dark.png", 1440, 2100)
            driver.find_element(By.CSS_SELECTOR, "#alerts button.row").click()
            time.sleep(0.5)
            taken(driver, Path(tempfile.gettempdir()) / "dashboard-details.png", 1440, 1000)
    shutil.rmtree(folder)


def taken(driver, path: Path, width: int, height: int, scale: int = 1) -> None:
    resize(driver, width, height, deviceScaleFactor=scale, mobile=width < 700)
    time.sleep(0.6)  # animations and the next frame
    driver.execute_script("scrollTo(0, 0)")
    driver.save_screenshot(str(path))
    print(path)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    target.mkdir(parents=True, exist_ok=True)
    dashboard(target)
