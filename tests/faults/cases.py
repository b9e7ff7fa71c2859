"""The cases of the matrix: each a receiver, a fault, and what is said about it in the table."""

from __future__ import annotations

import random
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lab import Lab
from peers.certificates import Certificates
from peers.daemon import free_port
from peers.rsyslog import Rsyslog
from peers.telegram_api import TOKEN, TelegramApi

from faults.http_server import POISON
from faults.slow import SlowReceiver
from faults.targets import (
    BULK,
    DATAGRAMS,
    FILE,
    HEC_ACK,
    HTTP,
    HTTPS,
    KAFKA,
    RSYSLOG_CEF,
    RSYSLOG_MTLS,
    RSYSLOG_RELP,
    RSYSLOG_TCP,
    RSYSLOG_TLS,
    STREAMS,
    SYSLOG_NG_MTLS,
    TIMEOUT_S,
    TLS,
    Target,
)
from faults.trial import Case, Trial
from kwsiem import failpoint
from kwsiem.output_settings import FileSettings, SyslogSettings, TelegramSettings

#: Alerts that wait at most at a time where the receiver of datagrams must not be overrun.
DATAGRAMS_IN_FLIGHT = 40
PAGE_BYTES = 4096
#: Cases with so many alerts are broken more than once where that takes its time.
LONG_ALERTS = 1000
#: Which certificate, what it is called in the table, and what the output's error says.
CERTIFICATES = (
    ("expired", "expired", "expired"),
    ("misnamed", "for another name", "127.0.0.1"),
    ("stranger", "of an unknown authority", "unable to get local issuer"),
)
#: Modes of the HTTP server, and what the output's error says then.
STATUSES = (("429 1", "429"), ("500", "500"), ("503", "503"))
SILENCES = (("hang", ""), ("reset", ""))


def quiet(trial: Trial, target: Target) -> None:
    """Nothing goes wrong."""
    target.connect(trial)


def restarted(trial: Trial, target: Target) -> None:
    """The receiver is stopped in order and started again, alerts being raised all the while."""
    peer = target.connect(trial)
    trial.flow(0.4)
    peer.stop()
    trial.part(0.2)
    trial.sender.wait_state("siem", "failing")
    peer.start()


def receiver_killed(trial: Trial, target: Target) -> None:
    """Three times in mid-stream."""
    peer = target.connect(trial)
    for _ in range(3):
        trial.flow(0.2)
        peer.kill()
        trial.part(0.05)
        trial.sender.wait_stored()
        peer.start()


def frozen_then_killed(trial: Trial, target: Target) -> None:
    """It takes bytes that it never reads, until the buffers are full, and dies with them."""
    peer = target.connect(trial)
    trial.flow(0.2)
    peer.freeze()
    trial.part(0.5)
    trial.sender.wait_stored()
    trial.sender.wait(
        lambda: (
            trial.sender.output("siem").get("state") == "failing"
            or trial.sender.output("siem").get("delivered") == len(trial.sender.raised)
        ),
        "buffers full, or all of it in them",
    )
    peer.kill()
    peer.start()


def both_killed(trial: Trial, target: Target) -> None:
    """Sender and receiver at the same time, as when a host of virtual machines goes."""
    peer = target.connect(trial)
    trial.flow(0.4)
    trial.sender.kill()
    peer.kill()
    peer.start()
    trial.sender.start()
    trial.flow(0.2)
    peer.kill()
    trial.sender.kill()
    trial.sender.start()
    peer.start()


def sender_killed(trial: Trial, target: Target, *, times: int = 5) -> None:
    """Wherever it is."""
    target.connect(trial)
    chosen = random.Random(times)
    for _ in range(times):
        trial.flow(chosen.uniform(0.05, 0.9 / times))
        trial.sender.kill()
        trial.sender.start()


def terminated_in_outage(trial: Trial, target: Target) -> None:
    """What waits is on disk; the next courier brings it out."""
    peer = target.connect(trial)
    trial.flow(0.2)
    peer.stop()
    trial.part(0.5)
    trial.sender.wait_state("siem", "failing")
    trial.sender.wait_stored()
    assert trial.sender.terminate() == 0
    assert trial.sender.output("siem")["waiting"] > 0
    trial.sender.start()
    trial.sender.wait_state("siem", "failing")
    peer.start()


