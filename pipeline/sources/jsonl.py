"""JSON Lines: one object a line. Columns are the objects' keys, with the types of the first rows.

A line that is no object, or whose values do not fit, is a rejected row; the lines around it are
read. Of a repeated key the last value counts, as in Python's `json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.excerpt import excerpt
from pipeline.records import RejectedRow, SourceSplit
from pipeline.sources.checks import MAX_ID_BYTES
from pipeline.sources.columns import FileColumns, Roles
from pipeline.sources.compression import decompressed
from pipeline.sources.documents import MAX_BATCH_ROWS, RawRows
from pipeline.sources.files import SourceFile, open_file
from pipeline.sources.formats import compression_of
from pipeline.sources.inspection import Inspection, Unit, byte_units
from pipeline.sources.json_values import (
    Problem,
    carrier,
    convert,
    id_text,
    parse_line,
    partition_text,
    sampled_type,
    string,
)
from pipeline.sources.lines import LineBlock, read_lines
from pipeline.sources.reasons import BadFileError, Reason

SAMPLE_ROWS = 200
SAMPLE_BYTES = 256 << 10
# An escaped character takes up to three times the bytes of its UTF-8 form, most take none more;
# the other columns of a row have this much room beside it.
LINE_SLACK_BYTES = 1 << 20


def max_line_bytes(source: SourceConfig) -> int:
    """The longest line that can hold a document of `source.max_document_bytes`."""
    return 3 * source.max_document_bytes + LINE_SLACK_BYTES


def inspect_jsonl(file: SourceFile, source: SourceConfig) -> Inspection:
    """Look at the first rows.

    Returns: the columns found there; whole, or in byte ranges if the file is not compressed.

    Raises:
        BadFileError: the file is not JSON Lines.
    """
    records = _sample(file, max_line_bytes(source))
    types = {
        name: sampled_type([record.get(name) for record in records])
        for name in dict.fromkeys(key for record in records for key in record)
    }
    if file.compression is not None:
        units: tuple[Unit, ...] = (Unit(0, None, file.size_bytes),)
    else:
        units = byte_units(file.size_bytes, source.split_bytes)
    return Inspection(FileColumns(file.path, types), units, is_sample=True)


def read_jsonl(split: SourceSplit, source: SourceConfig, roles: Roles) -> Iterator[RawRows]:
    """Rows of the lines that begin in the split's byte range.

    Raises:
        BadFileError: compressed data that cannot be decompressed.
    """
    with open_file(split.path) as file:
        file.seek(max(split.start - 1, 0))
        stream = decompressed(file, compression_of(split.path), split.path)
        limit = max_line_bytes(source)
        for block in read_lines(stream, limit, start=split.start, end=split.end):
            for first in range(0, max(len(block.lines), 1), MAX_BATCH_ROWS):
                part = LineBlock(
                    block.lines[first : first + MAX_BATCH_ROWS],
                    block.offsets[first : first + MAX_BATCH_ROWS],
                    [] if first else block.too_long,
                    [] if first else block.heads,
                )
                yield _Parser(split, roles).rows(part, limit)


def too_long_rows(
    path: str, offsets: Sequence[int], heads: Sequence[bytes], limit: int
) -> list[RejectedRow]:
    """Rejected rows for lines over the limit, with how each begins."""
    message = f"the line is longer than {limit} bytes, which source.max_document_bytes allows"
    reason = Reason.LINE_TOO_LONG
    return [
        RejectedRow(path, offset, None, reason.stage, reason.value, message, excerpt(head))
        for offset, head in zip(offsets, heads, strict=True)
    ]


class _Parser:
    """Parses some lines of one split."""

    def __init__(self, split: SourceSplit, roles: Roles) -> None:
        self._path = split.path
        self._columns = split.columns or pa.schema([])
        self._roles = roles

    def rows(self, block: LineBlock, limit: int) -> RawRows:
        rejected = too_long_rows(self._path, block.too_long, block.heads, limit)
        records: list[dict[str, Any]] = []
        lines: list[bytes] = []
        offsets: list[int] = []
        for line, offset in zip(block.lines, block.offsets, strict=True):
            if not line or line.isspace():
                continue
            record, problem = parse_line(line)
            if record is None:
                assert problem is not None
                rejected.append(self._reject(offset, None, problem))
            else:
                records.append(record)
                lines.append(line)
                offsets.append(offset)
        problems: dict[int, Problem] = {}
        columns = {name: self._column(name, records, problems) for name in self._roles.names}
        table = pa.table(columns)
        positions = np.array(offsets, np.int64)
        if problems:
            good = np.ones(len(records), bool)
            good[list(problems)] = False
            ids = columns[self._roles.id] if self._roles.id is not None else None
            for row, problem in problems.items():
                known = None if ids is None else ids[row].as_py()
                shown = (
                    problem
                    if problem.excerpt is not None
                    else replace(problem, excerpt=excerpt(lines[row]))
                )
                rejected.append(self._reject(offsets[row], known, shown))
            table, positions = table.filter(pa.array(good)), positions[good]
        rejected.sort(key=lambda row: row.offset or 0)
        return RawRows(table, positions, tuple(rejected))

    def _reject(self, offset: int, known_id: str | None, problem: Problem) -> RejectedRow:
        reason = problem.reason
        known_id = None if known_id is None else known_id[:MAX_ID_BYTES]
        return RejectedRow(
            self._path,
            offset,
            known_id,
            reason.stage,
            reason.value,
            problem.message,
            problem.excerpt,
        )

    def _column(
        self, name: str, records: list[dict[str, Any]], problems: dict[int, Problem]
    ) -> pa.Array:
        roles = self._roles
        values = [record.get(name) for record in records]
        if name == roles.id:
            if None in values:
                self._require(records, (name,), problems)
            return convert(values, name, pa.string(), id_text, problems)
        if name in roles.text:
            if name == roles.text[0] and None in values:
                self._require(records, roles.text, problems)
            return convert(values, name, pa.string(), string, problems)
        if name in roles.partition:
            return convert(values, name, pa.string(), partition_text, problems)
        target = self._columns.field(name).type
        return convert(values, name, target, carrier(target), problems)

    def _require(
        self,
        records: list[dict[str, Any]],
        names: tuple[str, ...],
        problems: dict[int, Problem],
    ) -> None:
        """Note the rows in which none of the keys is present."""
        for row, record in enumerate(records):
            if not any(name in record for name in names):
                wanted = " or ".join(map(repr, names))
                problems.setdefault(row, Problem(Reason.MISSING_FIELD, f"there is no key {wanted}"))


def _sample(file: SourceFile, limit: int) -> list[dict[str, Any]]:
    """The objects in the first lines.

    Raises:
        BadFileError: there are lines, and none of the first is an object.
    """
    records: list[dict[str, Any]] = []
    num_lines = num_bytes = 0
    problem: Problem | None = None
    if not file.size_bytes and file.compression is None:
        return records
    with open_file(file.path) as raw:
        stream = decompressed(raw, file.compression, file.path)
        for block in read_lines(stream, limit):
            for line in block.lines:
                if num_lines >= SAMPLE_ROWS or num_bytes >= SAMPLE_BYTES:
                    break
                if not line or line.isspace():
                    continue
                num_lines += 1
                num_bytes += len(line)
                record, found = parse_line(line)
                if num_lines == 1 and found is not None and _opens_document(line, found):
                    raise _not_lines(file, found)
                problem = problem or found
                if record is not None:
                    records.append(record)
            if num_lines:
                break
    if num_lines and not records:
        assert problem is not None
        raise _not_lines(file, problem)
    return records


def _opens_document(line: bytes, problem: Problem) -> bool:
    """Whether the first line is that of one JSON document written over many lines."""
    start = line.strip()
    return start == b"{" or (start.startswith(b"[") and problem.reason is Reason.BAD_JSON)


def _not_lines(file: SourceFile, problem: Problem) -> BadFileError:
    return BadFileError(
        Reason.CORRUPT_FILE,
        f"{file.path}: not JSON Lines, which has one object a line: {problem.message}. One large "
        "JSON document is turned into lines by: jq -c '.[]' FILE",
        problem.excerpt,
    )
