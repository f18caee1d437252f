"""The full softmax in blocks against the plain one."""

import pytest
import torch

from elmo_model import output_layer
from elmo_model.losses import Softmax
from elmo_model.output_layer import OutputLayer
from elmo_model.softmax_file import SoftmaxWeights
from tests.elmo_model.plain_perplexity import plain_losses

# Sums of float32 in another order; losses are about 10.
TOLERANCE = 1e-5


def layers(num_words, width=16):
    softmax = Softmax(num_words, width)
    with torch.no_grad():
        softmax.bias.normal_()
    weights = SoftmaxWeights(softmax.weight.detach(), softmax.bias.detach())
    return softmax, OutputLayer(weights, torch.device("cpu"))


@pytest.mark.parametrize(("num_predictions", "num_words"), [(1, 1), (7, 5), (1300, 33)])
def test_losses_equal_those_of_the_plain_softmax(num_predictions, num_words):
    softmax, layer = layers(num_words)
    hidden = torch.randn(num_predictions, 16) * 3
    targets = torch.randint(num_words, (num_predictions,))
    torch.testing.assert_close(
        layer.negative_log_likelihood(hidden, targets),
        plain_losses(softmax, hidden, targets).float(),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


def test_blocks_change_nothing_but_rounding(monkeypatch):
    monkeypatch.setitem(output_layer._BLOCK_LOGITS, "cpu", 60)
    monkeypatch.setitem(output_layer._BLOCK_PREDICTIONS, "cpu", 4)
    softmax, layer = layers(100)
    hidden, targets = torch.randn(10, 16), torch.arange(90, 100)
    torch.testing.assert_close(
        layer.negative_log_likelihood(hidden, targets),
        plain_losses(softmax, hidden, targets).float(),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


def test_threads_change_nothing():
    _, layer = layers(5000)
    hidden, targets = torch.randn(700, 16), torch.randint(5000, (700,))
    before = torch.get_num_threads()
    found = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        found.append(layer.negative_log_likelihood(hidden, targets))
    torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=TOLERANCE, atol=TOLERANCE)


def test_no_predictions_have_no_losses():
    _, layer = layers(10)
    nothing = layer.negative_log_likelihood(torch.empty(0, 16), torch.empty(0, dtype=torch.int64))
    assert nothing.shape == (0,)


def test_logits_far_beyond_the_range_of_exp_give_finite_losses():
    weights = SoftmaxWeights(torch.tensor([[500.0], [-500.0]]), torch.zeros(2))
    layer = OutputLayer(weights, torch.device("cpu"))
    losses = layer.negative_log_likelihood(torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1]))
    assert losses.tolist() == [0.0, 1000.0]
