import json
from pathlib import Path

from kwsiem.formats import FORMATS
from kwsiem.formats.page import _PARAGRAPHS, example, render


def test_the_page_is_made_from_the_table():
    page = Path(__file__).parents[3] / "docs" / "formats.md"
    assert page.read_text() == render(), "write it anew with kwsiem.formats.page.render"


def test_every_format_has_its_part_and_a_real_line():
    assert set(_PARAGRAPHS) == set(FORMATS)
    text = render()
    for name, make_line in FORMATS.items():
        assert f"## {name}\n" in text
        assert make_line(example()) in text
    assert json.loads(FORMATS["ocsf"](example()))["evidences"][0]["data"]["class_uid"] == 4001


def test_the_example_does_not_change_with_the_version():
    assert example()["observer"]["version"] == "1.0.0"
