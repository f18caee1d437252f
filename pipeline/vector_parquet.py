"""Write Parquet files whose vectors go from memory to the file as they are. Knows no stores.

Arrow's Parquet writer handles a list element by element: halffloat vectors take four times as long
as their bytes need. But a page of a list without nulls is simple: repetition levels (0 where a row
starts, 1 elsewhere), definition levels (all 1), and the values. Here such pages are put together
around the vectors' own memory. Everything else (all other columns, the schema, the metadata) is
still written by Arrow, into memory, and taken over with its offsets moved. What comes out is
ordinary Parquet, with the same schema as Arrow's own.

Source: the Parquet format specification, parquet.thrift and Encodings.md. Shapes: N rows of a
chunk, R of a page, D elements of a vector.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.thrift_compact import (
    BINARY,
    I16,
    I32,
    I64,
    LIST,
    STRUCT,
    Struct,
    decode,
    encode,
    varint,
)

MAGIC = b"PAR1"
PAGE_BYTES = 1 << 20
ZSTD_LEVEL = 1

# Numbers of parquet.thrift: enums, and the fields of its structs.
_FLOAT, _FIXED_LEN_BYTE_ARRAY = 4, 7
_PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
_UNCOMPRESSED, _ZSTD = 0, 6
_FILE_NUM_ROWS, _FILE_ROW_GROUPS = 3, 4
_GROUP_COLUMNS = 1
_CHUNK_FILE_OFFSET, _CHUNK_METADATA = 2, 3
_META_PATH, _META_TOTAL_UNCOMPRESSED, _META_TOTAL_COMPRESSED = 3, 6, 7
_META_DATA_PAGE_OFFSET, _META_INDEX_PAGE_OFFSET, _META_DICTIONARY_PAGE_OFFSET = 9, 10, 11
_META_OFFSETS = (_META_DATA_PAGE_OFFSET, _META_INDEX_PAGE_OFFSET, _META_DICTIONARY_PAGE_OFFSET)


class Sink(Protocol):
    """Where the bytes go."""

    def write(self, data: Any, /) -> int:
        """Take bytes, in order."""
        ...


class VectorParquetWriter:
    """Writes one file, a row group a table."""

    def __init__(
        self,
        sink: Sink,
        schema: pa.Schema,
        vector_columns: Sequence[str],
        *,
        compression: str | None = None,
        dictionary_columns: Sequence[str] = (),
    ) -> None:
        """Start a file.

        Args:
            sink: takes the bytes.
            schema: columns of the file.
            vector_columns: those that are fixed_size_list of halffloat or float; neither they nor
                their elements are null.
            compression: zstd or None, for all columns.
            dictionary_columns: other columns that are worth a dictionary.
        """
        self._sink = sink
        self._position = 0
        self._schema = schema
        self._vectors = {name: schema.field(name).type for name in vector_columns}
        self._others = [name for name in schema.names if name not in self._vectors]
        self._options: dict[str, Any] = {
            "compression": compression or "none",
            "compression_level": ZSTD_LEVEL if compression else None,
            "use_dictionary": [name for name in self._others if name in set(dictionary_columns)],
        }
        self._codec = pa.Codec("zstd", ZSTD_LEVEL) if compression else None
        # An empty file of Arrow's has the schema and the metadata as Arrow writes them.
        self._footer = _parse_footer(_written(schema.empty_table(), self._options))
        self._groups: list[Struct] = []
        self._num_rows = 0
        self._put(MAGIC)

    def write(self, table: pa.Table) -> None:
        """Append one row group.

        Raises:
            ValueError: a vector or one of its elements is null.
        """
        if not table.num_rows:
            return
        start = self._position
        chunks = self._write_others(table.select(self._others))
        for name in self._vectors:
            chunks[name] = [self._write_vectors(name, table[name])]
        columns = [chunk for name in self._schema.names for chunk in chunks[name]]
        metadata = [chunk[_CHUNK_METADATA][1] for chunk in columns]
        self._groups.append(
            {
                _GROUP_COLUMNS: (LIST, (STRUCT, columns)),
                2: (I64, sum(meta[_META_TOTAL_UNCOMPRESSED][1] for meta in metadata)),
                3: (I64, table.num_rows),
                5: (I64, start),
                6: (I64, sum(meta[_META_TOTAL_COMPRESSED][1] for meta in metadata)),
                7: (I16, len(self._groups)),
            }
        )
        self._num_rows += table.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._footer[_FILE_NUM_ROWS] = (I64, self._num_rows)
        self._footer[_FILE_ROW_GROUPS] = (LIST, (STRUCT, self._groups))
        footer = encode(self._footer)
        self._put(footer + struct.pack("<I", len(footer)) + MAGIC)

    def _put(self, data: Any) -> None:
        self._sink.write(data)
        self._position += len(data)

    def _write_others(self, table: pa.Table) -> dict[str, list[Struct]]:
        """Take over the pages that Arrow writes of these columns; chunks by column."""
        chunks: dict[str, list[Struct]] = {name: [] for name in self._others}
        if not self._others:
            return chunks
        written = _written(table, self._options)
        (group,) = _parse_footer(written)[_FILE_ROW_GROUPS][1][1]
        moved = self._position - len(MAGIC)
        self._put(written[len(MAGIC) : len(written) - _footer_bytes(written)])
        for chunk in group[_GROUP_COLUMNS][1][1]:
            meta = chunk[_CHUNK_METADATA][1]
            for number in _META_OFFSETS:
                if number in meta:
                    meta[number] = (I64, meta[number][1] + moved)
            # A column of lists or structs has several chunks, all under its name.
            chunks[meta[_META_PATH][1][1][0].decode()].append(chunk)
        return chunks

    def _write_vectors(self, name: str, column: pa.ChunkedArray) -> Struct:
        size = column.type.list_size
        is_half = pa.types.is_float16(column.type.value_type)
        # Halffloats are byte arrays to Parquet, which not every reader knows how to join from
        # split bytes (DuckDB 2.0 refuses).
        split = self._codec is not None and not is_half
        start = self._position
        total_bytes = 0
        for values_RD in _pages(column, size):
            num_values = values_RD.size
            levels = _levels(len(values_RD), size)
            body: list[Any] = [levels, values_RD.reshape(-1).view(np.uint8).data]
            if split:
                body[1] = _split_bytes(values_RD)
            page_bytes = stored_bytes = len(levels) + values_RD.nbytes
            if self._codec is not None:
                body = [self._codec.compress(b"".join(body), asbytes=True)]
                stored_bytes = len(body[0])
            encoding = _BYTE_STREAM_SPLIT if split else _PLAIN
            header = _page_header(num_values, page_bytes, stored_bytes, encoding)
            for part in (header, *body):
                self._put(part)
            total_bytes += len(header) + page_bytes
        meta: Struct = {
            1: (I32, _FIXED_LEN_BYTE_ARRAY if is_half else _FLOAT),
            2: (LIST, (I32, [_BYTE_STREAM_SPLIT if split else _PLAIN, _RLE])),
            _META_PATH: (LIST, (BINARY, [name.encode(), b"list", b"element"])),
            4: (I32, _UNCOMPRESSED if self._codec is None else _ZSTD),
            5: (I64, len(column) * size),
            _META_TOTAL_UNCOMPRESSED: (I64, total_bytes),
            _META_TOTAL_COMPRESSED: (I64, self._position - start),
            _META_DATA_PAGE_OFFSET: (I64, start),
        }
        return {_CHUNK_FILE_OFFSET: (I64, 0), _CHUNK_METADATA: (STRUCT, meta)}


def _pages(column: pa.ChunkedArray, size: int) -> Iterator[NDArray[Any]]:
    """Views (R, D) of the vectors' memory, each of about PAGE_BYTES."""
    for chunk in column.chunks:
        elements = chunk.flatten()
        if chunk.null_count or elements.null_count:
            raise ValueError("a vector is null")
        values_ND = elements.to_numpy().reshape(len(chunk), size)
        rows = max(1, PAGE_BYTES // max(1, size * values_ND.itemsize))
        for first in range(0, len(chunk), rows):
            yield values_ND[first : first + rows]


@lru_cache(maxsize=64)
def _levels(num_rows: int, size: int) -> bytes:
    """Repetition and definition levels of a page, each with its length before it.

    Run-length encoded with a bit width of 1: a run is its length shifted left by one, as a varint,
    and one byte with the level.
    """
    row = varint(1 << 1) + b"\0"
    if size > 1:
        row += varint((size - 1) << 1) + b"\1"
    repetition = row * num_rows
    definition = varint(num_rows * size << 1) + b"\1"
    return b"".join(struct.pack("<I", len(part)) + part for part in (repetition, definition))


def _split_bytes(values_RD: NDArray[Any]) -> bytes:
    """First all first bytes of the values, then all second ones, and so on."""
    return values_RD.reshape(-1).view(np.uint8).reshape(-1, values_RD.itemsize).T.tobytes()


def _page_header(num_values: int, page_bytes: int, stored_bytes: int, encoding: int) -> bytes:
    data_page: Struct = {
        1: (I32, num_values),
        2: (I32, encoding),
        3: (I32, _RLE),
        4: (I32, _RLE),
    }
    return encode(
        {1: (I32, 0), 2: (I32, page_bytes), 3: (I32, stored_bytes), 5: (STRUCT, data_page)}
    )


def _written(table: pa.Table, options: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size=table.num_rows)
    return buffer.getbuffer()


def _parse_footer(file: memoryview) -> Struct:
    return decode(file[len(file) - _footer_bytes(file) :])


def _footer_bytes(file: memoryview) -> int:
    """Length of the footer with its length and the magic after it."""
    return int(struct.unpack("<I", file[-8:-4])[0]) + 8
