"""Merging parts as they come."""

import pytest

from pipeline.merge_tree import MergeTree


def joined(*parts):
    return sum(parts, ())


@pytest.mark.parametrize("fan_in", [2, 3, 8])
def test_no_part_is_lost_and_none_is_merged_twice(fan_in):
    for num_parts in range(100):
        tree = MergeTree(joined, fan_in)
        for number in range(num_parts):
            tree.add((number,))
        assert sorted(joined(*tree.parts())) == list(range(num_parts))


def test_few_parts_are_held_however_many_were_added():
    tree = MergeTree(joined, 8)
    most = 0
    for number in range(8**4 - 1):
        tree.add((number,))
        most = max(most, len(tree.parts()))
    assert most == 4 * 7


def test_a_part_takes_part_in_few_merges():
    num_moved = 0

    def merge(*parts):
        nonlocal num_moved
        num_moved += sum(map(len, parts))
        return joined(*parts)

    tree = MergeTree(merge, 8)
    for number in range(8**3):
        tree.add((number,))
    assert num_moved == 3 * 8**3


def test_a_tree_without_parts_holds_nothing():
    assert MergeTree(joined).parts() == []
