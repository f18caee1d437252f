"""Read the documents of one split. Knows every format by its reader; no Ray.

The same split, configuration and file give the same batches, so what a plan pass found an embed
pass finds again: (source, offset) names a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.config import SourceConfig, TextConfig
from pipeline.errors import MissingFileError, SourceError, StorageError
from pipeline.excerpt import excerpt
from pipeline.records import (
    DocumentBatch,
    RejectedRow,
    RejectedRows,
    SourceSplit,
    rejected_table,
)
from pipeline.sources.arrow_ipc import read_arrow
from pipeline.sources.compression import READ_BYTES, decompressed
from pipeline.sources.csv_rows import read_csv
from pipeline.sources.documents import DocumentMaker, RawRows
from pipeline.sources.files import locate, open_file, relative_path
from pipeline.sources.formats import compression_of
from pipeline.sources.jsonl import read_jsonl
from pipeline.sources.lines import HEAD_BYTES
from pipeline.sources.parquet import read_parquet
from pipeline.sources.reasons import BadFileError
from pipeline.sources.text_files import read_text


def read_documents(
    split: SourceSplit, source: SourceConfig, text: TextConfig
) -> Iterator[DocumentBatch]:
    """Read a split in batches of at most 8,192 rows and about 16 MiB of text.

    A document that is larger is alone in its batch. The tables have DOCUMENT_FIELDS, the partition
    columns (string) and the carried columns; every document has a token.

    A part of a file that cannot be decoded ends the run with an error; with `source.on_bad_file` =
    `reject` the split is first read through, and a bad one gives one rejected row with offset None
    and no documents.

    Args:
        split: of `discover`.
        source: the configuration that `discover` had.
        text: tokeniser and Unicode form.

    Raises:
        SourceError: the file is bad, has changed since it was listed, or has gone.
        StorageError: the store failed.
    """
    _check_version(split)
    maker = DocumentMaker(split, source, text)
    try:
        if source.on_bad_file == "reject":
            _read_through(split, source, maker)
        for raw in _raw_rows(split, source, maker):
            yield from maker.batches(raw)
    except BadFileError as error:
        if source.on_bad_file == "error":
            raise SourceError(
                f"{error}. To reject such files and go on, set source.on_bad_file: reject"
            ) from None
        rejected = rejected_table([bad_file_row(split.path, error)])
        yield DocumentBatch(maker.schema.empty_table(), RejectedRows(rejected))


def bad_file_row(path: str, error: BadFileError) -> RejectedRow:
    """The rejected row that stands for a file, or a part of it, that cannot be read.

    Its excerpt is what the reader found there, or how the file begins: an error page of a web
    server, say, under the name of a Parquet file.
    """
    reason, shown = error.reason, error.excerpt
    if shown is None:
        with contextlib.suppress(StorageError, OSError), open_file(path) as file:
            shown = excerpt(file.read(HEAD_BYTES))
    return RejectedRow(path, None, None, reason.stage, reason.value, str(error), shown)


def _check_version(split: SourceSplit) -> None:
    storage, name = locate(split.path)
    try:
        found = storage.info(name).version
    except MissingFileError:
        found = None
    if found != split.version:
        done = "is gone" if found is None else "has changed"
        raise SourceError(
            f"{split.path}: the file {done} since the run listed it; run again when the corpus is "
            "at rest"
        )


def _raw_rows(split: SourceSplit, source: SourceConfig, maker: DocumentMaker) -> Iterator[RawRows]:
    roles = maker.roles
    if split.format == "parquet":
        return read_parquet(split, roles)
    if split.format == "arrow":
        return read_arrow(split, roles)
    if split.format == "csv":
        return read_csv(split, source, roles)
    if split.format == "jsonl":
        return read_jsonl(split, source, roles)
    return read_text(split, source, roles, relative_path(split.path, source))


def _read_through(split: SourceSplit, source: SourceConfig, maker: DocumentMaker) -> None:
    """Read all of a split without keeping anything, to see whether that can be done."""
    if split.format in ("jsonl", "text"):
        compression = compression_of(split.path)
        if compression is None:
            return  # Plain lines are bad one by one.
        with open_file(split.path) as file:
            stream = decompressed(file, compression, split.path)
            while stream.read(READ_BYTES):
                pass
        return
    for raw in _raw_rows(split, source, maker):
        del raw
