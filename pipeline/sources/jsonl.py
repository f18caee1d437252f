"""JSON Lines: one object a line. Columns are the objects' keys, with the types of the first rows.

A line that is no object, or whose values do not fit, is a rejected row; the lines around it are
read. Of a repeated key the last value counts, as in Python's `json`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from pipeline.config import SourceConfig
from pipeline.records import RejectedRow, SourceSplit
from pipeline.sources.columns import FileColumns, Roles
from pipeline.sources.compression import decompressed
from pipeline.sources.documents import MAX_BATCH_ROWS, RawRows
from pipeline.sources.files import SourceFile, open_file
from pipeline.sources.formats import compression_of
from pipeline.sources.inspection import Inspection, Unit, byte_units
from pipeline.sources.lines import LineBlock, read_lines
from pipeline.sources.reasons import BadFileError, Reason

SAMPLE_ROWS = 200
SAMPLE_BYTES = 256 << 10
# An escaped character takes up to three times the bytes of its UTF-8 form, most take none more;
# the other columns of a row have this much room beside it.
LINE_SLACK_BYTES = 1 << 20
MAX_INTEGER = 1 << 63

_DECODER = json.JSONDecoder()

Problem: TypeAlias = tuple[Reason, str]
_KIND_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


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
        name: _sampled_type([record.get(name) for record in records])
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
                )
                yield _Parser(split, roles).rows(part, limit)


def too_long_rows(path: str, offsets: Sequence[int], limit: int) -> list[RejectedRow]:
    """Rejected rows for lines over the limit."""
    message = f"the line is longer than {limit} bytes, which source.max_document_bytes allows"
    reason = Reason.LINE_TOO_LONG
    return [
        RejectedRow(path, offset, None, reason.stage, reason.value, message) for offset in offsets
    ]


class _Parser:
    """Parses some lines of one split."""

    def __init__(self, split: SourceSplit, roles: Roles) -> None:
        self._path = split.path
        self._columns = split.columns or pa.schema([])
        self._roles = roles

    def rows(self, block: LineBlock, limit: int) -> RawRows:
        rejected = too_long_rows(self._path, block.too_long, limit)
        records: list[dict[str, Any]] = []
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
                rejected.append(self._reject(offsets[row], known, problem))
            table, positions = table.filter(pa.array(good)), positions[good]
        rejected.sort(key=lambda row: row.offset or 0)
        return RawRows(table, positions, tuple(rejected))

    def _reject(self, offset: int, known_id: str | None, problem: Problem) -> RejectedRow:
        reason, message = problem
        return RejectedRow(self._path, offset, known_id, reason.stage, reason.value, message)

    def _column(
        self, name: str, records: list[dict[str, Any]], problems: dict[int, Problem]
    ) -> pa.Array:
        roles = self._roles
        values = [record.get(name) for record in records]
        if name == roles.id:
            if None in values:
                self._require(records, (name,), problems)
            return _convert(values, name, pa.string(), _id_text, problems)
        if name in roles.text:
            if name == roles.text[0] and None in values:
                self._require(records, roles.text, problems)
            return _convert(values, name, pa.string(), _string, problems)
        if name in roles.partition:
            return _convert(values, name, pa.string(), _partition_text, problems)
        target = self._columns.field(name).type
        return _convert(values, name, target, _carrier(target), problems)

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
                problems.setdefault(row, (Reason.MISSING_FIELD, f"there is no key {wanted}"))


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, Problem | None]:
    """The object in a line, or why there is none."""
    try:
        record = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return None, (Reason.NOT_UTF8, f"the line is not valid UTF-8 at its byte {error.start}")
    except RecursionError:
        return None, (Reason.BAD_JSON, "the line is nested too deeply")
    except ValueError as error:
        return None, (Reason.BAD_JSON, f"the line is not JSON: {error}")
    if type(record) is not dict:
        found = type(record).__name__
        return None, (Reason.NOT_AN_OBJECT, f"the line holds a {found}, not an object")
    return record, None


class _WrongTypeError(Exception):
    pass


def _convert(
    values: list[Any],
    name: str,
    target: pa.DataType,
    convert: Callable[[Any], Any],
    problems: dict[int, Problem],
) -> pa.Array:
    """The values as an array; those that do not fit are noted and become null."""
    kinds = set(map(type, values)) - {type(None)}
    if convert is _id_text and kinds == {int}:
        return pa.array([None if value is None else str(value) for value in values], target)
    if pt.is_string(target) and kinds <= {str}:
        try:
            return pa.array(values, target)
        except UnicodeEncodeError:
            pass
    converted = [None] * len(values)
    for row, value in enumerate(values):
        if value is None:
            continue
        try:
            converted[row] = convert(value)
            if isinstance(converted[row], str):
                converted[row].encode()  # type: ignore[attr-defined]
        except UnicodeEncodeError:
            converted[row] = None
            message = f"key {name!r} has a lone surrogate, which UTF-8 cannot represent"
            problems.setdefault(row, (Reason.NOT_UTF8, message))
        except _WrongTypeError:
            shown = json.dumps(value)[:60]
            message = f"key {name!r}: expected {_described(target, convert)}, found {shown}"
            problems.setdefault(row, (Reason.WRONG_TYPE, message))
    return pa.array(converted, target)


def _described(target: pa.DataType, convert: Callable[[Any], Any]) -> str:
    if convert is _id_text:
        return "a string or an integer"
    if convert is _partition_text:
        return "a string, an integer or a boolean"
    return "a string" if pt.is_string(target) else f"{target}, as in the file's first rows"


def _string(value: Any) -> str:
    if type(value) is not str:
        raise _WrongTypeError
    return value


def _id_text(value: Any) -> str:
    if type(value) is int:
        return str(value)
    return _string(value)


def _partition_text(value: Any) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    return _id_text(value)


def _carrier(target: pa.DataType) -> Callable[[Any], Any]:
    """What turns a JSON value into one of a carried column's type."""
    if pt.is_boolean(target):
        return _boolean
    if pt.is_integer(target):
        return _integer
    return _number if pt.is_floating(target) else _carried_text


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _WrongTypeError
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -MAX_INTEGER <= value < MAX_INTEGER:
        raise _WrongTypeError
    return value


def _number(value: Any) -> float:
    if type(value) is int and abs(value) <= 1 << 53:
        return float(value)
    if type(value) is not float:
        raise _WrongTypeError
    return value


def _carried_text(value: Any) -> str:
    """A string as it is; an object or array as compact JSON."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _string(value)


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
    return start == b"{" or (start.startswith(b"[") and problem[0] is Reason.BAD_JSON)


def _not_lines(file: SourceFile, problem: Problem) -> BadFileError:
    return BadFileError(
        Reason.CORRUPT_FILE,
        f"{file.path}: not JSON Lines, which has one object a line: {problem[1]}. One large JSON "
        "document is turned into lines by: jq -c '.[]' FILE",
    )


def _sampled_type(values: list[Any]) -> pa.DataType:
    """The type that most of the values have; integers and other numbers together are doubles."""
    kinds = Counter(type(value) for value in values if value is not None)
    if not kinds:
        return pa.null()
    if kinds[int] and kinds[float]:
        kinds[float] += kinds.pop(int)
    text = kinds.pop(str, 0) + kinds.pop(dict, 0) + kinds.pop(list, 0)
    best = max(kinds, key=lambda kind: kinds[kind], default=str)
    return _KIND_TYPES[best] if best is not str and kinds[best] > text else pa.string()
