"""The fault matrix with few alerts: every case of ``make faults``, several at a time."""

import os
from pathlib import Path

import pytest
from faults.cases import MATRIX
from faults.matrix import Runner, table
from faults.tally import Tally
from faults.trial import Case, Trial, run_case

from kwsiem.output_settings import FileSettings

pytestmark = pytest.mark.live

#: Cases mostly wait, so more of them run at a time than there are cores.
JOBS = 4 * (os.cpu_count() or 2)
DOCUMENT = Path(__file__).parents[2] / "docs" / "delivery.md"


@pytest.fixture(scope="module")
def running(request):
    """All cases that were chosen, begun at once in the order of the matrix."""
    chosen = [item for item in request.session.items if item.path == request.path]
    names = {item.callspec.params["case"].name for item in chosen if "running" in item.fixturenames}
    runner = Runner(JOBS)
    yield {case.name: runner.start(case.name, 0) for case in MATRIX if case.name in names}
    runner.close()


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: case.name)
def test_no_alert_is_lost(running, case):
    rows, error = running[case.name].result()
    assert not error, error
    assert rows
    assert all(row.lost == 0 and row.balanced for row in rows), table(rows)


def test_the_names_of_cases_tell_them_apart():
    assert len({case.name for case in MATRIX}) == len(MATRIX)


def test_a_case_fails_when_one_alert_is_gone(tmp_path):
    """The matrix itself is tested: a receiver that lost one line, repeated one, and forged one."""

    def sabotaged(trial: Trial) -> None:
        tmp_path.chmod(0o755)
        path = tmp_path / "state" / "siem.jsonl"
        trial.send(FileSettings(name="siem", path=str(path)))
        trial.tally("siem", "file", tmp_path / "copy")
        trial.patience_s = 0.5
        trial.part(0.5)
        trial.sender.wait(lambda: path.exists() and path.read_bytes().count(b"\n") == 5, "five lines")
        lines = path.read_bytes().splitlines(keepends=True)
        (tmp_path / "copy").write_bytes(b"".join(lines[1:]))

    with pytest.raises(AssertionError, match=r"siem has 4 of 10, missing \[1, 6, 7"):
        run_case(Case("sabotaged", "", sabotaged, least=10), tmp_path, 10)


def test_repeats_and_forgeries_are_told_apart():
    raised = {1: "AAA", 2: "BBB", 3: "CCC"}
    tally = Tally(raised)
    for number, alert_id in ((1, "AAA"), (1, "AAA"), (2, "AAA"), (4, "AAA")):
        tally.take(b"id=%s alert number %d of the matrix" % (alert_id.encode(), number))
    assert (tally.received, tally.duplicates, tally.lost) == (2, 1, [2, 3])
    assert len(tally.forged) == 2
