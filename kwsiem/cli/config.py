"""``kwsiem config``: the settings as they are in force, and where each comes from."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from kwsiem import secret
from kwsiem.cli.common import Subparsers, add_json, add_settings, command, plain, print_json, settings_of
from kwsiem.config import Settings, resolve, settings_path
from kwsiem.errors import EXIT_GOOD, ConfigError
from kwsiem.yamltree import place_of, read_document

#: User and password in a URL (RFC 3986 section 3.2.1).
_USERINFO: Final = re.compile(r"(?<=://)[^/?#\s@]+@")


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "config",
        "print the settings that are in force as YAML, secrets masked",
        [
            "kwsiem config",
            "kwsiem config outputs blocking",
            "kwsiem config --default > kwsiem.yaml",
            "kwsiem config --json | jq .state_dir",
        ],
        execute=execute,
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="print these keys of the top level alone")
    add_settings(parser)
    parser.add_argument("--default", action="store_true", help="print what holds without a settings file")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Print them; the YAML is a settings file itself."""
    settings = resolve(Settings()) if options.default else settings_of(options)
    _learn_secrets(Path(settings.env_file))
    values = _chosen(shown(settings), options.keys)
    if options.json:
        print_json(values)
    else:
        print(render(values, {} if options.default else sources(options)), end="")
    return EXIT_GOOD


def _chosen(values: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    """Those that were named, all when none was; raises ConfigError for one that is not there."""
    for key in keys:
        if key not in values:
            raise ConfigError(f"{plain(key)}: no such setting; there are {', '.join(values)}")
    return {key: values[key] for key in keys} if keys else values


def shown(settings: Settings) -> dict[str, Any]:
    """Settings as plain data, known secrets and passwords in URLs masked."""
    values: dict[str, Any] = _without_userinfo(secret.masked(msgspec.to_builtins(settings)))
    return values


def render(values: Mapping[str, Any], where: Mapping[str, str]) -> str:
    """The settings as YAML, after each key of the top level where it comes from."""
    defaults = shown(Settings())
    lines = []
    for key, value in values.items():
        first, *rest = yaml.safe_dump({key: value}, sort_keys=False, width=1000).splitlines()
        origin = where.get(key, "" if value == defaults[key] else "from this host")
        lines += [f"{first}  # {origin}" if origin else first, *rest]
    return "\n".join(lines) + "\n"


def sources(options: argparse.Namespace) -> dict[str, str]:
    """Where the keys of the top level come from that were given: an option, or file and line."""
    found: dict[str, str] = {}
    path = settings_path(options.config)
    if path.exists():
        root, _ = read_document(str(path), path.read_bytes())
        if root is not None:
            found = {key: f"{path}:{place_of(root, (key,)).line}" for key in root.plain()}
    for option in ("rules", "probes"):
        if getattr(options, option, None):
            found[option] = f"--{option}"
    return {key: origin if origin.isprintable() else repr(origin) for key, origin in found.items()}


def _learn_secrets(env_file: Path) -> None:
    """What the env file holds is masked wherever it stands, as far as this user may read it."""
    try:
        values = secret.read_env(env_file).values()
    except ConfigError:
        return
    for value in values:
        secret.learn(value)


def _without_userinfo(value: Any) -> Any:
    if isinstance(value, str):
        return _USERINFO.sub(f"{secret.MASK}@", value)
    if isinstance(value, Mapping):
        return {key: _without_userinfo(item) for key, item in value.items()}
    return [_without_userinfo(item) for item in value] if isinstance(value, list) else value
