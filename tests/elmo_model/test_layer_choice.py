"""Choosing and mixing layers by name."""

import pytest
import torch

from elmo_model import Encoder, LayerChoice
from elmo_model.errors import LayerChoiceError
from elmo_model.layer_choice import LAYER_NAMES
from tests.elmo_model.random_models import write_model

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder.from_files(**write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def layers(encoder):
    return encoder.encode([["the", "cat"], ["sat"]]).layers


def apply(layers, name, **settings):
    return LayerChoice.parse(name, num_layers=3, **settings).apply(layers)


def test_single_layers_are_found_by_name(layers):
    assert torch.equal(apply(layers, "all"), layers)
    assert torch.equal(apply(layers, "top"), layers[2:])
    assert torch.equal(apply(layers, "lstm_outputs1"), layers[1:2])
    assert torch.equal(apply(layers, "lstm_outputs2"), layers[2:])


def test_word_emb_is_the_context_free_vector_once(layers, encoder):
    words = apply(layers, "word_emb")
    assert words.shape == (1, 2, 2, 6)
    assert torch.equal(words[0, 0], encoder.embed_words(["the", "cat"]))
    assert torch.equal(words[0], layers[0, ..., 6:])


def test_average_is_the_mean_of_all_layers(layers):
    torch.testing.assert_close(apply(layers, "average")[0], layers.mean(0), rtol=0, atol=TOLERANCE)


def test_elmo_without_weights_is_the_average_and_with_weights_the_mix(layers):
    assert torch.equal(apply(layers, "elmo"), apply(layers, "average"))
    weights = {"mix_weights": (0.5, -1.0, 2.0), "gamma": 3.0}
    mixed = apply(layers, "mix", **weights)
    assert torch.equal(apply(layers, "elmo", **weights), mixed)
    shares = torch.softmax(torch.tensor([0.5, -1.0, 2.0]), 0)
    expected = 3.0 * sum(share * layer for share, layer in zip(shares, layers, strict=True))
    torch.testing.assert_close(mixed[0], expected, rtol=0, atol=TOLERANCE)


def test_weights_far_apart_do_not_overflow(layers):
    assert torch.equal(apply(layers, "mix", mix_weights=[-9e10, 1, -9e10]), layers[1:2])


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_shapes_are_announced(name, layers, encoder):
    settings = {"mix_weights": (0.0, 0.0, 0.0)} if name == "mix" else {}
    choice = LayerChoice.parse(name, num_layers=3, **settings)
    chosen = choice.apply(layers)
    assert chosen.shape == (choice.num_outputs(encoder), 2, 2, choice.dim(encoder))
    assert chosen.dtype == layers.dtype


def test_word_emb_of_a_model_of_one_direction_is_all_of_layer_0(tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path, "one direction"))
    layers = encoder.encode([["the"]]).layers
    choice = LayerChoice.parse("word_emb", num_layers=3, num_directions=1)
    assert torch.equal(choice.apply(layers), layers[:1])
    assert choice.dim(encoder) == layers.shape[-1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bottom", {}, "'bottom' is unknown; known: all, top, average, mix, word_emb"),
        ("mix", {}, "mix needs 3 weights"),
        ("mix", {"mix_weights": (1.0,)}, "the model has 3 layers, the mix 1 weights"),
        ("mix", {"mix_weights": (1.0, float("nan"), 0.0)}, "must be finite"),
        ("elmo", {"gamma": float("inf")}, "must be finite"),
        ("top", {"gamma": 2.0}, "top takes no weights and no gamma"),
        ("average", {"mix_weights": (1, 2, 3)}, "average takes no weights"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(name, settings, message):
    with pytest.raises(LayerChoiceError, match=message):
        LayerChoice.parse(name, num_layers=3, **settings)


def test_a_second_lstm_layer_that_the_model_has_not_is_refused():
    with pytest.raises(LayerChoiceError, match="needs two LSTM layers, the model has 1"):
        LayerChoice.parse("lstm_outputs2", num_layers=2)
