"""Every format byte by byte; KWSIEM_GOLDEN=write makes the files anew (then read the difference)."""

import copy
import json
import os
from pathlib import Path

import pytest

from kwsiem.formats import FORMATS, chat, make

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = {"scan", "hostile", "ipv6", "auth", "process", "close", "digested"}
RENDERERS = {
    **FORMATS,
    "cef1": make("cef", cef_version=1),
    "leef1": make("leef", leef_version="1.0"),
    "telegram": chat.telegram,
    "slack": lambda document: json.dumps(chat.slack(document), ensure_ascii=False, indent=1),
    "mail": lambda document: "\n".join(map(str, chat.mail(document))),
}


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_the_lines_are_as_they_were(name, documents):
    assert set(documents) == CASES
    for case, document in documents.items():
        document["observer"]["version"] = "1.0.0"
        line = RENDERERS[name](document)
        path = GOLDEN / f"{case}.{name}"
        if os.environ.get("KWSIEM_GOLDEN") == "write":
            path.write_text(line + "\n")
        assert path.read_text() == line + "\n", path.name


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_a_format_leaves_the_document_as_it_is_and_gives_the_same_line_again(name, documents):
    for document in documents.values():
        before = copy.deepcopy(document)
        assert RENDERERS[name](document) == RENDERERS[name](document)
        assert document == before


def test_golden_files_are_those_of_the_formats():
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{case}.{name}" for case in CASES for name in RENDERERS
    }
