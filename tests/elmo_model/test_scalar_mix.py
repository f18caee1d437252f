"""The scalar mix against its formula."""

import numpy as np
import pytest
import torch

from elmo_model.scalar_mix import ScalarMix

TOLERANCE = 1e-6


@pytest.fixture
def layers():
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    return torch.tensor([[True] * 5, [True] * 2 + [False] * 3])


def test_a_new_mix_is_the_plain_average(layers, mask):
    mixed = ScalarMix(3)(layers, mask)
    torch.testing.assert_close(mixed, layers.mean(0), rtol=0, atol=TOLERANCE)


def test_weights_go_through_a_softmax_and_gamma_scales(layers, mask):
    raw = np.array([0.3, -1.0, 2.0])
    shares = np.exp(raw) / np.exp(raw).sum()
    expected = 0.7 * np.einsum("l,lbtd->btd", shares, layers.numpy())
    mixed = ScalarMix(3, initial_weights=raw.tolist(), gamma=0.7)(layers, mask)
    np.testing.assert_allclose(mixed.detach(), expected, rtol=0, atol=TOLERANCE)


def test_one_layer_can_be_singled_out_as_allennlp_users_do(layers, mask):
    mixed = ScalarMix(3, initial_weights=[-9e10, 1, -9e10])(layers, mask)
    assert torch.equal(mixed, layers[1])


@pytest.mark.parametrize(("variant", "epsilon"), [("allennlp", 1e-13), ("bilm-tf", 1e-12)])
def test_the_layer_norm_takes_its_statistics_from_the_mask(variant, epsilon, layers, mask):
    # Layers this small make the two epsilons differ.
    layers = layers * 1e-6
    wide, chosen = layers.double().numpy(), mask.numpy()
    expected = np.zeros(wide.shape[1:])
    for layer in wide:
        values = layer[chosen]
        expected += (layer - values.mean()) / np.sqrt(values.var() + epsilon) / 3
    mixed = ScalarMix(3, layer_norm=variant)(layers, mask).detach()
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_without_tokens_is_no_division_by_zero():
    mixed = ScalarMix(3, layer_norm="allennlp")(torch.zeros(3, 1, 0, 4), torch.ones(1, 0) > 0)
    assert mixed.shape == (1, 0, 4)


def test_the_layer_norm_of_16_bit_layers_does_not_overflow(mask):
    layers = torch.full((1, 2, 5, 4), 60000.0, dtype=torch.float16)
    layers[0, 0, 0, 0] = 0
    mixed = ScalarMix(1, layer_norm="bilm-tf")(layers, mask)
    assert mixed.dtype == torch.float16
    assert torch.isfinite(mixed).all()


def test_gradients_reach_weights_and_gamma_unless_fixed(layers, mask):
    mix = ScalarMix(3)
    mix(layers, mask).square().sum().backward()
    assert mix.weights_L.grad.abs().sum() > 0
    assert mix.gamma.grad.abs() > 0
    assert not any(p.requires_grad for p in ScalarMix(3, trainable=False).parameters())


def test_the_regulariser_is_of_raw_weights_only():
    mix = ScalarMix(2, initial_weights=[3.0, -4.0], gamma=100.0)
    assert mix.l2_term(0.5).item() == 12.5


def test_another_number_of_weights_is_refused():
    with pytest.raises(ValueError, match="expected 3 weights, one a layer, got 2"):
        ScalarMix(3, initial_weights=[1.0, 2.0])
