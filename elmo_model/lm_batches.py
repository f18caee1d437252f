"""Pack tokenised sentences into the fixed-size batches of language-model training.

A batch is B rows of exactly T positions without padding: a row whose sentence is used up pulls the
next one from a reader that all rows share, and a long sentence goes on in the same row of the next
batch, where the carried LSTM state waits for it. Forward rows hold `<S> w1 ... wn </S>`, backward
rows `</S> wn ... w1 <S>`; each position predicts the next. Both directions read the same sentences
in the same order, so the words of a batch are embedded once for both.
Knows no model, loss or file.

Shape suffixes: B rows, T positions, U distinct words of a batch, C characters of a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END, CharacterEncoder
from elmo_model.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]
Element = TypeVar("Element", bound=np.generic)

_EMPTY: Ids = np.empty(0, np.int64)


@dataclass(frozen=True)
class DirectionBatch:
    """One direction's text: `inputs_BT` rows of `LmBatch.words`, `targets_BT` vocabulary ids."""

    inputs_BT: Tensor
    targets_BT: Tensor


@dataclass(frozen=True)
class LmBatch:
    """Unrolled time steps of both directions; all tensors are int64 on the CPU.

    `words` spells the distinct words of the batch: (U, C) character ids, not shifted (0..260), or
    (U,) vocabulary ids for a model without characters. `backward` is None for one direction.
    """

    words: Tensor
    forward: DirectionBatch
    backward: DirectionBatch | None

    @property
    def directions(self) -> tuple[DirectionBatch, ...]:
        """Forward, then backward if there is one."""
        return (self.forward,) if self.backward is None else (self.forward, self.backward)

    @property
    def num_rows(self) -> int:
        """B, the rows whose LSTM state is carried."""
        return self.forward.inputs_BT.shape[0]

    @property
    def num_tokens(self) -> int:
        """Predictions of one direction, B T."""
        return self.forward.inputs_BT.numel()


class WordTable:
    """Numbers words by first appearance; holds their characters and their vocabulary ids.

    A word outside the vocabulary is read by its characters and predicted as `<UNK>`. Without
    characters it is read as `<UNK>`, too, and the numbers are the vocabulary's own.
    Memory grows with the number of distinct words: at most 4 C + 16 bytes each, and the word.
    """

    def __init__(self, vocabulary: Vocabulary, max_characters: int | None) -> None:
        """Start with the two sentence marks.

        Args:
            vocabulary: the words that are told apart as targets.
            max_characters: C, characters of a word; None for a model whose input is word ids.
        """
        self.vocabulary = vocabulary
        self._encoder = (
            None if max_characters is None else CharacterEncoder(max_characters, shifted=False)
        )
        self._ids: dict[str, int] = {}
        self._words: list[str] = []
        self._num_spelled = 0
        self._targets: Ids = np.empty(0, np.int64)
        self._chars: npt.NDArray[np.int16] = np.empty((0, max_characters or 0), np.int16)
        self.begin_id, self.end_id = self.ids_of((SENTENCE_BEGIN, SENTENCE_END)).tolist()

    def ids_of(self, words: Sequence[str]) -> Ids:
        """The numbers of `words`, int64; words that are new get the next ones."""
        if self._encoder is None:
            return self.vocabulary.ids_of(words)
        known = self._ids
        for word in words:
            if word not in known:
                known[word] = len(known)
                self._words.append(word)
        return np.fromiter(map(known.__getitem__, words), np.int64, len(words))

    def __len__(self) -> int:
        """How many words have a number."""
        return len(self.vocabulary if self._encoder is None else self._words)

    def words_of(self, ids: Ids) -> list[str]:
        """The words of table numbers."""
        words = self.vocabulary.words if self._encoder is None else self._words
        return [words[number] for number in ids.tolist()]

    def sequence_of(self, words: Sequence[str]) -> Ids:
        """The numbers of `<S>`, the words and `</S>`, int64."""
        return np.concatenate(([self.begin_id], self.ids_of(words), [self.end_id]))

    def targets_of(self, ids: Ids) -> Ids:
        """Vocabulary ids of table numbers, in their shape."""
        if self._encoder is None:
            return ids
        self._spell_new_words(self._encoder)
        return self._targets[ids]

    def inputs_of(self, ids_U: Ids) -> Tensor:
        """What the model reads for table numbers: (U, C) character ids or (U,) vocabulary ids."""
        if self._encoder is None:
            return torch.from_numpy(ids_U)
        self._spell_new_words(self._encoder)
        return torch.from_numpy(self._chars[ids_U].astype(np.int64))

    def _spell_new_words(self, encoder: CharacterEncoder) -> None:
        words = self._words[self._num_spelled :]
        if not words:
            return
        start, stop = self._num_spelled, self._num_spelled + len(words)
        if stop > len(self._targets):
            self._targets = _grown(self._targets, stop)
            self._chars = _grown(self._chars, stop)
        self._targets[start:stop] = self.vocabulary.ids_of(words)
        self._chars[start:stop] = encoder.encode(words)
        self._num_spelled = stop