def killed_at(trial: Trial, target: Target, *, point: str) -> None:
    """One run of the courier after the other dies there: at the first time, and later ones."""
    times = (1, 2, 5) if trial.count >= LONG_ALERTS else (2,)
    armed = [f"{point}:{nth}" for nth in times]
    # A repeat is known as long as the alert is in the history, so the engine may not wait for more than that.
    small: dict[str, Any] = {"history_alerts": 100, "window": 50} if point == "outbox.pruning" else {}
    target.connect(trial, failpoints=armed, **small)
    sender = trial.sender
    share = 0.7 / len(times)
    for deaths in range(1, len(times) + 1):
        trial.part(share)
        while len(sender.deaths) < deaths:
            # Every group of alerts takes the courier past each point once more.
            sender.alerts(1)
            for _ in range(5):
                sender.pump()
            assert len(sender.raised) < trial.count, f"never at {armed}"
    trial.note = f"killed {len(sender.deaths)} times" if len(times) > 1 else "killed once"


def datagrams(trial: Trial, target: Target) -> None:
    """Never more under way than the receiver's buffer holds; an outage is told by ICMP, or by the socket."""
    peer = target.connect(trial)
    tally = trial.tallies["siem"]

    def carefully(until: int) -> None:
        while len(trial.sender.raised) < until:
            trial.sender.alerts(min(DATAGRAMS_IN_FLIGHT, until - len(trial.sender.raised)))
            trial.all_received()

    carefully(trial.count // 2)
    peer.stop()
    trial.sender.alerts(50)
    trial.sender.wait_state("siem", "failing")
    trial.sender.wait_stored()
    assert tally.read() == len(trial.sender.raised) - 50
    peer.start()
    trial.all_received()
    carefully(trial.count)


def black_hole(trial: Trial, target: Target) -> None:
    """Packets vanish without a word: a firewall rule in a network namespace that sender and receiver share."""
    lab = Lab("box")
    trial.at_end(lab.close)
    lab.add("box")
    with lab.inside("box"):
        peer = target.connect(trial, launcher=lab.argv("box", []))
    rule = ["INPUT", "-p", "tcp", "--dport", str(target.settings(peer).port), "-j", "DROP"]
    trial.flow(0.4)
    lab.run("box", ["iptables", "-A", *rule])
    trial.part(0.3)
    trial.sender.wait_state("siem", "failing")
    trial.sender.wait_stored()
    lab.run("box", ["iptables", "-D", *rule])
    trial.rest()


def slow_reader(trial: Trial) -> None:
    """10 kB/s on one output, with buffers long full, must not be felt on the two others."""
    slow = SlowReceiver(10_000)
    trial.at_end(slow.close)
    peer = Rsyslog(trial.folder_for("peer"))
    trial.at_end(peer.kill)
    slowly = SyslogSettings(
        name="slow", transport="tcp", port=slow.port, framing="newline", timeout_s=TIMEOUT_S
    )
    siem = SyslogSettings(name="siem", transport="tcp", port=peer.ports["tcp"], timeout_s=TIMEOUT_S)
    trial.send(slowly, siem, trial.file())
    slow.take = trial.tally("slow", "a reader of 10 kB/s, TCP, newline").take
    trial.tally("siem", "rsyslog, TCP, beside it", peer.out)
    trial.tally("file", "file, beside it", Path(trial.file().path))
    trial.rest()
    for live in ("siem", "file"):
        trial.all_received(live)
    behind = len(trial.sender.raised) - len(trial.tallies["slow"].counts)
    assert behind > trial.count // 2, "the slow reader was not slow"
    trial.note = f"the others had all when it had {trial.count - behind:,}"
    trial.sender.wait(lambda: trial.sender.samples >= 5, "some seconds of it")
    slow.bytes_per_s = 0


def one_dead(trial: Trial) -> None:
    """Four outputs: one that nobody listens to, one that hangs, and two that live."""
    hung, live = (Rsyslog(trial.folder_for(name)) for name in ("hung", "live"))
    for peer in (hung, live):
        trial.at_end(peer.kill)
    dead_port = free_port()
    ports = {"dead": dead_port, "hung": hung.ports["tcp"], "live": live.ports["tcp"]}
    outputs = [
        SyslogSettings(name=name, transport="tcp", port=port, timeout_s=TIMEOUT_S, framing="newline")
        for name, port in ports.items()
    ]
    hung.freeze()
    trial.send(*outputs, trial.file())
    trial.tally("hung", "rsyslog, stopped with SIGSTOP", hung.out)
    trial.tally("live", "rsyslog, TCP, beside them", live.out)
    trial.tally("file", "file, beside them", Path(trial.file().path))
    trial.rest()
    for name in ("live", "file"):
        trial.all_received(name)
    trial.sender.wait_state("dead", "failing")
    assert trial.tallies["hung"].read() == 0
    assert trial.sender.output("dead")["delivered"] == 0
    hung.thaw()
    risen = SlowReceiver(0, dead_port)
    trial.at_end(risen.close)
    risen.take = trial.tally("dead", "nobody there, then a reader").take


def disk_full(trial: Trial, target: Target) -> None:
    """A state folder of 8 MB filled by somebody else, once while the receiver is there and once while it is not."""
    state = trial.folder_for("state")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(state)], check=True)
    trial.at_end(lambda: subprocess.run(["umount", "-l", str(state)], check=False))
    filler = state / "filler"
    peer = target.connect(trial, history_alerts=100)
    sender = trial.sender
    trial.flow(0.2)
    trial.all_received()
    fill(filler)
    trial.part(0.2)
    sender.wait(lambda: sender.stats.get("disk_error"), "the full disk is noticed")
    trial.all_received()
    filler.unlink()
    sender.wait(lambda: not sender.stats["disk_error"], "the outbox is on disk again")
    peer.stop()
    sender.wait_state("siem", "failing")
    fill(filler)
    trial.part(0.2)
    sender.wait(lambda: sender.stats["disk_error"], "the full disk is noticed again")
    assert sender.engine.waiting, "what is in memory only is not acknowledged"
    sender.kill()
    sender.may_end_with.add(1)  # with no room at all it may not even begin; the sensor starts it again
    sender.start()
    for _ in range(20):
        sender.pump()
    filler.unlink()
    sender.wait_stored()
    peer.start()


