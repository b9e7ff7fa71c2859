"""The appliance's counters as Prometheus metrics (text exposition format 0.0.4), made of its status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

#: What became of an alert, as the ledger of an output counts it.
FATES: Final = ("delivered", "waiting", "dead", "dropped", "filtered")
_HELP: Final[Mapping[str, tuple[str, str]]] = {
    "kwsiem_up": ("gauge", "1 while the appliance answers."),
    "kwsiem_lines_total": ("counter", "Lines read from a probe, by what became of them."),
    "kwsiem_alerts_total": ("counter", "Alerts of the engine: raised, acknowledged by the courier, dropped."),
    "kwsiem_alerts_unacknowledged": ("gauge", "Alerts that the courier has not brought to disk yet."),
    "kwsiem_output_alerts_raised_total": ("counter", "Alerts that an output was there for."),
    "kwsiem_output_alerts": (
        "gauge",
        "The ledger of an output: alerts by fate.",
    ),
    "kwsiem_output_dropped_total": ("counter", "Alerts that an output never got, by reason."),
    "kwsiem_output_balanced": ("gauge", "1 when the ledger of an output balances."),
    "kwsiem_output_ready": ("gauge", "1 when an output is ready, 0 when it is failing."),
    "kwsiem_output_retries_total": ("counter", "Failed tries of an output."),
    "kwsiem_outbox_held_alerts": ("gauge", "Alerts in memory because the disk takes none."),
    "kwsiem_outbox_repaired_total": ("counter", "Alerts in which a wrong bit was mended."),
    "kwsiem_output_replayed_total": (
        "counter",
        "Alerts sent again after a reconnect.",
    ),
}
Sample = tuple[str, Mapping[str, str], float]


def render(status: Mapping[str, Any]) -> str:
    """The exposition text of a status (``kwsiem status --json``); label values are escaped."""
    samples = list(_samples(status))
    lines: list[str] = []
    for name, (kind, text) in _HELP.items():
        found = [sample for sample in samples if sample[0] == name]
        if found:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {value:g}" for _, labels, value in found]
    return "\n".join(lines) + "\n"


def _samples(status: Mapping[str, Any]) -> Iterable[Sample]:
    yield "kwsiem_up", {}, 1
    for probe, counts in status.get("engine", {}).get("lines", {}).items():
        yield "kwsiem_lines_total", {"probe": probe, "result": "accepted"}, counts.get("accepted", 0)
        yield "kwsiem_lines_total", {"probe": probe, "result": "lost"}, counts.get("lost", 0)
        for reason, count in counts.get("rejected", {}).items():
            yield "kwsiem_lines_total", {"probe": probe, "result": "rejected", "reason": reason}, count
    alerts = status.get("engine", {}).get("alerts", {})
    for fate in ("raised", "acknowledged", "dropped"):
        if fate in alerts:
            yield "kwsiem_alerts_total", {"result": fate}, alerts[fate]
    if "waiting" in alerts:
        yield "kwsiem_alerts_unacknowledged", {}, alerts["waiting"]
    outbox = status.get("courier", {}).get("outbox", {})
    if outbox:
        yield "kwsiem_outbox_held_alerts", {}, outbox.get("held_alerts", 0)
        yield "kwsiem_outbox_repaired_total", {}, outbox.get("repaired", 0)
    for output in status.get("courier", {}).get("outputs", []):
        yield from _output_samples(output)


def _output_samples(output: Mapping[str, Any]) -> Iterable[Sample]:
    labels = {"output": str(output["name"])}
    yield "kwsiem_output_alerts_raised_total", labels, output.get("raised", 0)
    for fate in FATES:
        yield "kwsiem_output_alerts", {**labels, "fate": fate}, output.get(fate, 0)
    for reason, count in output.get("reasons", {}).items():
        yield "kwsiem_output_dropped_total", {**labels, "reason": reason}, count
    yield "kwsiem_output_balanced", labels, int(bool(output.get("balanced")))
    yield "kwsiem_output_ready", labels, int(output.get("state") == "ready")
    yield "kwsiem_output_retries_total", labels, output.get("retries", 0)
    yield "kwsiem_output_replayed_total", labels, output.get("replayed", 0)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
