"""Metrics of a running appliance: read by promtool, scraped by a real Prometheus, asked of both."""

import contextlib
import json
import os
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from appliance import SOURCE, RunningAppliance
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
PEERS = Path(os.environ.get("KWSIEM_TEST_PEERS", "/var/cache/kwsiem-test-peers"))
BIN = PEERS / "prometheus" / "usr" / "bin"
LISTEN = "127.0.0.1:9464"
RULES = """version: 1
rules:
  - id: scan
    title: Scan
    level: high
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 3s
      condition: {gte: 5}
"""


@pytest.fixture
def lab():
    with Lab("host", "peer") as made:
        yield made


def get(lab: Lab, url: str, accept: str = "") -> str:
    """As the host itself would ask."""
    with lab.inside("host"):
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()


def promtool(*arguments: str, text: str | None = None) -> None:
    done = subprocess.run(
        [BIN / "promtool", *arguments], check=False, input=text, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def prometheus(lab: Lab, folder: Path):
    """The real one, with the files we ship, but with a scrape each second."""
    config = folder / "prometheus.yml"
    text = (SOURCE / "packaging" / "prometheus" / "scrape.yml").read_text()
    rules = folder / "kwsiem.rules.yml"
    rules.write_bytes((SOURCE / "packaging" / "prometheus" / "kwsiem.rules.yml").read_bytes())
    config.write_text(text.replace("15s", "1s").replace("/etc/prometheus/kwsiem.rules.yml", str(rules)))
    promtool("check", "config", str(config))
    argv = [BIN / "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb"]
    argv += ["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]
    argv += [f"--web.console.templates={folder}", f"--web.console.libraries={folder}"]
    with (folder / "prometheus.log").open("wb") as log:
        child = lab.popen("host", [str(each) for each in argv], stdout=log, stderr=log)
    try:
        yield
    finally:
        lab.stop(child)


def ask(lab: Lab, expression: str) -> list[dict]:
    query = urllib.parse.urlencode({"query": expression})
    try:
        found = json.loads(get(lab, f"http://127.0.0.1:9090/api/v1/query?{query}"))
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return []  # it starts
        raise AssertionError(f"{expression}: {error.read().decode()}") from None
    except OSError:
        return []  # it is not there yet
    return found["data"]["result"]


def test_prometheus_scrapes_a_running_appliance(lab, tmp_path):
    settings = f'metrics: {{listen: "{LISTEN}"}}\n'
    with RunningAppliance(lab, tmp_path, rules=RULES, settings=settings) as appliance:
        wait_until(lambda: appliance.status()["metrics"].get("listening"), 10, "the endpoint")
        for port in range(20, 30):
            with lab.inside("peer"), contextlib.suppress(OSError):
                socket.create_connection((lab.ip4("host"), port), timeout=5).close()
        appliance.wait_alert("scan")
        wanted = {'kwsiem_rule_alerts_total{rule="scan",state="open"} 1.0'}
        wanted |= {f'kwsiem_detection_latency_seconds_count{{until="{u}"}} 1.0' for u in ("built", "durable")}
        url = f"http://{LISTEN}/metrics"
        wait_until(lambda: wanted <= set(get(lab, url).splitlines()), 10, "the alert among the metrics")
        page = get(lab, url)
        promtool("check", "metrics", text=page)
        assert get(lab, url, "application/openmetrics-text").endswith("# EOF\n")
        promtool("check", "rules", str(SOURCE / "packaging" / "prometheus" / "kwsiem.rules.yml"))
        with prometheus(lab, tmp_path):
            assert wait_until(lambda: ask(lab, "up == 1"), 30, "a scrape")
            used = ask(lab, "kwsiem_process_resident_memory_bytes > 1e6")
            assert {each["metric"]["process"] for each in used} == {
                "sensor",
                "engine",
                "courier",
                "exporter",
                "bpftrace",
            }
            probes = {probe["name"] for probe in appliance.status()["probes"] if probe["state"] == "ready"}
            ready = ask(lab, 'kwsiem_probe_state{state="ready"} == 1')
            assert {each["metric"]["probe"] for each in ready} == probes
            dashboard = json.loads((SOURCE / "packaging" / "grafana" / "kwsiem.json").read_text())
            for panel in dashboard["panels"]:
                for target in panel["targets"]:
                    expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
                    ask(lab, expression)  # an expression that cannot be read is an HTTP error
    assert appliance.process.returncode == 0