def fill(path: Path) -> None:
    """Take all the room that is left on a file system."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


Damage = Callable[[Path, int, random.Random], None]


def waiting_places(data: bytes | bytearray, first: int) -> list[int]:
    """Where in the file alerts from number ``first`` on say their number."""
    return [m.start() for m in re.finditer(rb"alert number (\d+) of", data) if int(m[1]) >= first]


def flipped_bits(state: Path, first: int, chosen: random.Random) -> None:
    """One bit in each of three alerts."""
    path = state / "kwsiem.db"
    data = bytearray(path.read_bytes())
    for place in chosen.sample(waiting_places(data, first), 3):
        data[place + chosen.randrange(12)] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)


def torn_page(state: Path, first: int, chosen: random.Random) -> None:
    """Half of a page that holds alerts was never written."""
    path = state / "kwsiem.db"
    data = bytearray(path.read_bytes())
    page = chosen.choice(waiting_places(data, first)) // PAGE_BYTES * PAGE_BYTES
    data[page + PAGE_BYTES // 2 : page + PAGE_BYTES] = bytes(PAGE_BYTES // 2)
    path.write_bytes(data)


def torn_log(state: Path, first: int, chosen: random.Random) -> None:
    """A page in the middle of SQLite's log is zero, after a kill."""
    path = state / "kwsiem.db-wal"
    data = bytearray(path.read_bytes())
    place = len(data) // 2
    data[place : place + PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(data)


def nonsense(state: Path, first: int, chosen: random.Random) -> None:
    """The first pages of the file, where all tables are found, are noise."""
    path = state / "kwsiem.db"
    data = bytearray(path.read_bytes())
    data[: 2 * PAGE_BYTES] = chosen.randbytes(2 * PAGE_BYTES)
    path.write_bytes(data)


def damaged(trial: Trial, target: Target, *, damage: Damage, killed: bool) -> None:
    """The outbox's file is damaged between two runs, with alerts waiting: what is lost is counted, no more."""
    peer = target.connect(trial)
    sender = trial.sender
    trial.flow(0.3)
    trial.all_received()
    sender.wait(lambda: sender.output("siem").get("delivered") == len(sender.raised), "all settled")
    waiting_from = len(sender.raised) + 1
    peer.stop()
    trial.part(0.5)
    sender.wait_stored()
    sender.wait_state("siem", "failing")
    if killed:
        sender.kill()
    else:
        assert sender.terminate() == 0
    damage(sender.state, waiting_from, random.Random(trial.count))
    trial.expected["siem"].damaged = True
    sender.start()
    sender.wait_state("siem", "failing")
    peer.start()
    trial.rest()
    trial.received(round(trial.count * 0.3) + 1)
    sender.wait_stored()
    sender.wait(lambda: sender.output("siem").get("waiting") == 0, "all settled")
    account, stats = sender.output("siem"), sender.stats
    reported = stats.get("corrupt_outbox") or stats.get("outbox", {}).get("repaired") or account["dropped"]
    assert reported or damage is torn_log, f"damage that nobody noticed: {stats}"
    trial.note = f"{account['dropped']:,} counted as dropped"


def output_disk_full(trial: Trial) -> None:
    """The disk of the file output, not that of the outbox, is full for a while."""
    folder = trial.folder_for("out")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)], check=True)
    trial.at_end(lambda: subprocess.run(["umount", "-l", str(folder)], check=False))
    folder.chmod(0o777)
    output = FileSettings(name="siem", path=str(folder / "alerts.jsonl"), max_bytes=2**40)
    trial.send(output)
    trial.tally("siem", FILE.name, Path(output.path))
    trial.flow(0.3)
    fill(folder / "filler")
    trial.part(0.4)
    trial.sender.wait_state("siem", "failing", "No space left")
    (folder / "filler").unlink()


