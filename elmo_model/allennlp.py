"""The weights of AllenNLP's ELMo module under the names and in the layout of ours.

For checkpoints that AllenNLP fine-tuned: their state dict, saved as safetensors, holds the biLM and
the scalar mixes among a task's other weights. Knows names and layouts; no files.

AllenNLP multiplies from the left, orders the gates i, f, g, o with the forget bias of 1 inside, and
lets a highway's gate weigh the part that is passed on instead of the transformed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.errors import ModelFileError
from elmo_model.lstm import FORGET_BIAS
from elmo_model.options import ElmoOptions

_MARK = "_elmo_lstm.forward_layer_0.input_linearity.weight"
_TABLE = "_token_embedder._char_embedding_weights"
_CONVOLUTION = "_token_embedder.char_conv_{}."
_HIGHWAY = "_token_embedder._highways._layers.{}."
_PROJECTION = "_token_embedder._projection."


@dataclass(frozen=True)
class MixWeights:
    """One of a checkpoint's scalar mixes: raw weights (L+1,) and gamma ()."""

    weights_L: Tensor
    gamma: Tensor


def is_state_dict(names: Iterable[str]) -> bool:
    """Whether these are the names of a state dict with AllenNLP's ELMo in it."""
    return any(name.endswith(_MARK) for name in names)


def convert(where: str, tensors: Mapping[str, Tensor], options: ElmoOptions) -> dict[str, Tensor]:
    """The state dict of `BiLM(options)` from that of AllenNLP's module.

    The forget bias is stored as b + 1 there, so its low bits are lost in float32.

    Args:
        where: file name, for messages.
        tensors: the module's state dict, or that of a model that holds one.
        options: the model's options; must describe a character model of two directions.

    Raises:
        ModelFileError: several ELMo modules, one that is not like the options, or a name that is
            missing.
    """
    if options.char_cnn is None or not options.bidirectional:
        raise ModelFileError(
            f"{where}: holds AllenNLP's character model of two directions, options.json does not"
        )
    source = _Names(where, tensors)
    table = source.take(_TABLE)
    state = {"token_embedding.char_embed": table[1:]}
    for place in range(len(options.char_cnn.filters)):
        weight = source.take(_CONVOLUTION.format(place) + "weight")
        state[f"token_embedding.conv_weights.{place}"] = weight.permute(2, 1, 0)[None]
        state[f"token_embedding.conv_biases.{place}"] = source.take(
            _CONVOLUTION.format(place) + "bias"
        )
    for place in range(options.char_cnn.n_highway):
        state |= _highway(source, place)
    if options.char_cnn.num_filters != options.lstm.projection_dim:
        state["token_embedding.projection_weight"] = source.take(_PROJECTION + "weight").T
        state["token_embedding.projection_bias"] = source.take(_PROJECTION + "bias")
    for direction in ("forward", "backward"):
        for layer in range(options.lstm.n_layers):
            state |= _lstm(source, options, direction, layer)
    source.check_all_taken()
    return {name: value.float().contiguous() for name, value in state.items()}


def scalar_mixes(where: str, tensors: Mapping[str, Tensor]) -> list[MixWeights]:
    """The scalar mixes of AllenNLP's module in their order; none if it holds the biLM only."""
    stem = _Names(where, tensors).stem.removesuffix("_elmo_lstm.")
    mixes: list[MixWeights] = []
    while (name := f"{stem}scalar_mix_{len(mixes)}.gamma") in tensors:
        part = f"{stem}scalar_mix_{len(mixes)}.scalar_parameters."
        count = sum(other.startswith(part) for other in tensors)
        weights = [tensors[f"{part}{layer}"].reshape(()) for layer in range(count)]
        mixes.append(MixWeights(torch.stack(weights).float(), tensors[name].reshape(()).float()))
    return mixes


class _Names:
    """A state dict seen from the ELMo module inside it."""

    def __init__(self, where: str, tensors: Mapping[str, Tensor]) -> None:
        stems = [name.removesuffix(_MARK) for name in tensors if name.endswith(_MARK)]
        if len(stems) != 1:
            raise ModelFileError(
                f"{where}: expected the weights of one ELMo module, found {len(stems)} "
                f"({', '.join(stems) or 'none'}); save them to a file each"
            )
        self.stem = stems[0]
        self._where, self._tensors = where, tensors
        self._left = {name for name in tensors if name.startswith(self.stem)}

    def take(self, name: str) -> Tensor:
        full = self.stem + name
        if full not in self._tensors:
            raise ModelFileError(
                f"{self._where}: {full} is missing, options.json asks for it: "
                "the two files are from different models"
            )
        self._left.discard(full)
        return self._tensors[full]

    def check_all_taken(self) -> None:
        left = sorted(self._left)
        if left:
            raise ModelFileError(
                f"{self._where}: {left[0]} ({len(left)} in all) not expected, options.json does "
                "not ask for it: the two files are from different models"
            )


def _highway(source: _Names, place: int) -> dict[str, Tensor]:
    stem = _HIGHWAY.format(place)
    transform_weight, carry_weight = source.take(stem + "weight").chunk(2)
    transform_bias, carry_bias = source.take(stem + "bias").chunk(2)
    ours = f"token_embedding.highways.{place}."
    return {
        ours + "transform_weight": transform_weight.T,
        ours + "transform_bias": transform_bias,
        ours + "carry_weight": -carry_weight.T,
        ours + "carry_bias": -carry_bias,
    }


def _lstm(source: _Names, options: ElmoOptions, direction: str, layer: int) -> dict[str, Tensor]:
    stem = f"_elmo_lstm.{direction}_layer_{layer}."
    inputs = _gate_columns(source.take(stem + "input_linearity.weight")).T
    recurrent = _gate_columns(source.take(stem + "state_linearity.weight")).T
    bias = _gate_columns(source.take(stem + "state_linearity.bias")).clone()
    dim = options.lstm.dim
    bias[2 * dim : 3 * dim] -= FORGET_BIAS
    ours = f"{direction}_stack.{layer}."
    state = {ours + "kernel": torch.cat([inputs, recurrent]), ours + "bias": bias}
    if options.lstm.has_projection:
        state[ours + "projection"] = source.take(stem + "state_projection.weight").T
    return state


def _gate_columns(value: Tensor) -> Tensor:
    """Gates i, f, g, o along the first axis to i, g, f, o."""
    i, f, g, o = value.chunk(4)
    return torch.cat([i, g, f, o])
