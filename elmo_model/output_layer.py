"""The full softmax for measuring: -ln p of given words, in blocks of words and of predictions.

As `losses.Softmax.negative_log_likelihood`, without gradient, and as fast for a vocabulary of a
million words as for a small one: its blocks are as wide in either direction as products need to be.
Knows hidden vectors and ids; no LSTM or text.

Shape suffixes: N predictions, M predictions of a block, P projection width, V vocabulary, W words
of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from elmo_model.softmax_file import SoftmaxWeights

# Logits of a block: on a CPU so few that they stay in its caches, 1 MB; on a GPU 256 MB.
_BLOCK_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 26}
_BLOCK_PREDICTIONS = {"cpu": 256, "cuda": 8192}


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
        losses = [
            self._log_normaliser(hidden_MP) - self._target_logit(hidden_MP, targets_M)
            for hidden_MP, targets_M in zip(
                torch.split(hidden_NP.float(), self._num_predictions),
                torch.split(targets_N, self._num_predictions),
                strict=True,
            )
        ]
        return torch.cat(losses)

    def _target_logit(self, hidden_MP: Tensor, targets_M: Tensor) -> Tensor:
        return (hidden_MP * self._weight_VP[targets_M]).sum(1) + self._bias_V[targets_M]

    def _log_normaliser(self, hidden_MP: Tensor) -> Tensor:
        """Logarithm of the sum of exp of all logits, (M,)."""
        total_M = hidden_MP.new_full((hidden_MP.shape[0],), -torch.inf)
        for weight_WP, bias_W in zip(
            torch.split(self._weight_VP, self._num_words),
            torch.split(self._bias_V, self._num_words),
            strict=True,
        ):
            logits_MW = F.linear(hidden_MP, weight_WP, bias_W)
            total_M = torch.logaddexp(total_M, torch.logsumexp(logits_MW, 1))
        return total_M
