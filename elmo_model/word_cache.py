"""Keep words' context-free vectors between batches. Knows no model.

A word's vector depends on the word alone, so keeping it changes nothing. When the room is used up
everything is dropped and filled anew, which costs one batch and needs no bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from elmo_model.upload import upload
from elmo_model.word_table import WordTable

_FIRST_ROWS = 1024


class WordCache:
    """Vectors of at most `max_words` words, on the device where they are made.

    `num_made` counts the words that were not kept and had to be made.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Tensor], max_words: int) -> None:
        """Take the function that makes vectors (U, P) of U words, and the number to keep."""
        self._make = embed
        self._precomputed: WordTable | None = None
        self.num_made = 0
        self._max_words = max_words
        self._rows: dict[str, int] = {}
        self._table: Tensor | None = None

    def _embed(self, words: Sequence[str]) -> Tensor:
        self.num_made += len(words)
        return self._make(words)

    def __len__(self) -> int:
        return len(self._rows)

    def precompute(self, table: WordTable) -> None:
        """Take vectors that need not be made, nor kept here."""
        self._precomputed = table

    def vectors(self, words: Sequence[str]) -> Tensor:
        """Vectors (U, P) of words, in their order; only words not kept are made."""
        if self._precomputed is None:
            return self._kept(words)
        rows = [self._precomputed.row(word) for word in words]
        missing = [place for place, row in enumerate(rows) if row is None]
        found = [place for place, row in enumerate(rows) if row is not None]
        others = self._kept([words[place] for place in missing])
        index = torch.tensor([row for row in rows if row is not None], dtype=torch.int64)
        vectors = others.new_empty(len(words), others.shape[1])
        for places, values in (found, self._precomputed.vectors_UP[index]), (missing, others):
            target = upload(torch.tensor(places, dtype=torch.int64), vectors.device)
            vectors.index_copy_(0, target, upload(values, vectors.device))
        return vectors

    def _kept(self, words: Sequence[str]) -> Tensor:
        if not words:
            return self._embed(words)
        rows = self._rows
        missing = list(dict.fromkeys(word for word in words if word not in rows))
        if len(rows) + len(missing) > self._max_words:
            rows.clear()
            missing = list(dict.fromkeys(words))
            if len(missing) > self._max_words:
                return self._embed(words)
        table = self._keep(missing)
        index = torch.tensor([rows[word] for word in words], dtype=torch.int64)
        return table[upload(index, table.device)]

    def _keep(self, words: Sequence[str]) -> Tensor:
        """Make and keep words; returns the table that `_rows` points into."""
        if self._table is not None and not words:
            return self._table
        made = self._embed(words)
        start = len(self._rows)
        stop = start + len(words)
        if self._table is None or stop > self._table.shape[0]:
            room = min(max(2 * stop, _FIRST_ROWS), self._max_words)
            table = made.new_empty(room, made.shape[1])
            if self._table is not None:
                table[:start] = self._table[:start]
            self._table = table
        self._table[start:stop] = made
        self._rows.update(zip(words, range(start, stop), strict=True))
        return self._table