class Corpus:
    """Tokenised sentences in memory: 4 bytes a token, and each distinct word once in the table."""

    def __init__(self, ids: Ids, lengths: Ids, table: WordTable) -> None:
        """Take tokens that are numbered already.

        Args:
            ids: table numbers of all tokens, one sentence after the other, without marks.
            lengths: tokens of each sentence; their sum is the length of `ids`.
            table: where the numbers come from.
        """
        self.table = table
        self._ends = np.cumsum(lengths + 2)
        self._starts = self._ends - lengths - 2
        self._ids = np.empty(len(ids) + 2 * len(lengths), np.int32)
        is_mark = np.zeros(len(self._ids), bool)
        is_mark[self._starts] = is_mark[self._ends - 1] = True
        self._ids[self._starts] = table.begin_id
        self._ids[self._ends - 1] = table.end_id
        self._ids[~is_mark] = ids

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], table: WordTable) -> Corpus:
        """Number all words of `sentences`; the iterable is read once."""
        numbered = [table.ids_of(words) for words in sentences]
        lengths = np.fromiter(map(len, numbered), np.int64, len(numbered))
        return cls(np.concatenate([*numbered, np.empty(0, np.int64)]), lengths, table)

    @property
    def num_sentences(self) -> int:
        """Sentences, empty ones too."""
        return len(self._ends)

    @property
    def num_tokens(self) -> int:
        """Tokens without the sentence marks."""
        return len(self._ids) - 2 * self.num_sentences

    @property
    def num_predictions(self) -> int:
        """Predictions of one direction in one pass: every token and one sentence mark."""
        return len(self._ids) - self.num_sentences

    def sequences(self, seed: int | None = None, epoch: int = 0) -> Iterator[Ids]:
        """One pass over all sentences with their marks.

        Args:
            seed: of the shuffle; None keeps the order in which the sentences came.
            epoch: number of the pass; every pass has its own order.
        """
        order = np.arange(self.num_sentences)
        if seed is not None:
            np.random.default_rng((seed, epoch)).shuffle(order)
        for sentence in order.tolist():
            yield self._ids[self._starts[sentence] : self._ends[sentence]].astype(np.int64)

    def endless_sequences(self, seed: int | None = None) -> Iterator[Ids]:
        """Pass after pass without end, each in its own order.

        Raises:
            ValueError: there is no sentence to repeat.
        """
        if not self.num_sentences:
            raise ValueError("the corpus has no sentences to train on")
        for epoch in count():
            yield from self.sequences(seed, epoch)