def file_moved(trial: Trial) -> None:
    """As logrotate does it: the file is moved away while it is written."""
    path = Path(trial.file("siem").path)
    trial.send(trial.file("siem"))
    tally = trial.tally("siem", FILE.name, path)
    for number in range(4):
        trial.flow(0.2)
        moved = path.with_name(f"{path.name}.moved{number}")
        path.rename(moved)
        trial.part(0.04)
        trial.sender.wait(path.exists, "a new file")
        tally.follow(moved)


def clock_jumps(trial: Trial, target: Target) -> None:
    """The courier's wall clock goes a day on, a year back, and home; its other clocks are left alone."""
    offset = trial.folder / "clock"
    offset.write_text("+0")
    offset.chmod(0o644)
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    environment = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    peer = target.connect(trial, environment=environment)
    years = set()
    for jump in ("+1d", "-366d", "+0"):
        trial.flow(0.15)
        offset.write_text(jump)
        samples = trial.sender.samples
        trial.part(0.05)
        trial.sender.wait(lambda: trial.sender.samples >= samples + 4, "it looks at the file once a second")  # noqa: B023
        peer.kill()
        trial.part(0.05)
        trial.sender.wait_state("siem", "failing")
        years.add(trial.sender.output("siem")["since"][:10])
        peer.start()
        trial.sender.wait_state("siem", "ready")
    assert len(years) == 3, f"the clock did not jump: {years}"


def http_fails(trial: Trial, target: Target, *, modes: tuple[tuple[str, str], ...]) -> None:
    """The server answers in these ways for a while each, alerts being raised; then well again."""
    peer = target.connect(trial)
    share = 0.8 / len(modes)
    for mode, said in modes:
        trial.flow(share / 2)
        before = trial.sender.output("siem").get("retries", 0)
        peer.mode(mode)
        trial.part(share / 2)
        trial.sender.wait_error("siem", said, before)
        peer.mode("")


