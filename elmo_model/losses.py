"""Softmax over the vocabulary and its two training losses: full, and sampled with log-uniform ids.

Knows hidden vectors, target ids and the softmax weights; no LSTM, optimiser or text.

Shape suffixes: N predictions, P projection width, V vocabulary, S negative samples, U distinct
rows of the softmax that one step touches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from elmo_model.cross_entropy import full_losses, sampled_loss
from elmo_model.kernels.selection import takes_reference
from elmo_model.token_embedding import reset_output_weight

# What stands for the logit of a negative that is the target itself.
EXCLUDED_LOGIT = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class NegativeSample:
    """Distinct negative ids `ids_S` (int64) and the number of draws it took to find them."""

    ids_S: Tensor
    num_draws: int


class LogUniformSampler:
    """Draws distinct ids with P(k) = ln((k + 2) / (k + 1)) / ln(V + 1), as Zipf's law suggests.

    Ids must be sorted by falling frequency for it to make sense.
    Source: `tf.random.log_uniform_candidate_sampler(unique=True)`.
    """

    def __init__(
        self, vocabulary_size: int, num_samples: int, seed: int | Sequence[int] = 0
    ) -> None:
        """Sample `num_samples` of the ids 0 to `vocabulary_size` - 1; equal seeds, equal draws.

        Raises:
            ValueError: there are not enough ids to draw from.
        """
        if not 0 < num_samples < vocabulary_size:
            raise ValueError(
                f"{num_samples} distinct negatives cannot be drawn from {vocabulary_size} words "
                "with one left over; use the full softmax or fewer negatives"
            )
        self.vocabulary_size = vocabulary_size
        self.num_samples = num_samples
        self._random = np.random.default_rng(seed)

    def sample(self) -> NegativeSample:
        """Draw until `num_samples` distinct ids have come up; ids in order of first appearance."""
        drawn = self._draw(2 * self.num_samples)
        while True:
            _, first_positions = np.unique(drawn, return_index=True)
            if len(first_positions) >= self.num_samples:
                positions = np.sort(first_positions)[: self.num_samples]
                return NegativeSample(torch.from_numpy(drawn[positions]), int(positions[-1]) + 1)
            drawn = np.concatenate([drawn, self._draw(len(drawn))])

    def _draw(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        log_range = math.log(self.vocabulary_size + 1)
        ids = np.floor(np.exp(self._random.random(count) * log_range)).astype(np.int64) - 1
        # exp(ln(V + 1)) may round up to V + 1.
        ids %= self.vocabulary_size
        return ids

    def log_expected_count(self, ids: Tensor, num_draws: int) -> Tensor:
        """Log of how often each id is expected among the sample, float64, in the shape of `ids`."""
        return log_expected_count(ids, self.vocabulary_size, self.num_samples, num_draws)


def log_expected_count(
    ids: Tensor, vocabulary_size: int, num_samples: int, num_draws: int
) -> Tensor:
    """Log of the expected count of each id in a sample of distinct ids, float64.

    The count is S P(k) when every draw gave a new id, else 1 - (1 - P(k))^draws.
    Source: TensorFlow's range sampler, as used by `tf.nn.sampled_softmax_loss`.
    """
    ranks = ids.double()
    probability = torch.log((ranks + 2) / (ranks + 1)) / math.log(vocabulary_size + 1)
    if num_draws == num_samples:
        return torch.log(probability * num_samples)
    return torch.log(-torch.expm1(num_draws * torch.log1p(-probability)))


class Softmax(nn.Module):
    """The output layer of the language model: logits = h W^T + b, shared by both directions."""

    def __init__(
        self, vocabulary_size: int, width: int, weight: nn.Parameter | None = None
    ) -> None:
        """Make the layer with W ~ N(0, 1 / sqrt(width)) and b = 0.

        Args:
            vocabulary_size: V, rows of W.
            width: P, columns of W.
            weight: (V, P) parameter of the input embedding, to share it; None makes a new one.
        """
        super().__init__()
        self._owns_weight = weight is None
        self.weight = (
            nn.Parameter(torch.empty(vocabulary_size, width)) if weight is None else weight
        )
        self.bias = nn.Parameter(torch.empty(vocabulary_size))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw W anew, unless it is shared, and set b to zero."""
        if self._owns_weight:
            reset_output_weight(self.weight, generator)
        nn.init.zeros_(self.bias)

    @property
    def vocabulary_size(self) -> int:
        """V, the number of words that are told apart."""
        return self.bias.shape[0]

    def full_loss(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """Mean cross-entropy (a scalar, natural log) over all V words, with gradient."""
        return functional.cross_entropy(
            functional.linear(hidden_NP, self.weight, self.bias), targets_N
        )

    def full_losses(self, hidden: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """`full_loss` of each direction, in bounded memory.

        Args:
            hidden: per direction (N, P).
            targets: per direction (N,) int64.
        """
        if takes_reference():
            return [self.full_loss(top, ids) for top, ids in zip(hidden, targets, strict=True)]
        return list(full_losses(self.weight, self.bias, hidden, targets))

    def sampled_losses(
        self,
        hidden: Sequence[Tensor],
        targets: Sequence[Tensor],
        samples: Sequence[NegativeSample],
        sparse_gradient: bool = False,
    ) -> list[Tensor]:
        """Sampled-softmax cross-entropy of each direction, each a scalar mean.

        Only the rows of W that are a target or a negative of some direction are touched; they are
        gathered once for all directions.

        Args:
            hidden: per direction (N, P).
            targets: per direction (N,) int64.
            samples: per direction its negatives.
            sparse_gradient: let W's gradient be a sparse tensor, for optimisers that take one.

        Source: Jean et al. 2015; `tf.nn.sampled_softmax_loss` with its defaults (expected counts
        subtracted, accidental hits removed).
        """
        device = self.bias.device
        negatives = [sample.ids_S.to(device) for sample in samples]
        wanted = [*targets, *negatives]
        rows_U, inverse = torch.unique(torch.cat(wanted), return_inverse=True)
        local = torch.split_with_sizes(inverse, [len(ids) for ids in wanted])
        weight_UP = functional.embedding(rows_U, self.weight, sparse=sparse_gradient)
        bias_U = self.bias[rows_U]
        losses = []
        for direction, sample in enumerate(samples):
            log_count_U = log_expected_count(
                rows_U, self.vocabulary_size, len(sample.ids_S), sample.num_draws
            )
            losses.append(
                _sampled_loss(
                    hidden[direction],
                    weight_UP,
                    bias_U - log_count_U.to(bias_U.dtype),
                    local[direction],
                    local[len(targets) + direction],
                )
            )
        return losses


def _sampled_loss(
    hidden_NP: Tensor,
    weight_UP: Tensor,
    offset_U: Tensor,
    targets_N: Tensor,
    negatives_S: Tensor,
) -> Tensor:
    """Cross-entropy against the negatives; ids are positions among the U gathered rows."""
    target_weight_NP = functional.embedding(targets_N, weight_UP)
    target_logit_N = (hidden_NP * target_weight_NP).sum(-1) + offset_U[targets_N]
    negative_weight_SP = functional.embedding(negatives_S, weight_UP)
    column_U = torch.full_like(offset_U, -1, dtype=torch.int64, requires_grad=False)
    column_U[negatives_S] = torch.arange(len(negatives_S), device=column_U.device)
    column_N = column_U[targets_N]
    if not takes_reference():
        return sampled_loss(
            hidden_NP, negative_weight_SP, offset_U[negatives_S], target_logit_N, column_N
        )
    logits_NS = functional.linear(hidden_NP, negative_weight_SP, offset_U[negatives_S])
    all_logits = torch.cat([target_logit_N[:, None], logits_NS], dim=1)
    hit_rows = torch.nonzero(column_N >= 0).squeeze(1)
    excluded = all_logits.new_tensor(EXCLUDED_LOGIT)
    all_logits.index_put_((hit_rows, column_N[hit_rows] + 1), excluded)
    return functional.cross_entropy(all_logits, torch.zeros_like(targets_N))
