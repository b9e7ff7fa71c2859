"""The appliance's counters as Prometheus metrics: one table, for the endpoint and ``kwsiem stats --metrics``.

They are made of the sensor's figures (``Appliance.figures``), which hold what the engine and the courier say
about themselves: numbers are taken as numbers, anything else as none. Labels come from closed sets (kinds,
reasons, states, processes) or from settings and files of the operator (probes, outputs, rules): never an
address, a user or a path. Each metric has at most MAX_SERIES series; rules, the largest set, have at most
rule_figures.MAX_RULES of them, three states each for their alerts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import exposition
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from kwsiem.histogram import BOUNDS_S
from kwsiem.rule_figures import MAX_RULES, RuleCounts

#: What became of an alert, as the ledger of an output counts it.
FATES: Final = ("delivered", "waiting", "dead", "dropped", "filtered")
#: States of a probe (sensor.lifecycle.State); one of them has the value 1.
PROBE_STATES: Final = (
    "waiting", "starting", "ready", "backoff", "unsupported", "failed", "stopping", "gone"
)  # fmt: skip
#: Reasons of ``sensor.lost`` that are no loss: told in another form, or not followed by choice.
NO_LOSS: Final = ("aggregated", "untracked")
MAX_SERIES: Final = 3 * MAX_RULES
_MAX_LABEL: Final = 128
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Every metric: its name, its type, and what it says.
METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "kwsiem_up": ("gauge", "1 while the appliance answers."),
    "kwsiem_build_info": ("gauge", "1, with the version of kwsiem and of bpftrace."),
    "kwsiem_figures_timestamp_seconds": ("gauge", "When the sensor told these figures (Unix time)."),
    "kwsiem_start_timestamp_seconds": ("gauge", "When the appliance began (Unix time)."),
    "kwsiem_probe_state": ("gauge", "1 for the state that a probe is in, 0 for the others."),
    "kwsiem_probe_restarts_total": ("counter", "How often a probe was started again."),
    "kwsiem_lines_received_total": ("counter", "Lines read from a probe."),
    "kwsiem_lines_total": ("counter", "Lines of a probe, by what became of them."),
    "kwsiem_events_total": ("counter", "Events by kind."),
    "kwsiem_sensor_lost_total": (
        "counter",
        "What sensor.lost events told, by reason; aggregated and untracked are no loss.",
    ),
    "kwsiem_events_late_total": ("counter", "Events that came too late for their window."),
    "kwsiem_events_future_total": ("counter", "Events dated in the future, taken as of now."),
    "kwsiem_events_ungrouped_total": ("counter", "Events without a value that their rule groups by."),
    "kwsiem_events_taken_back_total": ("counter", "Events that were taken back."),
    "kwsiem_drops_total": ("counter", "What was given up, by stage and reason; unit says what is counted."),
    "kwsiem_rules": ("gauge", "Rules that run."),
    "kwsiem_rules_stale": ("gauge", "1 when the rules on disk cannot be used and older ones run."),
    "kwsiem_rules_skipped": ("gauge", "Sigma rules that cannot be evaluated here."),
    "kwsiem_rule_evaluations_total": ("counter", "Events of the kinds that a rule looks at."),
    "kwsiem_rule_alerts_total": ("counter", "Alerts of a rule, by the state of the incident."),
    "kwsiem_rule_window_keys": ("gauge", "Windows that a rule keeps now."),
    "kwsiem_rule_window_evictions_total": ("counter", "Windows that a rule gave up for want of room."),
    "kwsiem_window_keys": ("gauge", "Windows that all rules keep now."),
    "kwsiem_window_evictions_total": ("counter", "Windows that were given up for want of room."),
    "kwsiem_window_crowded_total": ("counter", "Hits of keys that had no window of their own."),
    "kwsiem_incidents": ("gauge", "Incidents that are open."),
    "kwsiem_incidents_crowded_out_total": ("counter", "Incidents closed early, since too many were open."),
    "kwsiem_incidents_covered_total": ("counter", "Incidents not told, since another rule told of them."),
    "kwsiem_incidents_held_back_total": ("counter", "Incidents not told, since their rule alerts too often."),
    "kwsiem_decisions_hurried_total": ("counter", "Decisions taken before all that could matter had come."),
    "kwsiem_engine_errors_total": ("counter", "Events and rules that failed in the engine."),
    "kwsiem_snapshots_total": ("counter", "Snapshots of the engine's state, by what became of them."),
    "kwsiem_detection_latency_seconds": (
        "histogram",
        "Kernel time of the event that decided an incident, until its alert was built or durable on disk.",
    ),
    "kwsiem_alerts_total": ("counter", "Alerts of the engine: raised, acknowledged by the courier, dropped."),
    "kwsiem_alerts_unacknowledged": ("gauge", "Alerts that the courier has not brought to disk yet."),
    "kwsiem_outbox_in_memory": ("gauge", "1 while the disk takes no alerts."),
    "kwsiem_outbox_held_alerts": ("gauge", "Alerts in memory because the disk takes none."),
    "kwsiem_outbox_held_bytes": ("gauge", "Bytes of the alerts in memory."),
    "kwsiem_outbox_repaired_total": ("counter", "Alerts in which a wrong bit was mended."),
    "kwsiem_outbox_salvaged_total": ("counter", "How often a damaged outbox was salvaged."),
    "kwsiem_series_bytes": ("gauge", "Bytes in use of the history of figures."),
    "kwsiem_series_failing": ("gauge", "1 while the history of figures cannot be written."),
    "kwsiem_series_damaged_total": ("counter", "How often a damaged history of figures was begun anew."),
    "kwsiem_event_log_rotated_total": ("counter", "Files of the event log that were completed."),
    "kwsiem_event_log_failing": ("gauge", "1 while the event log cannot be written."),
    "kwsiem_output_alerts_raised_total": ("counter", "Alerts that an output was there for."),
    "kwsiem_output_alerts": ("gauge", "The ledger of an output: alerts by fate."),
    "kwsiem_output_dropped_total": ("counter", "Alerts that an output never got, by reason."),
    "kwsiem_output_balanced": ("gauge", "1 when the ledger of an output balances."),
    "kwsiem_output_ready": ("gauge", "1 when an output is ready, 0 when it is failing."),
    "kwsiem_output_lag_seconds": ("gauge", "Age of the oldest alert that waits for an output, 0 for none."),
    "kwsiem_output_retries_total": ("counter", "Failed tries of an output."),
    "kwsiem_output_replayed_total": ("counter", "Alerts sent again after a reconnect."),
    "kwsiem_blocks": ("gauge", "Blocks that stand, by mode: on (in the firewall) or dry-run."),
    "kwsiem_blocking_mode": ("gauge", "1 for the mode that blocking is in."),
    "kwsiem_block_requests_total": ("counter", "What became of requests for blocks, and of blocks."),
    "kwsiem_firewall_failing": ("gauge", "1 while the firewall takes no blocks."),
    "kwsiem_process_ready": ("gauge", "1 when a process of the appliance is ready."),
    "kwsiem_process_restarts_total": ("counter", "How often a process was started again."),
    "kwsiem_process_cpu_seconds_total": ("counter", "Processor time of a process; probe names a bpftrace."),
    "kwsiem_process_resident_memory_bytes": ("gauge", "Memory of a process; probe names a bpftrace."),
}
Sample = tuple[str, Mapping[str, str], float]


class Figures(Collector):
    """Turns the sensor's figures into metrics; ``rules`` are the counts of each rule."""

    def __init__(self, figures: Mapping[str, Any], rules: Mapping[str, RuleCounts]) -> None:
        self._figures = figures
        self._rules = rules

    def collect(self) -> Iterator[Metric]:
        """The metrics that have samples, in the order of the table."""
        found: dict[str, dict[tuple[str, ...], Sample]] = {}
        for name, labels, value in _samples(self._figures, self._rules):
            # The same labels twice would make the whole answer invalid: what is cut to fit may meet.
            plain = {key: _text(each) for key, each in labels.items()}
            family = found.setdefault(name, {})
            if len(family) < MAX_SERIES:
                family[tuple(plain.values())] = name, plain, value
        for name, (kind, text) in METRICS.items():
            if kind == "histogram":
                yield from _histograms(name, text, _map(_map(self._figures.get("engine")).get("latency")))
            elif name in found:
                metric = Metric(name.removesuffix("_total") if kind == "counter" else name, text, kind)
                for _, labels, value in found[name].values():
                    metric.add_sample(name, dict(labels), value)
                yield metric


