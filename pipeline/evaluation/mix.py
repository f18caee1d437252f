"""Learn a scalar mix of layers for a task: softmax weights, gamma and a linear head together.

As in Peters et al. 2018 (section 3.2 and appendix A): the weights start equal, `l2` times the sum
of their squares is added to the loss and draws them back there. Sentences are given as the mean of
their tokens, which is the same as mixing first, since a mix is linear. Knows arrays only.

N items, K layers, D width, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elmo_model.scalar_mix import ScalarMix

DEFAULT_L2 = 0.001
"""Lambda of the paper for most of its tasks; 1 makes the mix nearly an average."""
_BATCH_ITEMS = 64
_MAX_EPOCHS = 100
# Epochs without a better loss on the part that is not learned from.
_PATIENCE = 8
_WATCHED_SHARE = 0.1
_HEAD_RATE, _MIX_RATE = 0.02, 0.02
_HEAD_DECAY = 0.01
# Of a direction's spread beside the largest one: float32 keeps seven digits.
_ROUNDING = 1e-6
_SEED = 2018
# A softmax of this lead is 1 in float32.
_ALL_OF_IT = 100.0


@dataclass(frozen=True)
class Items:
    """Labelled items: vectors of one text each, or of two for pairs, and what to say of them.

    `parts` are one or two arrays (N, K, D); `targets_N` is int64 class numbers with `num_classes`
    of them, or float scores with `num_classes` None.
    """

    parts: tuple[NDArray[np.float32], ...]
    targets_N: NDArray[np.generic]
    num_classes: int | None

    def take(self, items: NDArray[np.int64]) -> Items:
        """Some of the items."""
        parts = tuple(part[items] for part in self.parts)
        return Items(parts, self.targets_N[items], self.num_classes)


@dataclass(frozen=True)
class LearnedMix:
    """What was learned: raw weights (before the softmax), one a layer, and the factor gamma."""

    weights: tuple[float, ...]
    gamma: float
    l2: float
    epochs: int

    @property
    def shares(self) -> tuple[float, ...]:
        """The softmax of the weights: each layer's part, in all 1."""
        return tuple(torch.softmax(torch.tensor(self.weights), 0).tolist())

    def apply(self, layers_NKD: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mixed vectors (N, D)."""
        factors = self.gamma * np.array(self.shares, np.float32)
        mixed_ND: NDArray[np.float32] = np.einsum("k,nkd->nd", factors, layers_NKD)
        return mixed_ND


class Head(nn.Module):
    """A mix and a linear layer on top of it; for pairs on |u - v| and u * v side by side.

    Means of many tokens have much in common and differ by little. So each layer is taken less its
    mean, and each direction divided by its spread, which is the same for all layers, so that a
    text has about length 1: on single texts the linear layer could do either itself, but would
    take very long to learn it.
    """

    def __init__(self, mix: ScalarMix, items: Items) -> None:
        """Make a head for what `mix` gives now of these items."""
        super().__init__()
        self.mix = mix
        both_NKD = torch.from_numpy(np.concatenate(items.parts))
        self._mean_KD = both_NKD.mean(0)
        self._spread_D = torch.ones(both_NKD.shape[2])
        with torch.no_grad():
            deviation_D = self._mixed(both_NKD).std(0, correction=0)
        # A direction in which nothing but rounding differs stays as it is.
        differs_D = deviation_D > _ROUNDING * deviation_D.max()
        self._spread_D = torch.where(differs_D, deviation_D, 1.0)
        self._spread_D *= math.sqrt(len(deviation_D))
        num_features = both_NKD.shape[2] * (1 if len(items.parts) == 1 else 2)
        self.linear = nn.Linear(num_features, items.num_classes or 1)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.linear.weight)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Logits (N, C), or scores (N, 1), of parts (N, K, D)."""
        mixed = [self._mixed(part_NKD) for part_NKD in parts]
        if len(mixed) == 1:
            return _logits(self.linear, mixed[0])
        features = torch.cat([(mixed[0] - mixed[1]).abs(), mixed[0] * mixed[1]], 1)
        return _logits(self.linear, features)

    def _mixed(self, part_NKD: Tensor) -> Tensor:
        scaled_NKD = (part_NKD - self._mean_KD) / self._spread_D
        layers_KN1D = scaled_NKD.transpose(0, 1)[:, :, None]
        mask = torch.ones(layers_KN1D.shape[1:3], dtype=torch.bool)
        mixed_N1D: Tensor = self.mix(layers_KN1D, mask)
        return mixed_N1D[:, 0]


def learn_mix(items: Items, l2: float = DEFAULT_L2) -> tuple[LearnedMix, Head]:
    """Learn weights, gamma and head from labelled items.

    Training stops when the loss on a tenth of the items, which is not learned from, stops falling.

    Returns: the mix, and the head that goes with it.
    """
    mix = ScalarMix(items.parts[0].shape[1])
    head, epochs = _train(mix, items, l2)
    weights = tuple(mix.weights_L.detach().tolist())
    return LearnedMix(weights, float(mix.gamma.detach()), l2, epochs), head


def learn_head(items: Items, layer: int | None) -> Head:
    """A head on one layer, or on the plain average where `layer` is None; learned alike."""
    num_layers = items.parts[0].shape[1]
    weights = [0.0] * num_layers
    if layer is not None:
        weights[layer] = _ALL_OF_IT
    mix = ScalarMix(num_layers, initial_weights=weights, trainable=False)
    return _train(mix, items, 0.0)[0]


def predictions(head: Head, items: Items) -> NDArray[np.float64]:
    """Class numbers (N,), or scores (N,), that the head gives."""
    with torch.no_grad():
        given = head([torch.from_numpy(part) for part in items.parts])
    chosen = given[:, 0] if items.num_classes is None else given.argmax(1)
    return np.asarray(chosen.numpy(), np.float64)


def _train(mix: ScalarMix, items: Items, l2: float) -> tuple[Head, int]:
    """Train a head, and the mix where it takes gradients; the best state and the epochs run."""
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(len(items.targets_N), generator=generator).numpy()
    num_watched = max(1, int(len(order) * _WATCHED_SHARE))
    watched, learned = items.take(order[:num_watched]), items.take(order[num_watched:])
    head = Head(mix, learned)
    trained = [value for value in mix.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": head.linear.parameters(), "lr": _HEAD_RATE, "weight_decay": _HEAD_DECAY},
            {"params": trained, "lr": _MIX_RATE, "weight_decay": 0.0},
        ]
    )
    best_loss, best, waited, epoch = float("inf"), copy.deepcopy(head.state_dict()), 0, 0
    while epoch < _MAX_EPOCHS and waited < _PATIENCE:
        epoch += 1
        order = torch.randperm(len(learned.targets_N), generator=generator).numpy()
        for first in range(0, len(order), _BATCH_ITEMS):
            optimizer.zero_grad()
            batch = learned.take(order[first : first + _BATCH_ITEMS])
            torch.autograd.backward(_loss(head, batch) + mix.l2_term(l2))
            optimizer.step()
        with torch.no_grad():
            now = float(_loss(head, watched) + mix.l2_term(l2))
        waited = 0 if now < best_loss else waited + 1
        if now < best_loss:
            best_loss, best = now, copy.deepcopy(head.state_dict())
    head.load_state_dict(best)
    return head, epoch


def _loss(head: Head, items: Items) -> Tensor:
    given = head([torch.from_numpy(part) for part in items.parts])
    targets = torch.from_numpy(items.targets_N)
    if items.num_classes is None:
        return nn.functional.mse_loss(given[:, 0], targets.float())
    return nn.functional.cross_entropy(given, targets.long())


def _logits(linear: nn.Linear, features: Tensor) -> Tensor:
    logits: Tensor = linear(features)
    return logits
