"""Divide rows by their id into parts that fit in memory; equal ids meet. Knows tables and a disk.

What fits in memory stays there. More is kept in temporary files (TMPDIR says where), one a bucket.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# A bucket of this many rows takes 100 to 300 MB while it is being worked on.
MAX_ROWS_IN_MEMORY = 1_000_000
MAX_BUCKETS = 500


def num_buckets_for(num_rows: int, max_rows: int = MAX_ROWS_IN_MEMORY) -> int:
    """Buckets that hold at most about `max_rows` each; MAX_BUCKETS at most."""
    return min(MAX_BUCKETS, max(1, math.ceil(num_rows / max_rows)))


class Buckets:
    """Rows in the order they were added, divided by a hash of `id`; use it in a `with` block."""

    def __init__(self, schema: pa.Schema, num_buckets: int) -> None:
        """Start without rows.

        Args:
            schema: of the rows; has a column `id` (string).
            num_buckets: with 1 the rows stay in memory.
        """
        self.num_buckets = num_buckets
        self._schema = schema
        self._in_memory: list[pa.Table] = []
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._resources = ExitStack()
        self._directory: Path | None = None
        if num_buckets > 1:
            directory = tempfile.TemporaryDirectory(prefix="elmo-buckets-")
            self._directory = Path(self._resources.enter_context(directory))

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        self._resources.close()

    def add(self, rows: pa.Table) -> None:
        """Append rows.

        Raises:
            OSError: the disk is full.
        """
        if self._directory is None:
            self._in_memory.append(rows.cast(self._schema))
            return
        bucket = _bucket_of(rows["id"], self.num_buckets)
        order = np.argsort(bucket, kind="stable")
        edges = np.searchsorted(bucket[order], np.arange(self.num_buckets + 1))
        ordered = rows.cast(self._schema).take(pa.array(order))
        for index in np.flatnonzero(np.diff(edges)).tolist():
            part = ordered.slice(edges[index], edges[index + 1] - edges[index])
            self._writer(index).write_table(part)

    def __iter__(self) -> Iterator[pa.Table]:
        """Bucket by bucket, empty ones too; nothing can be added any more. May be repeated."""
        for writer in self._writers.values():
            writer.close()
        for index in range(self.num_buckets):
            if self._directory is None:
                yield pa.concat_tables([self._schema.empty_table(), *self._in_memory])
            elif index in self._writers:
                with pa.OSFile(str(self._path(index))) as file:
                    yield pa.ipc.open_stream(file).read_all()
            else:
                yield self._schema.empty_table()

    def _writer(self, index: int) -> pa.RecordBatchStreamWriter:
        if index not in self._writers:
            sink = self._resources.enter_context(pa.OSFile(str(self._path(index)), "wb"))
            self._writers[index] = pa.ipc.new_stream(sink, self._schema)
        return self._writers[index]

    def _path(self, index: int) -> Path:
        assert self._directory is not None
        return self._directory / f"{index}.arrows"


def _bucket_of(ids: pa.ChunkedArray, num_buckets: int) -> NDArray[np.int64]:
    checksums = (zlib.crc32(value.encode()) for value in ids.to_pylist())
    return np.fromiter(checksums, np.int64, len(ids)) % num_buckets
