"""Turn rows of any format into documents, and say which rows are none. Knows no files.

All checks are array operations over one batch of rows; a row's first failure, in the order of the
checks below, is its reason. What is computed depends on the row and the configuration alone, so
reading twice gives the same documents, hashes and rejected rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from pipeline.config import SourceConfig, TextConfig
from pipeline.excerpt import excerpt
from pipeline.partitions import partition_problem
from pipeline.records import (
    DOCUMENT_FIELDS,
    DocumentBatch,
    RejectedRow,
    RejectedRows,
    SourceSplit,
    rejected_table,
)
from pipeline.sources.checks import MAX_ID_BYTES, Checks
from pipeline.sources.columns import Roles
from pipeline.sources.content_hash import content_hashes, derived_ids
from pipeline.sources.reasons import Reason
from pipeline.text import has_tokens, normalise

MAX_BATCH_ROWS = 8192
MAX_BATCH_TEXT_BYTES = 16 << 20
# Arrow's strings hold at most this many bytes in one array.
MAX_TEXT_BYTES = (1 << 31) - (1 << 20)


@dataclass(frozen=True)
class RawRows:
    """Rows as a format's reader finds them.

    `table` has columns by their names in the source; one that is missing counts as null. `offsets`
    (int64) has the position of each row, `rejected` what the reader itself rejected.
    """

    table: pa.Table
    offsets: NDArray[np.int64]
    rejected: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True)
class DocumentMaker:
    """Makes documents of the rows of one split."""

    split: SourceSplit
    source: SourceConfig
    text: TextConfig

    @cached_property
    def roles(self) -> Roles:
        """The columns to read from the file."""
        return Roles.of(self.source, dict(self.split.hive_keys))

    @cached_property
    def metadata_schema(self) -> pa.Schema:
        """The partition columns, then the carried ones without `text`."""
        if self.split.columns is None:
            raise ValueError("a split to read comes from discover(), which sets its columns")
        return pa.schema([field for field in self.split.columns if field.name != "text"])

    @property
    def schema(self) -> pa.Schema:
        """DOCUMENT_FIELDS, the partition columns, the carried columns."""
        return pa.schema([*DOCUMENT_FIELDS, *self.metadata_schema])

    def batches(self, raw: RawRows) -> Iterator[DocumentBatch]:
        """Documents and rejected rows of some raw rows, in batches of bounded size."""
        if raw.rejected:
            rejected = RejectedRows(rejected_table(raw.rejected))
            yield DocumentBatch(self.schema.empty_table(), rejected)
        for first, last in self._slices(raw.table):
            part = raw.table.slice(first, last - first)
            yield self._batch(part, raw.offsets[first:last])

    def _slices(self, table: pa.Table) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are small enough; a single larger text is alone in its range."""
        total = np.cumsum(self._text_lengths(table))
        first = 0
        while first < table.num_rows:
            before = int(total[first - 1]) if first else 0
            last = int(np.searchsorted(total, before + MAX_BATCH_TEXT_BYTES, side="right"))
            last = min(max(last, first + 1), first + MAX_BATCH_ROWS, table.num_rows)
            yield first, last
            first = last

    def _text_lengths(self, table: pa.Table) -> NDArray[np.int64]:
        """Bytes of each row's text, joined but not normalised."""
        total = np.zeros(table.num_rows, np.int64)
        num_parts = np.zeros(table.num_rows, np.int64)
        for name in self.roles.text:
            if name in table.column_names and not pt.is_null(table[name].type):
                lengths = pc.binary_length(_decoded(table[name]))
                total += pc.fill_null(lengths, 0).to_numpy()
                num_parts += lengths.is_valid().to_numpy()
        separator = len(self.source.text_separator.encode())
        joined: NDArray[np.int64] = total + np.maximum(num_parts - 1, 0) * separator
        return joined

    def _batch(self, table: pa.Table, offsets: NDArray[np.int64]) -> DocumentBatch:
        checks = Checks(table.num_rows)
        ids = self._ids(table, checks)
        text = self._texts(table, checks)
        metadata = {
            column.name: self._partition(table, column.name, checks)
            if column.name in self.source.partition_columns
            else self._carried(table, column, checks)
            for column in self.metadata_schema
        }
        rejected = RejectedRows(checks.rejected_table(self.split.path, offsets, ids))
        columns = pa.table(
            {"text": text, **metadata},
            schema=pa.schema([pa.field("text", pa.string()), *self.metadata_schema]),
        )
        if rejected:
            kept = pa.array(checks.passed)
            columns, offsets = columns.filter(kept), offsets[checks.passed]
            ids = None if ids is None else ids.filter(kept)
        return DocumentBatch(self._assemble(ids, columns, offsets), rejected)

    def _assemble(
        self, ids: pa.StringArray | None, columns: pa.Table, offsets: NDArray[np.int64]
    ) -> pa.Table:
        text = columns["text"].combine_chunks()
        hashes = content_hashes(text, columns.select(self.metadata_schema.names))
        if ids is None:
            ids = derived_ids(text, hashes)
        source = pa.repeat(pa.scalar(self.split.path, pa.string()), len(text))
        metadata = [columns[name] for name in self.metadata_schema.names]
        return pa.table(
            [ids, hashes, text, source, pa.array(offsets), *metadata], schema=self.schema
        )

    def _ids(self, table: pa.Table, checks: Checks) -> pa.StringArray | None:
        name = self.roles.id
        if name is None:
            return None
        ids = _strings(_column(table, name), name, checks)
        # A row without an id is found by its text.
        text = _column(table, self.roles.text[0])
        checks.mark(ids.is_null(), Reason.NULL_ID, f"column {name!r} is null", text)
        lengths = pc.fill_null(pc.binary_length(ids), 1).to_numpy(zero_copy_only=False)
        checks.mark(lengths == 0, Reason.EMPTY_ID, f"column {name!r} is the empty string", text)
        too_long = lengths > MAX_ID_BYTES
        checks.mark(
            too_long,
            Reason.ID_TOO_LONG,
            lambda row: f"the id has {lengths[row]} bytes, at most {MAX_ID_BYTES} are possible",
            ids,
        )
        return ids

    def _texts(self, table: pa.Table, checks: Checks) -> pa.StringArray:
        limit = min(self.source.max_document_bytes, MAX_TEXT_BYTES)
        raw_lengths = self._text_lengths(table)
        too_large = raw_lengths > limit
        parts = []
        for name in self.roles.text:
            part = _column(table, name)
            if too_large.any():
                part = pc.if_else(pa.array(too_large), pa.scalar(None, part.type), part)
            parts.append(_strings(part, name, checks))
        text = parts[0]
        if len(parts) > 1:
            text = _join(parts, self.source.text_separator)
        first = _column(table, self.roles.text[0])
        message = _size_message(raw_lengths, limit)
        checks.mark(too_large, Reason.DOCUMENT_TOO_LARGE, message, first)
        checks.mark(text.is_null(), Reason.NULL_TEXT, f"{_named(self.roles.text)} null")
        text = normalise(pc.fill_null(text, ""), self.text.unicode_form)
        lengths = pc.binary_length(text).to_numpy()
        message = _size_message(lengths, limit)
        checks.mark(lengths > limit, Reason.DOCUMENT_TOO_LARGE, message, text)
        checks.mark(lengths == 0, Reason.EMPTY_TEXT, f"{_named(self.roles.text)} empty")
        blank = pc.invert(has_tokens(text, self.text))
        only = "the text has only blanks and control characters: no token"
        checks.mark(blank, Reason.NO_TOKENS, only, text)
        return text

    def _partition(self, table: pa.Table, name: str, checks: Checks) -> pa.StringArray:
        hive_keys = dict(self.split.hive_keys)
        if name in hive_keys:
            return pa.repeat(pa.scalar(hive_keys[name], pa.string()), table.num_rows)
        values = _strings(_column(table, name), name, checks)
        encoded = values.dictionary_encode()
        problems = [partition_problem(name, value) for value in encoded.dictionary.to_pylist()]
        if any(problems):
            indices = encoded.indices
            is_bad = pa.array([problem is not None for problem in problems])
            bad = pc.fill_null(is_bad.take(indices), False)
            checks.mark(
                bad,
                Reason.BAD_PARTITION,
                lambda row: f"column {name!r}: {problems[indices[row].as_py()]}",
                values,
            )
        return values

    def _carried(self, table: pa.Table, target: pa.Field, checks: Checks) -> pa.Array:
        hive_keys = dict(self.split.hive_keys)
        if target.name in hive_keys:
            return pa.repeat(pa.scalar(hive_keys[target.name], pa.string()), table.num_rows)
        column = _column(table, target.name)
        if pt.is_string(target.type):
            return _strings(column, target.name, checks)
        if column.type.equals(target.type):
            return column
        try:
            return column.cast(target.type)
        except pa.ArrowInvalid:
            # Some integer has no exact double.
            values, failed = _cast_each(column, target.type)
        checks.mark(
            failed,
            Reason.WRONG_TYPE,
            f"column {target.name!r}: the value has no exact form of type {target.type}",
            column,
        )
        return values


