"""The settings file to frozen objects: units in the names, a default for everything, all errors at once.

Everything runs without a settings file. Unknown keys are errors; each error names file, line, key, value
and what was expected.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Union

import msgspec

from kwsiem.errors import ConfigError, Problem
from kwsiem.output_settings import (
    OUTPUT_TYPES,
    ConsoleSettings,
    FileSettings,
    OutputSettings,
    TelegramSettings,
)
from kwsiem.yamltree import Node, place_of, read_document

CONFIG_PATH: Final = Path("/etc/kwsiem/kwsiem.yaml")
#: The longest time-out of an ipset (2^31 ms, ipset(8)); about 24 days.
MAX_BLOCK_S: Final = 2_147_483
#: Below that a history of figures is not worth its name.
LEAST_HISTORY_BYTES: Final = 2**20
CONFIG_VARIABLE: Final = "KWSIEM_CONFIG"


class BlockingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How offenders are blocked.

    ``mode``: ``off``, ``dry-run`` (says what it would do), ``on`` (after ``kwsiem blocks arm``, or with
    ``confirmed: true``). ``allow`` are addresses, networks and names that are never blocked. ``spoofable``
    permits rules that want blocks on evidence that can be forged. ``firewall`` chooses what drops packets;
    ``cut_answers`` drops answers to our own connections too. Above ``max_per_min`` blocks a minute networks
    with several offenders are blocked instead, or nothing is. ``escalation_s`` are the times of the second,
    third … block of one source; an offender without one for ``forget_s`` begins anew. A network is blocked
    in place of its addresses when it holds at least ``aggregate`` offenders (0: never) and at most
    ``collateral`` others for each of them.
    """

    mode: Literal["off", "dry-run", "on"] = "dry-run"
    confirmed: bool = False
    firewall: Literal["auto", "iptables", "iptables-nft", "iptables-legacy", "nftables"] = "auto"
    allow: tuple[str, ...] = ()
    spoofable: bool = False
    cut_answers: bool = False
    cut_connections: bool = True
    widest_ipv4: int = 24
    widest_ipv6: int = 48
    max_per_min: int = 3000
    escalation_s: tuple[int, ...] = (3600, 86_400, 604_800)
    forget_s: int = 30 * 86_400
    aggregate: int = 8
    collateral: int = 8


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics for Prometheus.

    ``listen`` is an address and a port from 1024 on (``127.0.0.1:9464``, ``"[::1]:9464"``); empty: none are
    served. There is no password: what is not loopback is for the networks that you trust.
    """

    listen: str = ""


def listen_address(listen: str) -> tuple[str, int]:
    """The address and the port of ``listen``; raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{4,5})", listen, re.ASCII)
    if found is None:
        raise ValueError("expected ADDRESS:PORT, as 127.0.0.1:9464 or [::1]:9464")
    address, port = ipaddress.ip_address(found[1] or found[2]), int(found[3])
    if not 1024 <= port <= 65535:
        raise ValueError("the port must be 1024 to 65535: who listens there has no rights")
    return str(address), port


class EventLogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recording of all events in files that follow each other, for ``kwsiem replay``.

    ``path`` is the file being written, within ``state_dir`` unless absolute (its folder must belong to
    ``user``); empty means off. It is complete at ``max_bytes``, or after ``max_age_s`` (0: no limit);
    ``keep`` complete files are kept beside it, compressed with ``compress``.
    """

    path: str = ""
    max_bytes: int = 100 * 2**20
    max_age_s: float = 86_400.0
    keep: int = 10
    compress: bool = False


class HistorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``kwsiem report`` and ``stats --since`` can look back on.

    Figures, our own events, acknowledgements and settled alerts are kept for ``max_age_d`` days (0: no limit;
    alerts no longer than ``history_alerts`` says), the first three within ``max_bytes`` too. Figures are
    written each ``every_s``.
    """

    max_age_d: float = 30.0
    max_bytes: int = 256 * 2**20
    every_s: float = 10.0

    @property
    def max_age_s(self) -> float:
        """The same in seconds."""
        return self.max_age_d * 86_400


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the appliance, resolved.

    ``user`` is who the engine and the courier run as (``nobody`` when it does not exist). ``probes`` are
    folders of ``.bt`` files, a later one overrides an earlier one by file name. ``record`` is a file that
    every line the engine reads is copied to, for ``kwsiem replay``; empty means off. ``env_file`` holds the
    secrets that outputs name, as KEY=value lines. The outbox keeps ``history_alerts`` that are settled and
    drops waiting ones, the oldest first and counted, over ``outbox_max_bytes``.
    """

    host: str = ""
    user: str = "kwsiem"
    rules: str = ""
    rules_dir: str = ""
    probes: tuple[str, ...] = ()
    state_dir: str = "/var/lib/kwsiem"
    runtime_dir: str = "/run/kwsiem"
    log_file: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    bpftrace: str = "bpftrace"
    record: str = ""
    event_log: EventLogSettings = EventLogSettings()
    env_file: str = "/etc/kwsiem/env"
    history_alerts: int = 100_000
    outbox_max_bytes: int = 1 << 30
    history: HistorySettings = HistorySettings()
    outputs: tuple[OutputSettings, ...] = ()
    blocking: BlockingSettings = BlockingSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def control_socket(self) -> Path:
        """The socket that ``kwsiem status`` asks."""
        return Path(self.runtime_dir) / "control.sock"


def shipped_dir() -> Path:
    """The folder with the shipped ``rules.yaml`` and ``probes/``: the source tree, or the installed data."""
    source = Path(__file__).resolve().parent.parent
    return source if (source / "probes").is_dir() else Path(sys.prefix) / "share" / "kwsiem"


def settings_path(path: Path | None = None) -> Path:
    """The settings file that was named, else that of ``KWSIEM_CONFIG``, else /etc/kwsiem/kwsiem.yaml."""
    return path or Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_PATH)


def load_settings(path: Path | None = None) -> Settings:
    """The settings of a file, of ``KWSIEM_CONFIG``, of /etc/kwsiem/kwsiem.yaml, or all defaults.

    A file that was named must exist; the default one may be absent. Raises ConfigError with every
    problem of the file, one a line.
    """
    chosen = settings_path(path)
    try:
        data = chosen.read_bytes()
    except FileNotFoundError:
        if path or os.environ.get(CONFIG_VARIABLE):
            raise ConfigError(f"{chosen}: no such settings file") from None
        return resolve(Settings())
    except OSError as error:
        raise ConfigError(f"{chosen}: cannot be read: {error.strerror}") from None
    return resolve(parse_settings(str(chosen), data))


def parse_settings(name: str, data: bytes) -> Settings:
    """Settings from the bytes of a file; raises ConfigError with every problem."""
    root, problems = read_document(name, data)
    values: dict[str, Any] = {}
    if root is not None and not problems:
        reader = _Reader(name, root, problems)
        values = reader.checked((), root.plain(), Settings)
        reader.unique_outputs(values.get("outputs", ()))
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    return Settings(**values)


def resolve(settings: Settings) -> Settings:
    """Fill in what depends on the host: its name, the rule file, probe folders, default outputs."""
    shipped = shipped_dir()
    own_rules = Path("/etc/kwsiem/rules.yaml")
    # Further rules lie beside a file that is named, else in /etc/kwsiem, with or without a rules.yaml there.
    beside = Path(settings.rules).absolute().parent if settings.rules else own_rules.parent
    rules = settings.rules or str(own_rules if own_rules.exists() else shipped / "rules.yaml")
    outputs = settings.outputs or (
        ConsoleSettings(name="console"),
        FileSettings(name="file"),
    )
    outputs = tuple(
        msgspec.structs.replace(output, path=str(Path(settings.state_dir) / "alerts.jsonl"))
        if isinstance(output, FileSettings) and not output.path
        else output
        for output in outputs
    )
    return msgspec.structs.replace(
        settings,
        host=settings.host or socket.gethostname(),
        rules=rules,
        rules_dir=settings.rules_dir or str(beside / "rules.d"),
        probes=settings.probes or (str(shipped / "probes"), "/etc/kwsiem/probes.d"),
        outputs=outputs,
    )


_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "port": (0, 65535),  # 0: that of the transport
    "timeout_s": (0.1, 300),
    "max_bytes": (4096, 2**40),
    "keep": (0, 1000),
    "history_alerts": (20_000, 10_000_000),  # what the engine may send again
    "outbox_max_bytes": (2**20, 2**40),
    "rate_per_min": (0, 60_000),
    "max_age_d": (0, 3650),
    "every_s": (1, 60),
    "max_age_s": (0, 10 * 365 * 86400),
    "acknowledge_timeout_s": (1, 3600),
    "chunk_bytes": (512, 65_467),
    "max_message_bytes": (0, 2**20),
    "digest_over": (1, 1000),
    "widest_ipv4": (8, 32),
    "widest_ipv6": (16, 128),
    "max_per_min": (1, 1_000_000),
    "forget_s": (60, 10 * 365 * 86400),
    "aggregate": (0, 65_536),
    "collateral": (0, 65_536),
}
KeyPath = tuple[Union[str, int], ...]


class _Reader:
    """Converts the values of a settings file key by key; what is wrong is noted with its place."""

    def __init__(self, name: str, root: Node, problems: list[Problem]) -> None:
        self._name = name
        self._root = root
        self._problems = problems

    def wrong(self, path: KeyPath, message: str) -> None:
        """Note a problem at the place of a path."""
        place = place_of(self._root, path)
        where = ".".join(str(part) for part in path)
        self._problems.append(Problem(self._name, place.line, place.column, where, message))

    def checked(self, path: KeyPath, value: Any, cls: type) -> dict[str, Any]:
        """The converted values of one mapping."""
        if not isinstance(value, Mapping):
            self.wrong(path, f"expected a mapping, got {value!r}")
            return {}
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
        result: dict[str, Any] = {}
        for key, item in value.items():
            here = (*path, key)
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f", known: {', '.join(fields)}"
                self.wrong(here, f"unknown key{hint}")
            elif cls is Settings and key == "outputs":
                result[key] = self._outputs(here, item)
            elif cls is Settings and key == "blocking":
                result[key] = self._blocking(here, item)
            elif cls is Settings and key == "metrics":
                result[key] = self._metrics(here, item)
            elif cls is Settings and key == "event_log":
                result[key] = self._event_log(here, item)
            elif cls is Settings and key == "history":
                result[key] = self._history(here, item)
            else:
                self._convert(here, item, fields[key].type, result)
        for name, field in fields.items():
            if field.required and name not in value:
                self.wrong(path, f"key {name!r} is missing")
        return result

    def _convert(self, path: KeyPath, value: Any, expected: Any, result: dict[str, Any]) -> None:
        key = str(path[-1])
        try:
            converted = msgspec.convert(value, expected)
        except msgspec.ValidationError as error:
            choices = [repr(choice) for choice in getattr(expected, "__args__", ()) if choice]
            allowed = f" (one of {', '.join(choices)})" if choices else ""
            self.wrong(path, f"{error}, got {value!r}{allowed}")
            return
        low, high = _BOUNDS.get(key, (None, None))
        if low is not None and high is not None and not low <= converted <= high:
            self.wrong(path, f"must be {low} to {high}, got {value!r}")
        result[key] = converted

    def _outputs(self, path: KeyPath, value: Any) -> tuple[OutputSettings, ...]:
        if not isinstance(value, list):
            self.wrong(path, f"expected a list, got {value!r}")
            return ()
        before = len(self._problems)
        made = [self._output((*path, index), item) for index, item in enumerate(value)]
        return () if len(self._problems) > before else tuple(output for output in made if output)

    def _blocking(self, path: KeyPath, value: Any) -> BlockingSettings:
        before = len(self._problems)
        found = self.checked(path, value, BlockingSettings)
        for index, step in enumerate(found.get("escalation_s", ())):
            if not 1 <= step <= MAX_BLOCK_S:
                self.wrong((*path, "escalation_s", index), f"must be 1 to {MAX_BLOCK_S}, got {step}")
        return BlockingSettings() if len(self._problems) > before else BlockingSettings(**found)

    def _metrics(self, path: KeyPath, value: Any) -> MetricsSettings:
        found = self.checked(path, value, MetricsSettings)
        if found.get("listen"):
            try:
                listen_address(found["listen"])
            except ValueError as error:
                self.wrong((*path, "listen"), f"{error}, got {found['listen']!r}")
        return MetricsSettings(**found)

    def _event_log(self, path: KeyPath, value: Any) -> EventLogSettings:
        before = len(self._problems)
        found = self.checked(path, value, EventLogSettings)
        return EventLogSettings() if len(self._problems) > before else EventLogSettings(**found)

    def _history(self, path: KeyPath, value: Any) -> HistorySettings:
        before = len(self._problems)
        found = self.checked(path, value, HistorySettings)
        if 4096 <= found.get("max_bytes", LEAST_HISTORY_BYTES) < LEAST_HISTORY_BYTES:
            self.wrong((*path, "max_bytes"), f"must be at least {LEAST_HISTORY_BYTES}")
        if 0 < found.get("max_age_d", 0) < 1:
            self.wrong((*path, "max_age_d"), f"must be 0 or at least 1, got {found['max_age_d']!r}")
        return HistorySettings() if len(self._problems) > before else HistorySettings(**found)

    def _output(self, path: KeyPath, value: Any) -> OutputSettings | None:
        """One output, read by the struct that its ``type`` names."""
        before = len(self._problems)
        kind = value.get("type") if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and (not isinstance(kind, str) or kind not in OUTPUT_TYPES):
            here = (*path, "type") if "type" in value else path
            self.wrong(here, f"expected one of {', '.join(OUTPUT_TYPES)}, got {kind!r}")
            return None
        cls = OUTPUT_TYPES.get(str(kind), ConsoleSettings)
        rest = {k: v for k, v in value.items() if k != "type"} if isinstance(value, Mapping) else value
        found = self.checked(path, rest, cls)
        return cls(**found) if len(self._problems) == before else None

    def unique_outputs(self, outputs: tuple[OutputSettings, ...]) -> None:
        """Two outputs cannot share a name, their place in the outbox, nor a bot that people talk to."""
        seen: set[str] = set()
        bots: set[str] = set()
        for index, output in enumerate(outputs):
            if output.name in seen:
                self.wrong(("outputs", index, "name"), f"name {output.name!r} stands twice")
            seen.add(output.name)
            # A bot's updates have one reader. Names of secrets are compared; values are not known here.
            if isinstance(output, TelegramSettings) and output.chatops.users:
                if output.token_secret in bots:
                    self.wrong(("outputs", index, "chatops"), "another output has it with this bot's token")
                bots.add(output.token_secret)
