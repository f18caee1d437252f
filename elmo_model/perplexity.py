"""How well a biLM predicts text: perplexity of the full softmax, forward, backward and mean.

As in the original's evaluation, the state starts at zero and is carried from batch to batch, and
what does not fill the last batch is dropped. So the batch size decides how much text is dropped and
where rows begin; the unrolled steps decide only how much is dropped. The training loss of a sampled
softmax is far lower and must not be compared with this.
Knows no text or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

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


@torch.no_grad()
def perplexity(model: BiLM, softmax: Softmax, batches: Iterable[LmBatch]) -> Perplexity:
    """Measure `model` on packed batches in their order, from a zero state, without dropout.

    Args:
        model: the biLM.
        softmax: its output layer.
        batches: from `packed_batches` over unshuffled text; the original's own evaluation has
            `unroll_steps` 1 and `batch_size` 256.

    Raises:
        ElmoError: there is no batch.
    """
    sums = [0.0] * model.options.num_directions
    num_predictions = 0
    carried: BiLMState | None = None
    for batch in batches:
        hidden, carried = run_directions(model, batch, carried)
        for direction, (top, text) in enumerate(zip(hidden, batch.directions, strict=True)):
            targets = text.targets_BT.flatten().to(model.device)
            losses_N = softmax.negative_log_likelihood(top, targets)
            sums[direction] += float(losses_N.double().sum())
        num_predictions += batch.num_tokens
    if not num_predictions:
        raise ElmoError(
            "the text does not fill one batch, so there is no perplexity; "
            "give more text or a smaller batch"
        )
    means = [total / num_predictions for total in sums]
    return Perplexity(
        forward=math.exp(means[0]),
        backward=math.exp(means[1]) if len(means) > 1 else None,
        mean=math.exp(sum(means) / len(means)),
        num_predictions=num_predictions,
    )