def render(
    figures: Mapping[str, Any], rules: Mapping[str, RuleCounts], *, is_openmetrics: bool = False
) -> tuple[bytes, str]:
    """The exposition and its content type: OpenMetrics 1.0, or text format 0.0.4."""
    collector = Figures(figures, rules)
    if is_openmetrics:
        return openmetrics.generate_latest(collector), OPENMETRICS_TYPE  # type: ignore[no-untyped-call]
    return exposition.generate_latest(collector), TEXT_TYPE


def accepts_openmetrics(accept: str) -> bool:
    """Whether a reader takes OpenMetrics, by its Accept header; nothing of that header is ever sent back."""
    return any(
        part.split(";")[0].strip().lower() == "application/openmetrics-text" for part in accept.split(",")
    )


# where the figures stand -------------------------------------------------------------------------------


def _samples(figures: Mapping[str, Any], rules: Mapping[str, RuleCounts]) -> Iterator[Sample]:
    engine, courier = _map(figures.get("engine")), _map(figures.get("courier"))
    yield from _sensor(figures)
    yield from _lines(_map(engine.get("lines")))
    yield from _engine(engine)
    for rule, counts in rules.items():
        yield from _rule({"rule": rule}, counts)
    yield from _courier(courier)
    yield from _blocking(_map(figures.get("blocking")))
    yield from _drops(engine, courier, figures)


