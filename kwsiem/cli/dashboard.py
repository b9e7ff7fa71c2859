"""``kwsiem dashboard``: the appliance in a browser."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from kwsiem import logs
from kwsiem.cli.common import Subparsers, catalog_of, command, control_socket
from kwsiem.config import Settings, listen_address, load_settings
from kwsiem.control import ask
from kwsiem.errors import EXIT_GOOD, ConfigError, UnavailableError

LISTEN: Final = "127.0.0.1:9470"


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "dashboard",
        "serve the dashboard: alerts, time line, blocks and health in a browser",
        [
            "sudo kwsiem dashboard",
            "sudo kwsiem dashboard --show-token",
            "sudo kwsiem dashboard --listen 192.0.2.1:9470 --tls-certificate C.pem --tls-key K.pem",
        ],
        execute=execute,
    )
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the running appliance")
    parser.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    parser.add_argument("--listen", default=LISTEN, metavar="A:P", help=f"address:port (default {LISTEN})")
    parser.add_argument("--tls-certificate", default="", metavar="F", help="PEM file of the certificate")
    parser.add_argument("--tls-key", default="", metavar="F", help="PEM file of its key")
    parser.add_argument(
        "--name", action="append", default=[], metavar="N", help="host name it is reached by; may be repeated"
    )
    parser.add_argument("--show-token", action="store_true", help="print the token for the login, and end")


def execute(options: argparse.Namespace) -> int:
    """Serve until told to stop; raises ConfigError for what must not be served."""
    listen = _listen(options)
    settings = load_settings(options.config)
    if os.geteuid() != 0:
        raise UnavailableError("the dashboard asks the appliance, which only root may; try sudo")
    # Other commands, and the sensor among them, do not pay for these.
    from kwsiem.dashboard.token import check_environment, token_of  # noqa: PLC0415

    token = partial(token_of, Path(settings.env_file), Path(settings.state_dir))
    if options.show_token:
        print(token())
        return EXIT_GOOD
    check_environment()
    return _serve(options, settings, listen, token)


def _serve(
    options: argparse.Namespace, settings: Settings, listen: tuple[str, int], token: Callable[[], str]
) -> int:
    from kwsiem.dashboard.server import Options, run  # noqa: PLC0415
    from kwsiem.rules.files import read_rule_files  # noqa: PLC0415

    logs.setup("dashboard", settings.log_level)
    socket = control_socket(options, settings)

    def rules() -> dict[str, bytes]:
        try:
            files = read_rule_files(Path(settings.rules), Path(settings.rules_dir))
        except ConfigError as error:
            raise UnavailableError(str(error)) from None
        return {source.name: source.data for source in files}

    served = Options(listen, options.tls_certificate, options.tls_key, tuple(options.name))
    return run(settings, served, token, catalog_of(settings).kinds(), partial(ask, socket), rules)


def _listen(options: argparse.Namespace) -> tuple[str, int]:
    try:
        listen = listen_address(options.listen)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}, got {options.listen!r}") from None
    if options.tls_key and not options.tls_certificate:
        raise ConfigError("--tls-key needs --tls-certificate")
    if not ipaddress.ip_address(listen[0]).is_loopback and not options.tls_certificate:
        raise ConfigError(
            f"--listen {options.listen}: only loopback is served without TLS; add --tls-certificate and"
            " --tls-key, or reach it through SSH: ssh -L 9470:127.0.0.1:9470 HOST"
        )
    return listen
