"""Dropout of a biLM's training: its kinds, and the masks of one batch.

All masks of a batch are drawn before it runs, from seeds alone, so that the fast way and the
readable modules multiply with the same ones, and a training that is gone on with draws what it
would have drawn. Knows shapes and rates; no model, text or optimiser.

Axes: T steps, B rows, P width, G gate columns of a kernel, V words, U of them. Sources: Zaremba et
al. 2014 (elements), Gal and Ghahramani 2016 (variational, words), Merity et al. 2018 (weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from elmo_model.errors import ElmoError
from elmo_model.options import ElmoOptions

DropoutKind = Literal["element", "variational"]

# A rate is met to 1 / 65536: with 16 random bits an element, drawing takes the least time.
_LEVELS = 1 << 16
# Their places in the seeds, so that no two masks are drawn from the same numbers.
_OF_ROWS, _OF_WEIGHTS, _OF_WORDS = range(3)


@dataclass(frozen=True)
class Dropout:
    """Rates, 0 for none.

    Attributes:
        rate: at the input of every LSTM layer and at the final output; a residual adds the dropped
            input.
        kind: `element` draws it anew for each element and step, as the original; `variational`
            once for a row of the batch, the same for all its steps.
        weight_rate: of the recurrent half of every LSTM kernel, once for a batch.
        word_rate: of the vocabulary, whose vectors are zero throughout a batch; word input only,
            and not where a shared word table is the output layer's.
    """

    rate: float = 0.0
    kind: DropoutKind = "element"
    weight_rate: float = 0.0
    word_rate: float = 0.0

    def draw(
        self,
        options: ElmoOptions,
        num_steps: int,
        rows: range,
        num_rows: int,
        seed: Sequence[int],
        device: torch.device,
    ) -> DropoutMasks:
        """The masks of a batch.

        Only those of kind `element` depend on which rows a worker has; all others are equal for
        any number of workers.

        Args:
            options: of the model.
            num_steps: T.
            rows: those of this worker.
            num_rows: of all workers.
            seed: of the batch; equal seeds give equal masks on devices of one kind.
            device: where the masks are needed.

        Raises:
            ElmoError: as `check`.
        """
        lstm = options.lstm
        directions = range(options.num_directions)
        places, kernels, words_V = [], [], None
        if self.rate:
            is_element = self.kind == "element"
            source = _Source([*seed, _OF_ROWS, *([rows.start] if is_element else [])], device)
            shape = (num_steps, len(rows)) if is_element else (1, num_rows)
            mine = slice(None) if is_element else slice(rows.start, rows.stop)
            for _ in directions:
                masks = (
                    source.mask((*shape, lstm.projection_dim), self.rate)[:, mine]
                    for _ in range(lstm.n_layers + 1)
                )
                places.append(tuple(masks))
        if self.weight_rate:
            source = _Source([*seed, _OF_WEIGHTS], device)
            shape = (lstm.projection_dim, 4 * lstm.dim)
            for _ in directions:
                masks = (source.mask(shape, self.weight_rate) for _ in range(lstm.n_layers))
                kernels.append(tuple(masks))
        if self.word_rate:
            num_words = self.check(options)
            words_V = _Source([*seed, _OF_WORDS], device).mask((num_words,), self.word_rate)
        return DropoutMasks(tuple(places), tuple(kernels), words_V)

    def check(self, options: ElmoOptions) -> int:
        """The number of words of a model that can be trained with this dropout.

        Raises:
            ElmoError: dropout of words for a model without a word table.
        """
        num_words = options.training.n_tokens_vocab
        if self.word_rate and (options.char_cnn is not None or num_words is None):
            raise ElmoError(
                f"dropout of words ({self.word_rate}) needs word input; a model that reads "
                "characters has no word table, set it to 0"
            )
        return num_words or 0


@dataclass(frozen=True)
class DropoutMasks:
    """What a batch is multiplied with: 0, or 1 / (1 - rate). What is empty or None is off.

    Attributes:
        places: for each direction, of the input of each layer and then of the output, (T, B, P),
            or (1, B, P) for all steps.
        kernels: for each direction and layer, of the recurrent half of its kernel, (P, G).
        words_V: of the word table's rows.
    """

    places: tuple[tuple[Tensor, ...], ...] = ()
    kernels: tuple[tuple[Tensor, ...], ...] = ()
    words_V: Tensor | None = None

    def dropped(self, direction: int, place: int, values_TBP: Tensor) -> Tensor:
        """The input of a layer, or after the last one the output, with its dropout."""
        return values_TBP * self.places[direction][place] if self.places else values_TBP

    def recurrent(self, direction: int, place: int, recurrent_PG: Tensor) -> Tensor:
        """The recurrent half of a layer's kernel with its dropout."""
        return recurrent_PG * self.kernels[direction][place] if self.kernels else recurrent_PG

    def words(self, ids_U: Tensor, vectors_UP: Tensor) -> Tensor:
        """The vectors of words, given by their ids, with their dropout."""
        return vectors_UP if self.words_V is None else vectors_UP * self.words_V[ids_U][:, None]


NO_DROPOUT = DropoutMasks()


class _Source:
    """Random masks out of a seed, one after the other."""

    def __init__(self, seed: Sequence[int], device: torch.device) -> None:
        self._device = device
        mixed = np.random.SeedSequence(seed)
        # torch's own numbers take ten times as long on a CPU, and numpy's would have to be sent to
        # another device.
        self._bits = np.random.SFC64(mixed) if device.type == "cpu" else None
        if self._bits is None:
            self._generator = torch.Generator(device)
            self._generator.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))

    def mask(self, shape: tuple[int, ...], rate: float) -> Tensor:
        level = min(max(round(rate * _LEVELS), 1), _LEVELS - 1)
        scale = _LEVELS / (_LEVELS - level)
        size = int(np.prod(shape))
        if self._bits is not None:
            raw = self._bits.random_raw(-(-size // 4)).view(np.uint16)[:size]
            kept = torch.from_numpy(raw >= level).view(shape)
        else:
            levels = torch.randint(
                _LEVELS, shape, generator=self._generator, device=self._device, dtype=torch.int32
            )
            kept = levels >= level
        return kept.to(torch.float32).mul_(scale)
