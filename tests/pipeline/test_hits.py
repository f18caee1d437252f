"""Vectors are scaled in their own memory, whatever their number and length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.hits import scale_to_unit, stored_matrix

# Sums of float32 in another order.
FLOAT32_TOLERANCE = 1e-6


@pytest.mark.parametrize(("num_rows", "dim"), [(0, 3), (1, 1), (700, 300), (2, 100_000)])
def test_vectors_get_length_one_and_their_own_lengths_are_told(num_rows, dim):
    random = np.random.default_rng(1)
    vectors_ND = random.standard_normal((num_rows, dim), np.float32)
    norms_N = np.linalg.norm(vectors_ND.astype(np.float64), axis=1)
    expected_ND = vectors_ND / norms_N[:, None]

    found_N = scale_to_unit(vectors_ND)

    np.testing.assert_allclose(found_N, norms_N, rtol=FLOAT32_TOLERANCE)
    np.testing.assert_allclose(vectors_ND, expected_ND, atol=FLOAT32_TOLERANCE)


def test_a_vector_of_zeros_stays_as_it_is():
    vectors_ND = np.array([[0, 0], [3, 4]], np.float32)
    assert scale_to_unit(vectors_ND).tolist() == [0, 5]
    assert vectors_ND.tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_slice_of_a_column_is_a_matrix_of_its_own_element_type(dtype):
    values = np.arange(12, dtype=dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 3)
    found_ND = stored_matrix(column.slice(1, 2))
    assert found_ND.dtype == dtype
    assert found_ND.tolist() == [[3, 4, 5], [6, 7, 8]]
