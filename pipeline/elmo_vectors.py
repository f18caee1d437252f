"""Run the biLM over a window of tokenised documents. Knows no files, Arrow or Ray.

The window's sentences are batched by length, encoded, mixed and pooled on the encoder's device, and
put back in order. Only what will be written leaves the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.encoder import Encoder, LayerChoice
from pipeline import pooling
from pipeline.bucketing import SENTENCE_MARKS, batches
from pipeline.config import VectorConfig
from pipeline.token_window import BatchCounts, TokenWindow

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class ElmoVectors:
    """Vectors of an ELMo encoder at the configured level, layers, pooling and element type."""

    def __init__(
        self, encoder: Encoder, choice: LayerChoice, config: VectorConfig, max_tokens: int
    ) -> None:
        self._encoder = encoder
        self._choice = choice
        self._config = config
        self._max_tokens = max_tokens
        self.dim = choice.dim(encoder)
        self.vector_columns = vector_columns(choice.num_outputs(encoder))
        self.counts = BatchCounts()

    def vectors(self, window: TokenWindow) -> NDArray[np.floating]:
        """Encode, mix and pool one window.

        Returns: (rows, K, dim) in the configured element type; a value that the type cannot hold is
        infinite.
        """
        if self._config.level == "token":
            return self._token_vectors(window)
        config = self._config
        device = self._encoder.device
        lengths_S = torch.from_numpy(window.sentence_lengths).to(device)
        partial_SKD: Tensor | None = None
        for rows, mixed_KBTD, mask_BT in self._mixed_batches(window):
            reduced_BKD = pooling.reduce_tokens(mixed_KBTD, mask_BT, config.pooling)
            if partial_SKD is None:
                shape = (len(lengths_S), *reduced_BKD.shape[1:])
                partial_SKD = torch.empty(shape, device=device)
            partial_SKD[torch.from_numpy(rows).to(device)] = reduced_BKD
        if partial_SKD is None:
            return self._empty()
        if config.level == "sentence":
            result = pooling.finish_sentences(partial_SKD, lengths_S, config.pooling)
        else:
            sentences_N = torch.from_numpy(window.sentences_per_document).to(device)
            result = pooling.finish_documents(partial_SKD, lengths_S, sentences_N, config.pooling)
        return self._to_stored(result)

    def _token_vectors(self, window: TokenWindow) -> NDArray[np.floating]:
        starts_S = np.cumsum(window.sentence_lengths) - window.sentence_lengths
        result: NDArray[np.floating] | None = None
        for rows, mixed_KBTD, mask_BT in self._mixed_batches(window):
            stored = self._to_stored(mixed_KBTD.permute(1, 2, 0, 3)[mask_BT])
            if result is None:
                result = np.empty((len(window.word_ids), *stored.shape[1:]), stored.dtype)
            positions_BT = starts_S[rows][:, None] + np.arange(mask_BT.shape[1])
            result[positions_BT[mask_BT.cpu().numpy()]] = stored
        return self._empty() if result is None else result

    def _mixed_batches(
        self, window: TokenWindow
    ) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """Yield (sentence indices, mixed_KBTD, mask_BT), longest sentences first."""
        lengths_S = window.sentence_lengths
        starts_S = np.cumsum(lengths_S) - lengths_S
        for rows in batches(lengths_S, self._max_tokens):
            lengths_B = lengths_S[rows]
            steps_T = np.arange(lengths_B[0])
            real_BT = steps_T < lengths_B[:, None]
            positions_BT = np.where(real_BT, starts_S[rows][:, None] + steps_T, 0)
            word_ids_BT = np.where(real_BT, window.word_ids[positions_BT], np.int32(-1))
            activations = self._encoder.encode_word_ids(window.words, word_ids_BT, lengths_B)
            self.counts.num_batches += 1
            self.counts.real_tokens += int(lengths_B.sum()) + SENTENCE_MARKS * len(rows)
            self.counts.padded_tokens += (int(lengths_B[0]) + SENTENCE_MARKS) * len(rows)
            yield rows, self._choice.apply(activations.layers), activations.mask

    def _to_stored(self, vectors: Tensor) -> NDArray[np.floating]:
        if self._config.normalize:
            vectors = pooling.normalize(vectors.float())
        stored: NDArray[np.floating] = vectors.to(TORCH_DTYPES[self._config.dtype]).cpu().numpy()
        return stored

    def _empty(self) -> NDArray[np.floating]:
        shape = (0, len(self.vector_columns), self.dim)
        return np.empty(shape, np.dtype(self._config.dtype))


def vector_columns(num_outputs: int) -> tuple[str, ...]:
    """`vector` for one output, `vector_0` ... `vector_L` for several layers."""
    if num_outputs == 1:
        return ("vector",)
    return tuple(f"vector_{layer}" for layer in range(num_outputs))
