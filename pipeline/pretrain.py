"""Pretrain a biLM: the loop, its clock and schedule, and the model directory that it leaves.

One process, all text in memory. Knows no jobs; how a step learns is `elmo_model.training`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from elmo_model.directory import save_directory
from elmo_model.lm_batches import LmBatch, packed_batches
from elmo_model.options import CharCnnOptions, ElmoOptions, LstmOptions, TrainingOptions
from elmo_model.perplexity import Perplexity, perplexity
from elmo_model.softmax_file import SOFTMAX_NAME, write_softmax
from elmo_model.training import TrainState, train_step
from pipeline.errors import ConfigError
from pipeline.pretrain_config import PretrainConfig, TrainingConfig
from pipeline.pretrain_text import PretrainText

log = logging.getLogger(__name__)

RECORD_NAME = "training.json"

# Rows and steps of one batch of held-out text, or less if there is little of it.
EVALUATION_ROWS, EVALUATION_STEPS = 32, 20
# The last learning rate of a linear decay, as a share of the first.
FINAL_RATE_SHARE = 0.02
# The loss that is shown is averaged over about this many steps.
LOSS_WINDOW_STEPS = 50


@dataclass(frozen=True)
class Measurement:
    """Held-out perplexity after `step` steps; `loss` is the mean training loss since the last."""

    step: int
    tokens: int
    train_seconds: float
    loss: float | None
    forward: float
    backward: float | None
    mean: float


@dataclass(frozen=True)
class PretrainReport:
    """What a training did.

    `tokens` are predictions of one direction. `train_seconds` is the time of the steps alone,
    `seconds` has that of the evaluations, too. `num_threads` is what torch ran with.
    """

    options: ElmoOptions
    num_parameters: int
    num_threads: int
    steps: int
    tokens: int
    seconds: float
    train_seconds: float
    curve: tuple[Measurement, ...]

    @property
    def tokens_per_s(self) -> float:
        """Predictions of one direction per second, without the time of evaluations."""
        return self.tokens / self.train_seconds if self.train_seconds else 0.0


def make_options(config: PretrainConfig, vocabulary_size: int) -> ElmoOptions:
    """The options.json of the model that `config` describes."""
    shape, training = config.architecture, config.training
    num_negatives = training.num_negative_samples
    is_sampled = num_negatives is not None and 2 * num_negatives < vocabulary_size
    return ElmoOptions(
        lstm=LstmOptions(
            dim=shape.dim,
            projection_dim=shape.projection_dim,
            n_layers=shape.num_layers,
            cell_clip=shape.cell_clip,
            proj_clip=shape.proj_clip,
            use_skip_connections=shape.skip_connections,
        ),
        char_cnn=CharCnnOptions(
            embedding_dim=shape.char_embedding_dim,
            filters=shape.filters,
            max_characters_per_token=shape.max_characters,
            activation=shape.activation,
            n_highway=shape.num_highway,
        ),
        training=TrainingOptions(
            dropout=shape.dropout,
            all_clip_norm_val=training.clip_norm,
            n_tokens_vocab=vocabulary_size,
            n_negative_samples_batch=num_negatives if is_sampled else None,
            sample_softmax=is_sampled,
            batch_size=training.batch_size,
            unroll_steps=training.unroll_steps,
            learning_rate=training.initial_learning_rate,
        ),
    )


def pretrain(
    config: PretrainConfig,
    text: PretrainText,
    on_progress: Callable[[int, float, int, str], None] = lambda *progress: None,
) -> tuple[TrainState, PretrainReport]:
    """Train a model on `text` until the time or the steps are used up.

    Args:
        config: architecture and training.
        text: of `read_text`.
        on_progress: gets the steps, the seconds of training and the tokens so far, and a note with
            the loss and the last perplexity.

    Raises:
        ElmoError: the training diverged, or the held-out text is empty.
    """
    training = config.training
    with _threads(training.num_threads):
        options = make_options(config, len(text.vocabulary))
        state = TrainState.create(options, training.seed, training.optimizer)
        state.reset_share = training.state_reset_share
        return state, _Run(config, text, state, on_progress).run()


class _Run:
    """One training: counts, clock and curve."""

    def __init__(
        self,
        config: PretrainConfig,
        text: PretrainText,
        state: TrainState,
        on_progress: Callable[[int, float, int, str], None],
    ) -> None:
        self._training = config.training
        self._text = text
        self._state = state
        self._on_progress = on_progress
        self._curve: list[Measurement] = []
        self._tokens = 0
        self._losses: list[float] = []
        self._start = time.monotonic()
        self._evaluation_seconds = 0.0

    def run(self) -> PretrainReport:
        training, state = self._training, self._state
        self._measure()
        batches = packed_batches(
            self._text.train.endless_sequences(training.seed),
            self._text.train.table,
            training.batch_size,
            training.unroll_steps,
        )
        for batch in batches:
            done = self._share_done()
            if done >= len(self._curve) / training.num_evaluations:
                self._measure()
            if done >= 1:
                break
            self._learn(batch, done)
        return PretrainReport(
            options=state.model.options,
            num_parameters=sum(parameter.numel() for parameter in state.model.parameters()),
            num_threads=torch.get_num_threads(),
            steps=state.step,
            tokens=self._tokens,
            seconds=time.monotonic() - self._start,
            train_seconds=self._train_seconds(),
            curve=tuple(self._curve),
        )

    def _learn(self, batch: LmBatch, done: float) -> None:
        state = self._state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(self._training, state.step, done)
        self._losses.append(train_step(state, batch).loss)
        self._tokens += batch.num_tokens
        self._report()

    def _report(self) -> None:
        recent = self._losses[-LOSS_WINDOW_STEPS:]
        loss = f"loss {sum(recent) / len(recent):.3f}  " if recent else ""
        self._on_progress(
            self._state.step,
            self._train_seconds(),
            self._tokens,
            f"{loss}held-out {describe(self._curve[-1])}",
        )

    def _train_seconds(self) -> float:
        return time.monotonic() - self._start - self._evaluation_seconds

    def _share_done(self) -> float:
        """How much of the time or the steps is used up, whichever is more."""
        training = self._training
        shares = []
        if training.max_steps is not None:
            shares.append(self._state.step / training.max_steps)
        if training.max_seconds is not None:
            shares.append(self._train_seconds() / training.max_seconds)
        return max(shares)

    def _measure(self) -> None:
        train_seconds = self._train_seconds()
        result = held_out_perplexity(self._state, self._text, self._training.max_held_out_tokens)
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        measurement = Measurement(
            step=self._state.step,
            tokens=self._tokens,
            train_seconds=round(train_seconds, 3),
            loss=loss,
            forward=result.forward,
            backward=result.backward,
            mean=result.mean,
        )
        self._curve.append(measurement)
        self._evaluation_seconds += self._train_seconds() - train_seconds
        log.info("step %d: held-out perplexity %s", measurement.step, describe(measurement))
        self._report()


def learning_rate(training: TrainingConfig, step: int, done: float) -> float:
    """The learning rate of step `step` (from 0) when the share `done` of the run is over."""
    rate = training.initial_learning_rate
    if training.learning_rate_decay == "linear":
        rate *= 1 - (1 - FINAL_RATE_SHARE) * min(done, 1.0)
    if step < training.warmup_steps:
        rate *= (step + 1) / training.warmup_steps
    return rate


def held_out_perplexity(state: TrainState, text: PretrainText, max_tokens: int) -> Perplexity:
    """Perplexity on about `max_tokens` tokens of the held-out text, always the same ones.

    Raises:
        ElmoError: the held-out text is empty.
    """
    held_out = text.held_out
    num_tokens = min(held_out.num_predictions, max_tokens)
    steps = max(1, min(EVALUATION_STEPS, num_tokens))
    rows = max(1, min(EVALUATION_ROWS, num_tokens // steps))
    # A seed, so that a part of the text is a sample of all of it.
    batches = packed_batches(held_out.sequences(seed=0), held_out.table, rows, steps)
    return perplexity(
        state.model, state.softmax, islice(batches, max(1, num_tokens // (rows * steps)))
    )


def describe(measurement: Measurement) -> str:
    """Perplexities as people read them: `forward 98.2, backward 95.1, mean 96.6`."""
    parts = [f"forward {measurement.forward:.4g}"]
    if measurement.backward is not None:
        parts.append(f"backward {measurement.backward:.4g}")
    return ", ".join([*parts, f"mean {measurement.mean:.4g}"])


def check_output(directory: str, *, overwrite: bool) -> None:
    """Make sure that a model may be written to `directory`.

    Raises:
        ConfigError: it is no local path, or something is there that must not be replaced.
    """
    if "://" in directory:
        raise ConfigError(
            f"output.directory: expected a local directory, found {directory}; "
            "train to a local one and copy it"
        )
    path = Path(directory)
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"output.directory: {directory} is a file, expected a directory")
    names = {entry.name for entry in path.iterdir()}
    if names and RECORD_NAME not in names:
        raise ConfigError(
            f"output.directory: {directory} holds files that are no pretrained model, such as "
            f"{min(names)}; choose another"
        )
    if names and not overwrite:
        raise ConfigError(
            f"output.directory: {directory} holds a model already; give --overwrite to replace it, "
            "or choose another"
        )


def save_model(
    config: PretrainConfig, text: PretrainText, state: TrainState, report: PretrainReport
) -> None:
    """Write the model directory; it appears whole, in the place of an older model.

    It holds options.json (for prediction), weights.safetensors, vocabulary.txt,
    softmax.safetensors and training.json.
    """
    target = Path(config.output.directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
    staged = target.with_name(f".{target.name}.{suffix}.partial")
    replaced = target.with_name(f".{target.name}.{suffix}.replaced")
    try:
        save_directory(staged, report.options, state.model.state_dict(), text.vocabulary.words)
        write_softmax(staged / SOFTMAX_NAME, state.softmax)
        record = json.dumps(make_record(config, text, report), indent=2, ensure_ascii=False)
        (staged / RECORD_NAME).write_text(record + "\n", "utf-8")
        if target.exists():
            target.rename(replaced)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def make_record(
    config: PretrainConfig, text: PretrainText, report: PretrainReport
) -> dict[str, Any]:
    """The content of training.json: how the model came about."""
    return {
        "seed": config.training.seed,
        "steps": report.steps,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 3),
        "train_seconds": round(report.train_seconds, 3),
        "tokens_per_s": round(report.tokens_per_s, 1),
        "num_threads": report.num_threads,
        "torch": torch.__version__,
        "parameters": report.num_parameters,
        "train": {
            "documents": text.num_train_documents,
            "sentences": text.train.num_sentences,
            "tokens": text.train.num_tokens,
        },
        "held_out": {
            "documents": text.num_held_out_documents,
            "sentences": text.held_out.num_sentences,
            "tokens": text.held_out.num_tokens,
        },
        "rejected": text.num_rejected,
        "vocabulary": {"words": len(text.vocabulary), "covered_share": text.covered_share},
        "perplexity": [asdict(measurement) for measurement in report.curve],
        "config": config.model_dump(mode="json"),
    }


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(min(num_threads, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
