"""What ``kwsiem top`` knows: samples of the running appliance, rates between them, what people do.

Numbers are taken as numbers and anything else as none: part of this comes from processes that read what
attackers send.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kwsiem.cli.common import operator
from kwsiem.cli.top.history import ORDERS, Digest, Incident, Source
from kwsiem.errors import KwsiemError

#: Rates are those of so many seconds: the engine tells its counts once a second, not when it is asked.
RATE_S: Final = 5.0
_MOST: Final = 2**63
MAX_BLOCKS: Final = 200
PANELS: Final = ("alerts", "sources", "blocks")
SPANS: Final = {"h": (3600, "1 hour"), "d": (86_400, "1 day")}


@dataclass
class Sample:
    """What the appliance said at one time (monotonic seconds); ``error`` when it said nothing."""

    at_s: float
    status: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)
    digest: Digest = field(default_factory=Digest)
    error: str = ""


class Question(NamedTuple):
    """What is asked before something is done, and the request of each key that means yes."""

    text: str
    requests: Mapping[str, dict[str, Any]]


def number(value: Any) -> int:
    """The value, when it is a count."""
    return min(max(value, 0), _MOST) if isinstance(value, int) and not isinstance(value, bool) else 0


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, when it is an object."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def lines_of(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The counts of lines of each probe."""
    return {name: mapping(each) for name, each in mapping(mapping(status.get("engine")).get("lines")).items()}


def rejected_of(counts: Mapping[str, Any]) -> int:
    """Lines of a probe that no event was made of."""
    return sum(number(each) for each in mapping(counts.get("rejected")).values())


def counts_of(status: Mapping[str, Any]) -> dict[str, int]:
    """Every number that grows, by name: events by kind, lines by probe, what was dropped and where."""
    engine = mapping(status.get("engine"))
    found: dict[str, int] = {}
    for kind, count in mapping(mapping(engine.get("engine")).get("events")).items():
        found[f"kind {kind}"] = number(count)
    found["events"] = sum(found.values())
    for probe, counts in lines_of(status).items():
        found[f"probe {probe}"] = number(counts.get("received"))
        found["lines"] = found.get("lines", 0) + number(counts.get("received"))
        found["rejected"] = found.get("rejected", 0) + rejected_of(counts)
        found["lost"] = found.get("lost", 0) + number(counts.get("lost"))
    alerts = mapping(engine.get("alerts"))
    found["alerts"] = number(alerts.get("raised"))
    found["dropped"] = number(alerts.get("dropped")) + sum(
        number(output.get("dropped")) for output in rows(mapping(status.get("courier")).get("outputs"))
    )
    return found


