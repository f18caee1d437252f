"""Write data files (Parquet or Arrow IPC) and read them back, checked. Knows no snapshots.

A data file is written once, under `data/<partition>/<run>-<uuid>.<ending>`, and never changed. Its
SHA-256 is taken of the bytes on their way to the store, and what is stored is compared with it
before the file may be listed. Memory holds one row group, and the bytes of a small file.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from pipeline.config import OutputConfig
from pipeline.errors import CorruptFileError, StorageError
from pipeline.extension_types import refuse_unpickling, said_by
from pipeline.partitions import partition_path
from pipeline.snapshot.metadata import DataFile, check_no_extension_types
from pipeline.storage import OutputFile, Storage
from pipeline.vector_parquet import VectorParquetWriter

DATA = "data"
ROW_GROUP_BYTES = 32 << 20
IPC_BATCH_BYTES = 8 << 20
READ_BATCH_BYTES = 16 << 20
COPY_BYTES = 4 << 20
# A file up to this size is kept in memory until it is verified, and sent again if it was damaged.
RESEND_BYTES = 16 << 20
RESEND_ATTEMPTS = 3
ZSTD_LEVEL = 1

_ENDINGS = {"parquet": ".parquet", "arrow": ".arrow"}


class DataFileWriter:
    """Writes one data file: `close` it or `abort` it; leaving a `with` block aborts it."""

    _finished = True  # Until there is something to abort.

    def __init__(
        self,
        storage: Storage,
        schema: pa.Schema,
        output: OutputConfig,
        partition: Mapping[str, str | None],
        run_id: str,
    ) -> None:
        """Start a file.

        Args:
            storage: the snapshot directory.
            schema: columns of the file, `id` (string, grouped) among them; partition columns are
                not: they stand in the path.
            output: format and compression.
            partition: values of the partition columns, in order.
            run_id: the first part of the file's name.

        Raises:
            ConfigError: a partition value cannot be the name of a directory.
            StorageError: the store failed.
        """
        name = f"{run_id}-{uuid.uuid4().hex}{_ENDINGS[output.format]}"
        directory = partition_path(partition)
        self._path = f"{DATA}/{directory}/{name}" if directory else f"{DATA}/{name}"
        self._storage = storage
        self._schema = schema
        self._partition = dict(partition)
        self._ids = _IdCounter()
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._reads_back = output.verify_writes and not storage.is_local
        self._sink = _HashingSink(
            storage.create_output(self._path), RESEND_BYTES if self._reads_back else 0
        )
        encoder = _ParquetEncoder if output.format == "parquet" else _IpcEncoder
        try:
            self._encoder: _Encoder = encoder(self._sink, schema, output.compression)
        except BaseException:
            self._sink.output.abort()
            raise
        self._finished = False

    def __enter__(self) -> DataFileWriter:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.abort()

    def __del__(self) -> None:
        self.abort()

    @property
    def size_bytes(self) -> int:
        """Bytes written so far and about to be written; the footer not among them."""
        return self._sink.size_bytes + self._pending_bytes

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows. All rows of a document stand side by side, in one file.

        The batch's memory may be used until the file is closed: do not write to it again.

        Raises:
            ValueError: the batch's schema is not the file's, or an id is null.
            StorageError: the store failed; abort the file.
        """
        if not batch.schema.equals(self._schema):
            raise ValueError(f"expected the columns\n{self._schema}\nfound\n{batch.schema}")
        if not batch.num_rows:
            return
        self._ids.add(batch.column("id"))
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= self._encoder.group_bytes:
            self._flush()

    def close(self) -> DataFile:
        """Finish the file, make it durable and compare what is stored with what was written.

        Raises:
            StorageError: the store failed, or holds something else than what was written: the file
                is thrown away.
        """
        try:
            self._flush()
            self._encoder.close()
            self._sink.output.close()
        except BaseException:
            self.abort()
            raise
        self._finished = True
        self._verify()
        self._sink.copy = None
        return DataFile(
            path=self._path,
            num_rows=self._ids.num_rows,
            num_documents=self._ids.num_documents,
            size_bytes=self._sink.size_bytes,
            sha256=self._sink.sha256.hexdigest(),
            partition=self._partition,
            min_id=self._ids.min_id or "",
            max_id=self._ids.max_id or "",
        )

    def abort(self) -> None:
        """Throw the file away; nothing happens after `close`."""
        if not self._finished:
            self._finished = True
            self._sink.is_open = False
            self._pending.clear()
            with suppress(pa.ArrowException, OSError, ValueError):
                self._encoder.close()
            self._sink.output.abort()

    def _verify(self) -> None:
        damage = self._damage()
        for _ in range(RESEND_ATTEMPTS if self._sink.copy is not None else 0):
            if damage is None:
                return
            self._storage.put(self._path, bytes(self._sink.copy or b""))
            damage = self._damage()
        if damage is not None:
            with suppress(StorageError):
                self._storage.delete(self._path)
            raise StorageError(
                f"{self._storage.url_of(self._path)}: {damage}: the file was damaged on its way to "
                "the store. No snapshot lists it; run again, and if this comes back look for a "
                "broken proxy, network card or memory"
            )

    def _damage(self) -> str | None:
        """How the stored file differs from what was written, None if it does not."""
        written = self._sink.size_bytes
        info = self._storage.info_or_none(self._path)
        if info is None or info.size_bytes != written:
            stored = "nothing" if info is None else f"{info.size_bytes} bytes"
            return f"{written} bytes were written, {stored} stored"
        if self._reads_back:
            with self._storage.open_input(self._path) as source:
                size_bytes, sha256 = _digest(source)
            expected = self._sink.sha256.hexdigest()
            if (size_bytes, sha256) != (written, expected):
                return f"written with SHA-256 {expected}, stored with {sha256}"
        return None

    def _flush(self) -> None:
        if self._pending:
            self._encoder.write(pa.Table.from_batches(self._pending))
            self._pending.clear()
            self._pending_bytes = 0


