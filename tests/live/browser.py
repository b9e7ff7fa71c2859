"""A real browser, headless, and the dashboard that it shows."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance import SOURCE
from lab import wait_until
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-proxy-server", "--lang=en-GB", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


@contextlib.contextmanager
def chromium(width: int = 1360, height: int = 900, *arguments: str) -> Iterator[Chrome]:
    """Debian's Chromium with a new profile; it finds no host but this one's loopback."""
    with tempfile.TemporaryDirectory(prefix="kwsiem-chromium-") as profile:
        options = ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for each in (
            *_ARGUMENTS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            *arguments,
        ):
            options.add_argument(each)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            yield driver
        finally:
            driver.quit()


def resize(driver: Chrome, width: int, height: int, **more: Any) -> None:
    """The page's own size, as a telephone has it: no window of a desktop is so narrow."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False, **more}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


class RunningDashboard:
    """``kwsiem dashboard`` beside an appliance, on a free port of loopback."""

    def __init__(self, config: Path, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._argv = [sys.executable, "-I", "-m", "kwsiem", "dashboard", "--config", str(config)]

    def __enter__(self) -> RunningDashboard:
        shown = subprocess.run(
            [*self._argv, "--show-token"], capture_output=True, text=True, check=True, timeout=30
        )
        self.token = shown.stdout.strip()
        with self.log.open("ab") as err:
            self.process = subprocess.Popen(
                [*self._argv, "--listen", f"127.0.0.1:{self.port}"], stdout=err, stderr=err, cwd=SOURCE
            )
        wait_until(lambda: "is served" in self.log.read_text(), 20, "the dashboard is served")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(10) == 0, self.log.read_text()
        finally:
            self.process.kill()

    def child(self) -> int:
        """The process that speaks HTTP."""
        pid = self.process.pid
        return int(re.findall(r"\d+", Path(f"/proc/{pid}/task/{pid}/children").read_text())[0])
