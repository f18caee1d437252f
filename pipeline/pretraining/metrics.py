"""What a training tells while it runs: one line of JSON a step, and one a measurement.

Stores cannot append, so `metrics.jsonl` is written anew each time; a training that goes on from a
checkpoint drops the lines after it. Knows no model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from elmo_model.perplexity import describe_figures
from pipeline.pretraining.pace import Pace
from pipeline.storage import Storage
from pipeline.units import format_duration

METRICS_NAME = "metrics.jsonl"
MAX_METRICS_BYTES = 1 << 28
# Beyond this, every second line of a step is dropped, so that a long training stays readable.
MAX_STEP_LINES = 20_000


@dataclass(frozen=True)
class Measurement:
    """Held-out perplexity after `step` steps; `loss` is the mean training loss since the last.

    Measuring took `measured_in_s`, which is not part of `train_seconds`.
    """

    step: int
    tokens: int
    train_seconds: float
    loss: float | None
    forward: float
    backward: float | None
    mean: float
    measured_in_s: float = 0.0


@dataclass(frozen=True)
class StepMetrics:
    """One step: losses of the directions (natural log), and the gradient's norm before clipping.

    The losses are of the sampled softmax where training samples, far lower than perplexity's.
    `tokens_per_s` is of training alone; `left_s` until the end counts measurements, too.
    `waited_seconds` of the `train_seconds` were spent waiting for text.
    """

    step: int
    tokens: int
    train_seconds: float
    losses: list[float]
    learning_rate: float
    gradient_norm: float
    tokens_per_s: float | None
    left_s: float | None
    waited_seconds: float


class Metrics:
    """The metrics of one training, kept in memory and written as a whole."""

    def __init__(self, storage: Storage) -> None:
        """Write to `metrics.jsonl` of `storage`."""
        self._storage = storage
        self._steps: list[dict[str, Any]] = []
        self._measured: list[dict[str, Any]] = []
        self._interval = 1

    def step(self, metrics: StepMetrics) -> None:
        """Note a step."""
        if metrics.step % self._interval:
            return
        self._steps.append(asdict(metrics))
        if len(self._steps) >= MAX_STEP_LINES:
            self._interval *= 2
            self._steps = [line for line in self._steps if line["step"] % self._interval == 0]

    def measured(self, measurement: Measurement) -> None:
        """Note a measurement."""
        self._measured.append({"held_out": asdict(measurement), "step": measurement.step})

    def resume(self, step: int) -> None:
        """Go on after this step with what was written until then."""
        if not self._storage.exists(METRICS_NAME):
            return
        data = self._storage.read_bytes(METRICS_NAME, MAX_METRICS_BYTES)
        for line in data.decode("utf-8", "replace").splitlines():
            try:
                values = json.loads(line)
                if values["step"] <= step:
                    (self._measured if "held_out" in values else self._steps).append(values)
            except (ValueError, KeyError, TypeError):
                # Metrics are no reason not to go on.
                continue

    def write(self) -> None:
        """Write all lines, in the order of their steps."""
        lines = sorted([*self._steps, *self._measured], key=lambda line: line["step"])
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._storage.put(METRICS_NAME, text.encode())


def describe(measurement: Measurement) -> str:
    """Perplexities as people read them: `forward 98.2, backward 95.1, mean 96.6`."""
    return describe_figures(measurement.forward, measurement.backward, measurement.mean)


def describe_progress(
    pace: Pace, loss: float | None, step: StepMetrics | None, last: Measurement | None
) -> str:
    """What a running training shows, as far as it is known; what changes most stands first.

    Args:
        pace: how fast it goes.
        loss: mean of the last steps.
        step: the last one.
        last: the last measurement.
    """
    parts = []
    if pace.tokens_per_s is not None:
        parts.append(f"{pace.tokens_per_s:,.0f} tokens/s")
    if pace.left_s is not None:
        parts.append(f"ETA {format_duration(pace.left_s)}")
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if step is not None:
        parts.append(f"learning rate {step.learning_rate:.2g}")
        parts.append(f"gradient {step.gradient_norm:.2g}")
    if last is not None:
        parts.append(f"held-out perplexity {describe(last)}")
    return "  ".join(parts)