class _Encoder:
    """Turns tables into bytes of one format; collects `group_bytes` of rows at a time."""

    group_bytes: int

    def write(self, table: pa.Table) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _ParquetEncoder(_Encoder):
    group_bytes = ROW_GROUP_BYTES

    def __init__(self, sink: _HashingSink, schema: pa.Schema, compression: str | None) -> None:
        # One row a document: ids and hashes do not repeat, so a dictionary would only be dropped.
        repeated = "sentence_index" in schema.names
        words = [
            item.name
            for item in schema
            if pa.types.is_string(item.type) or pa.types.is_fixed_size_binary(item.type)
        ]
        self._writer = VectorParquetWriter(
            sink,
            schema,
            vector_columns(schema),
            compression=compression,
            dictionary_columns=[w for w in words if repeated or w not in ("id", "content_hash")],
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write(table)

    def close(self) -> None:
        self._writer.close()


class _IpcEncoder(_Encoder):
    group_bytes = IPC_BATCH_BYTES

    def __init__(self, sink: _HashingSink, schema: pa.Schema, compression: str | None) -> None:
        options = ipc.IpcWriteOptions(
            compression=pa.Codec("zstd", ZSTD_LEVEL) if compression else None
        )
        target = pa.PythonFile(sink, mode="w")
        self._writer = ipc.new_file(target, schema, options=options)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table.combine_chunks())

    def close(self) -> None:
        self._writer.close()


class _HashingSink:
    """A Python file for Arrow that hashes what passes through; swallows all once `is_open` ends."""

    closed = False

    def __init__(self, output: OutputFile, max_copy_bytes: int) -> None:
        self.output = output
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.is_open = True
        self.copy: bytearray | None = bytearray() if max_copy_bytes else None
        self._max_copy_bytes = max_copy_bytes

    def write(self, data: Any) -> int:
        if self.is_open:
            self.sha256.update(data)
            self.output.write(data)
            self.size_bytes += len(data)
            if self.size_bytes > self._max_copy_bytes:
                self.copy = None
            elif self.copy is not None:
                self.copy += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: the store is told when the file is closed."""


class _IdCounter:
    """Counts rows and documents, and keeps the least and the greatest id, batch by batch."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_documents = 0
        self.min_id: str | None = None
        self.max_id: str | None = None
        self._last: str | None = None

    def add(self, ids: pa.Array) -> None:
        """Count one batch of ids, not empty, equal ones side by side."""
        if ids.null_count:
            raise ValueError("an id is null")
        firsts = document_starts(ids, self._last)
        self.num_rows += len(ids)
        self.num_documents += len(firsts)
        self._last = ids[-1].as_py()
        least, greatest = (scalar.as_py() for scalar in pc.min_max(ids).values())
        self.min_id = least if self.min_id is None else min(self.min_id, least)
        self.max_id = greatest if self.max_id is None else max(self.max_id, greatest)


