"""Normal forms are Python's, for any text, and quick for text that is made to be slow."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.normal_form import LONG_RUN, normal_form

MARKS = "\u0301\u0307\u0308\u0316\u0323\u0327\u0344\u0345\u05b0\u0f71\u0f73\u3099\uff9e\U0001d165"
bits = st.text(st.sampled_from(MARKS + "aoǭ가ᄀ が"), min_size=1, max_size=30)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(parts=st.lists(st.tuples(bits, st.integers(1, 2 * LONG_RUN)), max_size=4))
def test_long_runs_of_marks_come_out_as_python_orders_them(form, parts):
    text = "".join(part * count for part, count in parts)
    assert normal_form(text, form) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=st.text(max_size=100))
def test_any_text_comes_out_as_python_has_it(form, text):
    padded = "é" * LONG_RUN + text
    assert normal_form(padded, form) == unicodedata.normalize(form, padded)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@pytest.mark.parametrize("run", ["\u0307\u0323", "\u0f73\u0316", "\u0344\u0316", "\u3099\u0334"])
def test_a_letter_with_a_million_marks_is_read_to_its_end(form, run):
    # By insertion this would take more than an hour.
    text = "a" + run * 500_000
    found = normal_form(text, form)
    assert len(found) >= 1_000_000
    classes = [unicodedata.combining(mark) for mark in found[1:]]
    assert classes == sorted(classes)