def packed_batches(
    sequences: Iterable[Ids],
    table: WordTable,
    batch_size: int,
    unroll_steps: int,
    bidirectional: bool = True,
) -> Iterator[LmBatch]:
    """Pack sentences into batches of `batch_size` rows of `unroll_steps` positions.

    When the sentences end, the batch that they leave incomplete and what is left in all rows are
    dropped, so a larger batch drops more.

    Args:
        sequences: table numbers of sentences with their marks, from `Corpus` or
            `WordTable.sequence_of`.
        table: where the numbers come from.
        batch_size: B, rows.
        unroll_steps: T, positions of a row, the length of truncated back-propagation.
        bidirectional: pack the backward text as well.

    Source: the data stream of the original training program, with one reader for both directions
        instead of two independent ones.
    """
    packer = RowPacker(batch_size, unroll_steps)
    reader = iter(sequences)
    while (filled := packer.fill(reader)) is not None:
        yield to_batch(filled, table, bidirectional)


def to_batch(filled_4BT: Ids, table: WordTable, bidirectional: bool = True) -> LmBatch:
    """A batch of rows that `RowPacker.fill` filled, or of several packers' rows side by side.

    Its words are in the order in which the batch reads them, so that a batch does not depend on
    what its table has seen before: sums of floating-point numbers would.
    """
    sources = [filled_4BT[:2], filled_4BT[2:]] if bidirectional else [filled_4BT[:2]]
    words, firsts, positions = np.unique(
        np.concatenate([inputs.ravel() for inputs, _ in sources]),
        return_index=True,
        return_inverse=True,
    )
    order = np.argsort(firsts)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    shaped = rank[positions].reshape(len(sources), *filled_4BT.shape[1:])
    directions = [
        DirectionBatch(torch.from_numpy(local), torch.from_numpy(table.targets_of(targets)))
        for local, (_, targets) in zip(shaped, sources, strict=True)
    ]
    return LmBatch(
        table.inputs_of(words[order]), directions[0], directions[1] if bidirectional else None
    )


class RowPacker:
    """Rows that one reader fills; what they hold can be taken out and given to another packer."""

    def __init__(
        self, num_rows: int, unroll_steps: int, rows: Sequence[tuple[Ids, int]] | None = None
    ) -> None:
        """Start with empty rows, or where another packer stopped.

        Args:
            num_rows: B, rows.
            unroll_steps: T, positions of a row in a batch.
            rows: `rows` of a packer with as many rows.
        """
        self._unroll_steps = unroll_steps
        self._rows = [(_EMPTY, 0)] * num_rows if rows is None else list(rows)

    @property
    def rows(self) -> tuple[tuple[Ids, int], ...]:
        """Of each row the sentence that it is in, and how many of its predictions are done."""
        return tuple(self._rows)

    def fill(self, reader: Iterator[Ids]) -> Ids | None:
        """Inputs and targets of the next batch as table numbers; None if the sentences end first.

        Returns: (4, B, T) int64: forward inputs, forward targets, backward inputs and targets.
        """
        steps = self._unroll_steps
        filled_4BT = np.empty((4, len(self._rows), steps), np.int64)
        for row, (sentence, position) in enumerate(self._rows):
            column = 0
            while column < steps:
                if position >= len(sentence) - 1:
                    following = next(reader, None)
                    if following is None:
                        return None
                    sentence, position = following, 0
                stop = min(position + steps - column, len(sentence) - 1)
                columns = slice(column, column + stop - position)
                backward = sentence[::-1]
                filled_4BT[0, row, columns] = sentence[position:stop]
                filled_4BT[1, row, columns] = sentence[position + 1 : stop + 1]
                filled_4BT[2, row, columns] = backward[position:stop]
                filled_4BT[3, row, columns] = backward[position + 1 : stop + 1]
                column, position = columns.stop, stop
            self._rows[row] = (sentence, position)
        return filled_4BT


def _grown(array: npt.NDArray[Element], length: int) -> npt.NDArray[Element]:
    """A copy with room for at least `length` rows, twice the old room or more."""
    grown = np.empty((max(length, 2 * len(array)), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
