"""``rate_per_min`` of any output: above it comes a digest in the output's own format, and no id is missing."""

import json

import msgspec
import pytest

from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import EmailSettings, FileSettings, SlackSettings, TelegramSettings
from kwsiem.outputs.worker import Worker


def test_a_file_with_a_rate_gets_digests_that_hold_every_id(tmp_path, make_alert):
    settings = FileSettings(name="out", path=str(tmp_path / "alerts.jsonl"), rate_per_min=3)
    outbox = Outbox(tmp_path / "kwsiem.db", ["out"])
    output = make_output(settings, {})
    worker = Worker("out", output, outbox, make_route(settings, output.limits))
    found = [document(make_alert(number=n, level="low" if n else "critical")) for n in range(700)]
    outbox.put(
        [Item(one["event"]["id"], one["event"]["severity"], msgspec.json.encode(one)) for one in found]
    )
    now_s = 0.0
    while outbox.ledger()["out"].waiting:
        assert now_s < 600, worker.stats()
        now_s += worker.step(now_s)
    worker.close()
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    digests = [line["kwsiem"]["digest"] for line in lines if "digest" in line["kwsiem"]]
    singles = [line["event"]["id"] for line in lines if "digest" not in line["kwsiem"]]
    ids = singles + [one for digest in digests for one in digest["ids"]]
    assert sorted(ids) == sorted(one["event"]["id"] for one in found)
    assert singles[0] == found[0]["event"]["id"], "the critical one first"
    assert len(lines) == 3
    assert (
        sum(digest["count"] for digest in digests) + len(singles) == 700 == outbox.ledger()["out"].delivered
    )
    outbox.close()


@pytest.mark.parametrize(
    ("settings", "limits", "most"),
    [
        (FileSettings(name="f"), (), None),
        (FileSettings(name="f", rate_per_min=5), (), 10),
        (SlackSettings(name="s"), ((1, 1.0),), 61),
        (SlackSettings(name="s", rate_per_min=1), ((1, 1.0),), 2),
        (EmailSettings(name="e"), (), 12),
        (TelegramSettings(name="t"), ((1, 1.0), (5, 20.0)), 20),
        (TelegramSettings(name="t", rate_per_min=4), ((1, 1.0),), 8),
    ],
)
def test_the_pace_is_the_tightest_of_settings_defaults_and_destination(settings, limits, most):
    """Messages in the first minute; a rate may be used up at once at its beginning, hence twice."""
    pace = make_route(settings, limits).pace
    assert (pace is None) == (most is None)
    sent = 0
    for tick in range(240):
        if pace:
            free = pace.free(tick / 4)
            pace.take(free, tick / 4)
            sent += free
    assert most is None or 0 < sent <= most
