import contextlib
import json
import re
import threading

import pytest

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


@pytest.mark.parametrize(("balanced", "code"), [(True, 0), (False, 1)])
def test_metrics_are_those_of_the_endpoint(tmp_path, capsys, balanced, code):
    rules = {"ssh-brute": {"evaluations": 7, "opened": 2}}
    with answering(tmp_path, {"figures": status(balanced=balanced), "rules": rules}) as asked:
        assert main(["stats", "--metrics", "--runtime", str(tmp_path)]) == code
    assert asked == [{"command": "metrics"}]
    lines = capsys.readouterr().out.splitlines()
    assert r'kwsiem_output_alerts{fate="waiting",output="si\"em"} 2.0' in lines
    assert 'kwsiem_lines_total{probe="net",reason="json",result="rejected"} 1.0' in lines
    assert 'kwsiem_rule_alerts_total{rule="ssh-brute",state="open"} 2.0' in lines


@contextlib.contextmanager
def answering(folder, answer):
    """An appliance that gives one answer."""
    asked = []
    server = ControlServer(folder / "control.sock", lambda request: asked.append(request) or answer)
    thread = threading.Thread(target=lambda: [server._socket.setblocking(True), server.serve()])
    thread.start()
    try:
        yield asked
    finally:
        thread.join(10)
        server.close()


@pytest.mark.parametrize(("balanced", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_it_balances(tmp_path, capsys, balanced, code):
    with answering(tmp_path, status(balanced=balanced)):
        assert main(["stats", "--json", "--runtime", str(tmp_path)]) == code
    assert json.loads(capsys.readouterr().out)["balanced"] is balanced
