"""The pointwise part of the softmax gives the same in C, in torch and by its definition."""

import math

import pytest
import torch

from elmo_model.cross_entropy import full_losses
from elmo_model.kernels import softmax
from elmo_model.kernels.native import NativeCode
from elmo_model.kernels.softmax import Predictions, to_powers

# Float32 sums of up to 1,000 terms against float64; bfloat16 keeps 8 bits of each power.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
# Losses grow with the logits, and with them what float32 leaves out.
RELATIVE = 2e-6


@pytest.fixture(params=[pytest.param("C", marks=pytest.mark.compiler), "torch"], autouse=True)
def way(request, monkeypatch):
    if request.param == "torch":
        nothing = NativeCode(None, "the test says so")
        monkeypatch.setattr(softmax, "load", lambda: nothing)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(num_rows, num_words, dtype=torch.float32, scale=1.0, column=None):
    """Logits, bias, targets' logits, shares, and the words that do not count."""
    logits = (random(num_rows, num_words) * scale).to(dtype)
    column = torch.full((num_rows,), -1) if column is None else torch.tensor(column)
    return logits, random(num_words, seed=1), random(num_rows, seed=2) * scale, column


def found_for(logits, bias, target, column, share):
    """Powers and results of the code under test, all scaled to be gradients."""
    num_rows = len(target)
    results = [torch.full((num_rows,), math.nan) for _ in range(3)]
    grad_bias = torch.ones_like(bias)  # added to
    powers = logits.clone()
    to_powers(powers, Predictions(bias, column, target, share, *results, grad_bias))
    loss, grad_target, scale = results
    return loss, grad_target, powers.float() * scale[:, None], grad_bias - 1


def expected_for(logits, bias, target, column, share):
    """Their definition, by autograd in float64."""
    leaves = [values.double().requires_grad_() for values in (logits, bias, target)]
    all_logits = torch.cat([leaves[2][:, None], leaves[0] + leaves[1]], 1)
    rows = torch.nonzero(column >= 0).squeeze(1)
    excluded = torch.zeros_like(all_logits, dtype=torch.bool)
    excluded[rows, column[rows] + 1] = True
    losses = -torch.log_softmax(all_logits.masked_fill(excluded, -math.inf), 1)[:, 0]
    grads = torch.autograd.grad((losses * share.double()).sum(), leaves)
    return losses.detach(), grads[2], grads[0], grads[1]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("num_rows", "num_words", "column"),
    [
        (1, 1000, None),
        (3, 1, None),
        (3, 1, [0, -1, 0]),
        (5, 2, [1, 0, -1, 1, 0]),
        (4, 63, [62, 0, -1, 5]),
        (2, 64, None),
        (3, 131, [130, 64, 128]),
    ],
)
def test_losses_and_gradients_are_those_of_the_definition(num_rows, num_words, column, dtype):
    logits, bias, target, column = case(num_rows, num_words, dtype, column=column)
    share = torch.linspace(0.2, 1, num_rows)
    found = found_for(logits, bias, target, column, share)
    expected = expected_for(logits, bias, target, column, share)
    for name, one, other in zip(("loss", "target", "logits", "bias"), found, expected, strict=True):
        tolerance = TOLERANCE[torch.float32 if name in ("loss", "target") else dtype]
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=RELATIVE)


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_huge_and_tiny_logits_neither_overflow_nor_vanish(scale):
    logits, bias, target, column = case(4, 70, scale=scale, column=[3, -1, -1, 0])
    target[1] = 2 * logits[1].abs().max() + 1  # the target is the likeliest
    share = torch.ones(4)
    found = found_for(logits, bias, target, column, share)
    expected = expected_for(logits, bias, target, column, share)
    # What float32 keeps of a difference of logits becomes an error of its power.
    tolerance = {1e-30: TOLERANCE[torch.float32], 1e4: 2e-2, 1e30: 1e-6}[scale]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=1e-6)


def test_words_of_which_none_is_possible_have_no_part_in_it():
    logits, bias, target, column = case(3, 80)
    bias[:] = -math.inf
    loss, grad_target, grad_logits, grad_bias = found_for(
        logits, bias, target, column, torch.ones(3)
    )
    for values in (loss, grad_target, grad_logits, grad_bias):
        assert not values.any()


def test_an_impossible_word_has_no_gradient_and_an_impossible_target_an_infinite_loss():
    logits, bias, target, column = case(2, 80)
    bias[7] = target[1] = -math.inf
    loss, _, grad_logits, grad_bias = found_for(logits, bias, target, column, torch.ones(2))
    assert torch.isfinite(loss[0])
    assert loss[1] == math.inf
    assert not grad_logits[:, 7].any()
    assert grad_bias[7] == 0
    assert torch.isfinite(grad_logits).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("place", [0, 64, 69])
def test_what_is_not_a_number_is_none_in_the_loss(place, dtype):
    logits, bias, target, column = case(2, 70, dtype)
    logits[1, place] = math.nan
    loss, grad_target, grad_logits, _ = found_for(logits, bias, target, column, torch.ones(2))
    assert torch.isfinite(loss[0])
    assert torch.isfinite(grad_logits[0]).all()
    assert torch.isnan(loss[1])
    assert torch.isnan(grad_target[1])


def test_weights_that_are_also_the_input_get_both_gradients():
    weight, bias = random(37, 6).requires_grad_(), random(37, seed=1).requires_grad_()
    targets = torch.arange(20) % 37
    gradients = []
    for plain in (False, True):
        hidden = torch.tanh(weight[(targets + 1) % 37])
        losses = (
            torch.nn.functional.cross_entropy(hidden @ weight.t() + bias, targets)
            if plain
            else full_losses(weight, bias, [hidden], [targets])[0]
        )
        gradients.append(torch.autograd.grad(losses, (weight, bias)))
    torch.testing.assert_close(*gradients, atol=TOLERANCE[torch.float32], rtol=0)
