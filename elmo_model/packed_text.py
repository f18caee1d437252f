"""Text for a language model to predict, packed by step: rows that go on, or sentences on their own.

`carried_texts` reads as the original's evaluation does, one step of all rows at a time, and hands
out many steps at once. `sentence_texts` reads every sentence from its own beginning, those of like
length together. Knows word numbers; no model and no file.

Shape suffixes: S directions, B rows, T steps, N packed positions, U distinct words, C characters.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.lm_batches import LmBatch, WordTable
from elmo_model.packing import PackedLayout

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PackedText:
    """Rows of any length for each direction, in the order in which that direction reads them.

    `words` spells the distinct words as `LmBatch.words` does. `index_SN` (int64) says which of them
    each direction reads at each packed position, `targets_SN` which vocabulary id comes next.
    """

    words: Tensor
    layout: PackedLayout
    index_SN: Ids
    targets_SN: Ids

    @classmethod
    def of(
        cls, inputs_SBT: Ids, targets_SBT: Ids, lengths_B: NDArray[np.integer], table: WordTable
    ) -> PackedText:
        """Pack rows of table numbers; what lies at or after a row's length is not looked at."""
        layout = PackedLayout.of(lengths_B)
        inputs_SN = inputs_SBT[:, layout.row_N, layout.step_N]
        targets_SN = targets_SBT[:, layout.row_N, layout.step_N]
        words_U, index = np.unique(inputs_SN, return_inverse=True)
        return cls(
            table.inputs_of(words_U),
            layout,
            index.reshape(inputs_SN.shape),
            table.targets_of(targets_SN),
        )

    @classmethod
    def of_batch(cls, batch: LmBatch) -> PackedText:
        """A batch of training, packed by step."""
        num_rows, num_steps = batch.forward.inputs_BT.shape
        layout = PackedLayout.of(np.full(num_rows, num_steps))
        at = torch.from_numpy(layout.row_N), torch.from_numpy(layout.step_N)
        inputs_SN = torch.stack([text.inputs_BT[at] for text in batch.directions])
        targets_SN = torch.stack([text.targets_BT[at] for text in batch.directions])
        return cls(batch.words, layout, inputs_SN.numpy(), targets_SN.numpy())


def carried_texts(
    sequences: Iterable[Ids],
    table: WordTable,
    batch_size: int,
    max_steps: int,
    bidirectional: bool = True,
) -> Iterator[PackedText]:
    """Rows that go on from text to text, filled as `packed_batches` does with one unrolled step.

    At each step the rows whose sentence is used up pull the next one, the first row first. When one
    is wanted and there is none, the text ends, and what other rows still had is dropped: the rest
    of about one sentence each.

    Args:
        sequences: table numbers of sentences with their marks, read as they are needed.
        table: where the numbers come from.
        batch_size: B.
        max_steps: T of every text but the last; changes no prediction.
        bidirectional: pack the backward text as well.
    """
    # Sentences of each row that are not done yet, with the step at which they begin.
    rows: list[deque[tuple[int, Ids]]] = [deque() for _ in range(batch_size)]
    # The step at which each row runs out; the row that pulls next is the least.
    ends = [(0, row) for row in range(batch_size)]
    num_directions = 2 if bidirectional else 1
    done = 0
    for sequence in sequences:
        end, row = ends[0]
        while end - done >= max_steps:
            yield _block(rows, done, max_steps, num_directions, table)
            done += max_steps
        rows[row].append((end, sequence))
        heapq.heapreplace(ends, (end + len(sequence) - 1, row))
    while done < ends[0][0]:
        num_steps = min(max_steps, ends[0][0] - done)
        yield _block(rows, done, num_steps, num_directions, table)
        done += num_steps


def sentence_texts(
    sequences: Iterable[Ids],
    table: WordTable,
    max_positions: int,
    window_positions: int,
    bidirectional: bool = True,
) -> Iterator[PackedText]:
    """Every sentence as a row of its own; none is dropped.

    Args:
        sequences: table numbers of sentences with their marks, read as they are needed.
        table: where the numbers come from.
        max_positions: N of a text; a longer sentence is alone in its text.
        window_positions: so many are sorted by length together.
        bidirectional: pack the backward text as well.
    """
    num_directions = 2 if bidirectional else 1
    window: list[Ids] = []
    num_positions = 0
    for sequence in sequences:
        window.append(sequence)
        num_positions += len(sequence) - 1
        if num_positions >= window_positions:
            yield from _by_length(window, max_positions, num_directions, table)
            window, num_positions = [], 0
    yield from _by_length(window, max_positions, num_directions, table)


def _block(
    rows: Sequence[deque[tuple[int, Ids]]],
    start: int,
    num_steps: int,
    num_directions: int,
    table: WordTable,
) -> PackedText:
    """The steps from `start` on, which all rows are long enough for."""
    stop = start + num_steps
    inputs_SBT = np.empty((num_directions, len(rows), num_steps), np.int64)
    targets_SBT = np.empty_like(inputs_SBT)
    for row, waiting in enumerate(rows):
        while waiting and waiting[0][0] + len(waiting[0][1]) - 1 <= start:
            waiting.popleft()
        for begin, sequence in waiting:
            first = max(start - begin, 0)
            last = min(stop - begin, len(sequence) - 1)
            if first >= last:
                break
            columns = slice(begin + first - start, begin + last - start)
            for direction in range(num_directions):
                read = sequence[::-1] if direction else sequence
                inputs_SBT[direction, row, columns] = read[first:last]
                targets_SBT[direction, row, columns] = read[first + 1 : last + 1]
    return PackedText.of(inputs_SBT, targets_SBT, np.full(len(rows), num_steps), table)


def _by_length(
    window: Sequence[Ids], max_positions: int, num_directions: int, table: WordTable
) -> Iterator[PackedText]:
    lengths = np.array([len(sequence) - 1 for sequence in window], np.int64)
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    first = 0
    while first < len(order):
        before = ends[first] - lengths[order[first]]
        last = int(np.searchsorted(ends, before + max_positions, side="right"))
        chosen = order[first : max(last, first + 1)]
        yield _rows([window[place] for place in chosen], num_directions, table)
        first += len(chosen)


def _rows(sequences: Sequence[Ids], num_directions: int, table: WordTable) -> PackedText:
    lengths_B = np.array([len(sequence) - 1 for sequence in sequences])
    inputs_SBT = np.zeros((num_directions, len(sequences), int(lengths_B.max())), np.int64)
    targets_SBT = np.zeros_like(inputs_SBT)
    for row, sequence in enumerate(sequences):
        for direction in range(num_directions):
            read = sequence[::-1] if direction else sequence
            inputs_SBT[direction, row, : len(read) - 1] = read[:-1]
            targets_SBT[direction, row, : len(read) - 1] = read[1:]
    return PackedText.of(inputs_SBT, targets_SBT, lengths_B, table)