def vector_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold vectors: `vector`, or `vector_0`, `vector_1` ..."""
    return [name for name in schema.names if name == "vector" or name.startswith("vector_")]


def document_mask(ids: pa.Array, previous: str | None) -> pa.BooleanArray:
    """True on the rows where a document starts: the id is not that of the row before.

    Args:
        ids: one id a row.
        previous: id of the row before the first; None at the start of a file.
    """
    if not len(ids):
        return pa.array([], pa.bool_())
    is_first = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    begins = pa.array([previous is None or ids[0].as_py() != previous])
    return pa.concat_arrays([begins, is_first])


def document_starts(ids: pa.Array, previous: str | None) -> pa.Array:
    """The ids of the documents that start in `ids`, in order; arguments as for `document_mask`."""
    return ids.filter(document_mask(ids, previous))


@contextmanager
def verified_file(storage: Storage, file: DataFile) -> Iterator[pa.NativeFile]:
    """Open a data file after its size and SHA-256 were found right; a remote one is copied to disk.

    Raises:
        CorruptFileError: its bytes are not those that were written.
        MissingFileError: it is gone.
        StorageError: the store failed.
    """
    url = storage.url_of(file.path)
    with ExitStack() as stack:
        source = stack.enter_context(storage.open_input(file.path))
        # It has no name, so that nothing of it stays behind when the process is killed.
        copy = None if storage.is_local else stack.enter_context(_unnamed_file())
        size_bytes, sha256 = _digest(source, copy)
        _check(url, "bytes", file.size_bytes, size_bytes)
        _check(url, "as SHA-256", file.sha256, sha256)
        if copy is None:
            yield stack.enter_context(pa.OSFile(url))
        else:
            copy.seek(0)
            yield stack.enter_context(pa.PythonFile(copy, mode="r"))


def _unnamed_file() -> io.FileIO:
    # Without a buffer, closing the file cannot meet a full disk a second time.
    return tempfile.TemporaryFile(buffering=0)


def _digest(source: BinaryIO, copy: io.FileIO | None = None) -> tuple[int, str]:
    """Size and SHA-256 of what is left to read; also written to `copy`."""
    digest = hashlib.sha256()
    size_bytes = 0
    while data := source.read(COPY_BYTES):
        digest.update(data)
        size_bytes += len(data)
        if copy is not None:
            _copy_all(data, copy)
    return size_bytes, digest.hexdigest()


def _copy_all(data: bytes, copy: io.FileIO) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[copy.write(view) :]
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: no room for the copy of a data file "
            f"({error.strerror}); free some, or set TMPDIR to a larger disk"
        ) from error


def read_schema(source: pa.NativeFile, path: str) -> pa.Schema:
    """Schema of an open data file; the ending of `path` says its format.

    Raises:
        CorruptFileError: it is not of this format, or has an extension type.
    """
    with _decoding(path):
        if path.endswith(_ENDINGS["parquet"]):
            return _checked_schema(pq.ParquetFile(source).schema_arrow, path)
        return _checked_schema(ipc.open_file(source).schema, path)


def read_batches(
    source: pa.NativeFile,
    path: str,
    columns: Sequence[str] | None = None,
    batch_bytes: int = READ_BATCH_BYTES,
) -> Iterator[pa.RecordBatch]:
    """Rows of an open data file in batches of some bytes or as written, in order.

    Args:
        source: the open file.
        path: says the format by its ending.
        columns: those wanted, None for all.
        batch_bytes: of all columns of a batch, at most, in a Parquet file.

    Raises:
        CorruptFileError: it cannot be decoded, or has an extension type.
    """
    with _decoding(path):
        if path.endswith(_ENDINGS["parquet"]):
            parquet = pq.ParquetFile(source)
            _checked_schema(parquet.schema_arrow, path)
            batch_rows = _batch_rows(parquet.metadata, batch_bytes)
            yield from parquet.iter_batches(batch_rows, columns=columns)
            return
        options = None
        names = _checked_schema(ipc.open_file(source).schema, path).names
        if columns is not None:
            options = ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
        reader = ipc.open_file(source, options=options)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def rewrite_without(
    storage: Storage,
    file: DataFile,
    drop_ids: pa.Array | Collection[str],
    output: OutputConfig,
    run_id: str,
) -> DataFile | None:
    """Copy a data file without some documents; the old file stays as it is.

    Args:
        storage: the snapshot directory.
        file: the file to copy.
        drop_ids: ids of the documents to leave out; others are no error.
        output: format and compression of the copy.
        run_id: the first part of the new file's name.

    Returns: the new file; `file` itself when none of the ids is in it; None when nothing is left.

    Raises:
        CorruptFileError: the old file is not what its manifest promises; nothing was written.
        StorageError: the store failed.
    """
    dropped = drop_ids if isinstance(drop_ids, pa.Array) else pa.array(list(drop_ids), pa.string())
    if not len(dropped):
        return file
    with verified_file(storage, file) as source:
        num_kept = 0
        for batch in read_batches(source, file.path, ["id"]):
            num_kept += len(batch) - pc.sum(pc.is_in(batch.column(0), dropped)).as_py()
        if num_kept == file.num_rows:
            return file
        if not num_kept:
            return None
        schema = read_schema(source, file.path)
        with DataFileWriter(storage, schema, output, file.partition, run_id) as writer:
            for batch in read_batches(source, file.path):
                writer.write(batch.filter(pc.invert(pc.is_in(batch.column("id"), dropped))))
            return writer.close()


def _batch_rows(parquet: pq.FileMetaData, batch_bytes: int) -> int:
    if not parquet.num_rows:
        return 1
    groups = [parquet.row_group(index) for index in range(parquet.num_row_groups)]
    bytes_per_row = sum(group.total_byte_size for group in groups) / parquet.num_rows
    rows: int = min(int(batch_bytes / max(bytes_per_row, 1)), parquet.num_rows)
    return max(1, rows)


def _check(url: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise CorruptFileError(
            f"{url}: the manifest promises {expected} {what}, found {found}: the file was changed "
            "or damaged; restore it, or embed its documents again"
        )


def _checked_schema(schema: pa.Schema, path: str) -> pa.Schema:
    check_no_extension_types(schema, path)
    return schema


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    refuse_unpickling()
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(f"{path}: cannot be decoded: {said_by(error)}") from error
