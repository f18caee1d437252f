"""Whether an index may be published: does it find what is near, and has the table drifted?

Some rows of the snapshot are the queries. One pass over its data files, and those that only the
snapshot of the published index lists, gives their true neighbours in both. Recall compares the
draft with the true ones; neighbours that moved, and the length of the new vectors, say how far the
table is from what it was. Knows no index: a reader is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.hits import Hit, matrix_of, unit
from pipeline.index.config import QualitySection
from pipeline.index.feed import SnapshotRows
from pipeline.index.protocol import IndexReader
from pipeline.projection import Projection
from pipeline.snapshot.metadata import DataFile

NUM_NEIGHBOURS = 10
# The queries come from no more files than this: reading for them stays small.
MAX_SAMPLE_FILES = 16
# Rounding of float16 moves a cosine by less; rows as near as this are equally good answers.
SCORE_SLACK = 1e-4
# The mean length of fewer new vectors says little: documents differ by tens of per cent.
MIN_ROWS_FOR_NORMS = 30

# A row of any level: id, sentence_index and token_index, None where there is none.
Key: TypeAlias = tuple[str, int | None, int | None]


@dataclass(frozen=True)
class Quality:
    """What was found; None where it was not measured.

    Attributes:
        num_queries: rows that were searched for.
        recall: share of the true 10 nearest rows that the draft finds.
        moved_share: share of the 10 nearest rows in the published snapshot that no longer are.
        norm_change: by how much the mean length of the new vectors is greater than that of the
            published snapshot, as a share of it.
        problems: what is below the bar; empty where the draft may be published.
        notes: what was not measured, and why.
    """

    num_queries: int
    recall: float | None = None
    moved_share: float | None = None
    norm_change: float | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Nearest:
    """The best rows so far of each query, unordered, with their keys."""

    num_queries: int
    found: list[list[tuple[float, Key]]] = field(init=False)

    def __post_init__(self) -> None:
        self.found = [[] for _ in range(self.num_queries)]

    def add(self, scores_QN: NDArray[np.float32], batch: pa.RecordBatch) -> None:
        count = min(NUM_NEIGHBOURS, scores_QN.shape[1])
        best_QK = np.argpartition(-scores_QN, count - 1, axis=1)[:, :count]
        keys = _Keys(batch)
        for query, best_K in enumerate(best_QK.tolist()):
            worst = self.worst(query)
            new = [
                (float(scores_QN[query, row]), keys[row])
                for row in best_K
                if scores_QN[query, row] > worst
            ]
            if new:
                both = sorted([*self.found[query], *new], key=lambda pair: -pair[0])
                self.found[query] = both[:NUM_NEIGHBOURS]

    def worst(self, query: int) -> float:
        """The score that a better row must exceed."""
        found = self.found[query]
        return found[-1][0] if len(found) == NUM_NEIGHBOURS else -np.inf

    def least(self, query: int) -> float:
        """The score of the last of the nearest rows."""
        return self.found[query][-1][0] if self.found[query] else np.inf


@dataclass(frozen=True)
class Tables:
    """What is compared.

    Attributes:
        rows: of the snapshot that the draft holds.
        published: of the snapshot that the published index holds, by the same encoder; None where
            there is nothing to compare with.
        projection: into the space of the draft; None for the plain one.
    """

    rows: SnapshotRows
    published: SnapshotRows | None
    projection: Projection | None = None

    def unit(self, vectors_ND: NDArray[np.floating]) -> NDArray[np.floating]:
        """Vectors in the space of the draft, of length 1."""
        return unit(vectors_ND if self.projection is None else self.projection.apply(vectors_ND))


def measure(
    tables: Tables,
    reader: IndexReader | None,
    mean_norm: tuple[float, int] | None,
    section: QualitySection,
) -> Quality:
    """Compare a draft with exact search, and its snapshot with the published one.

    Args:
        tables: the two snapshots.
        reader: searches the draft; None where that is not possible.
        mean_norm: mean length of the vectors that came, and their number; None without any.
        section: how much to look at, and the bar.
    """
    rows, published = tables.rows, tables.published
    queries_QD = tables.unit(rows.sample(section.sample, MAX_SAMPLE_FILES))
    if not len(queries_QD):
        why = "quality.sample is 0" if not section.sample else "the snapshot is empty"
        note = f"recall, moved neighbours and the new vectors' length were not measured: {why}"
        return Quality(0, problems=_emptied(rows, published, section), notes=(note,))
    answers = None if reader is None else reader.search(queries_QD, NUM_NEIGHBOURS)
    scan = _Scan(tables, queries_QD, answers)
    both, only_old = _files(rows, published)
    for file in rows.snapshot.files:
        scan.add(rows, file, is_old=file.path in both, is_new=True)
    for file in only_old:
        assert published is not None
        scan.add(published, file, is_old=True, is_new=False)
    notes = [] if reader is not None else ["recall was not measured: only the live index answers"]
    moved, norm_change = None, None
    if published is None:
        notes.append("moved neighbours were not measured: there is no earlier snapshot to compare")
    else:
        moved = scan.moved_share()
        if mean_norm is not None and mean_norm[1] >= MIN_ROWS_FOR_NORMS and scan.old_norm:
            norm_change = mean_norm[0] / scan.old_norm - 1
    quality = Quality(len(queries_QD), scan.recall(), moved, norm_change, notes=tuple(notes))
    return replace(quality, problems=tuple(_problems(quality, section)))


def _emptied(
    rows: SnapshotRows, published: SnapshotRows | None, section: QualitySection
) -> tuple[str, ...]:
    """A snapshot without rows where the published one has some: no query can tell of it."""
    was = 0 if published is None else published.num_rows
    if rows.num_rows or not was or section.max_moved_share is None:
        return ()
    return (
        f"the snapshot is empty, the published one has {was:,} rows: look at the corpus; with "
        "quality.max_moved_share = null an empty index is published",
    )


def _problems(quality: Quality, section: QualitySection) -> list[str]:
    problems = []
    recall, least = quality.recall, section.min_recall
    moved, most_moved = quality.moved_share, section.max_moved_share
    norm, most_changed = quality.norm_change, section.max_norm_change
    if recall is not None and least is not None and recall < least:
        problems.append(
            f"recall@{NUM_NEIGHBOURS} is {recall:.3f} for {quality.num_queries} queries, "
            f"quality.min_recall is {least:g}: look at more of the index (num_probes, "
            "search_depth), give codes more bytes (code_bytes), or build it anew with --rebuild"
        )
    if moved is not None and most_moved is not None and moved > most_moved:
        problems.append(
            f"{moved:.1%} of the nearest rows are others than in the published snapshot, "
            f"quality.max_moved_share is {most_moved:.1%}: look at what the snapshot changed "
            "('elmo snapshots diff') before it is raised"
        )
    if norm is not None and most_changed is not None and abs(norm) > most_changed:
        problems.append(
            f"the new vectors' mean length is {norm:+.1%} off that of the published snapshot, "
            f"quality.max_norm_change is {most_changed:.1%}: look at the texts that came, and at "
            "the model"
        )
    return problems


class _Scan:
    """Exact search for all queries at once, file by file."""

    def __init__(
        self, tables: Tables, queries_QD: NDArray[np.floating], answers: list[list[Hit]] | None
    ) -> None:
        self._unit = tables.unit
        self._queries_QD = queries_QD.astype(np.float32)
        self._old, self._new = _Nearest(len(queries_QD)), _Nearest(len(queries_QD))
        self._answers = None
        self._true_scores: list[dict[Key, float]] = [{} for _ in queries_QD]
        if answers is not None:
            self._answers = [{_key_of(hit) for hit in hits} for hits in answers]
        ids = {key[0] for keys in self._answers or () for key in keys}
        self._answered_ids = pa.array(sorted(ids), pa.string())
        self._norm_sum, self._num_old = 0.0, 0

    @property
    def old_norm(self) -> float:
        """Mean length of the published snapshot's vectors."""
        return self._norm_sum / max(self._num_old, 1)

    def add(self, rows: SnapshotRows, file: DataFile, *, is_old: bool, is_new: bool) -> None:
        """Look at the rows of a file, which is in one of the snapshots or in both."""
        names = [n for n in ("id", "sentence_index", "token_index") if n in rows.columns]
        for batch in rows.raw_batches([file], [*names, rows.vector_column]):
            vectors_ND = matrix_of(batch[rows.vector_column])
            scores_QN = self._queries_QD @ self._unit(vectors_ND).T
            if is_old:
                self._old.add(scores_QN, batch)
                self._norm_sum += float(np.linalg.norm(vectors_ND, axis=1).sum())
                self._num_old += len(vectors_ND)
            if is_new:
                self._new.add(scores_QN, batch)
                self._judge(scores_QN, batch)

    def recall(self) -> float | None:
        """Share of the true nearest rows that were answered, or others that are as near."""
        if self._answers is None:
            return None
        num_right, num_true = 0, 0
        for query, nearest in enumerate(self._new.found):
            bar = self._new.least(query) - SCORE_SLACK
            right = sum(score >= bar for score in self._true_scores[query].values())
            num_right += min(right, len(nearest))
            num_true += len(nearest)
        return num_right / num_true if num_true else None

    def moved_share(self) -> float | None:
        """Share of the old nearest rows that no longer are, those as near as the last left out."""
        num_moved, num_old = 0, 0
        for query, old in enumerate(self._old.found):
            now = {key for _, key in self._new.found[query]}
            edge = self._new.least(query)
            num_old += len(old)
            num_moved += sum(
                key not in now and abs(score - edge) > SCORE_SLACK for score, key in old
            )
        return num_moved / num_old if num_old else None

    def _judge(self, scores_QN: NDArray[np.float32], batch: pa.RecordBatch) -> None:
        """Note the true scores of what was answered."""
        if self._answers is None:
            return
        is_answered = pc.is_in(batch["id"], value_set=self._answered_ids)
        keys = _Keys(batch)
        for row in np.flatnonzero(is_answered.to_numpy(zero_copy_only=False)).tolist():
            key = keys[row]
            for query, answered in enumerate(self._answers):
                if key in answered:
                    self._true_scores[query][key] = float(scores_QN[query, row])


class _Keys:
    """Keys of a batch's rows, made when they are asked for."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        names = batch.schema.names
        self._columns = [
            batch[name] if name in names else None
            for name in ("id", "sentence_index", "token_index")
        ]

    def __getitem__(self, row: int) -> Key:
        values: list[Any] = [None if c is None else c[row].as_py() for c in self._columns]
        return (values[0], values[1], values[2])


def _key_of(hit: Hit) -> Key:
    return (hit.id, hit.columns.get("sentence_index"), hit.columns.get("token_index"))


def _files(
    rows: SnapshotRows, published: SnapshotRows | None
) -> tuple[set[str], Sequence[DataFile]]:
    """Paths of the files of both snapshots, and the files of the published one alone."""
    if published is None:
        return set(), ()
    new = {file.path for file in rows.snapshot.files}
    old = published.snapshot.files
    return {f.path for f in old if f.path in new}, [f for f in old if f.path not in new]
