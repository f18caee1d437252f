"""What is known of a file before its rows are read. Knows Arrow schemas, no format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.excerpt import bounded
from pipeline.extension_types import LET_PASS_TYPES, extension_names
from pipeline.sources.columns import FileColumns, Roles, field_refusal
from pipeline.sources.reasons import BadFileError, Reason

MAX_COLUMNS = 10_000


@dataclass(frozen=True)
class Unit:
    """A part of a file for one split: `start` and `end` as in `SourceSplit`."""

    start: int
    end: int | None
    size_bytes: int
    first_row: int = 0


@dataclass(frozen=True)
class Inspection:
    """The columns of a file and the parts it can be read in.

    `is_sample` says that the columns were found in the file's first rows: others may come later.
    """

    columns: FileColumns
    units: tuple[Unit, ...]
    is_sample: bool = False


def file_columns(path: str, schema: pa.Schema, roles: Roles) -> FileColumns:
    """The columns of an Arrow schema.

    Raises:
        BadFileError: more than MAX_COLUMNS of them.
        SourceError: a needed column has an extension type that is not read, or any column has one
            that may run code.
    """
    if len(schema) > MAX_COLUMNS:
        raise BadFileError(
            Reason.CORRUPT_FILE,
            f"{path}: the file has {len(schema)} columns, at most {MAX_COLUMNS} are possible",
        )
    for field in schema:
        unknown = [name for name in extension_names(field) if name not in LET_PASS_TYPES]
        if unknown and field.name not in roles.names:
            raise SourceError(
                f"{path}: column {bounded(field.name)!r} has the extension type "
                f"{bounded(unknown[0])!r}, which may run code when the file is read; write the "
                "file with the column's storage type, or without the column"
            )
        if field.name in roles.names:
            problem = field_refusal(field)
            if problem is not None:
                raise SourceError(
                    f"{path}: {roles.uses(field.name)} names {field.name!r}, which has type "
                    f"{bounded(str(field.type))}: {bounded(problem)}"
                )
    return FileColumns(path, {field.name: field.type for field in schema}, repeated(schema.names))


def check_buffers(batch: pa.RecordBatch) -> None:
    """Make sure that what a decoded batch says of its buffers is true, all of it.

    Offsets and indices of a damaged or hostile file may point anywhere; nothing may be computed
    with them before.

    Raises:
        pa.ArrowInvalid: they do.
    """
    for column in batch.columns:
        _as_bytes(column).validate(full=True)


def _as_bytes(column: pa.Array) -> pa.Array:
    # Bytes that are not UTF-8 make one row a rejected one, not the file a bad one.
    for text_type, byte_type in (
        (pa.string(), pa.binary()),
        (pa.large_string(), pa.large_binary()),
        (pa.string_view(), pa.binary_view()),
    ):
        if column.type.equals(text_type):
            return column.cast(byte_type)
    return column


def repeated(names: Iterable[str]) -> frozenset[str]:
    """The names that come more than once."""
    return frozenset(name for name, count in Counter(names).items() if count > 1)


def byte_units(size_bytes: int, split_bytes: int) -> tuple[Unit, ...]:
    """A file in equal byte ranges of at most `split_bytes`; no range for an empty file."""
    num_units = -(-size_bytes // split_bytes)
    edges = [size_bytes * number // max(num_units, 1) for number in range(num_units + 1)]
    return tuple(
        Unit(start, end, end - start) for start, end in zip(edges[:-1], edges[1:], strict=True)
    )
