"""Which units of the prepared text each stream reads, in which order, pass after pass.

The rows of a training batch are divided among streams, and the streams among the workers: what a
row reads depends on the seed and the number of streams, not on how many workers there are. Knows no
words, files or model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.pretraining.shards import Shard

Shuffle = Literal["sentences", "documents", "none"]

MAX_STREAMS = 8
# With fewer units a stream than this, some would read far more text than others.
UNITS_PER_STREAM = 4
# Corpora are often sorted, by topic or source: so many units from anywhere are shuffled together.
WINDOW_UNITS = 8


@dataclass(frozen=True)
class Unit:
    """One of `parts` equal parts of a unit: shard and place in it."""

    shard: int
    unit: int
    part: int
    parts: int

    def sentences(self, num_sentences: int) -> range:
        """Which of the unit's sentences belong to this part."""
        return range(
            num_sentences * self.part // self.parts, num_sentences * (self.part + 1) // self.parts
        )


@dataclass(frozen=True)
class ReadingOrder:
    """How streams pass over text, again and again.

    `sentences` visits units in an order of its own in every pass and shuffles the sentences of
    some of them together, as the original shuffles those of a file; `documents` shuffles units and
    documents and keeps their sentences together; `none` reads as the corpus stands, each stream a
    stretch of it.
    """

    shards: Sequence[Shard]
    num_streams: int
    seed: int
    shuffle: Shuffle

    def units(self, stream: int, epoch: int) -> list[Unit]:
        """What a stream reads in one pass, in order."""
        all_units = [
            (number, unit)
            for number, shard in enumerate(self.shards)
            for unit in range(len(shard.unit_tokens))
        ]
        parts = 1 if len(all_units) >= UNITS_PER_STREAM * self.num_streams else self.num_streams
        units = [Unit(*place, part, parts) for place in all_units for part in range(parts)]
        order = np.arange(len(units))
        if self.shuffle != "none":
            self._random(epoch).shuffle(order)
        first, last = (len(units) * at // self.num_streams for at in (stream, stream + 1))
        return [units[index] for index in order[first:last]]

    def windows(self, stream: int, epoch: int) -> list[list[Unit]]:
        """What a stream reads in one pass, in the pieces that it holds in memory."""
        units = self.units(stream, epoch)
        size = WINDOW_UNITS if self.shuffle == "sentences" else 1
        return [units[first : first + size] for first in range(0, len(units), size)]

    def mixed(self, stream: int, epoch: int, window: int, num_sentences: int) -> NDArray[np.int64]:
        """The order in which the sentences of a window's units are read, side by side."""
        if self.shuffle != "sentences":
            return np.arange(num_sentences)
        return self._random(epoch, stream, window).permutation(num_sentences)

    def sentences(
        self, unit: Unit, epoch: int, num_sentences_D: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Places of a unit's sentences in the order in which they are read in one pass.

        Args:
            unit: the unit.
            epoch: number of the pass.
            num_sentences_D: sentences of each of the unit's documents.
        """
        chosen = unit.sentences(int(num_sentences_D.sum()))
        places = np.arange(chosen.start, chosen.stop)
        if self.shuffle == "none":
            return places
        random = self._random(epoch, unit.shard, unit.unit, unit.part)
        if self.shuffle == "sentences":
            random.shuffle(places)
            return places
        document_S = np.repeat(np.arange(len(num_sentences_D)), num_sentences_D)[places]
        rank_D = random.permutation(len(num_sentences_D))
        return places[np.argsort(rank_D[document_S], kind="stable")]

    def _random(self, *of: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *of))


def streams_for(
    batch_size: int, shuffle: Shuffle, *, num_workers: int = 0, num_sentences: int | None = None
) -> int:
    """How many streams feed the rows of a batch, all alike.

    Where neighbouring sentences stay together, each row has a stream of its own and reads on. Where
    they do not, rows share a few, which keeps the number of open units small.

    Args:
        batch_size: rows.
        shuffle: of the text.
        num_workers: each needs a stream at least.
        num_sentences: of the text; each stream needs one at least.
    """
    wanted = max(MAX_STREAMS, num_workers) if shuffle == "sentences" else batch_size
    at_most = max(1, min(wanted, batch_size, num_sentences or batch_size))
    fitting = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
    enough = [number for number in fitting if num_workers <= number]
    return max([number for number in enough if number <= at_most] or enough[:1])
