"""How much a process grows by one full softmax with its gradient; a process of its own each time.

128 x 20 predictions of one direction. What was there before, weights and hidden vectors, does not
count; the weights' gradient does, since every way has to make it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from elmo_model.losses import Softmax

NUM_PREDICTIONS = 128 * 20


def main() -> None:
    """Print one case: `plain` or `chunked`, the words and the width."""
    way, num_words, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    softmax = Softmax(num_words, width)
    hidden = torch.randn(NUM_PREDICTIONS, width, requires_grad=True)
    targets = torch.randint(num_words, (NUM_PREDICTIONS,))
    # What libraries set up when they are first used.
    Softmax(1000, width).full_losses([hidden], [targets % 1000])[0].backward()
    before = _peak_bytes()
    started = time.perf_counter()
    loss = (
        softmax.full_loss(hidden, targets)
        if way == "plain"
        else softmax.full_losses([hidden], [targets])[0]
    )
    loss.backward()
    print(
        json.dumps(
            {
                "way": way,
                "vocabulary": num_words,
                "width": width,
                "predictions": NUM_PREDICTIONS,
                "growth_mb": round((_peak_bytes() - before) / 2**20),
                "of_it_weight_gradient_mb": round(4 * num_words * width / 2**20),
                "all_logits_mb": round(4 * num_words * NUM_PREDICTIONS / 2**20),
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
    )


def _peak_bytes() -> int:
    """Of this process alone; what `getrusage` says begins with that of the starting process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
