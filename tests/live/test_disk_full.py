"""The courier on a small file system that is filled and emptied again."""

import errno
import json
import os
import subprocess

import pytest
from appliance import whole_lines
from courier import CourierRun, alert, give

from kwsiem.outbox import HELD_ALERTS, balanced, read_ledger
from kwsiem.output_settings import FileSettings, SyslogSettings

pytestmark = pytest.mark.live


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(tmp_path, request):
    """A file system of 160 MB for the state; what outputs write is elsewhere."""
    tmp_path.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    if request.param == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", "size=160m", "none", state]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(160 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        argv = ["mount", "-o", "loop", image, state]
    subprocess.run(argv, check=True)
    give(state)
    (tmp_path / "out").mkdir()
    give(tmp_path / "out")
    yield state
    subprocess.run(["umount", state], check=True)


@pytest.fixture
def start(disk):
    started = []

    def begin(*outputs):
        started.append(CourierRun(disk, outputs))
        return started[-1]

    yield begin
    for courier in started:
        courier.close()


def fill(disk):
    """Not a byte is left."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(file.fileno())


def empty(disk):
    (disk / "filler").unlink()


def delivered(disk):
    lines = whole_lines(disk.parent / "out" / "alerts.jsonl")
    return [json.loads(line)["event"]["id"] for line in lines]


def file_output(disk):
    return FileSettings(name="file", path=str(disk.parent / "out" / "alerts.jsonl"))


def states(courier):
    return [fields["outbox.state"] for kind, fields in courier.events if kind == "outbox.state"]


def test_outputs_get_everything_while_the_disk_is_full(disk, start):
    courier = start(file_output(disk))
    courier.send(range(50))
    courier.wait(lambda: len(courier.acknowledged) == 50)
    fill(disk)
    total = HELD_ALERTS + 4000
    courier.send(range(50, total))
    courier.wait(lambda: courier.output("file").get("delivered") == total)
    courier.wait(lambda: len(courier.acknowledged) == total)
    assert states(courier) == ["memory"], (
        "more went through than memory holds: what all outputs have is let go"
    )
    assert courier.values["disk_error"]
    assert courier.values["outbox"]["held_alerts"] <= HELD_ALERTS
    empty(disk)
    courier.wait(lambda: states(courier) == ["memory", "disk"])
    courier.wait(lambda: courier.values["disk_error"] == "")
    courier.send(range(total, total + 10))
    courier.wait(lambda: len(courier.acknowledged) == total + 10)
    assert courier.stop() == 0
    account = read_ledger(disk / "kwsiem.db")["file"]
    assert (account.raised, account.delivered, account.waiting) == (total + 10, total + 10, 0)
    assert account.balanced
    assert delivered(disk) == [alert(number).id for number in range(total + 10)], "in order, each once"


def test_memory_is_bounded_and_nothing_in_it_is_acknowledged(disk, start):
    """One output is down, so that nothing can be let go; what memory does not hold stays with the engine."""
    siem = SyslogSettings(name="siem", path=str(disk.parent / "no-such-socket"))
    courier = start(file_output(disk), siem)
    courier.send(range(20))
    courier.wait(lambda: len(courier.acknowledged) == 20)
    fill(disk)
    total = HELD_ALERTS + 3000
    left = courier.offer(range(20, total))

    def is_full():
        left[:] = courier.offer(left)
        held = courier.values.get("outbox", {}).get("held_alerts", 0)
        return held > HELD_ALERTS - 500 and courier.output("file")["delivered"] > HELD_ALERTS - 500

    courier.wait(is_full)
    # What SQLite still had room for in its files is on disk and acknowledged, nothing else.
    on_disk = read_ledger(disk / "kwsiem.db")["siem"].raised
    assert courier.acknowledged == set(range(on_disk))
    assert courier.values["outbox"]["held_alerts"] <= HELD_ALERTS
    assert courier.values["alerts"]["received"] <= on_disk + HELD_ALERTS + 500
    empty(disk)

    def all_acknowledged():
        left[:] = courier.offer(left)
        return len(courier.acknowledged) == total

    courier.wait(all_acknowledged)
    courier.wait(lambda: courier.output("file")["delivered"] == total)
    assert states(courier) == ["memory", "disk"]
    assert courier.stop() == 0
    accounts = read_ledger(disk / "kwsiem.db")
    assert balanced(accounts)
    assert accounts["file"].delivered == accounts["siem"].waiting == total
    assert delivered(disk) == [alert(number).id for number in range(total)]


def test_a_kill_while_the_disk_is_full_loses_nothing_the_engine_keeps(disk, start):
    siem = SyslogSettings(name="siem", path=str(disk.parent / "no-such-socket"))
    courier = start(file_output(disk), siem)
    courier.send(range(20))
    courier.wait(lambda: len(courier.acknowledged) == 20)
    fill(disk)
    courier.send(range(20, 2000))
    courier.wait(lambda: courier.output("file").get("delivered") == 2000)
    courier.process.kill()
    courier.process.wait()
    courier.pump(0)
    unacknowledged = sorted(set(range(2000)) - courier.acknowledged)
    assert unacknowledged
    courier.close()
    empty(disk)
    courier = start(file_output(disk), siem)
    courier.send(unacknowledged)
    courier.wait(lambda: courier.acknowledged == set(unacknowledged))
    courier.wait(lambda: courier.output("file").get("waiting") == 0)
    assert courier.stop() == 0
    accounts = read_ledger(disk / "kwsiem.db")
    assert balanced(accounts)
    assert accounts["siem"].waiting == 2000
    assert set(delivered(disk)) == {alert(number).id for number in range(2000)}


def test_a_courier_that_starts_on_a_full_disk_serves_its_outputs(disk, start):
    courier = start(file_output(disk))
    courier.send(range(20))
    courier.wait(lambda: courier.output("file").get("delivered") == 20)
    assert courier.stop() == 0
    fill(disk)
    courier = start(file_output(disk))
    courier.send(range(20, 1500))
    courier.wait(lambda: len(courier.acknowledged) == 1480)
    courier.wait(lambda: courier.output("file")["delivered"] == 1500)
    empty(disk)
    courier.wait(lambda: courier.values["disk_error"] == "")
    assert courier.stop() == 0
    account = read_ledger(disk / "kwsiem.db")["file"]
    assert (account.raised, account.delivered) == (1500, 1500)
