"""Every format byte by byte; KWSIEM_GOLDEN=write makes the files anew (then read the difference)."""

import os
from pathlib import Path

import pytest

from kwsiem.formats import FORMATS

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("case", ["scan", "hostile"])
def test_the_line_is_as_it_was(name, case, request, monkeypatch):
    document = request.getfixturevalue(case)
    document["observer"]["version"] = "1.0.0"
    line = FORMATS[name](document)
    path = GOLDEN / f"{case}.{name}"
    if os.environ.get("KWSIEM_GOLDEN") == "write":
        path.write_text(line + "\n")
    assert path.read_text() == line + "\n"


def test_golden_files_are_those_of_the_formats():
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{case}.{n}" for case in ("scan", "hostile") for n in FORMATS
    }
