"""A batch in several requests, each alert with a fate of its own: what outputs with bulk interfaces share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar

import msgspec

from kwsiem.clock import NS_PER_S
from kwsiem.errors import OutputError
from kwsiem.output_settings import OutputSettings, format_of
from kwsiem.outputs.base import Rendered

#: Formats that are one JSON object on one line; the others are text.
_JSON_FORMATS: Final = frozenset({"ecs", "json", "ocsf", "gelf"})
_Item = TypeVar("_Item")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Verdict(msgspec.Struct, frozen=True):
    """What a server did with one request, by the indexes of the batch.

    Taken is what no field names. ``refused`` are those it will never take, with the reason; ``left`` are to
    be tried later, and ``error`` says why; ``again`` are to be sent once more at once. ``too_much`` asks
    for halves of the request, and is the reason of refusal when it has one alert.
    """

    refused: Mapping[int, str] = {}
    again: Sequence[int] = ()
    left: Sequence[int] = ()
    error: OutputError | None = None
    too_much: str = ""


def push(
    batch: Sequence[Rendered],
    make: Callable[[Rendered], _Item],
    size: Callable[[_Item], int],
    most_bytes: int,
    post: Callable[[Mapping[int, _Item]], Verdict],
) -> None:
    """Send a batch with ``post`` in requests of at most ``most_bytes``, each alert in the form of ``make``.

    Raises OutputError with what was taken and what was refused; one from ``post`` ends it. An alert that
    cannot be made is refused. A request is halved at most until it holds one alert, so a batch of n needs
    at most 2n requests more.
    """
    items: dict[int, _Item] = {}
    refused: dict[int, str] = {}
    for index, alert in enumerate(batch):
        try:
            items[index] = make(alert)
        except ValueError as error:
            refused[index] = f"cannot be made into a request: {error}"
    _post_all(deque(_parts(items, size, most_bytes)), items, refused, post)


def _post_all(
    waiting: deque[Sequence[int]],
    items: Mapping[int, _Item],
    refused: dict[int, str],
    post: Callable[[Mapping[int, _Item]], Verdict],
) -> None:
    taken: set[int] = set()
    late: OutputError | None = None
    while waiting:
        part = waiting.popleft()
        try:
            verdict = post({index: items[index] for index in part})
        except OutputError as error:
            raise _with_fates(error, taken, refused) from None
        if verdict.too_much:
            if len(part) > 1:
                middle = len(part) // 2
                waiting.extendleft([part[middle:], part[:middle]])
            else:
                refused[part[0]] = verdict.too_much
            continue
        refused.update(verdict.refused)
        taken.update(set(part) - set(verdict.refused) - set(verdict.again) - set(verdict.left))
        if verdict.again:
            waiting.appendleft(verdict.again)
        late = _worse(late, verdict.error)
    if late:
        raise _with_fates(late, taken, refused)
    if refused:
        words = next(iter(refused.values()))
        raise OutputError(words, retryable=False, taken=taken, refused=refused)


def _parts(
    items: Mapping[int, _Item], size: Callable[[_Item], int], most_bytes: int
) -> Iterator[Sequence[int]]:
    """The indexes in runs of at most ``most_bytes``; a larger item stands alone."""
    run: list[int] = []
    total = 0
    for index, item in items.items():
        if run and total + size(item) > most_bytes:
            yield run
            run, total = [], 0
        run.append(index)
        total += size(item)
    if run:
        yield run


def is_json(settings: OutputSettings) -> bool:
    """Whether the output's format is one JSON object on one line."""
    return format_of(settings) in _JSON_FORMATS


def content_type(settings: OutputSettings) -> str:
    """The media type of one alert in the output's format."""
    return "application/json" if is_json(settings) else "text/plain; charset=utf-8"


class _Named(msgspec.Struct, frozen=True):
    name: str = ""


class _Rule(msgspec.Struct, frozen=True):
    id: str = ""


class _Source(msgspec.Struct, frozen=True):
    ip: str = ""


class _Alert(msgspec.Struct, frozen=True):
    level: str = ""


class _Kwsiem(msgspec.Struct, frozen=True):
    alert: _Alert = _Alert()


class Facts(msgspec.Struct, frozen=True):
    """What outputs need of the stored document beside its rendered form; absent facts are empty."""

    timestamp: str = msgspec.field(default="1970-01-01T00:00:00.000Z", name="@timestamp")
    host: _Named = _Named()
    rule: _Rule = _Rule()
    source: _Source = _Source()
    kwsiem: _Kwsiem = _Kwsiem()

    @property
    def ms(self) -> int:
        """``@timestamp`` in milliseconds since 1970, exactly: documents have no more digits."""
        moment = datetime.fromisoformat(self.timestamp.replace("Z", "+00:00"))
        return (moment - _EPOCH) // timedelta(milliseconds=1)

    @property
    def seconds(self) -> str:
        """``@timestamp`` in seconds since 1970 with three decimals, from integers."""
        seconds, rest = divmod(self.ms, 1000)
        return f"{seconds}.{rest:03d}"

    @property
    def ns(self) -> str:
        """``@timestamp`` in nanoseconds since 1970."""
        return str(self.ms * (NS_PER_S // 1000))


_FACTS: Final = msgspec.json.Decoder(Facts)


def facts(source: bytes) -> Facts:
    """The facts of a stored document; raises ValueError when it is none."""
    return _FACTS.decode(source)


def encode(value: Any) -> bytes:
    """JSON on one line."""
    return msgspec.json.encode(value)


def _worse(one: OutputError | None, other: OutputError | None) -> OutputError | None:
    """Of two errors the one that asks for the longer pause."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda error: error.retry_after_s or 0.0)


def _with_fates(error: OutputError, taken: set[int], refused: dict[int, str]) -> OutputError:
    return OutputError(
        str(error),
        taken=taken | error.taken,
        refused={**refused, **error.refused},
        retry_after_s=error.retry_after_s,
    )
