"""The learning rate over a run."""

from __future__ import annotations

import math

from pipeline.pretraining.config import TrainingConfig

# The last learning rate of a decay, as a share of the first.
FINAL_RATE_SHARE = 0.02


def learning_rate(training: TrainingConfig, step: int, done: float) -> float:
    """The learning rate of step `step` (from 0) when the share `done` of the run is over.

    It rises linearly over the warm-up's steps; then it stays, falls linearly, or along half a
    cosine (Loshchilov and Hutter 2017, equation 5, without restarts).
    """
    rate = training.initial_learning_rate
    left = 1 - min(done, 1.0)
    if training.learning_rate_decay == "linear":
        rate *= FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * left
    if training.learning_rate_decay == "cosine":
        fallen = (1 - math.cos(math.pi * left)) / 2
        rate *= FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * fallen
    if step < training.warmup_steps:
        rate *= (step + 1) / training.warmup_steps
    return rate
