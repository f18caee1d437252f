"""The accounting adds up, or says by how much it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.accounting import Accounting
from pipeline.errors import PipelineError

COUNTS = st.lists(st.integers(0, 10**12), min_size=5, max_size=5)


@given(COUNTS)
def test_rows_that_all_ended_somewhere_are_accounted_for(counts):
    accounting = Accounting(sum(counts), *counts)
    accounting.check("s3://corpus/")
    assert accounting.documents == sum(counts[:4])
    assert sum(accounting.to_counts().values()) == 2 * sum(counts)


@given(COUNTS, st.integers(1, 1000))
def test_a_row_too_few_or_too_many_is_an_error_that_says_how_many(counts, off):
    with pytest.raises(PipelineError, match=rf"s3://corpus/: {off:,} rows have vanished: .* ≠ "):
        Accounting(sum(counts) + off, *counts).check("s3://corpus/")
    with pytest.raises(PipelineError, match=rf"{off:,} rows too many"):
        Accounting(sum(counts), counts[0] + off, *counts[1:]).check("s3://corpus/")


def test_a_negative_number_is_an_error_even_where_the_sum_is_right():
    with pytest.raises(PipelineError, match="negative"):
        Accounting(5, embedded=6, unchanged=-1).check("s3://corpus/")


def test_the_summary_shows_the_equation_without_zeros():
    accounting = Accounting(12_003, embedded=10, unchanged=11_990, rejected=3)
    assert (
        accounting.describe()
        == "accounted for: 12,003 rows in = 10 embedded + 11,990 unchanged + 3 rejected"
    )
    assert Accounting(0).describe() == "accounted for: 0 rows in = 0"


def test_the_manifest_gets_every_term_by_name():
    accounting = Accounting(21, 1, 2, 3, 5, 10)
    assert accounting.to_counts() == {
        "input_rows": 21,
        "input_embedded": 1,
        "input_resumed": 2,
        "input_metadata_only": 3,
        "input_unchanged": 5,
        "input_rejected": 10,
    }
