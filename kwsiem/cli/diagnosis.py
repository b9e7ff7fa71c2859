"""The checks of ``kwsiem doctor`` that ask the parts of the appliance: probes, firewall, rules, outputs.

Each gives findings, and may be called in a process of its own (:mod:`kwsiem.cli.jobs`).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from kwsiem import clock, rights
from kwsiem.checkup import GOOD, MISSING, SKIPPED, WARNING, Finding, Host, State
from kwsiem.cli.common import catalog_of
from kwsiem.cli.probes import check_probe
from kwsiem.cli.ruleset import rules_of
from kwsiem.cli.stats import ledger
from kwsiem.cli.status import faults
from kwsiem.config import Settings
from kwsiem.control import ask
from kwsiem.delivery import SYSLOG_PORTS, make_output, make_route
from kwsiem.errors import ConfigError, KwsiemError, OutputError, ProbeError, UnavailableError
from kwsiem.output_settings import (
    ConsoleSettings,
    ElasticsearchSettings,
    FileSettings,
    KafkaSettings,
    LokiSettings,
    OutputSettings,
    SlackSettings,
    SplunkHecSettings,
    SyslogSettings,
    TelegramSettings,
    WebhookSettings,
)
from kwsiem.outputs.base import Output
from kwsiem.outputs.connection import Connection, Tls
from kwsiem.response.detect import detect
from kwsiem.response.pipe import ENVIRONMENT
from kwsiem.secret import mask, secrets_of
from kwsiem.sensor.catalog import ProbeSpec, find_library, lint_probe, pam_target, preflight, read_source
from kwsiem.sensor.child import bpftrace_version
from kwsiem.sensor.supervisor import TRACING
from kwsiem.tls import client_context, pinned

#: The versions of bpftrace that the probes were tried on.
TESTED: Final = ((0, 14), (0, 27))
#: So long a connection to a destination may take.
REACH_S: Final = 3.0
#: What is still starting, or on its way from one process to another, gets so long to arrive.
SETTLE_S: Final = 3.0
UNIT: Final = Path("/etc/systemd/system/kwsiem.service")

_HttpSettings = (SplunkHecSettings, ElasticsearchSettings, LokiSettings, WebhookSettings, SlackSettings)


# -- probes ------------------------------------------------------------------------------------------


def bpftrace(settings: Settings, host: Host) -> list[Finding]:
    """Whether bpftrace is there, and whether its version is one that the probes were tried on."""
    try:
        version = bpftrace_version(settings.bpftrace)
    except UnavailableError as error:
        why = str(error).split(". Install it")[0]
        return [Finding("bpftrace", MISSING, why, host.install("bpftrace"))]
    said = f"{settings.bpftrace} {'.'.join(map(str, version))}"
    low, high = TESTED
    if low <= version[:2] <= high:
        return [Finding("bpftrace", GOOD, said)]
    bounds = " to ".join(".".join(map(str, one)) for one in TESTED)
    return [Finding("bpftrace", WARNING, f"{said}; tested are {bounds}", host.install("bpftrace"))]


def probe(settings: Settings, spec: ProbeSpec, host: Host, *, start: bool) -> list[Finding]:
    """Header, lint and needs of one probe; as root a real start until its first heartbeat.

    One that this kernel cannot run is a warning, as it is no fault of the running appliance.
    """
    name = f"probe {spec.name}"
    again = f"kwsiem probes check --probes {shlex.quote(str(spec.path.parent))}"
    try:
        wrong = lint_probe(spec, read_source(spec.path))
    except ProbeError as error:
        return [Finding(name, MISSING, str(error), again)]
    if wrong:
        return [Finding(name, MISSING, "; ".join(map(str, wrong)), again)]
    if os.geteuid() != 0:
        return [Finding(name, SKIPPED, "header and lint are good; only root can start it", f"sudo {again}")]
    if why := preflight(spec, TRACING):
        return [Finding(name, WARNING, f"does not run here: {why}", _mend_probe(why, host))]
    if not start:
        return [Finding(name, SKIPPED, "header, lint and needs are good; not started, as you wished")]
    try:
        version = bpftrace_version(settings.bpftrace)
    except UnavailableError:
        why = "header, lint and needs are good; there is no bpftrace to start it with"
        return [Finding(name, SKIPPED, why, host.install("bpftrace"))]
    began_s = clock.monotonic_s()
    result = check_probe(settings, version, spec)
    took = f"{clock.monotonic_s() - began_s:.1f} s"
    if result.state == "ready":
        return [Finding(name, GOOD, f"started, first heartbeat after {took}")]
    state: State = WARNING if result.state == "unsupported" else MISSING
    return [Finding(name, state, f"{result.state}: {result.reason}", again)]


def _mend_probe(why: str, host: Host) -> str:
    """The command for what preflight missed."""
    if "mount -t" in why:
        return why.partition(": ")[2]
    if "libpam" in why:
        return host.install("libpam")
    return f"{host.install('kernel')} && reboot" if "kernel" in why else ""


def probe_files(settings: Settings) -> list[Finding]:
    """Probe files that cannot be read, or that there are none at all."""
    catalog = catalog_of(settings)
    folders = " ".join(map(shlex.quote, settings.probes))
    findings = [
        Finding(f"probe {Path(problem.file).stem}", MISSING, str(problem), "kwsiem probes check")
        for problem in catalog.problems
    ]
    if not catalog.probes and not findings:
        findings = [Finding("probes", MISSING, f"none in {folders}", f"ls {folders}")]
    return findings


def pam(host: Host) -> list[Finding]:
    """The libraries that the probe of logins looks into; without them logins are not seen, all else is."""
    library = find_library("libpam")
    if library is None:
        why = "libpam is not installed: logins are not seen"
        return [Finding("PAM", WARNING, why, host.install("libpam"))]
    module, _ = pam_target()
    if module == "libpam":
        why = f"{library}, no pam_unix.so with pam_sm_authenticate beside it: refused passwords are seen late"
        return [Finding("PAM", WARNING, why, host.install("pam_unix"))]
    return [Finding("PAM", GOOD, f"{library}, {module}")]


# -- firewall ----------------------------------------------------------------------------------------


def firewall(settings: Settings, host: Host) -> list[Finding]:
    """The tools that are there, the kind that would block, and other firewalls that are active."""
    wanted, mode = settings.blocking.firewall, settings.blocking.mode
    tools = [tool for tool in ("ipset", "iptables", "nft") if shutil.which(tool, path=ENVIRONMENT["PATH"])]
    there = f"there: {', '.join(tools) or 'no tool'}{_others(host)}"
    mend = host.install("nftables" if wanted == "nftables" else "iptables")
    state: State = {"on": MISSING, "dry-run": WARNING, "off": GOOD}[mode]
    if not tools:
        return [Finding("firewall", state, f"{there}; blocking is {mode}", mend if state != GOOD else "")]
    if os.geteuid() != 0:
        return [Finding("firewall", SKIPPED, f"{there}; only root can tell which would be used")]
    try:
        found = detect(wanted)
    except KwsiemError as error:
        return [Finding("firewall", state, f"{error}; {there}", mend if state != GOOD else "")]
    try:
        return [
            Finding("firewall", GOOD, f"{found.name} would be used ({wanted}), blocking is {mode}; {there}")
        ]
    finally:
        found.close(remove=False)


def _others(host: Host) -> str:
    """Other firewalls that are active: they and ours live side by side."""
    found = []
    if re.search(r"^ENABLED=[\"']?yes", host.read("etc/ufw/ufw.conf"), re.MULTILINE | re.IGNORECASE):
        found.append("ufw")
    if (host.root / "run/firewalld.pid").exists() or (host.root / "var/run/firewalld.pid").exists():
        found.append("firewalld")
    return f"; {' and '.join(found)} active too" if found else ""


# -- rules -------------------------------------------------------------------------------------------


def rules(settings: Settings) -> list[Finding]:
    """Whether the rules load and their own tests pass."""
    name = "rules"
    try:
        ruleset = rules_of(settings, catalog_of(settings))
    except ConfigError as error:
        problems = str(error).split("\n")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        mend = f"kwsiem check --no-probes --rules {shlex.quote(settings.rules)}"
        return [Finding(name, MISSING, problems[0] + more, mend)]
    found = f"{len(ruleset.rules)} from {settings.rules}, their tests pass"
    if ruleset.skipped:
        why = f"{found}; {len(ruleset.skipped)} cannot be evaluated here"
        return [Finding(name, WARNING, why, "kwsiem check --no-probes")]
    return [Finding(name, GOOD, found)]


# -- outputs -----------------------------------------------------------------------------------------


def output(settings: Settings, one: OutputSettings) -> list[Finding]:
    """Whether an output can be made, and the courier's user reach its destination; sends nothing.

    Gives up its rights: for a process of its own.
    """
    name = f"output {one.name}"
    is_root = os.geteuid() == 0
    short = msgspec.structs.replace(one, timeout_s=min(one.timeout_s, REACH_S))
    try:
        make_route(short)
        secrets = secrets_of(short, Path(settings.env_file))
        made = make_output(short, secrets)
        target = _http_target(short, secrets)
    except ConfigError as error:
        state: State = MISSING if is_root else SKIPPED
        return [Finding(name, state, mask(str(error)), _mend_settings(str(error), settings))]
    who = rights.account(settings.user).pw_name
    rights.drop(settings.user)
    try:
        found = _reach(short, made, target, settings)
    except OutputError as error:
        return [Finding(name, MISSING, mask(str(error)), _mend_output(short, target, who, str(error)))]
    finally:
        made.close()
    return [Finding(name, GOOD, mask(found))]


Target = tuple[str, int, "Tls | None"]


def _http_target(one: OutputSettings, secrets: dict[str, str]) -> Target | None:
    """Where an HTTP output connects to, and how; read as root, for there may be keys."""
    if not isinstance(one, _HttpSettings):
        return None
    parts = urlsplit(one.proxy or secrets.get("url") or one.url)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    # A proxy is spoken to in its own way: that it is there is all that can be told without a request.
    tls = Tls(client_context(one), pinned(one)) if is_tls and not one.proxy else None
    return parts.hostname or "", port, tls


def _reach(one: OutputSettings, made: Output, target: Target | None, settings: Settings) -> str:
    """What was found at the destination, in words; raises OutputError when it is not there."""
    if isinstance(one, ConsoleSettings):
        return "the standard output of the appliance"
    if isinstance(one, FileSettings):
        try:
            return _file(Path(one.path), settings)
        except OSError as error:
            raise OutputError(f"{one.path}: {error.strerror}") from None
    if target:
        connection = Connection(target[0], target[1], REACH_S, target[2])
        connection.close()
        return f"{connection.where} takes connections (not asked for more: that would be an alert)"
    made.open()
    made.check()
    if isinstance(one, TelegramSettings):
        return f"{one.url} answers, the token is good"
    if isinstance(one, KafkaSettings):
        return f"{','.join(one.brokers)} answers, topic {one.topic}"
    if getattr(one, "transport", "") == "unix":
        return f"{getattr(one, 'path', '') or '/dev/log'} is served"
    where = "{}:{}".format(*_place(one))
    if getattr(one, "transport", "") == "udp":
        return f"{where} (udp) has an address; UDP does not tell whether somebody listens"
    return f"{where} answers"


def _file(path: Path, settings: Settings) -> str:
    """Whether the courier could append; the file is not made here."""
    if path.exists():
        if not path.is_file():
            raise OutputError(f"{path}: not a regular file")
        if not os.access(path, os.W_OK) and path.parent != Path(settings.state_dir):
            raise OutputError(f"{path}: {settings.user} cannot write it")
        return f"{path}, {path.stat().st_size} bytes"
    if path.parent == Path(settings.state_dir):
        return f"{path} will be made"  # the appliance makes that folder, and gives it to its user
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: {settings.user} cannot make it in {path.parent}")
    return f"{path} will be made"


def _place(one: OutputSettings) -> tuple[str, int]:
    """Host and port of an output that has them."""
    host, port = getattr(one, "host", ""), getattr(one, "port", 0)
    if not port:
        transport = getattr(one, "transport", "")
        smtp = {"starttls": 587, "tls": 465, "none": 25}.get(getattr(one, "security", ""), 0)
        port = SYSLOG_PORTS.get(transport, smtp)
    return host, port


def _mend_settings(why: str, settings: Settings) -> str:
    """The command for what keeps an output from being made."""
    secret = re.search(r"no secret (\w+)", why)
    if secret:
        return f"(umask 077; echo '{secret[1]}=…' >>{shlex.quote(settings.env_file)})"
    package = re.search(r"pip install \S+", why)
    return package[0] if package else "kwsiem check --no-probes"


def _mend_output(one: OutputSettings, target: Target | None, user: str, why: str) -> str:
    """What to do about a destination that is not there."""
    test = f"kwsiem outputs test {shlex.quote(one.name)}"
    if isinstance(one, FileSettings):
        return _mend_file(Path(one.path), user)
    if isinstance(one, SyslogSettings) and one.transport == "unix":
        return f"systemctl start rsyslog, then: {test}"
    host, port = (target[0], target[1]) if target else _place(one)
    if isinstance(one, (TelegramSettings, KafkaSettings)) or not host:
        return test
    if "ertificate" in why or "fingerprint" in why or "SSL" in why or "TLS" in why:
        return f"openssl s_client -connect {shlex.quote(f'{host}:{port}')} -showcerts"
    if re.search(r"name|resol|address", why, re.IGNORECASE):
        return f"getent hosts {shlex.quote(host)}"
    if "refused" in why:
        return f"ss -ltn 'sport = :{port}' on {plain_host(host)}: start the receiver there, then: {test}"
    return f"nc -vz {shlex.quote(host)} {port}, then: {test}"


def plain_host(host: str) -> str:
    """A host's name for people."""
    return "this host" if host in {"127.0.0.1", "::1", "localhost"} else host


