"""Run tasks over systems and judge what comes out. Knows no files and no output.

The systems of every table: what counting gives, random vectors, an untrained model of the same
shape, the model layer by layer with their average, and whatever else is to be compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder
from pipeline.config import EmbedConfig, ModelConfig, build
from pipeline.errors import ConfigError
from pipeline.evaluation.bilms import (
    AVERAGE,
    UNTRAINED,
    LayerVectors,
    OneLine,
    TrainedBilm,
    Work,
    layer_name,
    untrained,
)
from pipeline.evaluation.mix import LearnedMix
from pipeline.evaluation.scores import Score, best_of, judge
from pipeline.evaluation.systems import BASELINES, WHITE, Lexical, RandomWords, System
from pipeline.evaluation.task import LEARNED_MIX, Table, Task
from pipeline.model import layer_choice, load_files, open_model
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.read import open_snapshot
from pipeline.storage import open_storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedTable:
    """One measure of a task with its intervals."""

    metric: str
    references: list[str]
    scores: list[Score]


@dataclass(frozen=True)
class TaskReport:
    """What one task found."""

    name: str
    kind: str
    num_items: int
    tables: list[JudgedTable]
    notes: list[str]
    mix: LearnedMix | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        mix = self.mix and {**asdict(self.mix), "shares": self.mix.shares}
        return {**asdict(self), "mix": mix}


@dataclass(frozen=True)
class Measured:
    """The model that is measured, laid out to be run, and what its encoding costs."""

    name: str
    encoder: Encoder
    files: ModelFiles
    vectors: LayerVectors

    @property
    def work(self) -> Work:
        """What was encoded with it so far."""
        return self.vectors.work


def open_measured(config: ModelConfig) -> Measured:
    """Load the model that is measured.

    Raises:
        ModelFileError, ConfigError, StorageError: as `pipeline.model.load_files`.
        DeviceError: the device is not available.
    """
    files = load_files(config)
    encoder = Encoder(files, device=config.device, dtype=config.dtype)
    name = str(config.directory or config.weights_file)
    return Measured(name, encoder, files, LayerVectors.all_layers(encoder))


def all_systems(measured: Measured, others: Mapping[str, str]) -> list[System]:
    """The systems of every table, in its order.

    Args:
        measured: the model.
        others: URLs of model directories or snapshots by the names that they are shown under.

    Raises:
        ConfigError: another is neither, its files do not fit together, or it has the name of a
            line that each table has.
    """
    taken = {*BASELINES, UNTRAINED, AVERAGE, LEARNED_MIX}
    taken |= {layer_name(place) for place in range(measured.encoder.num_layers)}
    for name in others:
        if name.removesuffix(WHITE) in taken:
            raise ConfigError(f"--against {name}: is the name of another line; choose another name")
    encoder = measured.encoder
    device = str(encoder.device)
    fresh = Encoder(untrained(measured.files), device=device)
    systems: list[System] = [
        Lexical(),
        RandomWords(encoder.dim),
        OneLine(UNTRAINED, "baseline", LayerVectors.all_layers(fresh)),
        TrainedBilm(measured.vectors),
    ]
    for name, url in others.items():
        systems.append(OneLine(name, "other", _other(url, device)))
    return systems


def run_task(name: str, task: Task, systems: Sequence[System]) -> TaskReport:
    """Measure one task and judge its tables."""
    started = time.perf_counter()
    outcome = task.measure(systems)
    tables = [judged(table) for table in outcome.tables]
    seconds = time.perf_counter() - started
    return TaskReport(
        name, task.kind, outcome.num_items, tables, outcome.notes, outcome.mix, round(seconds, 2)
    )


def run_tasks(
    tasks: Mapping[str, Task], systems: Sequence[System], progress: Callable[[int, str], None]
) -> list[TaskReport]:
    """Measure all tasks; `progress` gets the number done and the name of the next."""
    reports = []
    for number, (name, task) in enumerate(tasks.items()):
        progress(number, name)
        reports.append(run_task(name, task, systems))
    progress(len(tasks), "")
    return reports


def judged(table: Table) -> JudgedTable:
    """Scores with intervals, each compared with the best baseline and with layer 0."""
    names = {row.name for row in table.rows}
    wanted = dict.fromkeys((best_of(table.rows, "baseline"), layer_name(0)))
    references = [name for name in wanted if name is not None and name in names]
    return JudgedTable(table.metric, references, judge(table.rows, references))


def _other(url: str, device: str) -> LayerVectors:
    """A model directory gives its average; a snapshot the layers that it was made of.

    The store is asked which it is, before anything of it is copied to this machine.
    """
    if SnapshotStore(open_storage(url)).latest_number() is None:
        files = load_files(ModelConfig(directory=url, device=device))
        return LayerVectors.all_layers(Encoder(files, device=device))
    snapshot, _ = open_snapshot(url)
    stored = build(EmbedConfig, snapshot.config, f"snapshot {snapshot.number}")
    model = stored.model.model_copy(update={"device": device})
    encoder = open_model(snapshot, stored.model_copy(update={"model": model}))
    return LayerVectors(encoder, layer_choice(model, encoder))
