"""The training loop of one worker: batches in, steps, measurements, checkpoints.

Alone, or with others that share the rows of every batch (`crew`). What it needs to go on exactly
where it stopped is in its checkpoints: weights, optimiser, LSTM state, the place of every stream,
counts and clock. Knows no Ray.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from elmo_model.errors import ElmoError
from elmo_model.lm_batches import LmBatch, WordTable
from elmo_model.options import ElmoOptions
from elmo_model.perplexity import Perplexity, perplexity
from elmo_model.state import BiLMState
from elmo_model.token_embedding import TokenEmbedding
from elmo_model.training import TrainState, train_step
from elmo_model.vocabulary import Vocabulary
from elmo_model.word_vectors import freeze_rows
from pipeline.errors import CorruptFileError
from pipeline.pretraining.checkpoints import Checkpoint, Checkpoints
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.crew import Crew
from pipeline.pretraining.held_out import HeldOutText
from pipeline.pretraining.metrics import (
    Measurement,
    Metrics,
    StepMetrics,
    describe,
    describe_progress,
)
from pipeline.pretraining.options import dropout_of
from pipeline.pretraining.pace import Pace, PaceMeter
from pipeline.pretraining.prefetch import Prefetched
from pipeline.pretraining.scalars import TensorBoard
from pipeline.pretraining.schedule import learning_rate
from pipeline.pretraining.shards import PreparedText, read_unit
from pipeline.pretraining.start import FROZEN, FROZEN_ROWS, softmax_tensors
from pipeline.pretraining.streams import BatchShape, Snapshot, StreamPosition, TextBatches
from pipeline.pretraining.units import ReadingOrder
from pipeline.storage import open_storage

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
# Of a corpus that is smaller than its streams are many, each asks for the same units.
CACHED_UNITS = 8
# The loss that is shown is averaged over about this many steps.
LOSS_WINDOW_STEPS = 50

# Steps, seconds of training, tokens, and a note with pace, loss, perplexity and more.
OnProgress = Callable[[int, float, int, str], None]
# A batch, and the places of the streams after it.
Batch = tuple[LmBatch, tuple[Snapshot, ...]]
# Whether the training shall stop now, with a checkpoint.
Interrupt = Callable[[], bool]


@dataclass(frozen=True)
class TrainingTask:
    """What every worker needs, picklable: configuration, text, and what is decided once.

    `num_streams` divides the rows of a batch and does not depend on how many workers there are.
    """

    config: PretrainConfig
    text: PreparedText
    words: tuple[str, ...]
    options: ElmoOptions
    num_streams: int
    work: str


@dataclass(frozen=True)
class CrewSpan:
    """From which step on how many workers trained."""

    from_step: int
    num_workers: int


@dataclass(frozen=True)
class TrainingEnd:
    """How a training ended. `is_done` is False if it was interrupted; times are seconds.

    `crews` begins with the first step; each further entry is a change of the number of workers.
    """

    step: int
    tokens: int
    train_seconds: float
    waited_seconds: float
    curve: tuple[Measurement, ...]
    num_parameters: int
    num_threads: int
    crews: tuple[CrewSpan, ...]
    is_done: bool


def train(
    task: TrainingTask,
    crew: Crew,
    device: torch.device,
    on_progress: OnProgress = lambda *progress: None,
    interrupt: Interrupt = lambda: False,
) -> TrainingEnd:
    """Train until the time or the steps are used up, from the newest checkpoint if there is one.

    Args:
        task: the same for every worker.
        crew: this worker among all.
        device: where its part of the model is.
        on_progress: called by the first worker.
        interrupt: asked by the first worker after every step.

    Raises:
        ElmoError: the training diverged; checkpoints stay.
        CorruptFileError: no checkpoint can be read, or they are of another training.
        StorageError: a store failed.
    """
    with _threads(task.config.run.num_threads):
        return _Loop(task, crew, device, on_progress, interrupt).run()


class _Loop:
    def __init__(
        self,
        task: TrainingTask,
        crew: Crew,
        device: torch.device,
        on_progress: OnProgress,
        interrupt: Interrupt,
    ) -> None:
        self._task, self._crew, self._device = task, crew, device
        self._on_progress, self._interrupt = on_progress, interrupt
        self._config, self._training = task.config, task.config.training
        self._storage = open_storage(task.work)
        self._checkpoints = Checkpoints(self._storage, CHECKPOINTS)
        self._vocabulary = Vocabulary(task.words, "vocabulary")
        self._metrics = Metrics(self._storage) if crew.rank == 0 else None
        self._curve: list[Measurement] = []
        self._crews: list[CrewSpan] = []
        self._losses: list[float] = []
        self._tokens = 0
        self._positions: list[StreamPosition] | None = None
        self._snapshots: tuple[Snapshot, ...] = ()
        self._seconds_before = self._waited_before = 0.0
        self._evaluation_seconds = 0.0
        self._meter = PaceMeter()
        self._checkpoint_step: int | None = None
        self._frozen_V: Tensor | None = None
        self._held_out: HeldOutText | None = None
        rows_per_stream = self._training.batch_size // task.num_streams
        first, last = (task.num_streams * at // crew.size for at in (crew.rank, crew.rank + 1))
        self._streams = range(first, last)
        self._state = self._new_state(rows_per_stream * first, rows_per_stream * (last - first))
        self._batches = self._open_text(rows_per_stream)
        if not self._crews or self._crews[-1].num_workers != crew.size:
            self._crews.append(CrewSpan(self._state.step, crew.size))
        self._ready: Prefetched[Batch] | None = None
        directory = task.config.run.tensorboard_directory if crew.rank == 0 else None
        self._board = TensorBoard(directory, self._state.step)
        self._start = self._checkpointed = time.monotonic()

    def run(self) -> TrainingEnd:
        """Train to the end, or to an interruption."""
        state = self._state
        stopped = False
        if self._curve:
            self._report(self._note_pace())
        else:
            self._measure()
        with self._board, Prefetched(iter(self._batches)) as ready:
            self._ready = ready
            while True:
                # One message a step: the first worker's clock decides for all.
                done, stopped, late = self._crew.share(
                    (self._share_done(), self._interrupt(), self._is_late())
                )
                if done >= len(self._curve) / self._training.num_evaluations:
                    self._measure()
                    self._checkpoint()
                elif late or self._is_checkpoint_step() or (stopped and self._is_ahead()):
                    self._checkpoint()
                if done >= 1 or stopped:
                    break
                self._learn(ready, done)
        if self._metrics is not None:
            self._metrics.write()
        return TrainingEnd(
            step=state.step,
            tokens=self._tokens,
            train_seconds=self._train_seconds(),
            waited_seconds=self._waited_seconds(),
            curve=tuple(self._curve),
            num_parameters=sum(p.numel() for p in state.losses.parameters()),
            num_threads=torch.get_num_threads(),
            crews=tuple(self._crews),
            is_done=done >= 1,
        )

    def _new_state(self, first_row: int, num_rows: int) -> TrainState:
        """The state to start from: the newest checkpoint's, or random weights."""
        training = self._training
        state = TrainState.create(
            self._task.options,
            training.seed,
            training.optimizer,
            self._device,
            training.weight_decay,
        )
        state.reset_share = training.state_reset_share
        state.dropout = dropout_of(self._config)
        state.arithmetic = torch.bfloat16 if training.dtype == "bfloat16" else torch.float32
        state.first_row, state.num_rows = first_row, training.batch_size
        state.row_weight = num_rows * self._crew.size / training.batch_size
        checkpoint = self._newest_checkpoint()
        if checkpoint is not None:
            self._load(state, checkpoint, num_rows)
        if self._crew.size > 1:
            state.work_together()
        return state

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The newest sound one that the first worker sees; the others read the same."""
        newest = self._checkpoints.latest() if self._crew.rank == 0 else None
        step = self._crew.share(None if newest is None else newest.step)
        if self._crew.rank and step is not None:
            return self._checkpoints.read(step)
        return newest

    def _open_text(self, rows_per_stream: int) -> TextBatches:
        task, training = self._task, self._training
        shards = task.text.train
        order = ReadingOrder(shards, task.num_streams, training.seed, training.shuffle)

        @lru_cache(CACHED_UNITS)
        def read(shard: int, unit: int) -> Any:
            return read_unit(self._storage, shards[shard], unit)

        positions = self._positions
        return TextBatches(
            order,
            self._streams,
            read,
            self._new_table,
            BatchShape(rows_per_stream, training.unroll_steps, task.options.bidirectional),
            None if positions is None else [positions[stream] for stream in self._streams],
        )

    def _new_table(self) -> WordTable:
        char_cnn = self._task.options.char_cnn
        return WordTable(self._vocabulary, char_cnn.max_characters_per_token if char_cnn else None)

    def _learn(self, ready: Iterator[Batch], done: float) -> None:
        state = self._state
        rate = learning_rate(self._training, state.step, done)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        batches = []
        for _ in range(self._training.accumulate_batches):
            batch, self._snapshots = next(ready)
            batches.append(batch)
        try:
            result = train_step(state, batches)
        except ElmoError as error:
            raise type(error)(f"{error}. {self._after_divergence()}") from None
        weight = state.row_weight / self._crew.size
        losses_S = self._crew.sum(result.losses_S.double().cpu() * weight)
        self._losses.append(float(losses_S.mean()))
        self._tokens += self._training.tokens_per_step
        pace = self._note_pace()
        if self._metrics is not None:
            metrics = StepMetrics(
                step=state.step,
                tokens=self._tokens,
                train_seconds=round(self._train_seconds(), 3),
                losses=losses_S.tolist(),
                learning_rate=rate,
                gradient_norm=float(result.gradient_norm),
                tokens_per_s=pace.tokens_per_s,
                left_s=pace.left_s,
                waited_seconds=round(self._waited_seconds(), 3),
            )
            self._metrics.step(metrics)
            self._board.step(metrics)
            self._report(pace, metrics)

    def _after_divergence(self) -> str:
        """What is there after a step that failed, and what to do."""
        if self._metrics is not None:
            self._metrics.write()
        return (
            f"No weight was changed by this step; {self._kept(self._checkpoints.steps())}. The "
            "same command with a lower training.learning_rate goes on from there"
        )

    def _report(self, pace: Pace, metrics: StepMetrics | None = None) -> None:
        if self._crew.rank:
            return
        recent = self._losses[-LOSS_WINDOW_STEPS:]
        loss = sum(recent) / len(recent) if recent else None
        last = self._curve[-1] if self._curve else None
        note = describe_progress(pace, loss, metrics, last)
        self._on_progress(self._state.step, self._train_seconds(), self._tokens, note)

    def _note_pace(self) -> Pace:
        """How fast it goes now, and how long it still takes."""
        self._meter.note(self._train_seconds(), self._tokens, self._share_done())
        num_left = self._training.num_evaluations + 1 - len(self._curve)
        measurement_s = self._curve[-1].measured_in_s if self._curve else 0.0
        return self._meter.pace(num_left, measurement_s)

    def _waited_seconds(self) -> float:
        """How long the steps waited for text, those before an interruption included."""
        return self._waited_before + (self._ready.waited_s if self._ready else 0.0)

    def _train_seconds(self) -> float:
        passed = time.monotonic() - self._start - self._evaluation_seconds
        return self._seconds_before + passed

    def _share_done(self) -> float:
        """How much of the time or the steps is used up, whichever is more."""
        training, shares = self._training, []
        if training.max_steps is not None:
            shares.append(self._state.step / training.max_steps)
        if training.max_seconds is not None:
            shares.append(self._train_seconds() / training.max_seconds)
        return max(shares)

    def _measure(self) -> None:
        """Measure the held-out perplexity; the first worker does, the others wait for it."""
        before = self._train_seconds()
        state = self._state
        result: Perplexity | ElmoError | None = None
        if self._crew.rank == 0:
            try:
                result = perplexity(state.model, state.softmax, self._held_out_text())
            except ElmoError as error:  # which the others, who wait, must meet as well
                result = error
        result = self._crew.share(result)
        if isinstance(result, ElmoError):
            raise result
        self._check_measured(result)
        measurement = Measurement(
            step=state.step,
            tokens=self._tokens,
            train_seconds=round(before, 3),
            loss=sum(self._losses) / len(self._losses) if self._losses else None,
            forward=result.forward,
            backward=result.backward,
            mean=result.mean,
        )
        self._losses.clear()
        measured_in_s = self._train_seconds() - before
        self._evaluation_seconds += measured_in_s
        measurement = replace(measurement, measured_in_s=round(measured_in_s, 3))
        self._curve.append(measurement)
        if self._metrics is not None:
            log.info("step %d: held-out perplexity %s", measurement.step, describe(measurement))
            self._metrics.measured(measurement)
            self._board.measured(measurement)
            self._metrics.write()
        self._report(self._note_pace())

    def _check_measured(self, result: Perplexity) -> None:
        """Refuse a perplexity that is no number, before a checkpoint of it is written."""
        if result.is_finite:
            return
        measured = {measurement.step for measurement in self._curve}
        steps = self._checkpoints.steps()
        sound = [step for step in steps if step in measured]
        advice = "Begin anew with --overwrite and a lower training.learning_rate"
        if sound:
            # Later ones are of the way into what was measured now, and would be gone on with.
            if self._crew.rank == 0:
                self._checkpoints.keep({step for step in steps if step <= sound[-1]})
            advice = (
                "Those after it are removed; the same command with a lower training.learning_rate "
                "goes on from there"
            )
        raise ElmoError(
            f"step {self._state.step}: the held-out perplexity is {result.describe()}, training "
            f"diverged; {self._kept(sound)}. {advice}"
        )

    def _kept(self, steps: Sequence[int]) -> str:
        last = (
            f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint is there yet"
        )
        return f"{last}, in {self._storage.url}"

    def _held_out_text(self) -> Iterator[LmBatch]:
        if self._held_out is None:
            self._held_out = HeldOutText(
                self._storage,
                self._task.text.held_out,
                self._new_table(),
                self._training.max_held_out_tokens,
            )
        return self._held_out.batches(bidirectional=self._task.options.bidirectional)

    def _is_late(self) -> bool:
        """Whether the configured seconds have passed since the last checkpoint."""
        interval_s = self._config.run.checkpoint_interval_s
        return interval_s is not None and time.monotonic() - self._checkpointed >= interval_s

    def _is_checkpoint_step(self) -> bool:
        steps, step = self._config.run.checkpoint_steps, self._state.step
        is_due = steps is not None and step > 0 and step % steps == 0
        return is_due and self._is_ahead()

    def _is_ahead(self) -> bool:
        """Whether the newest checkpoint is of an earlier step; it is not written a second time."""
        return self._state.step != self._checkpoint_step

    def _checkpoint(self) -> None:
        """Write a checkpoint, and remove those that are not to be kept."""
        before = self._train_seconds()
        state = self._state
        carried = state.carried
        positions = [snapshot.position() for snapshot in self._snapshots]
        if not positions and self._positions is not None:
            # Nothing was read since the checkpoint that this run began with.
            positions = [self._positions[stream] for stream in self._streams]
        parts = self._crew.gather(
            (
                positions,
                None if carried is None else carried.cells_SLBD.cpu(),
                None if carried is None else carried.outputs_SLBP.cpu(),
            )
        )
        if parts is not None:
            self._write_checkpoint(parts, before)
        self._checkpointed = time.monotonic()
        self._checkpoint_step = state.step
        self._evaluation_seconds += self._train_seconds() - before

    def _write_checkpoint(self, parts: list[Any], train_seconds: float) -> None:
        state = self._state
        tensors = {
            "model": state.model.state_dict(),
            "softmax": softmax_tensors(state.softmax, self._task.options),
            "optimizer": _optimizer_tensors(state.optimizer),
        }
        if state.carried is not None:
            tensors["carried"] = {
                "cells": torch.cat([cells for _, cells, _ in parts], 2),
                "outputs": torch.cat([outputs for _, _, outputs in parts], 2),
            }
        if self._frozen_V is not None:
            tensors[FROZEN] = {FROZEN_ROWS: self._frozen_V}
        positions = [position for found, _, _ in parts for position in found]
        record = {
            "batch": state.batch,
            "tokens": self._tokens,
            "train_seconds": train_seconds,
            "waited_seconds": self._waited_seconds(),
            "curve": [asdict(measurement) for measurement in self._curve],
            "losses": self._losses,
            "crews": [asdict(crew) for crew in self._crews],
            "options": self._task.options.to_dict(prediction=False),
            "optimizer": self._training.optimizer,
            "positions": [position.to_json() for position in positions],
        }
        self._checkpoints.write(state.step, record, tensors)
        if self._metrics is not None:
            self._metrics.write()
        run = self._config.run
        means = {measurement.step: measurement.mean for measurement in self._curve}
        steps = self._checkpoints.steps()
        measured = sorted((step for step in steps if step in means), key=means.__getitem__)
        self._checkpoints.keep({*steps[-run.keep_last :], *measured[: run.keep_best]})

    def _load(self, state: TrainState, checkpoint: Checkpoint, num_rows: int) -> None:
        record = checkpoint.record
        load_weights(state, checkpoint, self._task.options)
        if FROZEN in checkpoint.tensors:
            self._frozen_V = checkpoint.tensors[FROZEN][FROZEN_ROWS]
            assert isinstance(state.model.token_embedding, TokenEmbedding)
            freeze_rows(state.model.token_embedding, self._frozen_V.numpy())
        if not record:
            # Weights to start from; nothing was trained yet.
            return
        try:
            _load_optimizer(state.optimizer, checkpoint.tensors["optimizer"])
            state.step, state.batch = checkpoint.step, int(record["batch"])
            self._tokens = int(record["tokens"])
            self._seconds_before = float(record["train_seconds"])
            self._waited_before = float(record["waited_seconds"])
            self._curve = [Measurement(**values) for values in record["curve"]]
            self._losses = [float(loss) for loss in record["losses"]]
            spans = [CrewSpan(**values) for values in record["crews"]]
            self._crews = [span for span in spans if span.from_step < checkpoint.step]
            positions = [
                StreamPosition.from_json(values, checkpoint.url) for values in record["positions"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{checkpoint.url}: not a checkpoint: {error!r}") from None
        if len(positions) not in (0, self._task.num_streams):
            raise CorruptFileError(
                f"{checkpoint.url}: holds the places of {len(positions)} streams of text, expected "
                f"{self._task.num_streams}; training.batch_size or training.shuffle was another"
            )
        self._positions = positions or None
        self._checkpoint_step = state.step
        carried = checkpoint.tensors.get("carried")
        if carried is not None:
            rows = slice(state.first_row, state.first_row + num_rows)
            state.carried = BiLMState(
                carried["cells"][:, :, rows].to(self._device),
                carried["outputs"][:, :, rows].to(self._device),
            )
        if self._metrics is not None:
            self._metrics.resume(checkpoint.step)
            log.info("going on from step %d, %s", checkpoint.step, checkpoint.url)


def load_weights(state: TrainState, checkpoint: Checkpoint, options: ElmoOptions) -> None:
    """Put a checkpoint's weights into a model and its softmax.

    Raises:
        CorruptFileError: it is of another model.
    """
    try:
        state.model.load_state_dict(dict(checkpoint.tensors["model"]))
        softmax = softmax_tensors(state.softmax, options)
        softmax.update(checkpoint.tensors["softmax"])
        state.softmax.load_state_dict({**state.softmax.state_dict(), **softmax})
    except (KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()
        raise CorruptFileError(
            f"{checkpoint.url}: expected the weights of a model with {options.lstm.n_layers} "
            f"layers of {options.lstm.dim} cells, found those of another: "
            f"{first[1].strip() if len(first) > 1 else first[0]}. Begin anew with --overwrite, or "
            "name another output.work"
        ) from None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, `<parameter>.<name>`; all of Adagrad's and AdamW's are tensors."""
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    content = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    content["state"] = state
    optimizer.load_state_dict(content)


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(min(num_threads, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
