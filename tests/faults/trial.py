"""One case of the matrix while it runs: its receivers, its sender, and the final account."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from faults.sender import Sender
from faults.tally import Tally
from kwsiem.output_settings import FileSettings, OutputSettings

#: A receiver that gets nothing new for so long will not get it: the back-off is at most a minute.
PATIENCE_S = 75.0


@dataclass(frozen=True)
class Row:
    """One line of the table: what became of one output in one case."""

    case: str
    peer: str
    done: str
    alerts: int
    received: int
    duplicates: int
    lost: int
    balanced: bool
    samples: int
    seconds: float
    note: str = ""


@dataclass
class Expected:
    """What the account of an output must be beside ``delivered`` = all the others."""

    dead: int = 0
    dropped: int = 0
    filtered: int = 0
    #: Alerts that may be missing at the receiver although they count as delivered.
    missing: int = 0
    #: What was dropped is known only afterwards, because a disk was damaged; then all of it must be missing.
    damaged: bool = False


class Trial:
    """Everything that a case started, ended with it; ``count`` is how many alerts it raises in all."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.sender: Sender
        self.tallies: dict[str, Tally] = {}
        self.expected: dict[str, Expected] = {}
        self.names: dict[str, str] = {}
        self.note = ""
        self.patience_s = PATIENCE_S
        self.began_s = time.monotonic()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def at_end(self, function: Callable[[], object]) -> None:
        """Do this when the case is over, last in first out."""
        self._open.callback(function)

    def folder_for(self, name: str) -> Path:
        """A new folder that everybody may enter."""
        made = self.folder / name
        made.mkdir()
        made.chmod(0o755)
        return made

    # -- what runs -----------------------------------------------------------------------------------

    def send(self, *outputs: OutputSettings, **options: Any) -> Sender:
        """Start the courier with these outputs; each gets a tally by :meth:`tally`."""
        self.sender = Sender(self.folder, outputs, **options)
        self.at_end(self.sender.close)
        return self.sender

    def tally(self, output: str, peer: str, path: Path | None = None, shown: int = 26) -> Tally:
        """Count what the receiver of an output writes to ``path``, or gives to :meth:`Tally.take`."""
        self.tallies[output] = Tally(self.sender.raised, path, shown)
        self.expected[output] = Expected()
        self.names[output] = peer
        return self.tallies[output]

    def file(self, name: str = "file") -> FileSettings:
        """A file output in the courier's own folder."""
        return FileSettings(name=name, path=str(self.folder / "state" / f"{name}.jsonl"), max_bytes=2**40)

    # -- what happens --------------------------------------------------------------------------------

    def part(self, share: float) -> int:
        """Raise this share of the case's alerts; gives how many."""
        count = max(1, round(self.count * share))
        self.sender.alerts(min(count, self.count - len(self.sender.raised)))
        return count

    def rest(self) -> None:
        """Raise what is left."""
        self.sender.alerts(self.count - len(self.sender.raised))

    def flow(self, share: float, output: str = "siem") -> None:
        """Raise a share and come back when half of it has arrived: the other half is on its way."""
        before = self.tallies[output].read()
        wanted = before + max(1, round(self.count * share) // 2)
        self.part(share)
        self.received(wanted, output)

    def received(self, count: int, output: str = "siem") -> None:
        """Wait until a receiver has so many different alerts."""
        self.sender.wait(lambda: self.tallies[output].read() >= count, f"{output} has {count}", PATIENCE_S)

    def all_received(self, output: str = "siem") -> None:
        """Wait until a receiver has all that were raised so far."""
        self.received(len(self.sender.raised), output)

    # -- what must have come of it -------------------------------------------------------------------

    def finish(self, case: str, done: str) -> list[Row]:
        """Raise the rest, wait until everything is where it should be, end the courier, check all accounts."""
        self.rest()
        self.sender.wait_stored()
        for output in self.tallies:
            self._wait_complete(output)
        if not self.sender.process:
            self.sender.start()
        self.sender.wait(lambda: all(map(self._settled, self.tallies)), "everything settled", PATIENCE_S)
        status = self.sender.stop()
        assert status == 0, f"the courier ended with {status}\n{self.sender.tail()}"
        for tally in self.tallies.values():
            tally.read()
        return [self._row(output, case, done) for output in self.tallies]

    def _wait_complete(self, output: str) -> None:
        """Patience begins anew with each alert that comes."""
        tally, expected = self.tallies[output], self.expected[output]
        missing = expected.dead + expected.dropped + expected.filtered + expected.missing
        wanted, have, since_s = len(self.sender.raised) - missing, -1, time.monotonic()
        while (found := tally.read()) < wanted - self._damage(output):
            if found > have:
                have, since_s = found, time.monotonic()
            assert time.monotonic() - since_s < self.patience_s, (
                f"{output} has {found} of {wanted}, missing {tally.lost[:10]}…\n{self.sender.tail()}"
            )
            self.sender.pump()

    def _damage(self, output: str) -> int:
        return self.sender.output(output).get("dropped", 0) if self.expected[output].damaged else 0

    def _settled(self, output: str) -> bool:
        account = self.sender.output(output)
        return bool(account) and account["raised"] == len(self.sender.raised) and not account["waiting"]

    def _row(self, output: str, case: str, done: str) -> Row:
        tally, expected, account = self.tallies[output], self.expected[output], self.sender.output(output)
        raised = len(self.sender.raised)
        assert not tally.forged, f"records with a wrong number or id: {tally.forged[:3]}"
        assert not self.sender.unbalanced, self.sender.unbalanced[:3]
        assert self.sender.engine.dropped == 0
        dropped = expected.dropped + self._damage(output)
        kinds = {"dead": expected.dead, "dropped": dropped, "filtered": expected.filtered}
        assert {kind: account[kind] for kind in kinds} == kinds, account
        assert account["delivered"] == account["raised"] - sum(kinds.values()), account
        assert account["raised"] == raised, account
        lost = len(tally.lost) - sum(kinds.values())
        assert lost >= 0, f"{-lost} arrived that count as {kinds}"
        assert lost <= expected.missing, f"lost: {tally.lost[:20]}"
        return Row(
            case, self.names[output], done, raised, len(tally.counts), tally.duplicates, lost, True,
            self.sender.samples, time.monotonic() - self.began_s, self.note,
        )  # fmt: skip


Run = Callable[[Trial], None]


@dataclass(frozen=True)
class Case:
    """One case: ``run`` builds the receivers, sends, and breaks something; the account follows.

    ``weight`` is its share of the alerts of a full run; ``most`` bounds them where the receiver is slow, and
    ``least`` is what the case needs to make sense.
    """

    name: str
    done: str
    run: Run
    weight: float = 1.0
    most: int = 1_000_000
    least: int = 200

    def count(self, scale: float) -> int:
        """Alerts for a run in which weight 1 means ``scale`` alerts."""
        return max(self.least, min(self.most, round(scale * self.weight)))


def run_case(case: Case, folder: Path, count: int) -> Sequence[Row]:
    """Run one case in a folder of its own; AssertionError says what was lost or out of balance."""
    with Trial(folder, count) as trial:
        case.run(trial)
        return trial.finish(case.name, case.done)
