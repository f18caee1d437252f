"""The matrix products of one training step and how fast this machine makes them. Knows no text.

Each product is counted with the rows that one call has, at the best rate of its shape; nothing else
of a step is. The convolutions' gradient is left out: it is no product. Axes: M rows, K summed, N
columns of a product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import machine
from gemm_rates import GemmRates

from elmo_model.cross_entropy import chunk_rows
from elmo_model.options import ElmoOptions

ROWS, STEPS = 128, 20
# Words are taken in chunks; a chunk's longest word decides the windows, about so many.
CONVOLVED_ROWS, WINDOWS_PER_WORD = 512, 14


@dataclass
class _Kind:
    """Products of one shape: how many of them a step makes, and how many more for each word."""

    shape: tuple[int, int, int]
    count: float
    count_per_word: float
    rates: GemmRates = field(repr=False)

    def gflop(self, num_words: int) -> float:
        num_rows, num_inputs, num_outputs = self.shape
        count = self.count + self.count_per_word * num_words
        return 2e-9 * count * num_rows * num_inputs * num_outputs


class Products:
    """All products of a step in one arithmetic."""

    def __init__(
        self, options: ElmoOptions, arithmetic: str, num_threads: int, num_words: int
    ) -> None:
        """Set up operands; `num_words` distinct words are typical of a batch."""
        self._num_words = num_words
        shapes = _shapes(options, num_words, 2 if arithmetic == "bfloat16" else 4)
        self._kinds = {
            name: _Kind(shape, count, per_word, GemmRates(arithmetic, shape, num_threads))
            for name, (shape, count, per_word) in shapes.items()
        }

    def measure(self) -> None:
        """Measure every shape once."""
        for kind in self._kinds.values():
            kind.rates.measure()

    def seconds(self, num_words: int) -> float:
        """What a step with so many words would take at the rates that were measured last."""
        return sum(
            kind.gflop(num_words) / kind.rates.best_of_rounds()[-1] for kind in self._kinds.values()
        )

    def gflop(self) -> dict[str, float]:
        """GFLOP of a step by product, for the typical number of words."""
        return {name: round(kind.gflop(self._num_words), 2) for name, kind in self._kinds.items()}

    def rates(self) -> dict[str, Any]:
        """GFLOP/s of each product's shape, best way of each round."""
        return {
            f"{name} {'x'.join(map(str, kind.shape))}": machine.spread(kind.rates.best_of_rounds())
            for name, kind in self._kinds.items()
        }


def _shapes(
    options: ElmoOptions, num_words: int, element_size_bytes: int
) -> dict[str, tuple[tuple[int, int, int], float, float]]:
    """(M, K, N) of each product, how many a step makes, and how many more for each word."""
    lstm, char_cnn, training = options.lstm, options.char_cnn, options.training
    assert char_cnn is not None
    width, dim, total = lstm.projection_dim, lstm.dim, ROWS * STEPS
    layers = lstm.n_layers * options.num_directions
    filters = char_cnn.num_filters
    highway = 2 * char_cnn.n_highway
    rows = 64 * (num_words // 64) or 64
    found: dict[str, tuple[tuple[int, int, int], float, float]] = {
        "lstm gates": ((ROWS, 2 * width, 4 * dim), layers * STEPS, 0),
        "lstm gates back": ((ROWS, 4 * dim, 2 * width), layers * STEPS, 0),
        "lstm kernel": ((2 * width, total, 4 * dim), layers, 0),
        "lstm projection": ((ROWS, dim, width), layers * STEPS, 0),
        "lstm projection back": ((ROWS, width, dim), layers * STEPS, 0),
        "lstm projection weight": ((dim, total, width), layers, 0),
        "highway": ((rows, filters, filters), 0, highway * 2 / rows),
        "highway weight": ((filters, rows, filters), 0, highway / rows),
    }
    for filter_width, count in char_cnn.filters:
        if count >= 256:
            shape = (CONVOLVED_ROWS, filter_width * char_cnn.embedding_dim, count)
            name = f"convolution of {filter_width}"
            found[name] = (shape, 0, WINDOWS_PER_WORD / CONVOLVED_ROWS)
    negatives = training.n_negative_samples_batch
    words = negatives if training.sample_softmax else training.n_tokens_vocab
    assert words is not None
    # The sampled softmax takes one direction at a time, the full one both together.
    predictions = total if training.sample_softmax else options.num_directions * total
    chunk = predictions // -(-predictions // chunk_rows(words, element_size_bytes))
    chunks = options.num_directions * total / chunk
    found["logits"] = ((chunk, width, words), chunks, 0)
    found["logits back"] = ((chunk, words, width), chunks, 0)
    found["softmax weight"] = ((words, chunk, width), chunks, 0)
    return found
