"""A training from configuration to model directory, or from where an interrupted one stopped.

`prepare` reads the corpus and decides all that stays fixed; what it decided is recorded in the work
directory, and a run that finds such a record goes on with it. `finish` makes the model directory of
a checkpoint. Where the training itself runs is the caller's choice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from elmo_model.options import ElmoOptions
from elmo_model.training import TrainState
from elmo_model.vocabulary import Vocabulary
from pipeline.errors import ConfigError, CorruptFileError
from pipeline.pretraining.checkpoints import Checkpoint, Checkpoints
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.crew import Alone
from pipeline.pretraining.curves import draw_curves
from pipeline.pretraining.loop import (
    CHECKPOINTS,
    OnProgress,
    TrainingEnd,
    TrainingTask,
    load_weights,
    train,
)
from pipeline.pretraining.metrics import METRICS_NAME
from pipeline.pretraining.model_output import write_model
from pipeline.pretraining.prepare import RunTasks, find_text, local, prepare_text
from pipeline.pretraining.shards import PreparedText
from pipeline.pretraining.start import make_start
from pipeline.pretraining.stop import stop_signals, stopped
from pipeline.pretraining.units import streams_for
from pipeline.pretraining.vocabulary import make_vocabulary
from pipeline.sources.discover import Discovery
from pipeline.storage import Storage, open_storage

log = logging.getLogger(__name__)

RUN_NAME = "run.json"
# 1 had text of another format.
RUN_VERSION = 2
TEXT = "text"
HELD_OUT_TEXT = "held-out-text"
MAX_RUN_BYTES = 1 << 28
# What may change between an interruption and the run that goes on.
_FREE_SECTIONS = ("output", "run")
_FREE_IN_TRAINING = (
    "max_seconds",
    "max_steps",
    "num_evaluations",
    "max_held_out_tokens",
    "learning_rate",
)


@dataclass(frozen=True)
class Prepared:
    """What a run found or decided: the workers' task, and how the vocabulary fits the text.

    `resumed_step` is that of the checkpoint from which it goes on; None begins anew.
    """

    task: TrainingTask
    covered_share: float
    resumed_step: int | None


def prepare(
    config: PretrainConfig,
    run_tasks: RunTasks = local,
    on_progress: Callable[[int, int], None] = lambda documents, tokens: None,
    *,
    begin_anew: bool = False,
) -> Prepared:
    """Prepare the text and the vocabulary, or find what an interrupted run of these prepared.

    Args:
        config: the whole configuration.
        run_tasks: where the corpus is read.
        on_progress: gets the documents and tokens prepared by now.
        begin_anew: drop the checkpoints of an earlier run; its prepared text is used if it fits.

    Raises:
        ConfigError: the work directory holds a training with other settings.
        SourceError: the corpus cannot be read as configured, or holds too little.
        CorruptFileError: what the run before left is damaged.
        StorageError: a store failed.
    """
    storage = open_storage(config.output.work_directory)
    checkpoints = Checkpoints(storage, CHECKPOINTS)
    if begin_anew:
        checkpoints.keep(set())
        for name in (RUN_NAME, METRICS_NAME):
            storage.delete(name)
    if storage.exists(RUN_NAME):
        task, covered_share = _found(config, storage)
    else:
        task, covered_share = _decided(config, storage, run_tasks, on_progress)
    return Prepared(task, covered_share, max(filter(None, checkpoints.steps()), default=None))


def find_prepared(config: PretrainConfig, discovery: Discovery) -> PreparedText | None:
    """The text of `config.source` where a run before has prepared it; nothing is read of it.

    Raises:
        CorruptFileError: its description is damaged.
        StorageError: the store failed.
    """
    storage = open_storage(config.output.work_directory)
    share = _held_out_share(config)
    return find_text(storage, TEXT, discovery, config.source, config.text, share)


def train_here(task: TrainingTask, on_progress: OnProgress) -> TrainingEnd:
    """Train in this process; a signal ends it with a checkpoint.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C.
        SystemExit: stopped by SIGTERM.
        ElmoError: the training diverged.
        StorageError: a store failed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with stop_signals() as received:
        end = train(task, Alone(), device, on_progress, lambda: bool(received))
    if not end.is_done and received:
        stopped(received, f"after step {end.step}")
    return end


def finish(prepared: Prepared, end: TrainingEnd) -> dict[str, Any]:
    """Write the model directory from the configured checkpoint; returns its training.json.

    Raises:
        CorruptFileError: the checkpoint is damaged.
        StorageError: a store failed.
    """
    task = prepared.task
    config = task.config
    storage = open_storage(task.work)
    checkpoint = _chosen(config, Checkpoints(storage, CHECKPOINTS), end)
    state = TrainState.create(task.options, config.training.seed, config.training.optimizer)
    load_weights(state, checkpoint, task.options)
    record = make_record(prepared, end, checkpoint.step)
    write_model(config.output.directory, state, task.words, record)
    if draw_curves(storage) is None:
        log.info("no picture of the training: install elmo-nightly[plots] for one")
    return record


