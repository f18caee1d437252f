"""Packed order of a batch's positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.packing import PackedLayout


@given(lengths=st.lists(st.integers(0, 9), max_size=12))
def test_every_position_is_packed_once_and_live_rows_lead(lengths):
    layout = PackedLayout.of(np.array(lengths, np.int64))
    forward = set(zip(layout.row_N.tolist(), layout.times(backward=False).tolist(), strict=True))
    assert forward == {(row, t) for row, n in enumerate(lengths) for t in range(n)}
    assert len(layout.row_N) == sum(lengths) == layout.live_rows_T.sum()
    assert len(layout.live_rows_T) == max(lengths, default=0)
    start = 0
    for step, live in enumerate(layout.live_rows_T):
        assert np.array_equal(layout.row_N[start : start + live], layout.order_B[:live])
        assert (layout.step_N[start : start + live] == step).all()
        start += live
    assert np.array_equal(layout.order_B[layout.inverse_order_B], np.arange(len(lengths)))


def test_backward_times_count_from_the_rows_own_end():
    layout = PackedLayout.of(np.array([1, 3]))
    assert layout.row_N.tolist() == [1, 0, 1, 1]
    assert layout.times(backward=False).tolist() == [0, 0, 1, 2]
    assert layout.times(backward=True).tolist() == [2, 0, 1, 0]