def _size_message(lengths: NDArray[np.int64], limit: int) -> Callable[[int], str]:
    return lambda row: (
        f"the text has {lengths[row]} bytes, source.max_document_bytes allows {limit}"
    )


def _named(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"column {names[0]!r} is"
    return f"columns {', '.join(map(repr, names))} are all"


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.string())
    return _decoded(table[name]).combine_chunks()


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Plain values of a dictionary or of a known extension type."""
    if isinstance(column.type, pa.BaseExtensionType):
        storage = pa.chunked_array(
            [chunk.storage for chunk in column.chunks], column.type.storage_type
        )
        if column.type.extension_name != "arrow.uuid":
            return storage
        texts = [
            None if value is None else str(uuid.UUID(bytes=value)) for value in storage.to_pylist()
        ]
        return pa.chunked_array([pa.array(texts, pa.string())])
    if pt.is_dictionary(column.type):
        return _decoded(column.cast(column.type.value_type))
    if pt.is_string_view(column.type) or pt.is_binary_view(column.type):
        return column.cast(pa.binary())
    return column


def _strings(column: pa.Array, name: str, checks: Checks) -> pa.StringArray:
    """The column as valid UTF-8; rows that are not are marked and become null."""
    if pt.is_null(column.type):
        return pa.nulls(len(column), pa.string())
    whole = _valid_strings(column)
    if whole is not None:
        return whole
    values: list[str | None] = []
    shown: list[str | None] = []
    for value in column.cast(pa.binary()).to_pylist():
        text, found = _decode(value)
        values.append(text)
        shown.append(found)
    strings = pa.array(values, pa.string())
    broken = pa.array([found is not None for found in shown])
    message = f"column {name!r} is not valid UTF-8"
    checks.mark(broken, Reason.NOT_UTF8, message, pa.array(shown, pa.string()))
    return strings


def _valid_strings(column: pa.Array) -> pa.StringArray | None:
    try:
        strings = column.cast(pa.string())
        # Parquet and Arrow files may hold any bytes in a string column: only a look tells.
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return strings


def _decode(value: bytes | None) -> tuple[str | None, str | None]:
    """The text in some bytes, or an excerpt from the place where they are none."""
    try:
        return (None if value is None else value.decode()), None
    except UnicodeDecodeError as error:
        return None, excerpt(value, error.start)


def _join(parts: list[pa.StringArray], separator: str) -> pa.StringArray:
    """The parts that are not null, joined; null where all are."""
    some = parts[0].is_valid()
    for part in parts[1:]:
        some = pc.or_(some, part.is_valid())
    # Arrow leaves a row out of its result if all parts are null and nulls are skipped.
    first = pc.if_else(some, parts[0], "")
    joined = pc.binary_join_element_wise(
        first, *parts[1:], pa.scalar(separator, pa.string()), null_handling="skip"
    )
    return pc.if_else(some, joined, pa.scalar(None, pa.string()))


def _cast_each(column: pa.Array, target: pa.DataType) -> tuple[pa.Array, NDArray[np.bool_]]:
    converted = [None] * len(column)
    failed = np.zeros(len(column), bool)
    for row in range(len(column)):
        try:
            converted[row] = column[row].cast(target).as_py()
        except pa.ArrowInvalid:
            failed[row] = True
    return pa.array(converted, target), failed
