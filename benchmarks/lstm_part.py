"""The LSTM stacks alone, over one packed batch of a text: ours, torch's, and the products it takes.

Knows no timing. Axes: S directions, U distinct words, B rows, N packed positions, P projection
width, D cell width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_lstm import TorchStacks

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END
from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from pipeline.bucketing import SENTENCE_MARKS, batches
from pipeline.token_window import TokenWindow

# An input product for many steps at once has about so many rows.
BLOCK_ROWS = 512


class LstmPart:
    """The default batch of a window that holds the most tokens, and who can run it.

    `contestants` are calls by name, `gflop` the work of each product of the batch, `shapes` the
    (rows, inputs, outputs) in which it is done: the input's once for each distinct word in the
    first layer, the recurrence and the projection a step at a time.
    """

    def __init__(
        self,
        files: ModelFiles,
        encoders: Mapping[str, Encoder],
        window: TokenWindow,
        max_tokens: int,
    ) -> None:
        lstm = files.options.lstm
        chosen = list(batches(window.sentence_lengths, max_tokens))
        rows_B = max(chosen, key=lambda rows_B: int(window.sentence_lengths[rows_B].sum()))
        words, ids_BT, lengths_B = _marked(window, rows_B)
        self._layout = PackedLayout.of(lengths_B)
        index_SN = np.stack(
            [
                ids_BT[self._layout.row_N, self._layout.times(backward=direction == 1)]
                for direction in range(files.options.num_directions)
            ]
        )
        self._index_SN = torch.from_numpy(index_SN)
        encoder = next(iter(encoders.values()))
        self._table_UP = encoder.embed_words(words)
        self.num_rows = len(rows_B)
        self.num_tokens = int(lengths_B.sum()) - SENTENCE_MARKS * self.num_rows
        self.contestants: dict[str, Callable[[], Any]] = {}
        for name, ours in encoders.items():
            self.contestants[name] = self._ours(files, ours)
        for dtype in (torch.float32, torch.bfloat16):
            stacks = TorchStacks(files.options, files.state, dtype)
            name = f"torch_{str(dtype).removeprefix('torch.')}"
            self.contestants[name] = self._torch(stacks)
        self._count(lstm.projection_dim, lstm.dim, lstm.n_layers, len(words))

    def warm_up(self) -> None:
        """Run each contestant once."""
        for run in self.contestants.values():
            run()

    def _ours(self, files: ModelFiles, encoder: Encoder) -> Callable[[], Any]:
        zero = BiLMState.zeros(files.options, self.num_rows, encoder.device, encoder.dtype)
        run = encoder.kernel.run
        return lambda: run(self._table_UP, self._index_SN, self._layout, zero)

    def _torch(self, stacks: TorchStacks) -> Callable[[], Any]:
        return lambda: stacks.run(self._table_UP, self._index_SN, self._layout)

    def _count(self, width: int, dim: int, num_layers: int, num_words: int) -> None:
        num_directions, num_positions = self._index_SN.shape
        live_rows = round(num_positions / len(self._layout.live_rows_T))
        gates = 4 * dim
        upper = num_layers - 1
        work = {
            "input": (num_words + upper * num_positions) * width * gates,
            "recurrent": num_layers * num_positions * width * gates,
            "projection": num_layers * num_positions * dim * width,
        }
        self.gflop = {name: 2e-9 * num_directions * value for name, value in work.items()}
        self.shapes = {
            "input": (BLOCK_ROWS, width, gates),
            "recurrent": (live_rows, width, gates),
            "projection": (live_rows, dim, width),
        }


def _marked(
    window: TokenWindow, rows_B: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct words of some sentences, their ids with sentence marks (B, T), and lengths (B,)."""
    starts = np.cumsum(window.sentence_lengths) - window.sentence_lengths
    number = {SENTENCE_BEGIN: 0, SENTENCE_END: 1}
    lengths_B = window.sentence_lengths[rows_B] + SENTENCE_MARKS
    ids_BT = np.zeros((len(rows_B), int(lengths_B.max())), np.int64)
    for row, (start, length) in enumerate(zip(starts[rows_B], lengths_B, strict=True)):
        for time, word_id in enumerate(window.word_ids[start : start + length - SENTENCE_MARKS], 1):
            ids_BT[row, time] = number.setdefault(window.words[word_id], len(number))
        ids_BT[row, length - 1] = 1
    return list(number), ids_BT, lengths_B
