"""A layer as one function gives the readable layer's outputs, states and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elmo_model.kernels import native, training_cell
from elmo_model.kernels.lstm_training import LayerInput, LayerOutput, LayerRule, run_layer
from elmo_model.lstm import LstmLayer
from elmo_model.options import LstmOptions
from elmo_model.packing import PackedLayout

# Errors are the largest deviation in units of the largest value. float64 and float32 differ by the
# order of sums, and float32 by its exponential, which is good to 2e-7; bfloat16 has 8 bits, and
# these random recurrences amplify what they lose.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 0.1}
CLIPS = [(None, None), (0.5, 0.3)]


def random_layers(
    num_steps, num_rows, width, dim, dtype=torch.float64, num_directions=2, *, seed=0
):
    """Inputs of a layer whose clips at 0.5 and 0.3 are active for about half of the values."""
    generator = torch.Generator().manual_seed(seed)

    def random(scale, *shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    return [
        LayerInput(
            random(1.0, num_steps, num_rows, width),
            random(0.3, num_rows, dim),
            random(0.3, num_rows, width),
            random((2 * width) ** -0.5 * 2, 2 * width, 4 * dim),
            random(0.3, 4 * dim),
            random(dim**-0.5 * 2, dim, width) if dim != width else None,
        )
        for _ in range(num_directions)
    ]


def reference(rule, given):
    """The readable layer with these weights."""
    num_steps, num_rows, width = given.inputs_TBP.shape
    dim = given.cell_BD.shape[1]
    layer = LstmLayer(
        LstmOptions(dim, width, 1, rule.cell_clip, rule.proj_clip, use_skip_connections=False)
    )
    # Assigned as they are, so that the gradient goes to the tensors that were given.
    del layer.kernel, layer.bias, layer.projection
    layer.kernel, layer.bias, layer.projection = (
        given.kernel_FG,
        given.bias_G,
        given.projection_DP,
    )
    layout = PackedLayout.of(np.full(num_rows, num_steps))
    packed, (cell, output) = layer(
        given.inputs_TBP.flatten(0, 1), None, layout, (given.cell_BD, given.output_BP)
    )
    return LayerOutput(packed.view(num_steps, num_rows, width), cell, output)


def values_and_gradients(results, directions, seed=1):
    """All outputs, and the gradients of a random sum of them."""
    generator = torch.Generator().manual_seed(seed)
    values = [value for result in results for value in result]
    weights = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        for value in values
    ]
    leaves = [leaf for given in directions for leaf in given if leaf is not None]
    return [value.detach() for value in values], torch.autograd.grad(values, leaves, weights)


def deviation(found, expected):
    """The worst deviation of a tensor in units of its largest value."""
    return max(
        float((mine.double() - theirs.double()).abs().max() / theirs.double().abs().max())
        for mine, theirs in zip(found, expected, strict=True)
    )


def assert_equals_reference(rule, directions, exact=None):
    """The readable layer may run on the same values in another element type."""
    exact = exact or directions
    found, gradients = values_and_gradients(run_layer(rule, directions), directions)
    expected, theirs = values_and_gradients([reference(rule, given) for given in exact], exact)
    assert deviation(found, expected) < TOLERANCE[rule.dtype]
    assert deviation(gradients, theirs) < TOLERANCE[rule.dtype]


@pytest.fixture(params=[pytest.param("C", marks=pytest.mark.compiler), "torch"])
def cell(request, monkeypatch):
    if request.param == "torch":
        nothing = native.NativeCode(None, "the test says so")
        monkeypatch.setattr(training_cell, "load", lambda: nothing)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.compiler
@pytest.mark.usefixtures("cell")
@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_steps", "num_rows"), [(5, 50), (1, 3), (4, 1), (1, 1)])
def test_a_layer_equals_the_readable_one(num_steps, num_rows, dtype, clips, threads):
    directions = random_layers(num_steps, num_rows, 8, 20, dtype)
    assert_equals_reference(LayerRule(*clips, dtype), directions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cell_clip", [None, 0.5])
def test_a_layer_without_projection_equals_the_readable_one(cell_clip, dtype):
    assert_equals_reference(LayerRule(cell_clip, None, dtype), random_layers(4, 5, 8, 8, dtype))


@pytest.mark.parametrize("num_directions", [1, 2])
@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("shape", [(3, 2, 3, 5), (1, 2, 2, 3), (3, 1, 2, 3)])
def test_the_gradient_is_that_of_small_differences(shape, clips, num_directions):
    directions = random_layers(*shape, num_directions=num_directions)
    assert_gradient(LayerRule(*clips, torch.float64), directions)


def test_the_gradient_without_projection_is_that_of_small_differences():
    assert_gradient(LayerRule(0.5, None, torch.float64), random_layers(3, 2, 3, 3))


def assert_gradient(rule, directions):
    width = len(LayerInput._fields)

    def run(*flat):
        groups = [LayerInput(*flat[k : k + width]) for k in range(0, len(flat), width)]
        return tuple(value for result in run_layer(rule, groups) for value in result)

    torch.autograd.gradcheck(run, [leaf for given in directions for leaf in given])


@settings(max_examples=40, deadline=None)
@given(
    num_steps=st.integers(1, 6),
    num_rows=st.integers(1, 40),
    width=st.integers(1, 9),
    extra=st.integers(0, 30),
    cell_clip=st.sampled_from([None, 0.2, 3.0]),
    proj_clip=st.sampled_from([None, 0.2, 3.0]),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_the_readable_layer(
    num_steps, num_rows, width, extra, cell_clip, proj_clip, seed
):
    proj_clip = proj_clip if extra else None
    directions = random_layers(num_steps, num_rows, width, width + extra, torch.float32, seed=seed)
    exact = [
        LayerInput(*(None if x is None else x.detach().double().requires_grad_() for x in given))
        for given in directions
    ]
    found, gradients = values_and_gradients(
        run_layer(LayerRule(cell_clip, proj_clip, torch.float32), directions), directions
    )
    expected, theirs = values_and_gradients(
        run_layer(LayerRule(cell_clip, proj_clip, torch.float64), exact), exact
    )
    assert deviation(found, expected) < 10 * TOLERANCE[torch.float32]
    # A value at its clip may lie on the other side in float32, which cuts its whole gradient: the
    # bulk must agree.
    for mine, theirs_ in zip(gradients, theirs, strict=True):
        error = (mine.double() - theirs_).norm() / theirs_.norm().clamp_min(1e-3)
        assert float(error) < 1e-2


@pytest.mark.usefixtures("cell")
@pytest.mark.compiler
@pytest.mark.parametrize("clips", [(None, None), (3.0, 3.0)])
def test_bfloat16_products_are_near_float64(clips):
    directions = random_layers(8, 40, 16, 64, torch.float32)
    exact = [
        LayerInput(*(leaf.detach().double().requires_grad_() for leaf in given))
        for given in directions
    ]
    found, gradients = values_and_gradients(
        run_layer(LayerRule(*clips, torch.bfloat16), directions), directions
    )
    expected, theirs = values_and_gradients(
        run_layer(LayerRule(*clips, torch.float64), exact), exact
    )
    assert deviation(found, expected) < TOLERANCE[torch.bfloat16]
    assert deviation(gradients, theirs) < TOLERANCE[torch.bfloat16]
    assert {value.dtype for value in (*found, *gradients)} == {torch.float32}


def test_equal_runs_give_equal_bits_whatever_thread_is_first():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    directions = random_layers(6, 70, 8, 24, torch.float32)
    rule = LayerRule(3.0, 3.0, torch.float32)
    runs = [values_and_gradients(run_layer(rule, directions), directions) for _ in range(5)]
    torch.set_num_threads(before)
    for values, gradients in runs[1:]:
        assert all(map(torch.equal, values, runs[0][0]))
        assert all(map(torch.equal, gradients, runs[0][1]))


def test_the_end_of_a_clip_passes_the_gradient_and_what_is_beyond_does_not():
    # Gates i = o = 1 and f = 0: the cell is tanh(j).
    bias = torch.tensor([60.0, 0.5, -60.0, 60.0], dtype=torch.float64, requires_grad=True)

    def run(clip):
        zeros = [torch.zeros(shape).double() for shape in ((1, 1, 1), (1, 1), (1, 1), (2, 4))]
        (result,) = run_layer(
            LayerRule(clip, None, torch.float64), [LayerInput(*zeros, bias, None)]
        )
        return result.cell_BD

    end = run(None).item()
    assert end == pytest.approx(math.tanh(0.5))
    for clip, is_open in ((end, True), (end * (1 - 1e-12), False)):
        (gradient,) = torch.autograd.grad(run(clip), bias)
        assert bool(gradient[1] != 0) == is_open


def test_a_changed_weight_is_noticed_before_the_gradient_is_wrong():
    directions = random_layers(2, 2, 3, 5)
    (result, _) = run_layer(LayerRule(None, None, torch.float64), directions)
    with torch.no_grad():
        directions[0].kernel_FG.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.outputs_TBP.sum().backward()
