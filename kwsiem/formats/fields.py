"""The table of alert facts: one row per fact, with its name in every format and the limits these set.

The formats read it. A key that a format computes (CEF's address slots, which depend on the address) is
marked so and has a note. ``docs/formats.md`` is what
:func:`kwsiem.formats.page.render` makes of it.
"""

# ruff: noqa: E501 - a table is read by rows

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

INT: Final = 2**31 - 1
LONG: Final = 2**63 - 1
PORT: Final = 65535
#: A CEF or LEEF text without a shorter limit of its own, in bytes of UTF-8.
TEXT: Final = 1023


@dataclass(frozen=True)
class Severity:
    """What an ``event.severity`` of at least ``least`` (0 to 10) is in the formats that have other scales.

    ``syslog`` is GELF's level too. Syslog's 0 (emerg) is never sent: stock daemons write it to every
    terminal.
    """

    least: int
    cef: str
    syslog: int
    ocsf: int
    ocsf_word: str


#: From most to least; CEF and LEEF carry the number itself (LEEF begins at 1).
SEVERITIES: Final = (
    Severity(9, "Very-High", 1, 5, "Critical"),
    Severity(7, "High", 3, 4, "High"),
    Severity(4, "Medium", 4, 3, "Medium"),
    Severity(1, "Low", 5, 2, "Low"),
    Severity(0, "Low", 6, 1, "Informational"),
)


def severity(number: Any) -> Severity:
    """The row of :data:`SEVERITIES` for an ``event.severity``; anything but a number counts as 0."""
    value = number if type(number) is int else 0
    return next((row for row in SEVERITIES if value >= row.least), SEVERITIES[-1])


@dataclass(frozen=True)
class Action:
    """What a block decision is in CEF's ``act`` and in OCSF's ``action_id`` and ``disposition_id``."""

    word: str
    ocsf_action: int
    ocsf_disposition: int


DETECTED: Final = Action("detected", 3, 15)
#: ``kwsiem.alert.block.decision`` -> what it is elsewhere; any other decision only detects.
ACTIONS: Final[Mapping[str, Action]] = {
    "blocked": Action("blocked", 2, 2),
    "failed": Action("block_failed", 3, 27),
    "released": Action("unblocked", 1, 1),
}


@dataclass(frozen=True)
class Key:
    """A fact's key in CEF or LEEF.

    ``limit`` is the most bytes of UTF-8 of a text, or the largest number; ``label`` the fixed name of a
    custom slot. A ``computed`` key is not a plain copy: the row's note says what it is. Keys with
    ``since=1`` are in CEF:1 alone.
    """

    name: str
    limit: int = TEXT
    label: str = ""
    computed: bool = False
    since: int = 0


@dataclass(frozen=True)
class Fact:
    """One fact of an alert: its dotted name in the document and where each format has it.

    ``type`` is text, ip, number, port, time or list (of texts). An empty name means that the format does
    not carry the fact. ``ocsf`` is a path from the finding, or from an evidence when it begins with
    :data:`EVIDENCE`; in brackets it is computed.
    """

    name: str
    meaning: str
    type: str
    cef: tuple[Key, ...] = ()
    leef: tuple[Key, ...] = ()
    gelf: str = ""
    json: str = ""
    ocsf: str = ""
    note: str = ""


EVIDENCE: Final = "evidences[]."


def _computed(name: str, limit: int = TEXT, label: str = "", since: int = 0) -> Key:
    return Key(name, limit, label, True, since)