def http_misconfigured(trial: Trial, target: Target) -> None:
    """401 to everything: nothing is thrown away; the operator mends it and restarts."""
    peer = target.connect(trial)
    trial.flow(0.3)
    trial.all_received()
    peer.mode("401")
    trial.part(0.4)
    trial.sender.wait_state("siem", "failing", "401")
    trial.sender.wait_stored()
    account = trial.sender.output("siem")
    assert account["dead"] == 0
    assert account["waiting"]
    peer.mode("")
    assert trial.sender.terminate() == 0


def http_picky(trial: Trial, target: Target) -> None:
    """Alerts that the receiver refuses for good are dead letters; they take no other with them."""
    peer = target.connect(trial)
    peer.mode("picky")
    trial.expected["siem"].dead = sum(str(n).endswith(POISON) for n in range(1, trial.count + 1))
    trial.note = f"{trial.expected['siem'].dead:,} dead letters"


def hec_unindexed(trial: Trial, target: Target) -> None:
    """Never acknowledged, then killed with all of it; the next one acknowledges."""
    peer = target.connect(trial)
    trial.flow(0.2)
    trial.all_received()
    peer.mode("unindexed")
    before = trial.tallies["siem"].read()
    trial.part(0.4)
    trial.sender.wait_state("siem", "failing", "not acknowledged")
    assert trial.tallies["siem"].read() == before
    peer.kill()
    peer.mode("")
    peer.start()


def bad_certificate(trial: Trial, target: Target, *, shown: str, said: str) -> None:
    """Nothing goes to a receiver that shows the wrong certificate; the right one gets it all."""
    folder = trial.folder_for("peer")
    make: Any = target.make
    peer = make(folder, Certificates(folder / "pki"), server=shown)
    trial.at_end(peer.kill)
    trial.send(target.settings(peer))
    tally = trial.tally("siem", target.name, peer.out)
    trial.part(0.7)
    trial.sender.wait_state("siem", "failing", said)
    trial.sender.wait_stored()
    account = trial.sender.output("siem")
    assert (account["delivered"], account["dead"], tally.read()) == (0, 0, 0)
    peer.stop()
    peer._server = "server"
    peer.start()
    # What an operator has to mend is tried again after a minute, or when the courier is restarted.
    assert trial.sender.terminate() == 0


def half_open_tls(trial: Trial, target: Target) -> None:
    """Its kernel takes the connection and nobody ever answers the handshake; another output goes on."""
    peer = target.connect(trial, trial.file())
    trial.tally("file", "file, beside it", Path(trial.file().path))
    trial.flow(0.3)
    peer.stop()
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", peer.ports["tls"]))
        silent.listen(64)
        trial.part(0.4)
        trial.sender.wait_error("siem", "timed out")
        trial.all_received("file")
    peer.start()


def kafka_fails(trial: Trial, target: Target, *, mode: str) -> None:
    """For longer than librdkafka's own retries."""
    peer = target.connect(trial)
    trial.flow(0.3)
    peer.mode(mode)
    before = trial.sender.output("siem").get("retries", 0)
    trial.part(0.4)
    trial.sender.wait_error("siem", "kafka", before)
    trial.sender.wait_stored()
    assert trial.sender.output("siem")["dead"] == 0
    peer.mode("")


def kafka_hangs(trial: Trial, target: Target) -> None:
    """The cluster is stopped with SIGSTOP for a while."""
    peer = target.connect(trial)
    trial.flow(0.3)
    before = trial.sender.output("siem").get("retries", 0)
    peer.freeze()
    trial.part(0.4)
    trial.sender.wait_error("siem", "kafka", before)
    peer.thaw()


class Chat(TelegramApi):
    """Each message that is accepted goes to a tally, before its answer."""

    def __init__(self) -> None:
        self.told: Callable[[bytes], None] = lambda _: None
        super().__init__(burst=20)

    def _sent(self, chat: int, given: dict[str, Any]) -> Any:
        message = super()._sent(chat, given)
        self.told(message.text.encode())
        return message


