"""Choose among a biLM's layers, or mix them, by name. Knows no model, text or files.

| name | result | width |
|---|---|---|
| `all` | every layer, the context-free one first | 2P each |
| `top` | the last LSTM layer | 2P |
| `average` | plain mean of all layers | 2P |
| `mix` | gamma * sum softmax(weights) * layer | 2P |
| `word_emb` | Spark NLP's name: the context-free vector, once | P |
| `lstm_outputs1`, `lstm_outputs2` | Spark NLP's names: first, second LSTM layer | 2P |
| `elmo` | Spark NLP's name: `mix`, with equal weights if none are given | 2P |

P is the projection width; a model of one direction gives P everywhere. Axes: L layers, K outputs,
B rows, T positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from elmo_model.errors import LayerChoiceError
from elmo_model.options import ElmoOptions

LAYER_NAMES = (
    "all",
    "top",
    "average",
    "mix",
    "word_emb",
    "lstm_outputs1",
    "lstm_outputs2",
    "elmo",
)


class HasOptions(Protocol):
    """An encoder, or what is known of one before it is loaded."""

    @property
    def options(self) -> ElmoOptions:
        """The model's options."""
        ...


@dataclass(frozen=True)
class LayerChoice:
    """One of `LAYER_NAMES`, checked; `shares` are the mix's factors, softmax and gamma included."""

    name: str
    shares: tuple[float, ...] | None = None
    num_directions: int = 2

    @classmethod
    def parse(
        cls,
        name: str,
        *,
        num_layers: int,
        mix_weights: Sequence[float] | None = None,
        gamma: float = 1.0,
        num_directions: int = 2,
    ) -> LayerChoice:
        """Check a choice against a model.

        Args:
            name: one of `LAYER_NAMES`.
            num_layers: the model's L + 1.
            mix_weights: raw weights (before the softmax), one a layer; for `mix` and `elmo` only.
            gamma: factor of the mix; for `mix` and `elmo` only.
            num_directions: the model's; `word_emb` is the first of as many equal parts of layer 0.

        Raises:
            LayerChoiceError: an unknown name, a layer that the model has not, weights that are
                missing, not one a layer, not finite, or given where nothing is mixed.
        """
        if name not in LAYER_NAMES:
            raise LayerChoiceError(f"layers: {name!r} is unknown; known: {', '.join(LAYER_NAMES)}")
        if name == "lstm_outputs2" and num_layers < 3:
            raise LayerChoiceError(
                f"layers: lstm_outputs2 needs two LSTM layers, the model has {num_layers - 1}"
            )
        if name not in ("mix", "elmo"):
            if mix_weights is not None or gamma != 1.0:
                raise LayerChoiceError(f"layers: {name} takes no weights and no gamma")
            equal = (1.0 / num_layers,) * num_layers
            return cls(name, equal if name == "average" else None, num_directions)
        if mix_weights is None:
            if name == "mix":
                raise LayerChoiceError(f"layers: mix needs {num_layers} weights, one a layer")
            mix_weights = (0.0,) * num_layers
        return cls(name, _shares(mix_weights, gamma, num_layers), num_directions)

    def num_outputs(self, encoder: HasOptions) -> int:
        """How many vectors a position gets: K = L + 1 for `all`, else 1."""
        return encoder.options.num_layers if self.name == "all" else 1

    def dim(self, encoder: HasOptions) -> int:
        """Width of each output."""
        options = encoder.options
        return options.lstm.projection_dim if self.name == "word_emb" else options.output_dim

    def combine(self, layer: Callable[[int], Tensor], num_layers: int) -> list[Tensor]:
        """Take or mix layers that are made when they are asked for.

        Args:
            layer: gives layer l, (..., P) of one direction.
            num_layers: the model's L + 1.

        Returns: a tensor for each output, mixtures in float32. Of `directions` halves the outputs
        consist.
        """
        if self.name == "all":
            return [layer(place) for place in range(num_layers)]
        single = {"top": num_layers - 1, "lstm_outputs1": 1, "lstm_outputs2": 2, "word_emb": 0}
        if self.name in single:
            return [layer(single[self.name])]
        assert self.shares is not None
        mixed: Tensor | None = None
        for place, share in enumerate(self.shares):
            part = layer(place).float()
            mixed = part * share if mixed is None else mixed.add_(part, alpha=share)
        assert mixed is not None
        return [mixed]

    @property
    def directions(self) -> int:
        """How many directions' halves an output has."""
        return 1 if self.name == "word_emb" else self.num_directions

    def apply(self, layers_LBTD: Tensor) -> Tensor:
        """Take or mix the layers of a batch.

        Returns: (K, B, T, D) in the layers' dtype; a view where nothing is computed.
        """
        if self.name == "all":
            return layers_LBTD
        if self.name == "top":
            return layers_LBTD[-1:]
        if self.name == "lstm_outputs1":
            return layers_LBTD[1:2]
        if self.name == "lstm_outputs2":
            return layers_LBTD[2:3]
        if self.name == "word_emb":
            return layers_LBTD[:1, ..., : layers_LBTD.shape[-1] // self.num_directions]
        assert self.shares is not None
        shares = layers_LBTD.new_tensor(self.shares)
        return torch.einsum("l,lbtd->btd", shares, layers_LBTD)[None]


def _shares(weights: Sequence[float], gamma: float, num_layers: int) -> tuple[float, ...]:
    if len(weights) != num_layers:
        raise LayerChoiceError(
            f"layers: the model has {num_layers} layers, the mix {len(weights)} weights"
        )
    if not all(map(math.isfinite, (*weights, gamma))):
        raise LayerChoiceError(f"layers: weights {tuple(weights)} and gamma {gamma} must be finite")
    powers = [math.exp(weight - max(weights)) for weight in weights]
    return tuple(gamma * power / sum(powers) for power in powers)
