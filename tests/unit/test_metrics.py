"""Figures to metrics: two parsers read them, hostile figures harm nothing, dashboard and rules name what is there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from kwsiem import metrics
from kwsiem.histogram import BOUNDS_S, Histogram
from kwsiem.rule_figures import MAX_RULES, RuleCounts, RuleFigures
from kwsiem.sensor.lifecycle import State

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
RULES = {"ssh-brute": RuleCounts(evaluations=9, keys=2, evictions=1, opened=3, updated=2, closed=1)}


def figures() -> dict:
    """As the appliance tells them, with something in every place."""
    latency = Histogram()
    for duration_s in (0.0004, 0.02, 0.02, 90.0, -1.0):
        latency.observe(duration_s)
    counters = (
        "rules",
        "late",
        "future",
        "ungrouped",
        "taken_back",
        "keys",
        "evictions",
        "crowded",
        "incidents",
    )
    counters += ("crowded_out", "covered", "held_back", "hurried")
    return {
        "version": "1.0", "bpftrace": "0.23.2", "at_s": 1767323045.5, "began_s": 1767323000.0,
        "probes": [{"name": "net", "state": "ready", "restarts": 1}, {"name": "pam", "state": "backoff", "restarts": 4}],
        "rules": {"rules": 60, "stale": False, "skipped": 2},
        "processes": [{"name": "engine", "state": "ready", "restarts": 0}, {"name": "courier", "state": "ended", "restarts": 2}],
        "usage": [
            {"process": "sensor", "probe": "", "cpu_s": 1.5, "resident_bytes": 4096},
            {"process": "bpftrace", "probe": "net", "cpu_s": 2.5, "resident_bytes": 8192},
        ],
        "blocking": {"mode": "dry-run", "by_mode": {"on": 1, "dry-run": 2}, "counters": {"asked": 3, "refused": 1}, "firewall_error": False},
        "bad_messages": 1,
        "engine": {
            "lines": {"net": {"received": 10, "accepted": 7, "rejected": {"json": 2, "type": 1}, "lost": 5}},
            "engine": {
                **{name: number for number, name in enumerate(counters, 1)},
                "events": {"tcp.syn": 6, "auth.attempt": 1},
                "errors": {"tcp.syn": 2, "rule x": 1},
                "lost": {"net": {"ring_buffer": 5, "budget": 2, "aggregated": 1000}},
            },
            "alerts": {"raised": 4, "acknowledged": 2, "waiting": 1, "dropped": 1},
            "blocks": {"asked": 1, "withdrawn": 0, "dropped": 0},
            "snapshots": {"written": 3, "unchanged": 4, "failed": 0},
            "event_log": {"on": False, "rotated": 0, "lost": 0, "failed": ""}, "series_lost": 0,
            "failed_batches": 0, "bad_messages": 0,
            "latency": {"built": latency.figures(), "durable": Histogram().figures()},
        },
        "courier": {
            "alerts": {"received": 2, "rejected": 1, "duplicates": 0},
            "outbox": {"held_alerts": 1, "held_bytes": 900, "repaired": 0, "salvaged": 0},
            "disk_error": "disk full",
            "series": {"lost": {}, "damaged": 0, "bytes": 8192, "error": ""},
            "outputs": [{
                "name": 'si"em\\', "state": "failing", "raised": 10, "delivered": 5, "waiting": 2, "dead": 1, "dropped": 1,
                "filtered": 1, "balanced": True, "retries": 3, "replayed": 4, "reasons": {"age": 1}, "lag_s": 12.5,
            }],
            "bad_messages": 0,
        },
    }  # fmt: skip


def read(page: bytes, parse=read_text) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(page.decode())
        for sample in family.samples
    }


def value(name: str, found=None, **labels: str) -> float:
    found = found or read(metrics.render(figures(), RULES)[0])
    return found[(name, *sorted(labels.items()))]


@pytest.mark.parametrize(("is_openmetrics", "parse"), [(False, read_text), (True, read_openmetrics)])
def test_every_metric_of_the_table_is_told_and_a_parser_reads_it(is_openmetrics, parse):
    page, content_type = metrics.render(figures(), RULES, is_openmetrics=is_openmetrics)
    assert ("openmetrics" in content_type) == is_openmetrics
    names = {re.sub(r"_(bucket|count|sum)$", "", key[0]) for key in read(page, parse)}
    assert names == set(metrics.METRICS)


def test_figures_arrive_where_they_belong():
    assert value("kwsiem_events_total", kind="tcp.syn") == 6
    assert value("kwsiem_lines_total", probe="net", result="rejected", reason="json") == 2
    assert value("kwsiem_lines_received_total", probe="net") == 10
    assert value("kwsiem_sensor_lost_total", probe="net", reason="aggregated") == 1000
    assert value("kwsiem_rule_evaluations_total", rule="ssh-brute") == 9
    assert value("kwsiem_rule_alerts_total", rule="ssh-brute", state="update") == 2
    assert value("kwsiem_output_lag_seconds", output='si"em\\') == 12.5
    assert value("kwsiem_output_alerts", output='si"em\\', fate="waiting") == 2
    assert value("kwsiem_blocks", mode="dry-run") == 2
    assert value("kwsiem_process_cpu_seconds_total", process="bpftrace", probe="net") == 2.5
    assert value("kwsiem_outbox_in_memory") == 1
    assert value("kwsiem_probe_state", probe="pam", state="backoff") == 1
    assert value("kwsiem_probe_state", probe="pam", state="ready") == 0
    assert value("kwsiem_engine_errors_total") == 3


def test_drops_of_all_stages_stand_in_one_metric():
    found = read(metrics.render(figures(), {})[0])
    drops = {key[1:]: number for key, number in found.items() if key[0] == "kwsiem_drops_total" and number}
    assert {(stage[1], unit[1], reason[1]): number for (reason, stage, unit), number in drops.items()} == {
        ("sensor", "events", "ring_buffer"): 5, ("sensor", "events", "budget"): 2, ("decode", "lines", "json"): 2,
        ("decode", "lines", "type"): 1, ("engine", "alerts", "unacknowledged"): 1, ("courier", "alerts", "rejected"): 1,
        ("sensor", "messages", "bad"): 1, ("output", "alerts", "age"): 1,
    }  # fmt: skip


def test_the_history_of_figures_and_the_event_log():
    found = figures()
    found["engine"] |= {
        "event_log": {"on": True, "rotated": 3, "lost": 4, "failed": "disk"},
        "series_lost": 5,
    }
    found["courier"] |= {"series": {"lost": {"disk": 6}, "damaged": 1, "bytes": 4096, "error": "disk"}}
    found["series_lost"] = 7
    read_ = read(metrics.render(found, {})[0])
    for name, wanted in {
        "kwsiem_event_log_rotated_total": 3, "kwsiem_event_log_failing": 1, "kwsiem_series_bytes": 4096,
        "kwsiem_series_damaged_total": 1, "kwsiem_series_failing": 1,
    }.items():  # fmt: skip
        assert value(name, read_) == wanted, name
    for stage, unit, reason, wanted in (
        ("engine", "figures", "unsent", 5), ("sensor", "figures", "unsent", 7), ("courier", "figures", "disk", 6),
        ("engine", "records", "event_log", 4),
    ):  # fmt: skip
        assert value("kwsiem_drops_total", read_, stage=stage, unit=unit, reason=reason) == wanted


def test_a_latency_counts_in_every_bucket_above_it():
    found = read(metrics.render(figures(), {})[0])

    def bucket(bound: str) -> float:
        return value("kwsiem_detection_latency_seconds_bucket", found, until="built", le=bound)

    assert [bucket(each) for each in ("0.001", "0.01", "0.025", "60.0", "+Inf")] == [2, 2, 4, 4, 5]
    assert value("kwsiem_detection_latency_seconds_count", found, until="built") == 5
    assert value("kwsiem_detection_latency_seconds_sum", found, until="built") == pytest.approx(90.0404)
    assert value("kwsiem_detection_latency_seconds_count", found, until="durable") == 0


def test_states_of_a_probe_are_all_known():
    assert set(metrics.PROBE_STATES) == {state.value for state in State}


HOSTILE = [
    None,
    "x",
    -1,
    float("nan"),
    float("inf"),
    2**70,
    [],
    {},
    {"a": {"b": []}},
    ["\ud800"],
    {'\ud800\n"\\': "1"},
]


@pytest.mark.parametrize(
    "part", ["engine", "courier", "probes", "processes", "usage", "blocking", "rules", "at_s"]
)
@pytest.mark.parametrize("junk", HOSTILE, ids=repr)
def test_figures_that_are_none_harm_nothing(part, junk):
    for broken in ({**figures(), part: junk}, spoiled(figures(), part, junk)):
        for is_openmetrics, parse in ((False, read_text), (True, read_openmetrics)):
            assert read(metrics.render(broken, {}, is_openmetrics=is_openmetrics)[0], parse)


def spoiled(found: dict, part: str, junk) -> dict:
    """Every leaf of a part is junk."""

    def walk(node):
        if isinstance(node, dict):
            return {key: walk(each) for key, each in node.items()}
        return [walk(each) for each in node] if isinstance(node, list) else junk

    return {**found, part: walk(found[part])}


def test_labels_are_cut_and_series_bounded():
    kinds = {f"{number:05}" + "\n\x1b]x" * 1000: number for number in range(metrics.MAX_SERIES + 100)}
    page, _ = metrics.render({"engine": {"engine": {"events": kinds}}}, {})
    found = [key for key in read(page) if key[0] == "kwsiem_events_total"]
    assert len(found) == metrics.MAX_SERIES
    assert max(len(label) for _, (_, label) in found) == 128
    alike = {"x" * 200 + str(number): number for number in range(5)}
    page, _ = metrics.render({"engine": {"engine": {"events": alike}}}, {})
    assert page.count(b"\nkwsiem_events_total{") == 1, "the same labels stand once"


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False), ("text/plain;version=0.0.4", False), ("*/*", False), ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;escaping=x\r\ny,text/plain;q=0.5", True), (",;,;;=" * 500, False),
    ],
)  # fmt: skip
def test_the_format_is_the_one_a_reader_accepts(accept, wants):
    assert metrics.accepts_openmetrics(accept) is wants


def test_counts_of_rules_are_those_of_the_rules_that_run_and_bounded():
    rules = RuleFigures()
    rules.take("one", {"old": RuleCounts(opened=1)})
    rules.take("two", {f"rule-{number}": RuleCounts(opened=number) for number in range(MAX_RULES + 10)})
    assert len(rules.counts) == MAX_RULES
    assert "old" not in rules.counts
    other = RuleFigures()
    for sha256, part in rules.parts():
        assert len(part) <= 200
        other.take(sha256, part)
    assert other.counts == rules.counts


# the dashboard and the rules -----------------------------------------------------------------------------


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bkwsiem_\w+", expression))


def known() -> set[str]:
    histograms = {f"{name}_{part}" for name, (kind, _) in metrics.METRICS.items() if kind == "histogram"
                  for part in ("bucket", "count", "sum")}  # fmt: skip
    return set(metrics.METRICS) | histograms


def test_the_dashboard_shows_metrics_that_are_there():
    dashboard = json.loads((PACKAGING / "grafana" / "kwsiem.json").read_text())
    panels = dashboard["panels"]
    assert len(panels) >= 12
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        for target in panel["targets"]:
            assert names_in(target["expr"]) <= known(), panel["title"]
            assert "up{" in target["expr"] or names_in(target["expr"])
    cells = [(panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y) for panel in panels
             for x in range(panel["gridPos"]["w"]) for y in range(panel["gridPos"]["h"])]  # fmt: skip
    assert len(set(cells)) == len(cells), "no panel covers another"
    assert max(x for x, _ in cells) < 24


def test_rules_for_prometheus_ask_for_metrics_that_are_there():
    document = yaml.safe_load((PACKAGING / "prometheus" / "kwsiem.rules.yml").read_text())
    (group,) = document["groups"]
    for rule in group["rules"]:
        assert names_in(rule["expr"]) <= known(), rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
    scrape = yaml.safe_load((PACKAGING / "prometheus" / "scrape.yml").read_text())
    assert scrape["scrape_configs"][0]["job_name"] == "kwsiem"


def test_every_bound_is_above_the_one_before():
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
