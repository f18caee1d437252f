"""Run the biLM over a window of tokenised documents. Knows no files, Arrow or Ray.

The window's sentences are batched by length, encoded, mixed and pooled on the encoder's device, and
put back in order. Only what will be written leaves the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.devices import free_caches, is_out_of_memory
from elmo_model.download import Download
from elmo_model.encoder import Encoder, LayerChoice
from elmo_model.packed_layers import PackedLayers, to_device
from pipeline import pooling
from pipeline.config import VectorConfig
from pipeline.token_budget import TokenBudget, first_line
from pipeline.token_window import OUT_OF_MEMORY, BatchCounts, TokenWindow, WindowError

Index = NDArray[np.int64]
Result = TypeVar("Result")

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class ElmoVectors:
    """Vectors of an ELMo encoder at the configured level, layers, pooling and element type."""

    def __init__(
        self, encoder: Encoder, choice: LayerChoice, config: VectorConfig, max_tokens: int
    ) -> None:
        self._encoder = encoder
        self._choice = choice
        self._config = config
        self._budget = TokenBudget(max_tokens)
        self.dim = choice.dim(encoder)
        self.vector_columns = vector_columns(choice.num_outputs(encoder))
        self.counts = BatchCounts()
        kernel = encoder.kernel
        self.kernel = f"{kernel.name} kernel on {encoder.device}: {kernel.reason}"
        self.advice = kernel.advice
        # What is started on a CPU is done.
        self.windows_ahead = 0 if encoder.device.type == "cpu" else 1

    def vectors(self, window: TokenWindow) -> NDArray[np.floating]:
        """Encode, mix and pool one window.

        A batch that does not fit into memory is halved, and so is what comes after it.

        Returns: (rows, K, dim) in the configured element type; a value that the type cannot hold is
        infinite.

        Raises:
            WindowError: a sentence alone, or what all of the window needs, does not fit.
        """
        return self.start(window)()

    def start(self, window: TokenWindow) -> Callable[[], NDArray[np.floating]]:
        """Queue a window on the device; what is returned gives its vectors, as `vectors` does.

        A GPU works on the window while the host makes the next one's indices. Either call may
        raise what `vectors` raises.
        """
        is_token_level = self._config.level == "token"
        begin = self._token_vectors if is_token_level else self._pooled_vectors
        finish = self._within_memory(window, lambda: begin(window))
        return lambda: self._within_memory(window, finish)

    def _within_memory(self, window: TokenWindow, run: Callable[[], Result]) -> Result:
        """What `run` returns; that it lacked memory is an error of the window."""
        try:
            return run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        free_caches()
        num_tokens = len(window.word_ids)
        message = f"the vectors of {num_tokens} tokens do not fit into memory: {reason}"
        raise WindowError(OUT_OF_MEMORY, message)

    def release_memory(self) -> None:
        """Give back memory that is only held for later batches."""
        free_caches()

    def _pooled_vectors(self, window: TokenWindow) -> Callable[[], NDArray[np.floating]]:
        config = self._config
        device = self._encoder.device
        lengths_S = to_device(window.sentence_lengths, device)
        partial_SKD: Tensor | None = None

        def reduce(rows_B: Index, packed: PackedLayers) -> None:
            nonlocal partial_SKD
            parts = [
                pooling.reduce_tokens(tokens_MKP, row_M, time_M, len(rows_B), config.pooling)
                for tokens_MKP, row_M, time_M in self._chosen(packed)
            ]
            reduced_BKD = torch.cat(parts, 2)
            if partial_SKD is None:
                shape = (len(lengths_S), *reduced_BKD.shape[1:])
                partial_SKD = torch.empty(shape, device=device)
            partial_SKD[to_device(rows_B, device)] = reduced_BKD

        self._encode(window, reduce)
        if partial_SKD is None:
            return self._empty
        if config.level == "sentence":
            result = pooling.finish_sentences(partial_SKD, lengths_S, config.pooling)
        else:
            sentences_N = to_device(window.sentences_per_document, device)
            result = pooling.finish_documents(partial_SKD, lengths_S, sentences_N, config.pooling)
        return self._to_stored(result).result

    def _token_vectors(self, window: TokenWindow) -> Callable[[], NDArray[np.floating]]:
        starts_S = np.cumsum(window.sentence_lengths) - window.sentence_lengths
        result: NDArray[np.floating] | None = None
        # From a GPU a batch's vectors travel while the next one is made.
        waiting = self.windows_ahead
        travelling: deque[tuple[Index, Download]] = deque()

        def arrive(at_most: int) -> None:
            nonlocal result
            while len(travelling) > at_most:
                places_M, download = travelling.popleft()
                stored = download.result()
                if result is None:
                    result = np.empty((len(window.word_ids), *stored.shape[1:]), stored.dtype)
                result[places_M] = stored

        def store(rows_B: Index, packed: PackedLayers) -> None:
            lengths_B = window.sentence_lengths[rows_B]
            firsts_B = np.cumsum(lengths_B) - lengths_B
            parts = []
            for tokens_MKP, row_M, time_M in self._chosen(packed):
                # Rows and times in the batch's order, the same for both directions.
                order_M = np.argsort(firsts_B[row_M] + time_M)
                parts.append(tokens_MKP[to_device(order_M, tokens_MKP.device)])
            num_tokens = int(lengths_B.sum())
            places_M = np.arange(num_tokens) - np.repeat(firsts_B - starts_S[rows_B], lengths_B)
            travelling.append((places_M, self._to_stored(torch.cat(parts, 2))))
            arrive(at_most=waiting)

        def finish() -> NDArray[np.floating]:
            arrive(at_most=0)
            return self._empty() if result is None else result

        self._encode(window, store)
        return finish

    def _chosen(self, packed: PackedLayers) -> Iterator[tuple[Tensor, Index, Index]]:
        """The chosen layers (M, K, P) of each direction's tokens, with their rows and times."""
        for direction in range(self._choice.directions):
            kept_M, row_M, time_M = packed.kept(direction, keep_marks=False)
            source_M = to_device(kept_M, self._encoder.device)
            yield packed.combine(self._choice, direction, source_M), row_M, time_M

    def _encode(self, window: TokenWindow, take: Callable[[Index, PackedLayers], None]) -> None:
        """Call `take` with sentence indices and their layers, longest sentences first.

        It may be called again for sentences whose batch did not fit into memory.
        """
        lengths_S = window.sentence_lengths
        starts_S = np.cumsum(lengths_S) - lengths_S

        def run_batch(rows_B: Index) -> None:
            lengths_B = lengths_S[rows_B]
            steps_T = np.arange(lengths_B[0])
            real_BT = steps_T < lengths_B[:, None]
            positions_BT = np.where(real_BT, starts_S[rows_B][:, None] + steps_T, 0)
            word_ids_BT = np.where(real_BT, window.word_ids[positions_BT], np.int32(-1))
            packed, _ = self._encoder.encode_packed(window.words, word_ids_BT, lengths_B)
            take(rows_B, packed)

        encoder = self._encoder
        words_before, positions_before = encoder.num_words_made, encoder.kernel.positions_run
        try:
            self._budget.run(lengths_S, run_batch, self.counts)
        finally:
            self.counts.made_words += encoder.num_words_made - words_before
            self.counts.padded_tokens += encoder.kernel.positions_run - positions_before

    def _to_stored(self, vectors: Tensor) -> Download:
        if self._config.normalize:
            vectors = pooling.normalize(vectors.float())
        return Download(vectors.to(TORCH_DTYPES[self._config.dtype]))

    def _empty(self) -> NDArray[np.floating]:
        shape = (0, len(self.vector_columns), self.dim)
        return np.empty(shape, np.dtype(self._config.dtype))


def vector_columns(num_outputs: int) -> tuple[str, ...]:
    """`vector` for one output, `vector_0` ... `vector_L` for several layers."""
    if num_outputs == 1:
        return ("vector",)
    return tuple(f"vector_{layer}" for layer in range(num_outputs))
