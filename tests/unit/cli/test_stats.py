import json
import re

import pytest

from kwsiem import metrics
from kwsiem.cli import main
from kwsiem.cli.stats import ledger, render
from kwsiem.control import ControlServer


def status(**output):
    account = {
        "name": 'si"em', "state": "ready", "raised": 10, "delivered": 5, "waiting": 2, "dead": 1, "dropped": 1,
        "filtered": 1, "balanced": True, "label": "confirmed", "retries": 3, "replayed": 4,
    }  # fmt: skip
    return {
        "engine": {
            "lines": {"net": {"received": 9, "accepted": 7, "rejected": {"json": 1, "type": 1}, "lost": 3}},
            "alerts": {"raised": 10, "acknowledged": 9, "waiting": 1, "dropped": 0},
        },
        "courier": {"outputs": [{**account, **output}]},
    }


def test_the_ledger_balances_only_if_all_of_it_does():
    assert ledger(status())["balanced"]
    assert not ledger(status(balanced=False))["balanced"]
    lost_line = status()
    lost_line["engine"]["lines"]["net"]["accepted"] = 6
    assert not ledger(lost_line)["balanced"]
    lost_alert = status()
    lost_alert["engine"]["alerts"]["acknowledged"] = 8
    assert not ledger(lost_alert)["balanced"]


def test_people_see_what_does_not_balance():
    text = render(ledger(status(balanced=False)))
    assert re.search(r'si"em +10 +5 +2 +1 +1 +1 +confirmed +does not balance', text)
    assert text.endswith("NOT BALANCED")
    assert render(ledger(status())).endswith("\nbalanced")


def test_metrics_are_in_the_exposition_format():
    text = metrics.render(status())
    sample = re.compile(
        r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? [0-9.e+]+\Z'
    )
    lines = text.splitlines()
    assert all(line.startswith("# ") or sample.match(line) for line in lines)
    assert r'kwsiem_output_alerts{output="si\"em",fate="waiting"} 2' in lines
    assert 'kwsiem_lines_total{probe="net",result="rejected",reason="json"} 1' in lines
    named = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    typed = {line.split(" ")[2] for line in lines if line.startswith("# TYPE")}
    assert named == typed


@pytest.mark.parametrize(("balanced", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_it_balances(tmp_path, capsys, balanced, code):
    import threading

    server = ControlServer(tmp_path / "control.sock", lambda _: status(balanced=balanced))
    thread = threading.Thread(target=lambda: [server._socket.setblocking(True), server.serve()])
    thread.start()
    try:
        assert main(["stats", "--json", "--runtime", str(tmp_path)]) == code
    finally:
        thread.join(10)
        server.close()
    assert json.loads(capsys.readouterr().out)["balanced"] is balanced
