"""biLMs of the released sizes with random weights of a trained model's scale. Knows no files.

Speed does not depend on the numbers as long as none is denormal or not finite; rounding errors do.
Weights as drawn for training would leave every gate near its middle and all outputs near zero.
These are drawn so that context-free vectors have a root mean square of 0.5, each half of a gate's
sum (input and recurrence) one of `INPUT_GAIN` and `RECURRENT_GAIN`, and projected outputs one of
about 0.3: then few forget gates are saturated and few clips active, as `statistics` shows. The
recurrence is the weaker half: a strong random recurrence amplifies every rounding, which those of
trained models do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.characters import CharacterEncoder
from elmo_model.directory import ModelFiles
from elmo_model.lstm import FORGET_BIAS, LstmLayer
from elmo_model.options import ElmoOptions

# LSTM width, projection, highways; the filters are the same for all.
SIZES = {"small": (1024, 128, 1), "original": (4096, 512, 2)}
FILTERS = [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]]
WORD_RMS, OUTPUT_RMS = 0.5, 0.3
INPUT_GAIN, RECURRENT_GAIN = 1.2, 0.5
# What sigmoid(o) tanh(c) comes to with such gates; the projection is scaled by it.
HIDDEN_RMS = 0.3


def options_of(size: str) -> ElmoOptions:
    """Options of one of `SIZES`."""
    dim, projection_dim, highways = SIZES[size]
    return ElmoOptions.from_dict(
        {
            "lstm": {
                "use_skip_connections": True,
                "projection_dim": projection_dim,
                "cell_clip": 3,
                "proj_clip": 3,
                "dim": dim,
                "n_layers": 2,
            },
            "char_cnn": {
                "activation": "relu",
                "filters": FILTERS,
                "n_highway": highways,
                "embedding": {"dim": 16},
                "n_characters": 262,
                "max_characters_per_token": 50,
            },
        }
    )


def random_model(options: ElmoOptions, words: list[str], seed: int) -> ModelFiles:
    """A model whose context-free vectors of `words` have the scale that is wanted."""
    torch.manual_seed(seed)
    bilm = BiLM(options).requires_grad_(False)
    width = options.lstm.projection_dim
    for stack in (bilm.forward_stack, bilm.backward_stack):
        for place, layer in enumerate(stack or ()):
            assert isinstance(layer, LstmLayer)
            # The second layer reads outputs of the first.
            input_rms = OUTPUT_RMS if place else WORD_RMS
            layer.kernel[:width].normal_(std=INPUT_GAIN / input_rms / width**0.5)
            layer.kernel[width:].normal_(std=RECURRENT_GAIN / OUTPUT_RMS / width**0.5)
            if layer.projection is not None:
                layer.projection.normal_(std=OUTPUT_RMS / HIDDEN_RMS / options.lstm.dim**0.5)
    assert options.char_cnn is not None
    spelled = CharacterEncoder(options.char_cnn.max_characters_per_token).encode(words)
    embedding = bilm.token_embedding
    vectors_UP = embedding(torch.from_numpy(spelled))
    # Zero mean, as the vectors would otherwise be nearly the same for all words.
    scale = WORD_RMS / (vectors_UP - vectors_UP.mean(0)).square().mean().sqrt()
    embedding.projection_weight.mul_(scale)
    embedding.projection_bias.copy_(-scale * vectors_UP.mean(0))
    return ModelFiles(options, bilm.state_dict())


def statistics(files: ModelFiles, layers_L: list[Tensor], words_NP: Tensor) -> dict[str, Any]:
    """How the activations of a text look: sizes, and shares of clipped values.

    Args:
        files: the model.
        layers_L: outputs of the forward stack's layers (N, P), in reading order.
        words_NP: context-free vectors at the same positions, the first layer's input.
    """
    lstm = files.options.lstm
    kernel, bias = files.state["forward_stack.0.kernel"], files.state["forward_stack.0.bias"]
    carried_NP = torch.cat([torch.zeros_like(layers_L[0][:1]), layers_L[0][:-1]])
    gates = torch.cat([words_NP, carried_NP], dim=1) @ kernel + bias
    forget = torch.sigmoid(gates[:, 2 * lstm.dim : 3 * lstm.dim] + FORGET_BIAS)
    return {
        "rms_words": _rms(words_NP),
        "rms_layers": [_rms(layer) for layer in layers_L],
        "forget_gate_mean": round(float(forget.mean()), 3),
        "forget_gates_outside_0.05_to_0.95": round(
            float(((forget < 0.05) | (forget > 0.95)).float().mean()), 3
        ),
        "first_layer_at_its_clip": round(
            float((layers_L[0].abs() >= (lstm.proj_clip or torch.inf)).float().mean()), 5
        ),
    }


def _rms(values: Tensor) -> float:
    return round(float(values.float().square().mean().sqrt()), 3)
