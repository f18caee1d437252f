"""The full softmax for measuring: -ln p of given words, in blocks of words and of predictions.

As fast for a vocabulary of a million words as for a small one: its blocks are as wide in either
direction as products need to be. Each thread takes predictions of its own. Without gradient: that
is cross_entropy.py. Knows hidden vectors and ids; no LSTM or text.

Shape suffixes: N predictions, M predictions of a block, P projection width, V vocabulary, W words
of a block.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from elmo_model.kernels.packed_linear import padded_rows
from elmo_model.kernels.products import product, slices
from elmo_model.kernels.workers import Workers, run_without_gradient, shared_workers
from elmo_model.softmax_file import SoftmaxWeights

# Logits of a block: on a CPU so few that they stay in its caches, 1 MB; on a GPU 256 MB.
_BLOCK_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 26}
_BLOCK_PREDICTIONS = {"cpu": 256, "cuda": 8192}
_ROWS_MULTIPLE = 16


class OutputLayer:
    """W (V, P) and b (V) in float32 on the device where the model runs."""

    def __init__(self, softmax: SoftmaxWeights, device: torch.device) -> None:
        self._weight_VP = softmax.weight_VP.to(device, torch.float32)
        self._bias_V = softmax.bias_V.to(device, torch.float32)
        kind = device.type if device.type in _BLOCK_LOGITS else "cpu"
        self._num_predictions = _BLOCK_PREDICTIONS[kind]
        self._num_words = max(1, _BLOCK_LOGITS[kind] // self._num_predictions)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self._bias_V.shape[0]

    @torch.no_grad()
    def negative_log_likelihood(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """-ln p(target) of each prediction, (N,) float32; targets are int64 ids."""
        hidden_NP = hidden_NP.float()
        normaliser_N = hidden_NP.new_empty(len(hidden_NP))

        def fill(part: slice) -> None:
            normaliser_N[part] = self._log_normaliser(hidden_NP[part])

        workers = shared_workers() if hidden_NP.device.type == "cpu" else Workers(1)
        blocks = self._blocks(workers.num_threads, len(hidden_NP))
        run_without_gradient(workers, (partial(fill, block) for block in blocks))
        return normaliser_N - self._target_logit(hidden_NP, targets_N)

    def _blocks(self, num_threads: int, num_predictions: int) -> list[slice]:
        """Blocks of predictions, as many for each thread."""
        if not num_predictions:
            return []
        per_thread = -(-num_predictions // (self._num_predictions * num_threads))
        return slices(num_predictions, per_thread * num_threads, multiple_of=_ROWS_MULTIPLE)

    def _target_logit(self, hidden_MP: Tensor, targets_M: Tensor) -> Tensor:
        return (hidden_MP * self._weight_VP[targets_M]).sum(1) + self._bias_V[targets_M]

    def _log_normaliser(self, hidden_MP: Tensor) -> Tensor:
        """Logarithm of the sum of exp of all logits, (M,)."""
        num_rows = len(hidden_MP)
        # Products are made for few numbers of rows; see packed_linear.py.
        hidden_MP = F.pad(hidden_MP, (0, 0, 0, padded_rows(num_rows) - num_rows))
        total_M = hidden_MP.new_full((len(hidden_MP),), -torch.inf)
        for weight_WP, bias_W in zip(
            torch.split(self._weight_VP, self._num_words),
            torch.split(self._bias_V, self._num_words),
            strict=True,
        ):
            logits_MW = product(hidden_MP, weight_WP.t(), bias_W)
            largest_M = logits_MW.amax(1)
            sum_M = logits_MW.sub_(largest_M[:, None]).exp_().sum(1)
            total_M = torch.logaddexp(total_M, sum_M.log_().add_(largest_M))
        return total_M[:num_rows]