def chat_fails(trial: Trial) -> None:
    """A flood limit, an answer lost, a hang, and the courier killed with alerts under way."""
    api = Chat()
    trial.at_end(api.close)
    (trial.folder / "env").write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\nTELEGRAM_CHAT_ID=1000\n")
    trial.send(TelegramSettings(name="siem", url=api.url, timeout_s=TIMEOUT_S))
    api.told = trial.tally("siem", "Telegram", shown=8).take
    limited = (429, b'{"ok":false,"error_code":429,"parameters":{"retry_after":1}}', {})
    for fault in (limited, "reset", "reset-after", "hang"):
        before = trial.sender.output("siem").get("retries", 0)
        api.faults.append(fault)
        trial.sender.alerts(2)
        trial.sender.wait_error("siem", "", before)
        trial.all_received()
    trial.sender.alerts(3)
    trial.sender.wait_stored()
    trial.sender.kill()
    trial.sender.start()
    trial.all_received()


def each(
    name: str,
    done: str,
    run: Callable[[Trial, Target], None],
    targets: tuple[Target, ...],
    weight: float = 1.0,
    most: int = 1_000_000,
) -> Iterator[Case]:
    """The same fault for several receivers."""
    for target in targets:
        yield Case(f"{name} / {target.name}", done, partial(run, target=target), weight, most)


