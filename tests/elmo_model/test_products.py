"""Products of training are products, whatever the layout of their factors and the threads."""

import pytest
import torch

from elmo_model.kernels.memory import keep_freed_memory
from elmo_model.kernels.products import linear, product, product_by_rows, slices, stored

# Sums of 70 products of unit size: float32 rounds each, bfloat16 keeps 8 bits of factors and sum.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.5}


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random(*shape, dtype, is_transposed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = shape[::-1] if is_transposed else shape
    values = torch.randn(*shape, generator=generator).to(dtype)
    return values.t() if is_transposed else values


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("left_transposed", [False, True])
@pytest.mark.parametrize("right_transposed", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 37])
def test_every_way_gives_the_product(num_rows, right_transposed, left_transposed, dtype):
    left = random(num_rows, 70, dtype=dtype, is_transposed=left_transposed)
    right = random(70, 33, dtype=dtype, is_transposed=right_transposed, seed=1)
    bias = torch.linspace(-1, 1, 33).to(dtype)
    expected = left.double() @ right.double()
    for way in (product, product_by_rows, lambda x, y, b=None: stored(y, b)(x)):
        for added in (None, bias):
            found = way(left, right, added)
            assert found.dtype == dtype
            wanted = expected if added is None else expected + added.double()
            torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[dtype], rtol=0)


def test_linear_has_the_gradient_of_small_differences():
    leaves = [
        random(*shape, dtype=torch.float64).requires_grad_() for shape in ((20, 4), (4, 3), (3, 3))
    ]
    inputs, weight = leaves[:2]
    bias = leaves[2][0].detach().requires_grad_()
    torch.autograd.gradcheck(lambda *given: linear(*given, torch.float64), (inputs, weight, bias))


@pytest.mark.parametrize(
    ("length", "num_parts", "multiple_of"), [(1, 4, 1), (100, 3, 16), (7, 7, 1)]
)
def test_slices_cover_all_rows_once_and_are_not_empty(length, num_parts, multiple_of):
    parts = slices(length, num_parts, multiple_of)
    assert [row for part in parts for row in range(length)[part]] == list(range(length))
    assert all(part.start < part.stop for part in parts)
    assert len(parts) <= num_parts


def test_memory_is_kept_or_the_system_has_no_such_setting():
    assert keep_freed_memory() in (True, False)
    assert keep_freed_memory() is keep_freed_memory()