def _sensor(figures: Mapping[str, Any]) -> Iterator[Sample]:
    yield "kwsiem_up", {}, 1
    if "version" in figures:
        versions = {"version": figures["version"], "bpftrace": figures.get("bpftrace", "")}
        yield "kwsiem_build_info", versions, 1
    yield from _plain(figures, {"kwsiem_figures_timestamp_seconds": "at_s"})
    yield from _plain(figures, {"kwsiem_start_timestamp_seconds": "began_s"})
    for probe in _maps(figures.get("probes")):
        for state in PROBE_STATES:
            labels = {"probe": probe.get("name", ""), "state": state}
            yield "kwsiem_probe_state", labels, probe.get("state") == state
        yield "kwsiem_probe_restarts_total", {"probe": probe.get("name", "")}, _number(probe.get("restarts"))
    rules = _map(figures.get("rules"))
    names = {"kwsiem_rules": "rules", "kwsiem_rules_stale": "stale", "kwsiem_rules_skipped": "skipped"}
    yield from _plain(rules, names)
    for process in _maps(figures.get("processes")):
        labels = {"process": process.get("name", "")}
        yield "kwsiem_process_ready", labels, process.get("state") == "ready"
        yield "kwsiem_process_restarts_total", labels, _number(process.get("restarts"))
    for usage in _maps(figures.get("usage")):
        labels = {"process": usage.get("process", ""), "probe": usage.get("probe", "")}
        yield "kwsiem_process_cpu_seconds_total", labels, _number(usage.get("cpu_s"))
        yield "kwsiem_process_resident_memory_bytes", labels, _number(usage.get("resident_bytes"))


def _lines(lines: Mapping[str, Any]) -> Iterator[Sample]:
    for probe, found in lines.items():
        counts = _map(found)
        yield "kwsiem_lines_received_total", {"probe": probe}, _number(counts.get("received"))
        for result in ("accepted", "lost"):
            labels = {"probe": probe, "result": result, "reason": ""}
            yield "kwsiem_lines_total", labels, _number(counts.get(result))
        for reason, count in _map(counts.get("rejected")).items():
            labels = {"probe": probe, "result": "rejected", "reason": reason}
            yield "kwsiem_lines_total", labels, _number(count)


