import json

from hypothesis import given
from hypothesis import strategies as st

from kwsiem.document import document
from kwsiem.formats import compact, ecs

TEXT = st.text(st.characters(exclude_categories=[]), max_size=50)


def test_ecs_is_the_whole_document_on_one_line(scan, hostile):
    for found in (scan, hostile):
        line = ecs.render(found)
        assert len(line.splitlines()) == 1
        assert json.loads(line) == found


@given(TEXT, TEXT)
def test_no_text_breaks_out_of_a_json_line(make_alert, user, reason):
    found = document(make_alert(fields={"user.name": user}, reason=reason, identity={"user.name": user}))
    for render in (ecs.render, compact.render):
        assert len(render(found).splitlines()) == 1
    assert json.loads(ecs.render(found)) == found
    flat = json.loads(compact.render(found))
    assert flat.get("user.name", "") == found.get("user", {}).get("name", "")
    assert flat.get("reason", "") == found["event"].get("reason", "")
    assert flat["id"] == found["event"]["id"]


def test_compact_is_flat_in_a_fixed_order_without_what_is_absent(scan, hostile):
    for found in (scan, hostile):
        flat = json.loads(compact.render(found))
        assert [key for key in compact.KEYS if key in flat] == list(flat)
        assert not any(isinstance(value, dict) or value in ("", None, []) for value in flat.values())
    assert "source.address" not in json.loads(compact.render(scan)), "it says no more than source.ip"