def _endpoint(side: str, word: str, short: str, slot: str) -> tuple[Fact, ...]:
    """The rows of one end of a connection."""
    letter, end = short[0], f"{short}_endpoint"
    slot_label = f"{side.capitalize()} IPv6 Address"
    return (
        Fact(f"{side}.ip", f"{word} address", "ip", (_computed(short, 45), _computed(slot, 45, slot_label)), (Key(short, 45),),
             f"_{side}_ip", f"{side}.ip", f"{EVIDENCE}{end}.ip", f"CEF:0: IPv6 goes to {slot}, {short} is IPv4"),
        Fact(f"{side}.address", f"{word} address or name", "text", (_computed(f"{letter}host"),), (_computed(f"{short}Name"),),
             f"_{side}_address", f"{side}.address", f"({EVIDENCE}{end}.hostname)", "left out where it is the ip"),
        Fact(f"{side}.port", f"{word} port", "port", (_computed(f"{letter}pt", PORT),), (_computed(f"{short}Port", PORT),),
             f"_{side}_port", f"{side}.port", f"{EVIDENCE}{end}.port", "CEF and LEEF: left out when it is one of many counted values"),
    )  # fmt: skip


#: In the order in which LEEF, GELF and JSON carry them.
FACTS: Final = (
    Fact("@timestamp", "when the alert was raised", "time", (Key("rt"),), (Key("devTime"),), "timestamp", "time", "time", "GELF: seconds, JSON: as it is, elsewhere milliseconds"),
    Fact("host.name", "the sensor's host", "text", (Key("dvchost", 100),), (Key("sensorHost"),), "host", "host", "device.hostname"),
    Fact("observer.vendor", "KernelWatch", "text", (_computed("(header)", 63),), (_computed("(header)", 63),), ocsf="metadata.product.vendor_name", note="the header's second field"),
    Fact("observer.product", "kwsiem", "text", (_computed("(header)", 63),), (_computed("(header)", 63),), ocsf="metadata.product.name", note="the header's third field"),
    Fact("observer.version", "version of kwsiem", "text", (_computed("(header)", 31),), (_computed("(header)", 31),), "_observer_version", "", "metadata.product.version", "the header's fourth field"),
    Fact("event.id", "id of the alert (a ULID)", "text", (Key("externalId", 40),), (Key("alertId"),), "_alert_id", "id", "metadata.uid"),
    Fact("kwsiem.alert.incident_id", "id that all alerts of an incident share", "text", (Key("cs5", 40, "IncidentId"),), (Key("incidentId"),), "_incident_id", "incident", "finding_info.uid"),
    Fact("kwsiem.alert.state", "open, update or close", "text", (Key("cs6", 63, "IncidentState"),), (Key("state"),), "_state", "state", "(activity_id)", "OCSF: 1 Create, 2 Update, 3 Close; status_id 1 New, 2 In Progress, 4 Resolved; is_alert is false at a close"),
    Fact("kwsiem.alert.level", "level of the rule", "text", (), (Key("level"),), "_alert_level", "level", "(severity_id)"),
    Fact("event.severity", "0 to 10", "number", (_computed("(header)", 10),), (_computed("sev", 10),), "_severity", "severity", "(severity_id)", "CEF: the header's seventh field; LEEF: at least 1; GELF has level besides"),
    Fact("event.risk_score", "0 to 100", "number", ocsf="risk_score"),
    Fact("rule.id", "id of the rule", "text", (_computed("(header)", 1023), Key("cs1", 1023, "RuleId")), (_computed("(header)", 255), Key("ruleId")), "_rule_id", "rule", "finding_info.analytic.uid", "the header's fifth field"),
    Fact("rule.name", "title of the rule", "text", (_computed("(header)", 512),), (Key("ruleName"),), "_rule_name", "title", "finding_info.title", "CEF: the header's sixth field; OCSF: finding_info.analytic.name too"),
    Fact("rule.description", "description of the rule", "text", ocsf="finding_info.desc"),
    Fact("message", "title and reason", "text", (Key("msg"),), (Key("msg"),), "short_message", "", "message"),
    Fact("event.reason", "why the rule fired, in words", "text", (Key("reason"),), (Key("reason"),), "_reason", "reason"),
    Fact("event.category", "categories of ECS", "list", (_computed("cat"),), (_computed("cat"),), "_category", "", "finding_info.types", "joined with / in CEF and LEEF"),
    Fact("kwsiem.alert.count", "matching events so far", "number", (Key("cnt", INT), Key("cn1", LONG, "EventCount")), (Key("count", LONG),), "_count", "count", "count"),
    Fact("event.start", "first event", "time", (Key("start"),), (Key("startTime"),), "_start", "start", "start_time", "OCSF: finding_info.first_seen_time too"),
    Fact("event.end", "last event", "time", (Key("end"),), (Key("endTime"),), "_end", "end", "end_time", "OCSF: finding_info.last_seen_time too"),
    Fact("event.duration", "from first to last event, ns", "number", (_computed("reportedDuration", LONG, since=1),), (), "", "", "(duration)", "in milliseconds"),
    *_endpoint("source", "the other side's", "src", "c6a2"),
    *_endpoint("destination", "the attacked", "dst", "c6a3"),
    Fact("source.bytes", "bytes from source to destination", "number", (_computed("in", INT),), (Key("srcBytes", LONG),), "_source_bytes", "", f"{EVIDENCE}data.traffic.bytes_out", "CEF:1: 64 bits"),
    Fact("destination.bytes", "bytes from destination to source", "number", (_computed("out", INT),), (Key("dstBytes", LONG),), "_destination_bytes", "", f"{EVIDENCE}data.traffic.bytes_in", "CEF:1: 64 bits"),
    Fact("source.packets", "packets from source to destination", "number", (), (Key("srcPackets", LONG),), "_source_packets", "", f"{EVIDENCE}data.traffic.packets_out"),
    Fact("destination.packets", "packets from destination to source", "number", (), (Key("dstPackets", LONG),), "_destination_packets", "", f"{EVIDENCE}data.traffic.packets_in"),
    Fact("network.transport", "tcp, udp or icmp", "text", (_computed("proto", 31),), (_computed("proto", 31),), "_network_transport", "network.transport", f"{EVIDENCE}connection_info.protocol_name", "upper case in CEF and LEEF; OCSF: protocol_num and protocol_ver_id too"),
    Fact("network.protocol", "application protocol", "text", (Key("app", 31),), (Key("app"),), "_network_protocol"),
    Fact("network.direction", "ingress, egress …", "text", (_computed("deviceDirection", 1),), (), "_network_direction", "", f"({EVIDENCE}connection_info.direction_id)", "CEF: 0 inbound, 1 outbound; OCSF: 1 and 2, else 0; the event's kind may say it"),
    Fact("observer.ingress.interface.name", "interface that received", "text", (Key("deviceInboundInterface", 128),), (Key("interface"),), "_interface", "", f"{EVIDENCE}dst_endpoint.interface_name"),
    Fact("user.name", "account", "text", (_computed("duser"), _computed("suser")), (Key("usrName", 255),), "_user_name", "user.name", f"{EVIDENCE}user.name", "CEF: d… when somebody came from outside, else s…"),
    Fact("user.id", "number of the account", "text", (_computed("duid"), _computed("suid")), (Key("userId"),), "_user_id", "", f"{EVIDENCE}user.uid", "CEF: as user.name"),
    Fact("service.name", "service that was asked", "text", (Key("destinationServiceName"),), (Key("service"),), "_service_name", "service.name", f"{EVIDENCE}data.service.name"),
    Fact("process.pid", "process", "number", (_computed("dpid", INT), _computed("spid", INT)), (Key("pid", LONG),), "_process_pid", "process.pid", f"{EVIDENCE}process.pid", "CEF: as user.name"),
    Fact("process.name", "its name", "text", (_computed("dproc"), _computed("sproc")), (Key("process"),), "_process_name", "process.name", f"{EVIDENCE}process.name", "CEF: as user.name"),
    Fact("process.executable", "its program file", "text", (), (Key("executable"),), "_process_executable", "process.executable", f"{EVIDENCE}process.file.path"),
    Fact("process.command_line", "its command line", "text", (Key("cs4", 4000, "CommandLine"),), (Key("commandLine", 4000),), "_process_command_line", "process.command_line", f"{EVIDENCE}process.cmd_line"),
    Fact("process.parent.pid", "its parent", "number", (), (Key("parentPid", LONG),), "_process_parent_pid", "", f"{EVIDENCE}process.parent_process.pid"),
    Fact("process.parent.name", "name of its parent", "text", (), (Key("parentProcess"),), "_process_parent_name", "", f"{EVIDENCE}process.parent_process.name"),
    Fact("process.user.id", "account it runs as", "text", ocsf=f"{EVIDENCE}process.user.uid"),
    Fact("process.user.name", "name of that account", "text", ocsf=f"{EVIDENCE}process.user.name"),
    Fact("file.path", "file", "text", (Key("filePath"),), (Key("filePath"),), "_file_path", "file.path", f"{EVIDENCE}file.path"),
    Fact("file.name", "its last part", "text", (Key("fname"),), (Key("fileName"),), "_file_name", "", f"{EVIDENCE}file.name"),
    Fact("dns.question.name", "name that was looked up", "text", (), (Key("dnsName"),), "_dns_question_name", "", f"{EVIDENCE}query.hostname"),
    Fact("dns.question.type", "kind of the look-up", "text", (), (Key("dnsType"),), "_dns_question_type", "", f"{EVIDENCE}query.type"),
    Fact("http.request.method", "method of a web request", "text", (Key("requestMethod"),), (Key("requestMethod"),), "_http_request_method"),
    Fact("url.original", "what was asked for", "text", (Key("request"),), (Key("url"),), "_url_original", "", f"{EVIDENCE}url.url_string"),
    Fact("user_agent.original", "program that asked", "text", (Key("requestClientApplication"),), (Key("userAgent"),), "_user_agent"),
    Fact("event.outcome", "success or failure of what was tried", "text", (Key("outcome", 63),), (Key("outcome"),), "_event_outcome", "event.outcome", f"({EVIDENCE}data.status_id)", "OCSF: of an Authentication record, 1 Success, 2 Failure, 0 unknown"),
    Fact("threat.tactic.id", "ATT&CK tactics", "list", (), (Key("mitreTactic"),), "_threat_tactic", "", "(finding_info.attacks[].tactic.uid)"),
    Fact("threat.technique.id", "ATT&CK techniques", "list", (_computed("cs2", 1023, "MitreTechnique"), _computed("threatAttackID", 32, since=1), _computed("frameworkName", 256, since=1)), (_computed("mitre"),), "_threat_technique", "techniques", "(finding_info.attacks[].technique.uid)", "CEF and LEEF: sub-techniques too; threatAttackID: the most exact one; frameworkName: MITRE ATT&CK"),
    Fact("threat.technique.subtechnique.id", "ATT&CK sub-techniques", "list", (), (), "_threat_subtechnique", "", "(finding_info.attacks[].sub_technique.uid)"),
    Fact("kwsiem.alert.values", "distinct values that were counted", "list", (Key("cs3", 1023, "SampleValues"),), (Key("values"),), "_values", "values", "(unmapped)"),
    Fact("kwsiem.alert.block.decision", "what became of the block", "text", (_computed("act", 63),), (_computed("action", 63),), "_block_decision", "block.decision", "(action_id)", "CEF and LEEF: detected, blocked, block_failed, unblocked; OCSF: disposition_id too"),
    Fact("kwsiem.alert.block.value", "address to block", "ip", (), (Key("blockValue", 45),), "_block_value", "block.value", "(unmapped)"),
    Fact("kwsiem.alert.block.for_s", "for how long, s", "number", (), (Key("blockSeconds", LONG),), "_block_for_s", "block.for_s", "(unmapped)"),
    Fact("kwsiem.digest.count", "alerts that a digest sums up", "number", (Key("cn2", LONG, "DigestCount"),), (Key("digestCount", LONG),), "_digest_count", "digest.count", "(unmapped)"),
)  # fmt: skip

BY_NAME: Final[Mapping[str, Fact]] = {row.name: row for row in FACTS}