class Model:
    """All that is shown; changed by samples and by keys, drawn by :mod:`kwsiem.cli.top.frame`."""

    def __init__(self, call: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._call = call
        self._counts: deque[tuple[float, int, dict[str, int]]] = deque()
        self.sample = Sample(0.0)
        self.latest = self.sample
        self.rates: dict[str, float] = {}
        self.silent_s = 0.0
        self.paused = False
        self.help = False
        self.order = next(iter(ORDERS))
        self.panel = PANELS[0]
        self.chosen: dict[str, str] = {}
        self.question: Question | None = None
        self.said = ""
        self.quit = False

    # -- data ----------------------------------------------------------------------------------------

    def take(self, sample: Sample) -> None:
        """A new sample; one with an error leaves what was known before."""
        if sample.error:
            self.silent_s = sample.at_s - self.latest.at_s
            sample.status, sample.blocks = self.latest.status, self.latest.blocks
            sample.at_s = self.latest.at_s
            self._counts.clear()
        else:
            self.silent_s = 0.0
            self._count(sample)
        self.latest = sample
        if not self.paused:
            self._show()

    def _show(self) -> None:
        self.sample = self.latest
        self.rates = self._rates()

    def _count(self, sample: Sample) -> None:
        pid = number(sample.status.get("pid"))
        if self._counts and self._counts[-1][1] != pid:
            self._counts.clear()  # another appliance, which began to count anew
        self._counts.append((sample.at_s, pid, counts_of(sample.status)))
        while len(self._counts) > 2 and self._counts[1][0] <= sample.at_s - RATE_S:
            self._counts.popleft()

    def _rates(self) -> dict[str, float]:
        if len(self._counts) < 2:
            return {}
        (then_s, _, before), (now_s, _, after) = self._counts[0], self._counts[-1]
        span_s = max(now_s - then_s, 0.001)
        # A process that was restarted counts from zero: what it has counted is new.
        new = {name: after[name] - before.get(name, 0) for name in after}
        return {name: (n if n >= 0 else after[name]) / span_s for name, n in new.items()}

    @property
    def incidents(self) -> list[Incident]:
        """The latest, newest first."""
        return self.sample.digest.incidents

    @property
    def sources(self) -> list[Source]:
        """Those of the last hour, in the chosen order."""
        return sorted(self.sample.digest.sources, key=ORDERS[self.order])

    @property
    def blocks(self) -> list[Mapping[str, Any]]:
        """Those that began last come first."""
        return sorted(
            rows(self.sample.blocks.get("blocks")), key=lambda each: str(each.get("since")), reverse=True
        )

    def keys(self, panel: str) -> list[str]:
        """What names each row of a panel."""
        if panel == "alerts":
            return [incident.id for incident in self.incidents]
        if panel == "sources":
            return [source.address for source in self.sources]
        return [str(block.get("network", "")) for block in self.blocks]

    def row(self, panel: str) -> int:
        """The chosen row of a panel: it stays with what it names as long as that is there."""
        keys = self.keys(panel)
        chosen = self.chosen.get(panel, "")
        return keys.index(chosen) if chosen in keys else 0

    # -- keys ----------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key says."""
        if self.question:
            self._answer(key)
            return
        self.said = ""
        if self.help and key != "q":
            self.help = False
            return
        action = _KEYS.get(key)
        if action:
            action(self)

    def _answer(self, key: str) -> None:
        question, self.question = self.question, None
        assert question
        request = question.requests.get(key)
        self.said = self._do(request) if request else "nothing was done"

    def _do(self, request: dict[str, Any]) -> str:
        try:
            answer = self._call({"command": "blocks", **request})
        except KwsiemError as error:
            return f"not done: {error}"
        if "error" in answer:
            return f"not done: {answer['error']}"
        if "acknowledged" in answer:
            return "acknowledged"
        if "removed" in answer:
            return f"{answer['removed']}: removed"
        results = rows(answer.get("results"))
        return "; ".join(map(_result, results)) or "not done: no answer"

    def _move(self, step: int) -> None:
        keys = self.keys(self.panel)
        if keys:
            self.chosen[self.panel] = keys[min(max(self.row(self.panel) + step, 0), len(keys) - 1)]

    def _next_panel(self) -> None:
        self.panel = PANELS[(PANELS.index(self.panel) + 1) % len(PANELS)]

    def _sort(self) -> None:
        names = list(ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]

    def _pause(self) -> None:
        self.paused = not self.paused
        if not self.paused:
            self._show()

    def _help(self) -> None:
        self.help = True

    def _quit(self) -> None:
        self.quit = True

    def _block(self) -> None:
        keys = self.keys(self.panel)
        if not keys:
            self.said = "nothing is chosen"
            return
        row = self.row(self.panel)
        target = self.incidents[row].source if self.panel == "alerts" else keys[row]
        if not _is_address(target):
            self.said = "this alert names no address"
            return
        self.question = Question(
            f"Block {target}?  h: for 1 hour  d: for 1 day  any other key: no",
            {
                key: {
                    "verb": "add",
                    "entries": [{"network": target, "for_s": for_s, "reason": "by hand, in top"}],
                }
                for key, (for_s, _) in SPANS.items()
            },
        )

    def _acknowledge(self) -> None:
        if self.panel != "alerts" or not self.incidents:
            self.said = "choose an alert first: tab"
            return
        incident = self.incidents[self.row("alerts")]
        if incident.acknowledged:
            self.said = f"{incident.acknowledged} acknowledged it already"
            return
        request = {"command": "acknowledge", "incident_id": incident.id, "who": operator()}
        self.question = Question(f"Acknowledge {incident.title}?  y: yes  any other key: no", {"y": request})

    def _release(self) -> None:
        keys = self.keys("blocks")
        if self.panel != "blocks" or not keys:
            self.said = "choose a block first: tab"
            return
        target = keys[self.row("blocks")]
        self.question = Question(
            f"Release {target}?  y: yes  any other key: no", {"y": {"verb": "remove", "network": target}}
        )


_KEYS: Final[Mapping[str, Callable[[Model], None]]] = {
    "q": Model._quit,
    "h": Model._help,
    "?": Model._help,
    "p": Model._pause,
    " ": Model._pause,
    "s": Model._sort,
    "a": Model._acknowledge,
    "b": Model._block,
    "r": Model._release,
    "tab": Model._next_panel,
    "up": lambda model: model._move(-1),
    "k": lambda model: model._move(-1),
    "down": lambda model: model._move(1),
    "j": lambda model: model._move(1),
}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _result(result: Mapping[str, Any]) -> str:
    network = result.get("network", "")
    if not result.get("blocked"):
        return f"{network}: refused: {result.get('reason', '')}"
    word = "blocked" if result.get("mode") == "on" else "would be blocked (dry-run)"
    for_s = number(result.get("for_s"))
    span = next((words for seconds, words in SPANS.values() if seconds == for_s), f"{for_s} s")
    return f"{network}: {word} for {span}"


def read_sample(
    at_s: float,
    call: Callable[[dict[str, Any]], dict[str, Any]],
    read: Callable[[], Digest],
) -> Sample:
    """One sample: what the appliance and the history say now."""
    digest = read()
    try:
        status = call({"command": "status"})
        blocks = call({"command": "blocks", "verb": "list", "after": "", "limit": MAX_BLOCKS})
    except KwsiemError as error:
        return Sample(at_s, digest=digest, error=str(error))
    return Sample(at_s, status, blocks, digest, str(status.get("error", "")))
