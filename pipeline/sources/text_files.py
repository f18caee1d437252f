"""Plain text: a line or a file is a document.

The columns are `text` and `path`, the file's path below the directory, glob or path that found it;
with `text_unit: file`, `path` makes a lasting id. Blank lines are no documents.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.excerpt import excerpt
from pipeline.records import RejectedRow, SourceSplit
from pipeline.sources.columns import FileColumns, Roles
from pipeline.sources.compression import READ_BYTES, decompressed
from pipeline.sources.documents import MAX_BATCH_ROWS, RawRows
from pipeline.sources.files import SourceFile, open_file
from pipeline.sources.formats import compression_of
from pipeline.sources.inspection import Inspection, Unit, byte_units
from pipeline.sources.jsonl import max_line_bytes, too_long_rows
from pipeline.sources.lines import BYTE_ORDER_MARK, HEAD_BYTES, read_lines
from pipeline.sources.reasons import BadFileError, Reason

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def inspect_text(file: SourceFile, source: SourceConfig) -> Inspection:
    """Look at the first bytes.

    Raises:
        BadFileError: they are UTF-16, or no compressed data.
    """
    if file.size_bytes or file.compression is not None:
        with open_file(file.path) as raw:
            head = decompressed(raw, file.compression, file.path).read(2)
        if head.startswith(UTF_16_MARKS):
            raise BadFileError(
                Reason.CORRUPT_FILE,
                f"{file.path}: the text is UTF-16; expected UTF-8: iconv -f UTF-16 -t UTF-8",
            )
    if source.text_unit == "line" and file.compression is None:
        units = byte_units(file.size_bytes, source.split_bytes)
    else:
        units = (Unit(0, None, file.size_bytes),)
    types = {"text": pa.string(), "path": pa.string()}
    return Inspection(FileColumns(file.path, types), units)


def read_text(
    split: SourceSplit, source: SourceConfig, roles: Roles, relative_path: str
) -> Iterator[RawRows]:
    """The lines that begin in the split's byte range, or the whole file.

    Raises:
        BadFileError: compressed data that cannot be decompressed.
    """
    pieces = _file(split, source) if source.text_unit == "file" else _lines(split, source)
    for texts, offsets, rejected in pieces:
        columns = {"text": pa.array(texts, pa.binary())}
        if "path" in roles.names:
            columns["path"] = pa.repeat(pa.scalar(relative_path, pa.string()), len(texts))
        yield RawRows(pa.table(columns), np.array(offsets, np.int64), tuple(rejected))


def _lines(
    split: SourceSplit, source: SourceConfig
) -> Iterator[tuple[list[bytes], list[int], list[RejectedRow]]]:
    limit = max_line_bytes(source)
    with open_file(split.path) as file:
        file.seek(max(split.start - 1, 0))
        stream = decompressed(file, compression_of(split.path), split.path)
        for block in read_lines(stream, limit, start=split.start, end=split.end):
            rejected = too_long_rows(split.path, block.too_long, block.heads, limit)
            pairs = [
                (line, offset)
                for line, offset in zip(block.lines, block.offsets, strict=True)
                if line and not line.isspace()
            ]
            for first in range(0, max(len(pairs), 1), MAX_BATCH_ROWS):
                part = pairs[first : first + MAX_BATCH_ROWS]
                yield [line for line, _ in part], [offset for _, offset in part], rejected
                rejected = []


def _file(
    split: SourceSplit, source: SourceConfig
) -> Iterator[tuple[list[bytes], list[int], list[RejectedRow]]]:
    limit = source.max_document_bytes
    parts: list[bytes] = []
    head = b""
    size = 0
    with open_file(split.path) as file:
        stream = decompressed(file, compression_of(split.path), split.path)
        while data := stream.read(READ_BYTES):
            size += len(data)
            head = head or data[:HEAD_BYTES]
            # What is too large is read to its end all the same: it may be no valid file.
            if size <= limit + len(BYTE_ORDER_MARK):
                parts.append(data)
            else:
                parts.clear()
    text = b"".join(parts).removeprefix(BYTE_ORDER_MARK)
    if size > limit + len(BYTE_ORDER_MARK):
        reason = Reason.DOCUMENT_TOO_LARGE
        message = f"the file has {size} bytes, source.max_document_bytes allows {limit}"
        row = RejectedRow(split.path, 0, None, reason.stage, reason.value, message, excerpt(head))
        yield [], [], [row]
    else:
        yield [text], [0], []
