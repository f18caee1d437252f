"""The model against a float64 reference on shapes that no fixture has."""

import numpy as np
import pytest

from elmo_model import Encoder
from tests.elmo_model.random_models import SHAPES, VOCABULARY, options_of, weights_of, write_model
from tests.elmo_model.reference import Reference

# float32 rounding, which the random recurrences amplify: their weights are not small.
TOLERANCE = 2e-5
# In float64 nothing but the order of sums may differ.
EXACT_TOLERANCE = 1e-12

SENTENCES = [
    ["the", "cat", "sat", "."],
    [],
    ["über", "</S>", "", "a-word-longer-than-twenty-bytes", "<S>"],
    ["日本語", "🙂🙂🙂🙂🙂", "x"],
    ["."],
    ["the"] * 30,
]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_layers_agree_with_the_reference(shape, tmp_path):
    options = options_of(shape)
    reference = Reference(options, weights_of(options), VOCABULARY)
    encoder = Encoder.from_files(**write_model(tmp_path, shape))

    activations = encoder.encode(SENTENCES)

    assert activations.layers.shape == (encoder.num_layers, 6, 30, encoder.dim)
    for row, sentence in enumerate(SENTENCES):
        expected, _ = reference.layers(sentence)
        found = activations.layers[:, row, : len(sentence)].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert not activations.layers[:, row, len(sentence) :].any()
        assert activations.mask[row].sum() == len(sentence)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_carried_state_agrees_with_the_reference(shape, tmp_path):
    options = options_of(shape)
    reference = Reference(options, weights_of(options), VOCABULARY)
    encoder = Encoder.from_files(**write_model(tmp_path, shape))

    state, expected_states = None, [None] * len(SENTENCES)
    for shift in range(3):
        batch = SENTENCES[shift:] + SENTENCES[:shift]
        activations = encoder.encode(batch, state)
        state = activations.state
        for row, sentence in enumerate(batch):
            expected, expected_states[row] = reference.layers(sentence, expected_states[row])
            found = activations.layers[:, row, : len(sentence)].numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
            for direction, layers in enumerate(expected_states[row]):
                for layer, (cell, output) in enumerate(layers):
                    place = (direction, layer, row)
                    cells, outputs = state.cells_SLBD[place], state.outputs_SLBP[place]
                    np.testing.assert_allclose(cells.numpy(), cell, rtol=0, atol=TOLERANCE)
                    np.testing.assert_allclose(outputs.numpy(), output, rtol=0, atol=TOLERANCE)


def test_the_clips_of_the_clipping_model_are_active(tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path, "clips active"))
    state = encoder.encode(SENTENCES).state
    assert float(state.cells_SLBD.abs().max()) == pytest.approx(0.3)
    assert float(state.outputs_SLBP.abs().max()) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_the_layers_are_those_of_the_reference(shape, tmp_path):
    """Rules out that float32's tolerance hides a small mistake."""
    options = options_of(shape)
    reference = Reference(options, weights_of(options), VOCABULARY)
    encoder = Encoder.from_files(**write_model(tmp_path, shape), dtype="float64")

    layers = encoder.encode(SENTENCES).layers

    for row, sentence in enumerate(SENTENCES):
        found, (expected, _) = layers[:, row, : len(sentence)], reference.layers(sentence)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=EXACT_TOLERANCE)