_ENGINE: Final = {
    "kwsiem_events_late_total": "late",
    "kwsiem_events_future_total": "future",
    "kwsiem_events_ungrouped_total": "ungrouped",
    "kwsiem_events_taken_back_total": "taken_back",
    "kwsiem_window_keys": "keys",
    "kwsiem_window_evictions_total": "evictions",
    "kwsiem_window_crowded_total": "crowded",
    "kwsiem_incidents": "incidents",
    "kwsiem_incidents_crowded_out_total": "crowded_out",
    "kwsiem_incidents_covered_total": "covered",
    "kwsiem_incidents_held_back_total": "held_back",
    "kwsiem_decisions_hurried_total": "hurried",
}


def _engine(engine: Mapping[str, Any]) -> Iterator[Sample]:
    counters = _map(engine.get("engine"))
    for kind, count in _map(counters.get("events")).items():
        yield "kwsiem_events_total", {"kind": kind}, _number(count)
    for (probe, reason), count in _lost(counters):
        yield "kwsiem_sensor_lost_total", {"probe": probe, "reason": reason}, count
    yield from _plain(counters, _ENGINE)
    if "errors" in counters:
        yield "kwsiem_engine_errors_total", {}, sum(map(_number, _map(counters["errors"]).values()))
    for result, count in _map(engine.get("snapshots")).items():
        yield "kwsiem_snapshots_total", {"result": result}, _number(count)
    event_log = _map(engine.get("event_log"))
    yield from _plain(event_log, {"kwsiem_event_log_rotated_total": "rotated"})
    if "failed" in event_log:
        yield "kwsiem_event_log_failing", {}, bool(event_log["failed"])
    alerts = _map(engine.get("alerts"))
    for result in ("raised", "acknowledged", "dropped"):
        if result in alerts:
            yield "kwsiem_alerts_total", {"result": result}, _number(alerts[result])
    yield from _plain(alerts, {"kwsiem_alerts_unacknowledged": "waiting"})


