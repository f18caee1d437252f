"""The held-out text that perplexity is measured on: all of it, or always the same sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from elmo_model.lm_batches import Corpus, LmBatch, WordTable, packed_batches
from pipeline.pretraining.shards import Shard, read_unit
from pipeline.pretraining.text_part import TextPart
from pipeline.storage import Storage

# Rows and steps of one batch, or less if there is little text.
ROWS, STEPS = 32, 20
# When the text ends, each row drops what is left of its sentence.
SENTENCES_PER_ROW = 4
# A sample is taken from so many units, so that it is of many documents and soon read.
SAMPLED_UNITS = 16


class HeldOutText:
    """Held-out text in memory, at most about `max_tokens` tokens of it."""

    def __init__(
        self, storage: Storage, shards: tuple[Shard, ...], table: WordTable, max_tokens: int
    ) -> None:
        """Read it; the sentences keep their order.

        Args:
            storage: where the shards are.
            shards: of held-out text.
            table: numbers its words.
            max_tokens: if there is more, sentences are drawn from some units.
        """
        total = sum(shard.num_tokens for shard in shards)
        places = [(shard, unit) for shard in shards for unit in range(len(shard.unit_tokens))]
        random = np.random.default_rng(0)
        share = 1.0
        if total > max_tokens:
            chosen = np.sort(random.permutation(len(places))[:SAMPLED_UNITS])
            places = [places[index] for index in chosen]
            share = max_tokens / sum(shard.unit_tokens[unit] for shard, unit in places)
        numbers, lengths = [], []
        for shard, unit in places:
            ids_N, lengths_S = _sample(read_unit(storage, shard, unit), table, share, random)
            numbers.append(ids_N)
            lengths.append(lengths_S)
        nothing = np.empty(0, np.int64)
        self._corpus = Corpus(
            np.concatenate([*numbers, nothing]), np.concatenate([*lengths, nothing]), table
        )
        self._table = table

    @property
    def num_tokens(self) -> int:
        """Tokens, sentence marks not counted."""
        return self._corpus.num_tokens

    def batches(self, *, bidirectional: bool = True) -> Iterator[LmBatch]:
        """The text in batches for `perplexity`; what does not fill the last one is left out."""
        num_predictions = self._corpus.num_predictions
        steps = max(1, min(STEPS, num_predictions))
        num_sentences = self._corpus.num_sentences
        rows = max(1, min(ROWS, num_predictions // steps, num_sentences // SENTENCES_PER_ROW))
        yield from packed_batches(self._corpus.sequences(), self._table, rows, steps, bidirectional)


def _sample(
    part: TextPart, table: WordTable, share: float, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers and lengths of about `share` of the sentences."""
    lengths_S = part.sentence_lengths_S
    kept_S = np.ones(len(lengths_S), bool)
    if share < 1:
        kept_S = random.random(len(lengths_S)) < share
        # Of a little text, at least something.
        kept_S[:1] |= not kept_S.any()
    ids_N = part.ids_N[np.repeat(kept_S, lengths_S)]
    return table.ids_of(part.words)[ids_N], lengths_S[kept_S]
