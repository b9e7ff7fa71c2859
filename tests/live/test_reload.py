"""Editing rules.yaml on a live system changes the next decision; a bad file changes nothing."""

import itertools
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

RULES = """version: 1
rules:
  - id: scan
    title: Scan
    level: high
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 3s
      condition: {gte: THRESHOLD}
  - id: rules-reload-failed
    title: Rules were not taken
    level: medium
    event: rules.reload
    detection: {failed: {event.outcome: failure}, condition: failed}
"""


@pytest.fixture(scope="module")
def lab():
    with Lab("host", "peer") as lab:
        yield lab


FIVE, THREE, FOUR = (RULES.replace("THRESHOLD", number) for number in "534")


@pytest.fixture(scope="module")
def running(lab, open_folder):
    """One appliance for all tests that leave its processes alone; and what it calls its first rules."""
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    with RunningAppliance(lab, folder, rules=FIVE) as appliance:
        yield appliance, appliance.status()["rules"]["loaded_sha256"]


@pytest.fixture
def appliance(running):
    """It runs with the first rules, and nothing else lies there."""
    appliance, first = running
    yield appliance
    shutil.rmtree(appliance.folder / "rules.d", ignore_errors=True)
    rename_over(appliance.rules, FIVE)

    def restored() -> bool:
        rules = appliance.status()["rules"]
        return (rules["loaded_sha256"], rules["stale"]) == (first, False)

    wait_until(restored, 15, "the first rules again")


def knock(lab: Lab, source: str, ports) -> None:
    lab.address("peer", lab.end("peer").device, f"{source}/24")
    with lab.inside("peer"):
        for port in ports:
            with socket.socket() as sock:
                sock.bind((source, 0))
                sock.settimeout(0.5)
                sock.connect_ex((lab.ip4("host"), port))


def sources(appliance: RunningAppliance) -> set[str]:
    return {a["source"]["ip"] for a in appliance.alerts("scan")}


def in_place(path: Path, text: str) -> None:
    with path.open("r+") as file:
        file.truncate()
        file.write(text)


def rename_over(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def symlink_swap(path: Path, text: str) -> None:
    """As configuration tools do: the file is reached through a link to a folder that is swapped."""
    folder = path.parent / f"version-{len(list(path.parent.glob('version-*')))}"
    folder.mkdir()
    (folder / "rules.yaml").write_text(text)
    link = path.parent / "current"
    new = path.parent / "current.new"
    new.symlink_to(folder)
    os.replace(new, link)
    if not path.is_symlink():
        path.unlink()
        path.symlink_to(link / "rules.yaml")


def changes_the_next_decision(lab: Lab, appliance: RunningAppliance, edit, net: str) -> None:
    """With the rules FIVE in force; ``net``: sources that nobody else in this module uses."""
    engine, before = appliance.pid("engine"), sources(appliance)
    knock(lab, f"{net}1", range(20, 24))
    knock(lab, f"{net}2", range(20, 25))
    wait_until(lambda: sources(appliance) - before == {f"{net}2"}, 10)
    loaded = appliance.status()["rules"]["loaded_sha256"]
    edit(appliance.rules, THREE)
    wait_until(lambda: appliance.status()["rules"]["loaded_sha256"] != loaded, 15, "rules loaded anew")
    knock(lab, f"{net}3", range(20, 22))
    knock(lab, f"{net}4", range(20, 23))
    wait_until(lambda: sources(appliance) - before == {f"{net}2", f"{net}4"}, 10)
    assert appliance.pid("engine") == engine


@pytest.mark.parametrize(("edit", "net"), [(in_place, "198.51.100.3"), (rename_over, "198.51.100.4")])
def test_an_edited_threshold_changes_the_next_decision(lab, appliance, edit, net):
    changes_the_next_decision(lab, appliance, edit, net)


def test_a_swapped_link_changes_the_next_decision(lab, tmp_path):
    """The appliance is started with rules behind a link."""
    appliance = RunningAppliance(lab, tmp_path, rules=FIVE)
    symlink_swap(appliance.rules, FIVE)
    with appliance:
        changes_the_next_decision(lab, appliance, symlink_swap, "198.51.100.5")


@pytest.mark.parametrize(
    ("bad", "source"),
    [
        ("rules: [\n", "198.51.100.61"),
        ("", "198.51.100.62"),
        ("version: 1\nrules:\n  - {id: x, titel: y}\n", "198.51.100.63"),
        (RULES.replace("THRESHOLD", "0"), "198.51.100.64"),
    ],
)
def test_a_bad_file_keeps_the_old_rules_and_says_so(lab, appliance, bad, source):
    told = len(appliance.alerts("rules-reload-failed"))
    rename_over(appliance.rules, bad)
    wait_until(lambda: appliance.status()["rules"]["stale"], 15, "stale rules")
    status = appliance.status()["rules"]
    assert status["rules"] == 2
    assert str(appliance.rules) in status["problems"][0]
    wait_until(lambda: len(appliance.alerts("rules-reload-failed")) > told, 15, "an alert")
    knock(lab, source, range(20, 25))
    wait_until(lambda: source in sources(appliance), 10, "the old rules still decide")
    rename_over(appliance.rules, FOUR)
    wait_until(lambda: not appliance.status()["rules"]["stale"], 15, "mended")
    assert len(appliance.alerts("rules-reload-failed")) == told + 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("", "empty"),
        ("rules: [\n", ":2:1"),
        ("version: 1\nrules:\n  - {id: x, titel: y}\n", "titel"),
    ],
)
def test_bad_rules_at_start_end_with_78_file_line_and_reason(lab, tmp_path, content, says):
    appliance = RunningAppliance(lab, tmp_path, rules=content or "")
    if content is None:
        appliance.rules.unlink()
    done = lab.run("host", appliance.argv, check=False)
    assert done.returncode == 78
    assert str(appliance.rules) in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


