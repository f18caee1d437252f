"""Splits are put into groups of about equal bytes, in order."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import group_splits
from pipeline.records import SourceSplit


@given(st.lists(st.integers(0, 1000), max_size=50), st.integers(1, 10))
def test_every_split_is_in_one_group_in_order(sizes, max_groups):
    splits = [SourceSplit(n, f"{n}", "jsonl", 0, None, size) for n, size in enumerate(sizes)]
    groups = group_splits(splits, max_groups)
    assert len(groups) <= max_groups
    assert all(groups)
    assert [split for group in groups for split in group] == splits


def test_a_few_splits_are_each_their_own_group():
    splits = [SourceSplit(n, f"{n}", "jsonl", 0, None, 10) for n in range(4)]
    assert len(group_splits(splits, 200)) == 4
