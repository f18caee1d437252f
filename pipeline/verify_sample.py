"""Compare stored vectors with the same documents embedded again. Knows no encoder: it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data_files import vector_columns
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.read import snapshot_dataset
from pipeline.storage import Storage

# How far a vector that is embedded again may lie from the stored one, as a share of its length:
# rounding to the stored type, plus what another kernel or thread count adds up differently.
TOLERANCES = {"halffloat": 5e-3, "float": 1e-3}

# Gets document ids, returns their rows as embedded now: columns as in the snapshot (`id`,
# `content_hash`, the level's columns, the vector columns; others are ignored), in any order.
# Documents that the source no longer has are left out.
Reembed: TypeAlias = Callable[[Sequence[str]], pa.Table]


class SampledDocument(NamedTuple):
    """A document of the sample: those with the least hashes are taken."""

    hash: int
    id: str
    path: str


@dataclass(frozen=True)
class Problem:
    """Something that is not as it must be.

    `code` is a word for programs; `path` the file it is about, None for the snapshot as a whole.
    """

    code: str
    path: str | None
    message: str


@dataclass(frozen=True)
class Reembedded:
    """What embedding a sample again showed.

    `num_compared` documents had the same content as when they were embedded; `num_skipped` are
    changed or gone in the source. `max_difference` is the largest distance between a stored vector
    and its repetition, as a share of the stored one's length.
    """

    num_compared: int
    num_skipped: int
    max_difference: float
    tolerance: float


def check_sample(
    storage: Storage,
    snapshot: Snapshot,
    reembed: Reembed,
    samples: Sequence[SampledDocument],
) -> tuple[Reembedded, list[Problem]]:
    """Embed documents again and compare them with what is stored.

    Args:
        storage: the snapshot directory.
        snapshot: the one they are in.
        reembed: embeds them.
        samples: which documents.
    """
    ids = list(dict.fromkeys(document.id for document in samples))
    touched = {document.path for document in samples}
    files = tuple(file for file in snapshot.files if file.path in touched)
    vectors = vector_columns(snapshot.schema)
    parts = [name for name in ("sentence_index", "token_index") if name in snapshot.schema.names]
    columns = ["id", "content_hash", *parts, *vectors]
    part = replace(snapshot, files=files)
    stored = snapshot_dataset(storage, part).to_table(columns, filter=pc.field("id").isin(ids))
    repeated = reembed(ids).select(columns)
    tolerance = TOLERANCES[str(snapshot.schema.field(vectors[0]).type.value_type)]
    comparison = _Comparison(tolerance)
    for id_ in ids:
        was, now = (_rows_of(table, id_, parts) for table in (stored, repeated))
        comparison.add(id_, was, now, parts, vectors)
    return comparison.result(), comparison.problems


def _rows_of(table: pa.Table, id_: str, parts: Sequence[str]) -> pa.Table:
    rows = table.filter(pc.field("id") == id_)
    return rows.sort_by([(name, "ascending") for name in parts]) if parts else rows


class _Comparison:
    """Compares documents as stored and as embedded again."""

    def __init__(self, tolerance: float) -> None:
        self.problems: list[Problem] = []
        self._tolerance = tolerance
        self._num_compared = 0
        self._num_skipped = 0
        self._max_difference = 0.0

    def result(self) -> Reembedded:
        return Reembedded(
            self._num_compared, self._num_skipped, self._max_difference, self._tolerance
        )

    def add(
        self, id_: str, was: pa.Table, now: pa.Table, parts: list[str], vectors: list[str]
    ) -> None:
        if not now.num_rows or now["content_hash"][0] != was["content_hash"][0]:
            self._num_skipped += 1
            return
        self._num_compared += 1
        if was.select(parts) != now.select(parts) or was.num_rows != now.num_rows:
            message = f"{id_!r}: {was.num_rows} rows are stored, embedding gives {now.num_rows}"
            self.problems.append(Problem("reembed_rows", None, message))
            return
        for name in vectors:
            difference = _largest_difference(was[name], now[name])
            self._max_difference = max(self._max_difference, difference)
            # Not `>`: a difference that is NaN is a problem too.
            if not difference <= self._tolerance:
                message = (
                    f"{id_!r}: column {name!r} differs from its repetition by {difference:.2e} of "
                    f"its length, at most {self._tolerance:.0e} is expected"
                )
                self.problems.append(Problem("reembed_vectors", None, message))


def _largest_difference(was: pa.ChunkedArray, now: pa.ChunkedArray) -> float:
    was_ND, now_ND = (_matrix(column) for column in (was, now))
    lengths_N = np.linalg.norm(was_ND, axis=1)
    differences_N = np.linalg.norm(was_ND - now_ND, axis=1)
    return float((differences_N / np.maximum(lengths_N, np.finfo(np.float32).tiny)).max())


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float64]:
    values: Any = column.combine_chunks().flatten().to_numpy()
    matrix_ND: NDArray[np.float64] = values.astype(np.float64).reshape(len(column), -1)
    return matrix_ND
