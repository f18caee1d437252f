"""Vectors, and the snapshots that an index is fed from. Knows no index.

Three snapshots of the same directory: all documents; a share of them with other vectors; as many
documents more. What changes takes vectors that are there already, so that every distribution can be
used. Axes: N rows, D elements, Q queries.
"""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import OutputConfig, VectorConfig
from pipeline.data_files import DataFileWriter, rewrite_without
from pipeline.hits import scale_to_unit, stored_matrix
from pipeline.schema import output_schema
from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.snapshot.read import open_snapshot
from pipeline.storage import open_storage

ALL, UPDATED, GROWN = 1, 2, 3
ROWS_PER_CENTRE = 100
NOISE = 0.7
NUM_FILES = 8
NUM_QUERIES = 200
CHANGED_SHARE = 0.01
# What float16 rounds away; a row as near as the tenth is as good an answer.
SCORE_SLACK = 1e-4


def clustered(num_rows: int, dim: int, seed: int) -> np.ndarray:
    """Rows (N, D) around random centres, float16; the centres are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((max(1, num_rows // ROWS_PER_CENTRE), dim))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, len(centres), num_rows)].astype(np.float32)
    return (rows + NOISE * random.standard_normal(rows.shape, np.float32)).astype(np.float16)


def stored(url: str) -> np.ndarray:
    """The vectors (N, D) of the last snapshot of a directory, float16, in a random order."""
    _, dataset = open_snapshot(url)
    column = dataset.to_table(["vector"]).column(0).combine_chunks()
    vectors_ND = stored_matrix(column).astype(np.float16)
    return vectors_ND[np.random.default_rng(1).permutation(len(vectors_ND))]


def read_whole(paths: list[str]) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids, and vectors (N, D) of length 1, float32, of all files at once."""
    table = pa.concat_tables([pq.read_table(path, columns=["id", "vector"]) for path in paths])
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    vectors_ND = flat.reshape(table.num_rows, -1).astype(np.float32)
    scale_to_unit(vectors_ND)
    return table["id"], vectors_ND


class Corpus:
    """The snapshots, and queries that are rows of none of them."""

    def __init__(self, url: str, vectors_ND: np.ndarray, queries_QD: np.ndarray) -> None:
        """Write the snapshots to a directory on this machine."""
        self.store = SnapshotStore(open_storage(url))
        self.num_rows, self.dim = vectors_ND.shape
        self.queries_QD = queries_QD.astype(np.float32)
        scale_to_unit(self.queries_QD)
        self.schema = output_schema(VectorConfig(), self.dim, ["vector"], [])
        parts = np.array_split(np.arange(self.num_rows), NUM_FILES)
        files = [self._write(part, vectors_ND[part]) for part in parts]
        self._commit(files, "embed", ())
        num_changed = max(1, round(CHANGED_SHARE * self.num_rows))
        random = np.random.default_rng(2)
        chosen = np.sort(random.choice(self.num_rows, num_changed, replace=False))
        others_ND = vectors_ND[np.roll(chosen, 1)]
        new = self._write(chosen, others_ND)
        ids, output = _ids(chosen), OutputConfig(path=url)
        kept = [rewrite_without(self.store.storage, f, ids, output, "run-2") for f in files]
        files = [f for f in [*kept, new] if f]
        self._commit(files, "embed", self._changes(UPDATED, ids, "update", new))
        more = np.arange(self.num_rows, self.num_rows + num_changed)
        new = self._write(more, others_ND)
        self._commit([*files, new], "embed", self._changes(GROWN, _ids(more), "add", new))
        self.vectors_ND = vectors_ND.astype(np.float32)
        self.vectors_ND[chosen] = others_ND
        scale_to_unit(self.vectors_ND)

    def paths(self, number: int) -> list[str]:
        """Local paths of a snapshot's files."""
        files = self.store.load(number).files
        return [self.store.storage.url_of(file.path) for file in files]

    def recall_at_10(self, ids_QK: list[list[str]]) -> float:
        """Share of the ten rows of `UPDATED` nearest to each query, among what was found."""
        right = 0
        for query_D, ids_K in zip(self.queries_QD, ids_QK, strict=True):
            scores_N = self.vectors_ND @ query_D
            tenth = np.partition(scores_N, -10)[-10]
            right += sum(scores_N[int(id_[4:])] >= tenth - SCORE_SLACK for id_ in ids_K[:10])
        return right / (10 * len(self.queries_QD))

    def _write(self, numbers: np.ndarray, vectors_ND: np.ndarray) -> DataFile:
        output = OutputConfig(path=self.store.url)
        writer = DataFileWriter(self.store.storage, self.schema, output, {}, "run-1")
        type_ = self.schema.field("vector").type
        vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), type=type_)
        hashes = pa.array([uuid.uuid4().bytes for _ in numbers], pa.binary(16))
        columns = [pa.array(_ids(numbers)), hashes, vector]
        writer.write(pa.record_batch(columns, schema=self.schema))
        return writer.close()

    def _changes(
        self, number: int, ids: list[str], operation: str, file: DataFile
    ) -> tuple[str, ...]:
        columns = [ids, [operation] * len(ids), [file.path] * len(ids)]
        changes = pa.table(columns, schema=CHANGE_SCHEMA)
        return (write_changes(self.store.storage, number, f"run-{number}", changes),)

    def _commit(self, files: list[DataFile], operation: str, changes: tuple[str, ...]) -> None:
        made = Snapshot.new(
            number=1,
            parent=None,
            run_id=uuid.uuid4().hex,
            idempotency_key=uuid.uuid4().hex,
            operation=operation,
            fingerprint="f" * 64,
            schema=self.schema,
            files=tuple(files),
            counts={"documents": sum(file.num_documents for file in files)},
            changes=changes,
        )
        self.store.commit(made.numbered(self.store.latest()))


def _ids(numbers: np.ndarray) -> list[str]:
    return [f"doc-{number:09d}" for number in numbers]
