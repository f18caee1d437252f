"""How well a biLM predicts text: perplexity of the full softmax, forward, backward and mean.

As in the original's evaluation, the state starts at zero and is carried from batch to batch, and
what does not fill the last batch is dropped. So the batch size decides how much text is dropped and
where rows begin; the unrolled steps decide how much is dropped and, among several rows, which row
reads which sentence. The training loss of a sampled softmax is far lower and must not be compared
with this.
Knows no text or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.errors import ElmoError
from elmo_model.lm_batches import LmBatch
from elmo_model.losses import Softmax
from elmo_model.state import BiLMState
from elmo_model.training import run_directions


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of held-out text.

    Attributes:
        forward: exp of the mean negative log-likelihood of the next word.
        backward: the same of the previous word; None for a model of one direction.
        mean: geometric mean of the directions, the figure that the original prints.
        num_predictions: predictions of one direction that were counted.
    """

    forward: float
    backward: float | None
    mean: float
    num_predictions: int

    def describe(self) -> str:
        """The figures as people read them: `forward 98.2, backward 95.1, mean 96.6`."""
        parts = [f"forward {self.forward:.4g}"]
        if self.backward is not None:
            parts.append(f"backward {self.backward:.4g}")
        return ", ".join([*parts, f"mean {self.mean:.4g}"])


class LossSums:
    """Adds up the losses of predictions, batch by batch; sums are float64."""

    def __init__(self, num_directions: int) -> None:
        self.num_predictions = 0
        self._sums = [0.0] * num_directions

    def add(self, losses: Sequence[Tensor]) -> None:
        """Count a batch: for each direction -ln p of its predictions, as many for each."""
        for direction, losses_N in enumerate(losses):
            self._sums[direction] += float(losses_N.double().sum())
        self.num_predictions += losses[0].numel()

    def perplexity(self) -> Perplexity:
        """Perplexity of all that was counted.

        Raises:
            ElmoError: nothing was.
        """
        if not self.num_predictions:
            raise ElmoError(
                "the text does not fill one batch, so there is no perplexity; "
                "give more text or a smaller batch"
            )
        means = [total / self.num_predictions for total in self._sums]
        return Perplexity(
            forward=_exp(means[0]),
            backward=_exp(means[1]) if len(means) > 1 else None,
            mean=_exp(sum(means) / len(means)),
            num_predictions=self.num_predictions,
        )


@torch.no_grad()
def perplexity(model: BiLM, softmax: Softmax, batches: Iterable[LmBatch]) -> Perplexity:
    """Measure `model` on packed batches in their order, from a zero state, without dropout.

    The readable reference; `language_model.py` runs text faster.

    Args:
        model: the biLM.
        softmax: its output layer.
        batches: from `packed_batches` over unshuffled text; the original's own evaluation has
            `unroll_steps` 1 and `batch_size` 256.

    Raises:
        ElmoError: there is no batch.
    """
    sums = LossSums(model.options.num_directions)
    carried: BiLMState | None = None
    for batch in batches:
        hidden, carried = run_directions(model, batch, carried)
        sums.add(
            [
                softmax.negative_log_likelihood(top, text.targets_BT.flatten().to(model.device))
                for top, text in zip(hidden, batch.directions, strict=True)
            ]
        )
    return sums.perplexity()


def _exp(mean_loss: float) -> float:
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf
