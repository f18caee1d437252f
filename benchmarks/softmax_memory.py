"""How much a process grows by one full softmax with its gradient; a process of its own each time.

128 x 20 predictions of one direction. What was there before, weights and hidden vectors, does not
count; the weights' gradient does, since every way has to make it. The plain way is measured with
the small vocabulary only: with the large one, each of its several arrays of logits takes 8 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import machine

from elmo_model.losses import Softmax

NUM_PREDICTIONS = 128 * 20
# Way, words, width.
CASES = [
    ("plain", 33_278, 128),
    ("chunked", 33_278, 128),
    ("plain", 33_278, 512),
    ("chunked", 33_278, 512),
    ("chunked", 793_471, 128),
    ("chunked", 793_471, 512),
]


def measure(way: str, num_words: int, width: int) -> dict[str, object]:
    """One case, in this process."""
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
    return {
        "way": way,
        "vocabulary": num_words,
        "width": width,
        "predictions": NUM_PREDICTIONS,
        "growth_mib": round((_peak_bytes() - before) / 2**20),
        "of_it_weight_gradient_mib": round(4 * num_words * width / 2**20),
        "all_logits_mib": round(4 * num_words * NUM_PREDICTIONS / 2**20),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _peak_bytes() -> int:
    """Of this process alone; what `getrusage` says begins with that of the starting process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, help="only one of the cases, in this process")
    parser.add_argument("--result")
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(*CASES[args.case])))
        return
    result: dict[str, object] = {"machine": machine.describe()}
    found: list[object] = []
    for number in range(len(CASES)):
        command = [sys.executable, __file__, "--case", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    machine.save(args.result, {**result, "cases": found})


if __name__ == "__main__":
    main()
