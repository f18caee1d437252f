"""From snapshots to what an index is told: rows that come, documents that go. Knows no index.

Rows are read as a stream; memory holds a few batches, and the ids of one table of the change feed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data_files import read_batches, vector_columns
from pipeline.errors import ConfigError, CorruptFileError, MissingFileError
from pipeline.extension_types import said_by
from pipeline.hits import (
    EXCERPT_CHARACTERS,
    around,
    matrix_of,
    scale_to_unit,
    shorten,
    stored_matrix,
)
from pipeline.index.protocol import EXCERPT, VECTOR, IndexState
from pipeline.projection import Projection, Space
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.snapshot.read import snapshot_dataset
from pipeline.storage import Storage

# In float32 and scaled, twice as much: it stays in a processor's cache while it is worked on, and
# what Arrow keeps of it is small.
BATCH_BYTES = 4 << 20
log = logging.getLogger(__name__)

# What an index says of itself is one small file, or a field of a table.
MAX_WHITE_DIM = 2048
# White space is folded, so that an excerpt may need more of the text than it has characters.
_EXCERPT_SOURCE = 8 * EXCERPT_CHARACTERS
_LEVEL_COLUMNS = ("sentence_index", "token_index", "token", "start", "end")


class SnapshotRows:
    """The rows of a snapshot as an index takes them."""

    def __init__(self, storage: Storage, snapshot: Snapshot, vector_column: str | None) -> None:
        """Read from `snapshot` in `storage`; nothing is read yet.

        Raises:
            ConfigError: it has no such vector column.
        """
        self.snapshot = snapshot
        self._storage = storage
        names = snapshot.schema.names
        known = vector_columns(snapshot.schema)
        if vector_column is not None and vector_column not in known:
            raise ConfigError(
                f"snapshot.vector_column: {vector_column} is not in snapshot {snapshot.number} of "
                f"{storage.url}; found: {', '.join(known)}"
            )
        self.vector_column = vector_column or known[-1]
        self.dim: int = snapshot.schema.field(self.vector_column).type.list_size
        self._has_text = "text" in names
        plain = [snapshot.schema.field(n) for n in ("id", *_LEVEL_COLUMNS) if n in names]
        plain += [snapshot.schema.field(name) for name in snapshot.partition_columns]
        plain += [pa.field(EXCERPT, pa.string())] if self._has_text else []
        self.schema = pa.schema([*plain, pa.field(VECTOR, pa.list_(pa.float32(), self.dim))])

    @property
    def num_rows(self) -> int:
        """Rows of the snapshot."""
        return sum(file.num_rows for file in self.snapshot.files)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a row, without its vector."""
        return tuple(name for name in self.schema.names if name != VECTOR)

    def raw_batches(
        self, files: Sequence[DataFile], columns: Sequence[str], ids: pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stored columns of some of the snapshot's files, in order, BATCH_BYTES at a time.

        Args:
            files: those to read.
            columns: of the snapshot.
            ids: only rows of these documents; None for all.

        Raises:
            CorruptFileError: a file cannot be decoded, or lacks a column.
            MissingFileError: a file is gone.
        """
        # Arrow's dataset would hold hundreds of megabytes of vectors that were read ahead.
        filesystem = self._storage.as_arrow_filesystem()
        partition = self.snapshot.partition_columns
        stored = {*columns, *(["id"] if ids is not None else [])}.difference(partition)
        types = {name: self.snapshot.schema.field(name).type for name in columns}
        for file in files:
            with self._reading(), filesystem.open_input_file(file.path) as source:
                for batch in read_batches(source, file.path, sorted(stored), BATCH_BYTES):
                    wanted = batch if ids is None else batch.filter(pc.is_in(batch["id"], ids))
                    arrays = [
                        pa.repeat(pa.scalar(file.partition[name], type_), wanted.num_rows)
                        if name in partition
                        else wanted[name]
                        for name, type_ in types.items()
                    ]
                    if wanted.num_rows:
                        yield pa.RecordBatch.from_arrays(arrays, names=list(types))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        where = f"{self._storage.url}: a data file of snapshot {self.snapshot.number}"
        try:
            yield
        except FileNotFoundError as error:
            raise MissingFileError(f"{where} is gone: {error}") from error
        except CorruptFileError as error:
            raise CorruptFileError(f"{where}: {error}; 'elmo verify' names it") from error
        except (pa.ArrowException, OSError, KeyError) as error:
            raise CorruptFileError(
                f"{where} cannot be decoded: {said_by(error)}; 'elmo verify' names it"
            ) from error

    def vectors_of(self, id_: str) -> NDArray[np.float32]:
        """Vectors (N, D) of a document's rows as stored; none where it is not there."""
        files = [file for file in self.snapshot.files if file.min_id <= id_ <= file.max_id]
        with self._reading():
            # A dataset leaves out the parts of a file where the id cannot be.
            dataset = snapshot_dataset(self._storage, replace(self.snapshot, files=tuple(files)))
            table = dataset.to_table([self.vector_column], filter=pc.field("id") == id_)
        return matrix_of(table.column(0).combine_chunks())

    def sample(self, num_rows: int, max_files: int | None = None) -> NDArray[np.float32]:
        """Vectors (N, D) of rows drawn from the snapshot, always the same ones, as stored.

        Args:
            num_rows: how many; fewer come from a smaller snapshot.
            max_files: read no more files than this, drawn by their rows; None for any number.
        """
        random = np.random.default_rng(self.snapshot.number)
        files = [file for file in self.snapshot.files if file.num_rows]
        if max_files is not None and len(files) > max_files:
            share = np.array([file.num_rows for file in files]) / self.num_rows
            drawn = random.choice(len(files), max_files, replace=False, p=share)
            files = [files[index] for index in sorted(drawn.tolist())]
        edges = np.cumsum([0, *(file.num_rows for file in files)])
        total = int(edges[-1])
        chosen = np.sort(random.choice(total, min(num_rows, total), replace=False))
        vectors_ND = np.empty((len(chosen), self.dim), np.float32)
        done = 0
        for file, start, end in zip(files, edges, edges[1:], strict=False):
            rows = chosen[(chosen >= start) & (chosen < end)] - start
            offset = 0
            for batch in self.raw_batches([file], [self.vector_column]) if len(rows) else ():
                here = rows[(rows >= offset) & (rows < offset + batch.num_rows)] - offset
                vectors_ND[done : done + len(here)] = stored_matrix(batch.column(0))[here]
                done += len(here)
                offset += batch.num_rows
        return vectors_ND

    def projection(self, space: Space) -> Projection | None:
        """What brings vectors into a space, from all rows; None for the plain one.

        Raises:
            ConfigError: the vectors are too wide for a white space.
            CorruptFileError: a file cannot be decoded.
            MissingFileError: a file is gone.
        """
        if space == "plain":
            return None
        if space == "white" and self.dim > MAX_WHITE_DIM:
            raise ConfigError(
                f"snapshot.space: white keeps a matrix beside the index, of up to {MAX_WHITE_DIM} "
                f"x {MAX_WHITE_DIM}, found vectors of {self.dim} elements; take centered"
            )
        batches = self.raw_batches(self.snapshot.files, [self.vector_column])
        matrices = (matrix_of(batch.column(0)) for batch in batches)
        fitted = Projection.fit(matrices, self.dim, space)
        if space == "white" and fitted.scale_DD is None:
            log.warning(
                "snapshot.space: %d rows of %d elements are too few, or too alike, to be whitened; "
                "the index is centered until it is built from more",
                self.num_rows,
                self.dim,
            )
        # Rows and queries go through the same rounded numbers.
        return Projection.from_json(fitted.to_json())

    def rows(
        self,
        files: Sequence[DataFile],
        ids: pa.Array | None = None,
        projection: Projection | None = None,
    ) -> Iterator[tuple[pa.RecordBatch, NDArray[np.floating]]]:
        """Rows of some files in `schema`, with the lengths (N,) that their vectors had."""
        plain = [name for name in self.columns if name != EXCERPT]
        text = ["text"] if self._has_text else []
        for batch in self.raw_batches(files, [*plain, *text, self.vector_column], ids):
            vectors_ND = matrix_of(batch[self.vector_column])
            if projection is None:
                norms_N = scale_to_unit(vectors_ND)
            else:
                norms_N = np.linalg.norm(vectors_ND, axis=1)
                vectors_ND = projection.apply(vectors_ND).astype(np.float32, copy=False)
                scale_to_unit(vectors_ND)
            columns: list[Any] = [batch[name] for name in plain]
            if self._has_text:
                columns.append(pa.array(_excerpts(batch), pa.string()))
            flat = pa.array(vectors_ND.reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, self.dim))
            yield pa.record_batch(columns, schema=self.schema), norms_N