def _lost(counters: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    for probe, reasons in _map(counters.get("lost")).items():
        for reason, count in _map(reasons).items():
            yield (probe, reason), _number(count)


def _rule(labels: Mapping[str, str], counts: RuleCounts) -> Iterator[Sample]:
    yield "kwsiem_rule_evaluations_total", labels, counts.evaluations
    yield "kwsiem_rule_window_keys", labels, counts.keys
    yield "kwsiem_rule_window_evictions_total", labels, counts.evictions
    for state, count in (("open", counts.opened), ("update", counts.updated), ("close", counts.closed)):
        yield "kwsiem_rule_alerts_total", {**labels, "state": state}, count


def _courier(courier: Mapping[str, Any]) -> Iterator[Sample]:
    outbox = _map(courier.get("outbox"))
    if outbox:
        names = {"held_alerts": "held_alerts", "held_bytes": "held_bytes"}
        names |= {"repaired_total": "repaired", "salvaged_total": "salvaged"}
        yield from _plain(outbox, {f"kwsiem_outbox_{name}": key for name, key in names.items()})
        holds = bool(courier.get("disk_error")) or _number(outbox.get("held_alerts")) > 0
        yield "kwsiem_outbox_in_memory", {}, holds
    series = _map(courier.get("series"))
    yield from _plain(series, {"kwsiem_series_bytes": "bytes", "kwsiem_series_damaged_total": "damaged"})
    if "error" in series:
        yield "kwsiem_series_failing", {}, bool(series["error"])
    for output in _maps(courier.get("outputs")):
        yield from _output(output)


def _output(output: Mapping[str, Any]) -> Iterator[Sample]:
    labels = {"output": output.get("name", "")}
    yield "kwsiem_output_alerts_raised_total", labels, _number(output.get("raised"))
    for fate in FATES:
        yield "kwsiem_output_alerts", {**labels, "fate": fate}, _number(output.get(fate))
    for reason, count in _map(output.get("reasons")).items():
        yield "kwsiem_output_dropped_total", {**labels, "reason": reason}, _number(count)
    yield "kwsiem_output_balanced", labels, bool(output.get("balanced"))
    yield "kwsiem_output_ready", labels, output.get("state") == "ready"
    yield "kwsiem_output_lag_seconds", labels, _number(output.get("lag_s"))
    yield "kwsiem_output_retries_total", labels, _number(output.get("retries"))
    yield "kwsiem_output_replayed_total", labels, _number(output.get("replayed"))


def _blocking(blocking: Mapping[str, Any]) -> Iterator[Sample]:
    if not blocking:
        return
    for mode, count in _map(blocking.get("by_mode")).items():
        yield "kwsiem_blocks", {"mode": mode}, _number(count)
    for mode in ("off", "dry-run", "on"):
        yield "kwsiem_blocking_mode", {"mode": mode}, blocking.get("mode") == mode
    for result, count in _map(blocking.get("counters")).items():
        yield "kwsiem_block_requests_total", {"result": result}, _number(count)
    yield "kwsiem_firewall_failing", {}, bool(blocking.get("firewall_error"))


def _drops(
    engine: Mapping[str, Any], courier: Mapping[str, Any], figures: Mapping[str, Any]
) -> Iterator[Sample]:
    """Everything that was given up anywhere, in one metric: what must stay at nought."""
    drops: dict[tuple[str, str, str], float] = {}

    def add(stage: str, unit: str, reason: str, count: Any) -> None:
        key = (_text(stage), _text(unit), _text(reason))
        drops[key] = drops.get(key, 0) + _number(count)

    for (_, reason), count in _lost(_map(engine.get("engine"))):
        if reason not in NO_LOSS:
            add("sensor", "events", reason, count)
    for counts in _map(engine.get("lines")).values():
        for reason, count in _map(_map(counts).get("rejected")).items():
            add("decode", "lines", reason, count)
    add("engine", "batches", "failed", engine.get("failed_batches"))
    add("engine", "alerts", "unacknowledged", _map(engine.get("alerts")).get("dropped"))
    add("engine", "blocks", "unsent", _map(engine.get("blocks")).get("dropped"))
    add("engine", "figures", "unsent", engine.get("series_lost"))
    add("sensor", "figures", "unsent", figures.get("series_lost"))
    for reason, count in _map(_map(courier.get("series")).get("lost")).items():
        add("courier", "figures", reason, count)
    add("engine", "records", "event_log", _map(engine.get("event_log")).get("lost"))
    add("courier", "alerts", "rejected", _map(courier.get("alerts")).get("rejected"))
    for name, source in (("sensor", figures), ("engine", engine), ("courier", courier)):
        add(name, "messages", "bad", source.get("bad_messages"))
    for output in _maps(courier.get("outputs")):
        for reason, count in _map(output.get("reasons")).items():
            add("output", "alerts", reason, count)
    for (stage, unit, reason), count in drops.items():
        yield "kwsiem_drops_total", {"stage": stage, "unit": unit, "reason": reason}, count


def _histograms(name: str, text: str, latency: Mapping[str, Any]) -> Iterator[Metric]:
    metric = Metric(name, text, "histogram")
    for until in ("built", "durable"):
        figures = _map(latency.get(until))
        counts = figures.get("counts")
        if not isinstance(counts, list) or len(counts) != len(BOUNDS_S) + 1:
            continue
        total = 0.0
        for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], counts, strict=True):
            total += _number(count)
            metric.add_sample(f"{name}_bucket", {"until": until, "le": bound}, total)
        metric.add_sample(f"{name}_count", {"until": until}, total)
        metric.add_sample(f"{name}_sum", {"until": until}, _number(figures.get("sum_s")))
    if metric.samples:
        yield metric


def _plain(source: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Sample]:
    """Metrics without labels, by the key they have in the figures; none for a key that is not there."""
    for name, key in names.items():
        if key in source:
            yield name, {}, _number(source[key])


def _number(value: Any) -> float:
    """A count or a duration; 0 for what is none (the engine and the courier are not trusted)."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 2**63 else 0.0


def _text(value: Any) -> str:
    # What no encoder takes would make the whole answer fail.
    return str(value)[:_MAX_LABEL].encode("utf-8", "replace").decode("utf-8")


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [_map(each) for each in value] if isinstance(value, (list, tuple)) else []
