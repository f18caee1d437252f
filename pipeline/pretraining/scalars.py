"""The metrics of a training for TensorBoard (extra `tensorboard`), beside metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import ConfigError
from pipeline.pretraining.metrics import Measurement, StepMetrics

_DIRECTIONS = ("forward", "backward")


class TensorBoard:
    """Writes scalars to a local directory, or nothing if there is none."""

    def __init__(self, directory: str | None, first_step: int = 0) -> None:
        """Open the directory; what an earlier run wrote after `first_step` is hidden.

        Raises:
            ConfigError: the package is not installed.
        """
        self._writer: Any = None
        if directory is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"run.tensorboard_directory: needs the package tensorboard ({error}); install "
                "elmo-nightly[tensorboard], or leave the key out"
            ) from None
        writer: Any = SummaryWriter
        self._writer = writer(str(Path(directory).expanduser()), purge_step=first_step + 1)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, metrics: StepMetrics) -> None:
        """Add a step's losses, learning rate and gradient norm."""
        if self._writer is None:
            return
        for name, loss in zip(_DIRECTIONS, metrics.losses, strict=False):
            self._writer.add_scalar(f"loss/{name}", loss, metrics.step)
        self._writer.add_scalar("learning_rate", metrics.learning_rate, metrics.step)
        self._writer.add_scalar("gradient_norm", metrics.gradient_norm, metrics.step)

    def measured(self, measurement: Measurement) -> None:
        """Add held-out perplexities."""
        if self._writer is None:
            return
        for name in (*_DIRECTIONS, "mean"):
            value = getattr(measurement, name)
            if value is not None:
                self._writer.add_scalar(f"perplexity/{name}", value, measurement.step)
        self._writer.flush()