@dataclass(frozen=True)
class FeedStep:
    """Documents that go, and rows that come: see `protocol.Step`."""

    gone_ids: pa.Array
    rows: Callable[[], Iterator[pa.RecordBatch]]


class SnapshotFeed:
    """What makes an index hold a snapshot: see `protocol.Feed`. It counts what passes.

    Attributes:
        num_rows_in: rows that came so far.
        num_documents_named: documents of the change feed so far.
    """

    def __init__(
        self,
        rows: SnapshotRows,
        settings: Mapping[str, Any],
        base: IndexState | None,
        changes: Iterator[pa.Table] | None = None,
        space: Space = "plain",
    ) -> None:
        """Feed a snapshot; a full feed into another space than the plain one reads it first.

        Args:
            rows: of the snapshot.
            settings: how the index is built.
            base: what the index holds.
            changes: `read_changes` from what the index holds; None feeds everything.
            space: where cosines are taken; what changed goes into that of the index.

        Raises:
            CorruptFileError: a file cannot be decoded, or the index's projection cannot be read.
            MissingFileError: a file is gone.
        """
        self._rows = rows
        self._changes = changes
        self._norm_sum = 0.0
        self.base = base
        self.is_full = changes is None
        self.schema = rows.schema
        self.num_rows_in = 0
        self.num_documents_named = 0
        projection: Mapping[str, str | None] | None
        if changes is None or base is None:
            self._projection = rows.projection(space)
            fitted_rows = rows.num_rows
            projection = None if self._projection is None else self._projection.to_json()
        else:
            space, projection, fitted_rows = base.space, base.projection, base.fitted_rows
            self._projection = base.read_projection()
        snapshot = rows.snapshot
        self.state = IndexState(
            snapshot=snapshot.number,
            run_id=snapshot.run_id,
            fingerprint=snapshot.fingerprint,
            vector_column=rows.vector_column,
            dim=rows.dim,
            columns=rows.columns,
            num_rows=rows.num_rows,
            settings=settings,
            space=space,
            projection=projection,
            fitted_rows=0 if projection is None else fitted_rows,
        )

    @property
    def mean_norm(self) -> float | None:
        """Mean length of the vectors that came so far, None before the first."""
        return self._norm_sum / self.num_rows_in if self.num_rows_in else None

    def steps(self) -> Iterator[FeedStep]:
        """In order, once.

        Raises:
            MissingChangesError: a file of the change feed is gone.
        """
        files = self._rows.snapshot.files
        if self._changes is None:
            yield FeedStep(pa.array([], pa.string()), partial(self._counted, files, None))
            return
        by_path = {file.path: file for file in files}
        for table in self._changes:
            if not table.num_rows:
                continue
            self.num_documents_named += table.num_rows
            ids = table["id"].combine_chunks()
            coming = table.filter(table["file"].is_valid())
            paths = pc.unique(coming["file"]).to_pylist()
            chosen = [by_path[path] for path in paths]
            wanted = coming["id"].combine_chunks()
            # What comes is taken out as well, so that a change may be applied again.
            yield FeedStep(ids, partial(self._counted, chosen, wanted))

    def sample(self, num_rows: int) -> NDArray[np.float32]:
        """Vectors (N, D) of length 1, of rows drawn from the whole snapshot."""
        vectors_ND = self._rows.sample(num_rows)
        if self._projection is not None:
            vectors_ND = self._projection.apply(vectors_ND).astype(np.float32, copy=False)
        scale_to_unit(vectors_ND)
        return vectors_ND

    def _counted(self, files: Sequence[DataFile], ids: pa.Array | None) -> Iterator[pa.RecordBatch]:
        for batch, norms_N in self._rows.rows(files, ids, self._projection) if files else ():
            self.num_rows_in += batch.num_rows
            self._norm_sum += float(norms_N.sum())
            yield batch


def _excerpts(batch: pa.RecordBatch) -> list[str | None]:
    if "start" in batch.schema.names:
        places = zip(
            batch["text"].to_pylist(),
            batch["start"].to_pylist(),
            batch["end"].to_pylist(),
            strict=True,
        )
        return [None if text is None else around(text, a, b) for text, a, b in places]
    beginnings = pc.utf8_slice_codeunits(batch["text"], 0, _EXCERPT_SOURCE)
    return [None if text is None else shorten(text) for text in beginnings.to_pylist()]
