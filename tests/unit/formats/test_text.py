import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kwsiem.document import document
from kwsiem.formats import text

ANY = st.text(st.characters(exclude_categories=[]), max_size=60)


def facts_of(line):
    """The facts in the last parentheses, read from the end by a small parser of quoted values."""
    facts, i = {}, line.rindex(" (") + 2
    # The last unquoted "(" may stand inside a quoted value: find the first one from which all can be read.
    for start in [n + 2 for n in range(len(line)) if line.startswith(" (", n)]:
        facts, i = {}, start
        while i < len(line) - 1:
            end = i
            while end < len(line) and (line[end].isalnum() or line[end] in "=_+.T-"):
                end += 1
            key, equals, value = line[i:end].partition("=")
            if equals and not value and end < len(line) and line[end] == '"':
                value, end = "", end + 1
                while end < len(line) and line[end] != '"':
                    end += line[end] == "\\"
                    value += line[end : end + 1]
                    end += 1
                end += 1
            facts[key] = value
            if line[end : end + 2] != ", ":
                break
            i = end + 2
        if end == len(line) - 1 and "id" in facts:
            return facts
    raise AssertionError(line)


def test_a_line_for_people(scan):
    assert text.render(scan) == (
        "2026-01-02T03:04:06.123Z HIGH tcp-port-scan: TCP port scan: 5 different destination.port in 3s"
        ' (from="198.51.100.7", to="192.0.2.1", port=24, count=5, attack=T1046, open, id='
        f"{scan['event']['id']})"
    )


def test_nothing_of_an_attacker_moves_a_cursor_or_ends_the_line(hostile):
    line = text.render(hostile)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert "\u202e" not in line


@given(ANY, ANY)
def test_facts_in_quotes_are_what_was_given(make_alert, user, process):
    found = document(make_alert(fields={"user.name": user, "process.name": process}, reason="r"))
    line = text.render(found)
    assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c == "\u202e" for c in line)
    facts = facts_of(line)
    assert facts["id"] == found["event"]["id"]
    assert facts.get("user", "") == text._safe(found.get("user", {}).get("name", ""))
    assert facts.get("process", "") == text._safe(found.get("process", {}).get("name", ""))


def test_a_document_without_facts_still_gives_a_line():
    assert text.render({}).startswith("None NONE None: None (count=0, None, id=None)")


def test_a_block_is_told(close):
    assert "blocked" not in text.render(close)
    close["kwsiem"]["alert"]["block"]["decision"] = "blocked"
    assert ", attack=T1046, blocked, close, id=" in text.render(close)
