"""Checkpoints of AllenNLP's module."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from elmo_model import Encoder
from elmo_model.allennlp import scalar_mixes
from elmo_model.errors import ModelFileError
from tests.elmo_model.random_models import options_of, weights_of, write_model

# b + 1 - 1 loses a few bits of the forget bias.
TOLERANCE = 1e-5
STEM = "_text_field_embedder.token_embedder_elmo._elmo."


def checkpoint_of(options, weights):
    """The same model as AllenNLP's module holds it, by its documented names and layouts."""
    found = {}
    embedder = STEM + "_elmo_lstm._token_embedder."
    table = weights["char_embed"]
    found[embedder + "_char_embedding_weights"] = np.vstack([np.zeros_like(table[:1]), table])
    for number in range(len(options["char_cnn"]["filters"])):
        kernel = weights[f"CNN/W_cnn_{number}"]
        found[embedder + f"char_conv_{number}.weight"] = kernel[0].transpose(2, 1, 0)
        found[embedder + f"char_conv_{number}.bias"] = weights[f"CNN/b_cnn_{number}"]
    for number in range(options["char_cnn"]["n_highway"] or 0):
        w, stem = f"CNN_high_{number}/", embedder + f"_highways._layers.{number}."
        found[stem + "weight"] = np.vstack(
            [weights[w + "W_transform"].T, -weights[w + "W_carry"].T]
        )
        found[stem + "bias"] = np.hstack([weights[w + "b_transform"], -weights[w + "b_carry"]])
    found[embedder + "_projection.weight"] = weights["CNN_proj/W_proj"].T
    found[embedder + "_projection.bias"] = weights["CNN_proj/b_proj"]
    width = options["lstm"]["projection_dim"]
    for direction, name in enumerate(("forward", "backward")):
        for layer in range(options["lstm"]["n_layers"]):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
            stem = STEM + f"_elmo_lstm._elmo_lstm.{name}_layer_{layer}."
            i, j, f, o = np.split(weights[cell + "W_0"].T, 4)
            kernel = np.vstack([i, f, j, o])
            found[stem + "input_linearity.weight"] = kernel[:, :width]
            found[stem + "state_linearity.weight"] = kernel[:, width:]
            i, j, f, o = np.split(weights[cell + "B"], 4)
            found[stem + "state_linearity.bias"] = np.hstack([i, f + 1, j, o])
            found[stem + "state_projection.weight"] = weights[cell + "W_P_0"].T
    for layer, weight in enumerate((0.1, -0.2, 0.3)):
        found[STEM + f"scalar_mix_0.scalar_parameters.{layer}"] = np.float32([weight])
    found[STEM + "scalar_mix_0.gamma"] = np.float32([1.7])
    found["classifier.weight"] = np.zeros((2, 2), np.float32)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


@pytest.fixture
def options():
    return options_of("like the released models")


@pytest.fixture
def checkpoint(options):
    return checkpoint_of(options, weights_of(options))


def load(tmp_path, checkpoint):
    files = write_model(tmp_path)
    save_file(checkpoint, tmp_path / "model.safetensors")
    return Encoder.from_files(files["options_file"], tmp_path / "model.safetensors")


def test_a_checkpoint_encodes_as_the_weights_that_it_was_made_from(checkpoint, tmp_path):
    encoder = load(tmp_path, checkpoint)
    expected = Encoder.from_files(**write_model(tmp_path))
    sentences = [["the", "cat", "sat"], ["über"]]
    torch.testing.assert_close(
        encoder.encode(sentences).layers,
        expected.encode(sentences).layers,
        rtol=0,
        atol=TOLERANCE,
    )


def test_the_scalar_mixes_are_found(checkpoint):
    (mix,) = scalar_mixes("model", checkpoint)
    torch.testing.assert_close(mix.weights_L, torch.tensor([0.1, -0.2, 0.3]))
    assert mix.gamma.item() == pytest.approx(1.7)


def test_a_missing_parameter_is_named(checkpoint, tmp_path):
    name = STEM + "_elmo_lstm._token_embedder._projection.bias"
    del checkpoint[name]
    with pytest.raises(ModelFileError, match=f"{name} is missing"):
        load(tmp_path, checkpoint)


def test_a_misshapen_parameter_is_named(checkpoint, tmp_path):
    checkpoint[STEM + "_elmo_lstm._token_embedder._projection.bias"] = torch.zeros(9)
    with pytest.raises(ModelFileError, match=r"projection_bias has shape \(9,\), .* \(6,\)"):
        load(tmp_path, checkpoint)


def test_a_model_with_more_layers_than_the_options_is_refused(checkpoint, tmp_path):
    checkpoint[STEM + "_elmo_lstm._elmo_lstm.forward_layer_2.state_linearity.bias"] = torch.zeros(1)
    with pytest.raises(ModelFileError, match=r"forward_layer_2.* \(1 in all\) not expected"):
        load(tmp_path, checkpoint)


def test_two_modules_in_one_file_are_refused(checkpoint, tmp_path):
    checkpoint |= {name.replace(STEM, "other."): value + 0 for name, value in checkpoint.items()}
    with pytest.raises(ModelFileError, match="one ELMo module, found 2"):
        load(tmp_path, checkpoint)


def test_options_of_another_kind_of_model_are_refused(checkpoint, tmp_path):
    files = write_model(tmp_path, "one direction")
    save_file(checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="character model of two directions"):
        Encoder.from_files(files["options_file"], tmp_path / "model.safetensors")
