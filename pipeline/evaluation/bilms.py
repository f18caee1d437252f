"""BiLMs as sources of vectors: each layer, their average, and the same shape without training.

The vectors are those of `elmo embed`: the same batches, kernels and pooling. Knows no tasks.

N documents, M tokens, K layers, D width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from elmo_model.bilm import BiLM
from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder, LayerChoice
from elmo_model.options import ElmoOptions
from pipeline.batch_sizes import batch_sizes
from pipeline.bucketing import windows
from pipeline.config import BatchConfig, VectorConfig
from pipeline.elmo_vectors import ElmoVectors
from pipeline.evaluation.documents import Document, window_of
from pipeline.evaluation.scores import Group
from pipeline.evaluation.systems import Vectors

AVERAGE = "average of layers"
UNTRAINED = "untrained biLM"
_UNTRAINED_SEED = 0


@dataclass
class Work:
    """What encoding cost: tokens with sentence marks, positions worked on, seconds."""

    real_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0


@dataclass
class LayerVectors:
    """All layers of a biLM, pooled or token by token, as `elmo embed` makes them."""

    encoder: Encoder
    choice: LayerChoice
    work: Work = field(default_factory=Work)

    @classmethod
    def all_layers(cls, encoder: Encoder) -> LayerVectors:
        """Every layer, the context-free one first."""
        num_directions = encoder.options.num_directions
        choice = LayerChoice.parse(
            "all", num_layers=encoder.num_layers, num_directions=num_directions
        )
        return cls(encoder, choice)

    def of_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        """Means of the tokens' vectors (N, K, D)."""
        return self._run(documents, "document")

    def of_tokens(
        self, documents: Sequence[Document], positions_M: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Vectors (M, K, D) of the tokens at these positions among all tokens."""
        return self._run(documents, "token", positions_M)

    def _run(
        self, documents: Sequence[Document], level: str, kept: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        on_gpu = self.encoder.device.type != "cpu"
        sizes = batch_sizes(BatchConfig(), torch.get_num_threads(), on_gpu=on_gpu)
        config = VectorConfig(level="token" if level == "token" else "document", dtype="float32")
        vectors = ElmoVectors(self.encoder, self.choice, config, sizes.max_tokens)
        lengths = np.array([sum(map(len, document)) for document in documents], np.int64)
        ends = np.cumsum(lengths)
        order = np.empty(0, np.int64) if kept is None else np.argsort(kept, kind="stable")
        rising = None if kept is None else kept[order]
        parts = []
        started = time.perf_counter()
        for window in windows(lengths, sizes.window_tokens):
            found = vectors.vectors(window_of(documents[window]))
            if rising is not None:
                first = int(ends[window.start] - lengths[window.start])
                low, high = np.searchsorted(rising, [first, ends[window.stop - 1]])
                found = found[rising[low:high] - first]
            parts.append(found)
        self.work.seconds += time.perf_counter() - started
        self.work.real_tokens += vectors.counts.real_tokens
        self.work.padded_tokens += vectors.counts.padded_tokens
        joined: NDArray[np.float32] = np.concatenate(parts)
        return joined if kept is None else joined[np.argsort(order)]


class TrainedBilm:
    """The model that is measured: a line for each layer and one for their average.

    `layers` keeps the last call's vectors (rows, K, D), from which a mix can be learned.
    """

    def __init__(self, vectors: LayerVectors) -> None:
        """Measure this encoder."""
        self._vectors = vectors
        self.layers: NDArray[np.float32] = np.empty((0, 0, 0), np.float32)

    def documents(self, documents: Sequence[Document], num_fitted: int) -> list[Vectors]:
        """Means of the tokens' vectors."""
        del num_fitted
        return self._lines(self._vectors.of_documents(documents))

    def tokens(
        self, documents: Sequence[Document], positions_M: NDArray[np.int64]
    ) -> list[Vectors]:
        """The tokens' vectors in their sentences."""
        return self._lines(self._vectors.of_tokens(documents, positions_M))

    def words(self, words: Sequence[str]) -> list[Vectors]:
        """Each word as a sentence of its own."""
        return self._lines(self._vectors.of_documents([((word,),) for word in words]))

    def _lines(self, layers_NKD: NDArray[np.float32]) -> list[Vectors]:
        self.layers = layers_NKD
        lines = [
            Vectors(layer_name(place), "layer" if place else "baseline", layers_NKD[:, place])
            for place in range(layers_NKD.shape[1])
        ]
        return [*lines, Vectors(AVERAGE, "model", layers_NKD.mean(axis=1))]


class OneLine:
    """A biLM of which one line is shown: its average, or the layers that a snapshot was made of."""

    def __init__(self, name: str, group: Group, vectors: LayerVectors) -> None:
        """Name the line."""
        self._name, self._group, self._vectors = name, group, vectors

    def documents(self, documents: Sequence[Document], num_fitted: int) -> list[Vectors]:
        """Means of the tokens' vectors."""
        del num_fitted
        return self._line(self._vectors.of_documents(documents))

    def tokens(
        self, documents: Sequence[Document], positions_M: NDArray[np.int64]
    ) -> list[Vectors]:
        """The tokens' vectors in their sentences."""
        return self._line(self._vectors.of_tokens(documents, positions_M))

    def words(self, words: Sequence[str]) -> list[Vectors]:
        """Each word as a sentence of its own."""
        return self._line(self._vectors.of_documents([((word,),) for word in words]))

    def _line(self, layers_NKD: NDArray[np.float32]) -> list[Vectors]:
        return [Vectors(self._name, self._group, layers_NKD.mean(axis=1))]


def layer_name(place: int) -> str:
    """How a layer is called in tables."""
    return "layer 0 (no context)" if place == 0 else f"layer {place}"


def untrained(files: ModelFiles) -> ModelFiles:
    """A model of the same shape whose weights are as drawn before the first step of training."""
    options: ElmoOptions = files.options
    num_words = None if files.words is None else len(files.words)
    model = BiLM(options, num_words)
    model.reset_parameters(torch.Generator().manual_seed(_UNTRAINED_SEED))
    return ModelFiles(options, model.state_dict(), files.words)
