"""What is shown of the input is short, printable and says where it was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.excerpt import MAX_EXCERPT_CHARS, bounded, excerpt

ANYTHING = st.text(st.characters(), max_size=400) | st.binary(max_size=2000)


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, None),
        ("", ""),
        ("plain, ünï 中 text", "plain, ünï 中 text"),
        ("a\nb\tc\0d", r"a\nb\tc\x00d"),
        ("\x1b[31mred\u202eder", r"\x1b[31mred\u202eder"),
        ("half \ud83d", r"half \ud83d"),
        (b"caf\xc3\xa9 \xff\xfe", "café \\xff\\xfe"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_an_excerpt_escapes_what_a_terminal_would_act_on(found, shown):
    assert excerpt(found) == shown


@given(ANYTHING, st.integers(0, 2000))
def test_an_excerpt_of_anything_is_short_printable_utf8(found, at):
    shown = excerpt(found, at)
    assert len(shown) <= MAX_EXCERPT_CHARS
    assert shown.isprintable()
    assert shown.encode().decode() == shown


@given(ANYTHING, st.integers(0, 2000))
def test_an_excerpt_is_its_own_excerpt(found, at):
    assert excerpt(excerpt(found, at)) == excerpt(found, at)


def test_an_excerpt_shows_the_place_with_what_precedes_it():
    found = "x" * 5000 + "HERE" + "y" * 5000
    for kind in (found, found.encode()):
        shown = excerpt(kind, 5000)
        assert "xxxHEREyyy" in shown
        assert shown.startswith("…x")
        assert shown.endswith("y…")


def test_a_place_inside_a_character_shows_whole_characters():
    shown = excerpt(("中" * 100).encode(), 100)
    assert set(shown) == {"…", "中"}


def test_a_long_message_is_cut():
    assert bounded("m" * 5000) == "m" * 999 + "…"
    assert bounded("m" * 1000) == "m" * 1000
    assert bounded("line\nline") == r"line\nline"