SIGMA = """title: Connection to a port
id: 5f1c0a52-6c4e-4c53-9f67-0a8a6a1f1111
logsource: {product: kwsiem, category: tcp.syn}
detection: {port: {destination.port: PORT}, condition: port}
level: low
---
title: Not for this host
name: windows
logsource: {product: windows, category: process_creation}
detection: {image: {Image|endswith: '\\cmd.exe'}, condition: image}
"""
SIGMA_ID = "5f1c0a52-6c4e-4c53-9f67-0a8a6a1f1111"
STATUS = [sys.executable, "-I", "-m", "kwsiem", "status", "--runtime"]


def test_sigma_files_in_rules_d_come_change_and_go_on_the_running_appliance(lab, appliance):
    fresh = itertools.count(100)

    def knock_and_count(port: int) -> int:
        before = len(appliance.alerts(SIGMA_ID))
        knock(lab, "198.51.100.90", [port])
        # A new source shows that the first one's packet has been through the rules.
        source = f"198.51.100.{next(fresh)}"
        knock(lab, source, range(20, 25))
        wait_until(lambda: source in sources(appliance), 10, "the knock was seen")
        return len(appliance.alerts(SIGMA_ID)) - before

    def rules(count: int, skipped: int) -> None:
        def there() -> bool:
            status = appliance.status()["rules"]
            return (status["rules"], status["skipped"], status["stale"]) == (count, skipped, False)

        wait_until(there, 15, f"{count} rules, {skipped} skipped: {appliance.status()['rules']}")

    engine = appliance.pid("engine")
    folder = appliance.folder / "rules.d"
    folder.mkdir()
    file = folder / "ports.yml"
    rename_over(file, SIGMA.replace("PORT", "8001"))
    rules(3, 1)
    assert "windows" in appliance.status()["rules"]["skipped_rules"][0]
    assert knock_and_count(8001) == 1
    in_place(file, SIGMA.replace("PORT", "8002"))
    wait_until(lambda: knock_and_count(8002) == 1, 15, "the changed file is in force")
    assert knock_and_count(8001) == 0
    (folder / "bad.yml").write_text("title: [\n")
    wait_until(lambda: appliance.status()["rules"]["stale"], 15, "stale rules")
    assert str(folder / "bad.yml") in appliance.status()["rules"]["problems"][0]
    assert knock_and_count(8002) == 1
    (folder / "bad.yml").unlink()
    rules(3, 1)
    file.unlink()
    rules(2, 0)
    assert knock_and_count(8002) == 0
    assert appliance.pid("engine") == engine


def not_utf8(folder: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.yml"))
    path.write_text("rules: [\n")
    return path


def link_to_itself(folder: Path) -> Path:
    (folder / "loop.yml").symlink_to("loop.yml")
    return folder / "loop.yml"


def link_to_nothing(folder: Path) -> Path:
    (folder / "nothing.yaml").symlink_to("/no/such/file")
    return folder / "nothing.yaml"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.yml")
    return folder / "fifo.yml"


def directory(folder: Path) -> Path:
    (folder / "directory.yml").mkdir()
    return folder / "directory.yml"


def too_large(folder: Path) -> Path:
    with (folder / "large.yml").open("w") as file:
        file.truncate(2**34)
    return folder / "large.yml"


def test_whatever_lies_in_rules_d_is_named_in_the_status_and_told_once_and_harms_nobody(lab, appliance):
    folder = appliance.folder / "rules.d"
    folder.mkdir()
    # What cannot be read is told at once; what can, when the loader has looked at it.
    rounds = ((link_to_itself, link_to_nothing, fifo, directory, too_large), (not_utf8,))
    pids = [appliance.status()["pid"], appliance.pid("engine"), appliance.pid("courier")]
    told = len(appliance.alerts("rules-reload-failed"))
    good = appliance.status()["rules"]["loaded_sha256"]
    for number, places in enumerate(rounds, 1):
        paths = [place(folder) for place in places]
        shown = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]
        wanted = len(paths)
        wait_until(lambda n=wanted: len(appliance.status()["rules"]["problems"]) >= n, 15, "stale")
        rules = appliance.status()["rules"]
        problems = rules["problems"]
        assert all(any(line.startswith(f"{name}:") for line in problems) for name in shown), rules
        assert set(shown) < set(rules["files"])
        assert (rules["loaded_sha256"], rules["rules"], rules["stale"]) == (good, 2, True)
        assert rules["disk_sha256"] != good and rules["stale_since"]
        shows = lab.run("host", STATUS + [str(appliance.runtime)], check=False)
        assert (shows.returncode, "STALE since" in shows.stdout) == (1, True)
        assert all(problem.split(": ", 1)[1] in shows.stdout for problem in problems)
        wait_until(lambda n=number: len(appliance.alerts("rules-reload-failed")) >= told + n, 15, "an alert")
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink()
        wait_until(lambda: not appliance.status()["rules"]["stale"], 15, "mended")
    knock(lab, "198.51.100.95", range(20, 25))
    wait_until(lambda: "198.51.100.95" in sources(appliance), 10, "the rules decide")
    assert len(appliance.alerts("rules-reload-failed")) == told + len(rounds)
    assert pids == [appliance.status()["pid"], appliance.pid("engine"), appliance.pid("courier")]