def make_record(prepared: Prepared, end: TrainingEnd, step: int) -> dict[str, Any]:
    """The content of training.json: how the model of a step came about."""
    task = prepared.task
    text = task.text
    seconds = end.train_seconds
    return {
        "seed": task.config.training.seed,
        "steps": end.step,
        "step_of_the_model": step,
        "tokens": end.tokens,
        "train_seconds": round(seconds, 3),
        "tokens_per_s": round(end.tokens / seconds, 1) if seconds else 0.0,
        "waited_for_text_s": round(end.waited_seconds, 3),
        "waited_for_text_share": round(end.waited_seconds / seconds, 4) if seconds else 0.0,
        "num_threads": end.num_threads,
        "num_workers": end.crews[-1].num_workers,
        "workers": [asdict(crew) for crew in end.crews],
        "torch": torch.__version__,
        "parameters": end.num_parameters,
        "train": _amount(text, "train"),
        "held_out": _amount(text, "held_out"),
        "rejected_by_code": dict(text.rejected.by_code),
        "vocabulary": {"words": len(task.words), "covered_share": prepared.covered_share},
        "perplexity": [asdict(measurement) for measurement in end.curve],
        "config": task.config.model_dump(mode="json"),
    }


def _amount(text: PreparedText, name: str) -> dict[str, int]:
    shards = text.train if name == "train" else text.held_out
    documents = text.num_train_documents if name == "train" else text.num_held_out_documents
    return {
        "documents": documents,
        "sentences": sum(shard.num_sentences for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
    }


def _chosen(config: PretrainConfig, checkpoints: Checkpoints, end: TrainingEnd) -> Checkpoint:
    steps = checkpoints.steps()
    if config.output.checkpoint == "best":
        means = {measurement.step: measurement.mean for measurement in end.curve}
        measured = [step for step in steps if step in means]
        if measured:
            return checkpoints.read(min(measured, key=means.__getitem__))
    newest = checkpoints.latest()
    if newest is None:
        raise CorruptFileError(f"{config.output.work_directory}: the checkpoints are gone")
    return newest


def _decided(
    config: PretrainConfig,
    storage: Storage,
    run_tasks: RunTasks,
    on_progress: Callable[[int, int], None],
) -> tuple[TrainingTask, float]:
    training = config.training
    share = _held_out_share(config)
    text = prepare_text(storage, TEXT, config.source, config.text, share, run_tasks, on_progress)
    if config.held_out is not None:
        other = prepare_text(
            storage, HELD_OUT_TEXT, config.held_out, config.text, 0.0, run_tasks, on_progress
        )
        text.rejected.add(other.rejected)
        text = replace(
            text,
            held_out=other.train,
            num_held_out_documents=other.num_train_documents,
            rejected_folders=(*text.rejected_folders, *other.rejected_folders),
        )
    vocabulary, covered_share = make_vocabulary(config.vocabulary, storage, text)
    num_streams = streams_for(
        training.batch_size,
        training.shuffle,
        num_workers=config.run.num_workers,
        num_sentences=sum(shard.num_sentences for shard in text.train),
    )
    task = TrainingTask(
        config,
        text,
        vocabulary.words,
        make_start(config, vocabulary, Checkpoints(storage, CHECKPOINTS)),
        num_streams,
        storage.url,
    )
    content = {
        "version": RUN_VERSION,
        "settings": _settings(config),
        "text": text.to_json(),
        "words": list(task.words),
        "options": task.options.to_dict(prediction=False),
        "num_streams": num_streams,
        "covered_share": covered_share,
    }
    storage.put(RUN_NAME, json.dumps(content, ensure_ascii=False).encode())
    return task, covered_share


def _held_out_share(config: PretrainConfig) -> float:
    return 0.0 if config.held_out is not None else config.training.held_out_share


def _found(config: PretrainConfig, storage: Storage) -> tuple[TrainingTask, float]:
    url = storage.url_of(RUN_NAME)
    try:
        content = json.loads(storage.read_bytes(RUN_NAME, MAX_RUN_BYTES))
        if content["version"] != RUN_VERSION:
            raise ValueError(f"version {content['version']} and not {RUN_VERSION}")
        settings, words = content["settings"], tuple(content["words"])
        num_streams = int(content["num_streams"])
        covered_share = float(content["covered_share"])
        text = PreparedText.from_json(content["text"], url)
        Vocabulary(words, url)
        options = ElmoOptions.from_dict(content["options"], url)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{url}: expected the record of a training, found {error!r}; begin anew with "
            "--overwrite, or name another output.work"
        ) from None
    change = _first_change(settings, _settings(config))
    if change is not None:
        raise ConfigError(
            f"{storage.url}: holds a training with other settings: {change}. Give the same "
            "settings to go on with it, --overwrite to begin anew, or another output.work"
        )
    task = TrainingTask(config, text, words, options, num_streams, storage.url)
    return task, covered_share


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """What must stay the same, as values of JSON."""
    values: dict[str, Any] = config.model_dump(mode="json")
    for name in _FREE_SECTIONS:
        del values[name]
    for name in _FREE_IN_TRAINING:
        del values["training"][name]
    return values


def _first_change(before: Any, now: Any, name: str = "") -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            change = _first_change(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
            if change is not None:
                return change
        return None
    return None if before == now else f"{name} was {before}, is {now}"
