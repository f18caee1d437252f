"""How well a biLM predicts text: perplexity of the full softmax, forward, backward and mean.

As in the original's evaluation, the state starts at zero and is carried from batch to batch, and
what does not fill the last batch is dropped. So the batch size decides how much text is dropped and
where rows begin; the unrolled steps decide how much is dropped and, among several rows, which row
reads which sentence. The training loss of a sampled softmax is far lower and must not be compared
with this.

Trainings and `elmo perplexity` measure by the same function, `measure`, in the kernels that embed.
Knows packed text; no words, files or corpora.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.errors import ElmoError
from elmo_model.kernels.workers import workers_instead
from elmo_model.language_model import LanguageModel
from elmo_model.lm_batches import LmBatch
from elmo_model.losses import Softmax
from elmo_model.packed_text import PackedText
from elmo_model.state import BiLMState


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

    @property
    def is_finite(self) -> bool:
        """Whether all figures are numbers below infinity."""
        figures = (self.forward, self.mean, 0.0 if self.backward is None else self.backward)
        return all(map(math.isfinite, figures))

    def describe(self) -> str:
        """The figures as people read them: `forward 98.2, backward 95.1, mean 96.6`."""
        return describe_figures(self.forward, self.backward, self.mean)


def describe_figures(forward: float, backward: float | None, mean: float) -> str:
    """Perplexities as people read them: `forward 98.2, backward 95.1, mean 96.6`."""
    parts = [f"forward {forward:.4g}"]
    if backward is not None:
        parts.append(f"backward {backward:.4g}")
    return ", ".join([*parts, f"mean {mean:.4g}"])


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


def measure(
    model: LanguageModel,
    texts: Iterable[PackedText],
    *,
    carries_state: bool = True,
    on_text: Callable[[PackedText, LossSums], None] = lambda text, sums: None,
) -> LossSums:
    """Run text through a model, without dropout.

    Args:
        model: the language model.
        texts: in their order.
        carries_state: each text goes on where the one before ended; else from a zero state.
        on_text: called after each text with what was counted by now.
    """
    sums = LossSums(model.options.num_directions)
    state: BiLMState | None = None
    # On other devices than the CPU torch's threads do nothing anyway.
    with workers_instead():
        for text in texts:
            losses_SN, final = model.losses(text, state)
            state = final if carries_state else None
            sums.add(list(losses_SN))
            on_text(text, sums)
    return sums


def perplexity(model: BiLM, softmax: Softmax, batches: Iterable[LmBatch]) -> Perplexity:
    """Measure a model that is being trained, on packed batches in their order, from a zero state.

    Args:
        model: the biLM; its weights stay where they are and as they are.
        softmax: its output layer.
        batches: from `packed_batches` over unshuffled text; the original's own evaluation has
            `unroll_steps` 1 and `batch_size` 256.

    Raises:
        ElmoError: there is no batch.
    """
    language_model = LanguageModel.of_modules(model, softmax)
    return measure(language_model, map(PackedText.of_batch, batches)).perplexity()


def _exp(mean_loss: float) -> float:
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf
