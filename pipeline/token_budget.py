"""How many padded tokens fit into memory at once: found by halving, and remembered.

Knows lengths and a memory error when it sees one; nothing of models or files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from elmo_model.devices import free_caches, is_out_of_memory
from pipeline.bucketing import SENTENCE_MARKS, batches
from pipeline.token_window import OUT_OF_MEMORY, BatchCounts, WindowError

log = logging.getLogger(__name__)


class TokenBudget:
    """The budget of one process: `max_tokens` until a batch does not fit, less from then on.

    Memory goes by padded tokens (rows times the longest, marks included) whatever their shape is,
    so one number serves batches of all lengths. It never grows again: the same limit would be run
    into anew with every window.
    """

    def __init__(self, max_tokens: int) -> None:
        """Begin with the configured budget."""
        self._max_tokens = max_tokens
        self.tokens = max_tokens

    def run(
        self,
        lengths: NDArray[np.int64],
        run_batch: Callable[[NDArray[np.int64]], None],
        counts: BatchCounts,
    ) -> None:
        """Run all sentences, longest first, in batches of at most the budget.

        A batch that does not fit into memory is halved and run again, so `run_batch` must be able
        to start over.

        Args:
            lengths: (num_sentences,) tokens of each sentence, marks not included.
            run_batch: gets indices into `lengths`, of sentences of falling length.
            counts: batches, their real tokens, and what had to be halved are added here.

        Raises:
            WindowError: one sentence alone does not fit into memory.
            ConfigError: one sentence alone exceeds the configured budget.
        """
        order = np.argsort(-lengths, kind="stable")
        first = 0
        while first < len(order):
            left = order[first:]
            longest = int(lengths[left[0]]) + SENTENCE_MARKS
            # A sentence over a lowered budget is tried alone.
            budget = max(self.tokens, min(longest, self._max_tokens))
            for rows in batches(lengths[left], budget):
                if not self._fits(left[rows], lengths[left[rows]], run_batch, counts):
                    break
                first += len(rows)
                if budget > self.tokens:
                    break

    def _fits(
        self,
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
        run_batch: Callable[[NDArray[np.int64]], None],
        counts: BatchCounts,
    ) -> bool:
        padded_tokens = (int(lengths[0]) + SENTENCE_MARKS) * len(rows)
        try:
            run_batch(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        else:
            counts.num_batches += 1
            counts.real_tokens += int(lengths.sum()) + SENTENCE_MARKS * len(rows)
            return True
        # Only here, when the error with its frames and their tensors is gone, is memory freed.
        free_caches()
        if len(rows) == 1:
            raise WindowError(
                OUT_OF_MEMORY,
                f"a sentence of {padded_tokens} tokens with its marks does not fit into memory "
                f"alone: {reason}",
            )
        self.tokens = min(self.tokens, padded_tokens // 2)
        counts.num_oom_splits += 1
        counts.safe_tokens = self.tokens
        log.warning(
            "a batch of %d padded tokens does not fit into memory (%s); from now on this process "
            "takes at most %d",
            padded_tokens,
            reason,
            self.tokens,
        )
        return False


def first_line(error: BaseException) -> str:
    """What an error says, without the statistics that follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