def _mend_file(path: Path, user: str) -> str:
    """What lets the courier append to a file."""
    above = [
        one
        for one in reversed(path.absolute().parents)
        if os.path.lexists(one) and not os.access(one, os.X_OK)
    ]
    if above:
        return f"chmod o+x {shlex.quote(str(above[0]))}"
    if path.exists() and not path.is_file():
        return "set another path: in the settings"
    if path.exists():
        return f"chown {user}: {shlex.quote(str(path))}"
    return f"install -d -o {user} -m 750 {shlex.quote(str(path.parent))}"


def key_files(settings: Settings) -> list[tuple[str, Path]]:
    """The private keys that outputs name."""
    found = []
    for one in settings.outputs:
        key = getattr(one, "key_file", "") or getattr(one, "cert_file", "")
        if key:
            found.append((f"key of {one.name}", Path(key)))
    return found


# -- the running appliance ---------------------------------------------------------------------------


def running(settings: Settings) -> list[Finding]:
    """Whether the appliance runs, and what it says is wrong; what is still starting gets SETTLE_S."""
    path = settings.control_socket
    deadline_s = clock.monotonic_s() + SETTLE_S
    while True:
        try:
            status = ask(path, {"command": "status"})
        except UnavailableError as error:
            return [_not_running(path, str(error))]
        wrong = _wrong(status)
        if not wrong or clock.monotonic_s() >= deadline_s:
            break
        clock.sleep_s(0.3)
    head = f"kwsiem {status['version']} runs with pid {status['pid']} since {status['since']}"
    return [Finding("appliance", GOOD, head), *wrong]


def _not_running(path: Path, why: str) -> Finding:
    if "only root" in why:
        return Finding("appliance", SKIPPED, why.split(";", maxsplit=1)[0], "sudo kwsiem status")
    mend = "systemctl enable --now kwsiem" if UNIT.exists() else "kwsiem run"
    is_absent = "is not running" in why
    found = f"does not run (nobody serves {path})" if is_absent else why
    return Finding("appliance", WARNING if is_absent else MISSING, found, mend)


def _wrong(status: dict[str, Any]) -> list[Finding]:
    """The faults that it tells of, and accounts that do not balance."""
    findings = [
        Finding("appliance", WARNING if fault.startswith("blocking is a dry run") else MISSING, fault,
                "kwsiem status")
        for fault in faults(status)
    ]  # fmt: skip
    if not ledger(status)["balanced"]:
        findings.append(Finding("appliance", MISSING, "the ledger does not balance", "kwsiem stats"))
    return findings
