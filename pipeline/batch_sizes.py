"""How many tokens go into a batch and a window where the configuration leaves it open."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import BatchConfig

# A thread runs rows of its own, and with fewer than about 60 of them it reads the weights more
# often than it has to (benchmarks/LOG.md).
TOKENS_PER_THREAD = 4096
# A GPU's products need some thousand rows at each step.
TOKENS_PER_GPU = 65_536
# Sorting by length pays among several batches; a window's vectors are held until they are written.
BATCHES_PER_WINDOW = 4
MIN_WINDOW_TOKENS = 65_536


@dataclass(frozen=True)
class BatchSizes:
    """Padded tokens of a batch at most, and tokens that are sorted by length together."""

    max_tokens: int
    window_tokens: int


def batch_sizes(config: BatchConfig, num_threads: int, *, on_gpu: bool) -> BatchSizes:
    """The configured sizes, or those that suit what one actor runs on.

    Args:
        config: sizes that are set are taken as they are.
        num_threads: threads of the actor.
        on_gpu: whether it has a GPU.
    """
    max_tokens = config.max_tokens
    if max_tokens is None:
        max_tokens = TOKENS_PER_GPU if on_gpu else TOKENS_PER_THREAD * num_threads
    window_tokens = config.window_tokens
    if window_tokens is None:
        window_tokens = max(MIN_WINDOW_TOKENS, BATCHES_PER_WINDOW * max_tokens)
    return BatchSizes(max_tokens, window_tokens)