DAMAGES: tuple[tuple[str, str, Damage, bool], ...] = (
    ("flipped bits", "one bit in each of three waiting alerts", flipped_bits, False),
    ("torn page", "half of a page of the outbox is zero", torn_page, False),
    ("torn log", "a page of SQLite's log is zero, after kill -9", torn_log, True),
    ("noise", "the first two pages of the outbox are noise", nonsense, False),
)
MATRIX: tuple[Case, ...] = (
    *each("no fault", "nothing", quiet, STREAMS, 2),
    *each("receiver restarts", "stopped in mid-stream, away while alerts are raised, started", restarted, STREAMS, 2),
    *each("receiver killed", "kill -9 three times in mid-stream", receiver_killed, STREAMS, 2),
    *each("receiver hangs, then killed", "SIGSTOP until its buffers are full, then kill -9", frozen_then_killed, STREAMS),
    *each("sender and receiver killed", "both kill -9, twice", both_killed, STREAMS),
    *each("sender killed", "kill -9 of the courier five times in mid-stream", sender_killed, STREAMS, 2),
    *each("SIGTERM in an outage", "receiver down, courier ended and started, receiver up", terminated_in_outage, STREAMS[:1]),
    *(
        Case(f"killed at {point} / {target.name}", f"kill -9: {where}", partial(killed_at, target=target, point=point))
        for target in (RSYSLOG_TCP,)
        for point, where in failpoint.POINTS.items()
    ),
    *(
        Case(f"killed at {point} / {FILE.name}", f"kill -9: {where}", partial(killed_at, target=FILE, point=point))
        for point, where in failpoint.POINTS.items()
    ),
    *each("sender killed", "kill -9 of the courier five times in mid-stream", sender_killed, (FILE,), 2),
    Case(f"file moved / {FILE.name}", "moved away four times while it is written", file_moved),
    *each("no fault", "every field parsed by mmnormalize", quiet, (RSYSLOG_CEF,)),
    *each("black hole", "packets dropped by a firewall rule, then not any more", black_hole, (RSYSLOG_TCP,)),
    Case("slow receiver", "one of three outputs reads 10 kB/s for some seconds", slow_reader, least=3000, most=20_000),
    Case("dead receivers", "one of four outputs is not there, one hangs", one_dead, 2),
    *each("disk full", "the outbox's disk filled and freed; filled again without receiver, and the courier killed", disk_full, (RSYSLOG_TCP,), most=5_000),
    *(
        case
        for name, done, damage, killed in DAMAGES
        for case in each(name, done, partial(damaged, damage=damage, killed=killed), (RSYSLOG_TCP, RSYSLOG_RELP), most=10_000)
    ),
    Case("output's disk full", "the disk of the file is filled and freed", output_disk_full),
    *each("clock jumps", "wall clock a day on, a year back, and home; the receiver killed each time", clock_jumps, (RSYSLOG_TCP,), most=5_000),
    *each("no fault", "nothing", quiet, HTTP),
    *each("receiver restarts", "stopped in mid-stream, away while alerts are raised, started", restarted, HTTP),
    *each("receiver killed", "kill -9 three times in mid-stream", receiver_killed, HTTP),
    *each("sender killed", "kill -9 of the courier five times in mid-stream", sender_killed, HTTP),
    *each("sender and receiver killed", "both kill -9, twice", both_killed, HTTP),
    *each("receiver hangs, then killed", "SIGSTOP, then kill -9", frozen_then_killed, HTTP),
    *each("429, 500, 503", "each for a while; 429 with Retry-After: 1", partial(http_fails, modes=STATUSES), HTTP),
    *each("no answer, reset", "time-out; taken, and the connection reset in mid-answer", partial(http_fails, modes=SILENCES), HTTP),
    *each("401", "for a while, then mended and the courier restarted", http_misconfigured, HTTP),
    *each("refused alerts", "each hundredth alert is refused for good (400)", http_picky, HTTP),
    *each("busy", "every third document of a _bulk is answered with 429 for a while", partial(http_fails, modes=(("busy", "429"),)), (BULK,)),
    *each("not indexed", "acknowledgement never true, the server killed with all of it, then true", hec_unindexed, (HEC_ACK,)),
    *(
        Case(f"killed at {point} / {BULK.name}", f"kill -9: {where}", partial(killed_at, target=BULK, point=point))
        for point, where in failpoint.POINTS.items()
    ),
    *each("no fault", "nothing", quiet, (RSYSLOG_RELP, RSYSLOG_MTLS, SYSLOG_NG_MTLS, KAFKA), 2),
    *each("receiver restarts", "stopped in mid-stream, away while alerts are raised, started", restarted, (RSYSLOG_RELP,), 2),
    *each("receiver killed", "kill -9 three times in mid-stream", receiver_killed, (RSYSLOG_RELP,), 2),
    *each("receiver hangs, then killed", "SIGSTOP, then kill -9", frozen_then_killed, (RSYSLOG_RELP,)),
    *each("sender and receiver killed", "both kill -9, twice", both_killed, (RSYSLOG_RELP,)),
    *each("sender killed", "kill -9 of the courier five times in mid-stream", sender_killed, (RSYSLOG_RELP, KAFKA), 2),
    *each("black hole", "packets dropped by a firewall rule, then not any more", black_hole, (RSYSLOG_TLS, RSYSLOG_RELP)),
    *each("SIGTERM in an outage", "receiver down, courier ended and started, receiver up", terminated_in_outage, (RSYSLOG_RELP, RSYSLOG_TLS)),
    *(
        Case(f"killed at {point} / {target.name}", f"kill -9: {where}", partial(killed_at, target=target, point=point))
        for target in (RSYSLOG_RELP,)
        for point, where in failpoint.POINTS.items()
    ),
    *(
        case
        for shown, what, said in CERTIFICATES
        for case in each(f"certificate {what}", "nothing is sent; then the right certificate", partial(bad_certificate, shown=shown, said=said), (*TLS, HTTPS))
    ),
    *each("half-open TLS", "the connection is taken, the handshake never answered", half_open_tls, TLS),
    *each("Kafka broker down", "for longer than the client's own retries", partial(kafka_fails, mode="down"), (KAFKA,)),
    *each("Kafka error 7", "REQUEST_TIMED_OUT to every produce request", partial(kafka_fails, mode="error 7"), (KAFKA,)),
    *each("Kafka error 19", "NOT_ENOUGH_REPLICAS to every produce request", partial(kafka_fails, mode="error 19"), (KAFKA,)),
    *each("Kafka hangs", "SIGSTOP, then SIGCONT", kafka_hangs, (KAFKA,)),
    Case("chat", "429, connection reset, an answer lost, no answer, kill -9 of the courier", chat_fails, least=12, most=12),
    *each("datagrams", "never overrun; stopped, 50 alerts wait, started", datagrams, DATAGRAMS),
)  # fmt: skip
