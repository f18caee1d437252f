"""Learn a mix for one labelled set, and say what it is worth beside fixed choices of layers.

A fifth of the items, by a hash of their text, is held out: weights and heads never see it. Vectors
are made on the fly with a model, or read out of a snapshot that keeps all layers; there the hash is
that in the snapshot's own column `content_hash`, so that equal texts stay together too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import EmbedConfig, TextConfig, build
from pipeline.data_files import vector_columns
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.bilms import AVERAGE, LayerVectors, layer_name
from pipeline.evaluation.documents import is_held_out, tokenised
from pipeline.evaluation.mix import Items, LearnedMix, learn_head, learn_mix, predictions
from pipeline.evaluation.read_text import columns_of, read_rows
from pipeline.evaluation.scores import RankCorrelation, Ratio, Row, Score, Statistic, judge
from pipeline.hits import matrix_of
from pipeline.snapshot.read import open_snapshot
from pipeline.sources.content_hash import text_hashes

Target = Literal["class", "score"]
MIN_ITEMS = 20


@dataclass(frozen=True)
class LabelledSet:
    """Columns of a labelled table: one or two keys an item (texts, or ids of a snapshot's rows)."""

    keys: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    target: Target
    where: str

    @classmethod
    def read(cls, path: Path, keys: Sequence[str], label: str, target: Target) -> LabelledSet:
        """Read the columns `keys` (one, or two for pairs) and `label`.

        Raises:
            ConfigError: not one or two key columns.
            SourceError: no such table or column, or too few rows.
        """
        if len(keys) not in (1, 2):
            raise ConfigError(f"expected one column, or two for pairs, got {len(keys)}")
        rows = list(read_rows(path))
        columns_of(path, rows, (*keys, label))
        if len(rows) < MIN_ITEMS:
            raise SourceError(f"{path}: {len(rows)} rows; a mix needs {MIN_ITEMS} or more")
        columns = tuple(tuple(row[key] for row in rows) for key in keys)
        return cls(columns, tuple(row[label] for row in rows), target, str(path))

    def items(self, parts: Sequence[NDArray[np.float32]]) -> Items:
        """The labels beside vectors (N, K, D) of each key.

        Raises:
            SourceError: scores that are no numbers, or fewer than two classes.
        """
        if self.target == "score":
            try:
                scores = np.array([float(label) for label in self.labels])
            except ValueError as error:
                raise SourceError(f"{self.where}: {error}; expected scores") from None
            spread = float(scores.std()) or 1.0
            return Items(tuple(parts), (scores - scores.mean()) / spread, None)
        classes = {label: place for place, label in enumerate(sorted(set(self.labels)))}
        if len(classes) < 2:
            raise SourceError(f"{self.where}: one label only; expected two classes or more")
        numbers = np.array([classes[label] for label in self.labels], np.int64)
        return Items(tuple(parts), numbers, len(classes))

    def held_out(self) -> NDArray[np.bool_]:
        """Items for the test; equal keys fall on the same side."""
        return is_held_out(["\0".join(key) for key in zip(*self.keys, strict=True)])


@dataclass(frozen=True)
class Tuned:
    """What was learned, and how it fares on the part that was held out."""

    mix: LearnedMix
    metric: str
    scores: list[Score]
    num_train: int
    num_test: int


def tune(labelled: LabelledSet, parts: Sequence[NDArray[np.float32]], l2: float) -> Tuned:
    """Learn the mix, and a head of the same kind on the average and on each layer alone.

    Args:
        labelled: the labels.
        parts: vectors (N, K, D) of the first and, for pairs, the second keys.
        l2: factor of the weights' squares in the loss.

    Raises:
        SourceError: labels that cannot be learned.
    """
    items, held = labelled.items(parts), labelled.held_out()
    train, test = items.take(np.flatnonzero(~held)), items.take(np.flatnonzero(held))
    if not len(test.targets_N):
        raise SourceError(f"{labelled.where}: no item was held out; add more distinct ones")
    mix, mixed_head = learn_mix(train, l2)
    heads = {"learned mix": mixed_head, AVERAGE: learn_head(train, None)}
    for layer in range(parts[0].shape[1]):
        heads[layer_name(layer)] = learn_head(train, layer)
    rows = []
    for name, head in heads.items():
        found = predictions(head, test)
        targets = np.asarray(test.targets_N, np.float64)
        statistic: Statistic = (
            Ratio.mean(found == targets)
            if items.num_classes is not None
            else RankCorrelation(found, targets)
        )
        rows.append(Row(name, "model" if name in ("learned mix", AVERAGE) else "layer", statistic))
    metric = "Spearman" if items.num_classes is None else "accuracy"
    scores = judge(rows, [AVERAGE])
    return Tuned(mix, metric, scores, len(train.targets_N), len(test.targets_N))


def embedded(
    labelled: LabelledSet, vectors: LayerVectors, text: TextConfig
) -> list[NDArray[np.float32]]:
    """Vectors (N, K, D) of the set's texts, all layers, made now."""
    texts = [value for key in labelled.keys for value in key]
    layers = vectors.of_documents(tokenised(texts, text))
    return [layers[first : first + len(labelled.labels)] for first in _starts(labelled)]


def from_snapshot(
    labelled: LabelledSet, url: str
) -> tuple[LabelledSet, list[NDArray[np.float32]], str]:
    """Vectors of the set's ids out of a snapshot.

    Returns: the set with hashes of the texts as its keys in place of ids; vectors (N, K, D) of each
        key; the hash of the model's weights.

    Raises:
        ConfigError: the snapshot keeps one layer only, or rows that are no documents.
        SourceError: an id is not in the snapshot.
    """
    snapshot, dataset = open_snapshot(url)
    config = build(EmbedConfig, snapshot.config, f"snapshot {snapshot.number}")
    if config.vectors.level != "document" or config.model.layers != "all":
        raise ConfigError(
            f"{url}: has layers {config.model.layers} of each {config.vectors.level}; a mix is "
            "learned from model.layers = all with vectors.level = document"
        )
    columns = vector_columns(dataset.schema)
    ids = [value for key in labelled.keys for value in key]
    wanted = pa.array(sorted(set(ids)))
    table = dataset.to_table(
        columns=["id", "content_hash", *columns], filter=pa.compute.field("id").isin(wanted)
    ).combine_chunks()
    place = {name: row for row, name in enumerate(table["id"].to_pylist())}
    missing = [name for name in ids if name not in place]
    if missing:
        raise SourceError(
            f"{labelled.where}: {len(missing)} of {len(ids)} ids are not in {url}, such as "
            f"{missing[0]!r}"
        )
    rows = np.array([place[name] for name in ids])
    matrices = (matrix_of(table[name].combine_chunks()) for name in columns)
    layers = np.stack([matrix[rows] for matrix in matrices], axis=1)
    hashes = [value.hex() for value in text_hashes(table["content_hash"]).take(rows).to_pylist()]
    count = len(labelled.labels)
    parts = [layers[first : first + count] for first in _starts(labelled)]
    keys = tuple(tuple(hashes[first : first + count]) for first in _starts(labelled))
    return replace(labelled, keys=keys), parts, str(snapshot.encoder["weights_sha256"])


def _starts(labelled: LabelledSet) -> range:
    return range(0, len(labelled.keys) * len(labelled.labels), len(labelled.labels))
