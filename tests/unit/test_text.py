import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kwsiem.text import clean, cut_bytes, without_reordering

ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@given(ANY_TEXT, st.integers(1, 40))
def test_clean_text_is_bounded_has_no_control_character_and_stays_as_it_is(text, limit):
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in cleaned)
    assert len(cleaned.splitlines()) <= 1
    assert clean(cleaned, limit) == cleaned
    cleaned.encode()


def test_harmless_text_is_not_touched():
    assert clean("naïve 日本 🦊 a|b=c\\d", 100) == "naïve 日本 🦊 a|b=c\\d"


def test_blanks_become_spaces_and_other_controls_a_replacement():
    assert clean("a\nb\tc\x1b[31m\x00\udc80", 100) == "a b c\ufffd[31m\ufffd\ufffd"


@given(ANY_TEXT, st.integers(0, 40))
def test_a_cut_by_bytes_is_the_longest_beginning_that_fits(text, limit):
    text = text.encode("utf-8", "replace").decode()
    cut = cut_bytes(text, limit)
    assert text.startswith(cut)
    assert len(cut.encode()) <= limit
    assert cut == text or len(text[: len(cut) + 1].encode()) > limit


def test_characters_that_reorder_text_are_replaced():
    assert without_reordering("user\u202etxt.exe\u2066\u200b") == "user\ufffdtxt.exe\ufffd\ufffd"
