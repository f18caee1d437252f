"""The content hash: 16 bytes that say whether anything that is stored of a document has changed.

    bytes 0-7    the text: BLAKE2b, 8-byte digest, of the normalised text as UTF-8
    bytes 8-15   the metadata: BLAKE2b, 8-byte digest, over the metadata columns, in order: a null
                 is the byte 0; a value is the byte 1, the length of its encoding (8 bytes,
                 little-endian) and the encoding. `person` = the first 16 bytes of BLAKE2b over the
                 JSON list of [name, type] of the columns. Without such columns: 8 zero bytes

so that a document whose text has not changed keeps its vectors. Hashes are only ever compared with
the hash of the same document, where 64 bits are plenty. Metadata columns are the partition columns
and the carried columns without `text`. Encodings: strings and bytes as they are; booleans one
byte; integers 8 bytes, floating-point numbers 8 bytes IEEE double (one NaN, no negative zero),
dates, times and timestamps 8 bytes integer of their unit, all little-endian; any other type as
compact JSON of the value.

A document without an id of its own is named by BLAKE2b, 16-byte digest, of its content hash's
metadata half followed by its text: ids must be unique over a whole corpus.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

HASH_BYTES = 16
TEXT_HASH_BYTES = 8


def content_hashes(text: pa.StringArray, metadata: pa.Table) -> pa.FixedSizeBinaryArray:
    """Hash documents.

    Args:
        text: normalised texts, without nulls.
        metadata: as many rows; the partition columns, then the carried ones.

    Returns: fixed_size_binary[16], one for each text.
    """
    blake2b = hashlib.blake2b
    texts = text.cast(pa.binary()).to_pylist()
    of_text = [blake2b(value, digest_size=TEXT_HASH_BYTES).digest() for value in texts]
    joined = b"".join(
        part for pair in zip(of_text, _metadata_hashes(metadata), strict=True) for part in pair
    )
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(texts), [None, pa.py_buffer(joined)])


def text_hashes(hashes: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The halves of content hashes that stand for the text: binary, 8 bytes each."""
    return pc.binary_slice(hashes.cast(pa.binary()), 0, TEXT_HASH_BYTES)


def derived_ids(text: pa.StringArray, hashes: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Ids for documents that have none: 32 hexadecimal digits, equal for equal content.

    Args:
        text: normalised texts, without nulls.
        hashes: their content hashes.
    """
    ids = [
        hashlib.blake2b(hash_[TEXT_HASH_BYTES:] + value, digest_size=HASH_BYTES).hexdigest()
        for hash_, value in zip(hashes.to_pylist(), text.cast(pa.binary()).to_pylist(), strict=True)
    ]
    return pa.array(ids, pa.string())


def _metadata_hashes(metadata: pa.Table) -> list[bytes]:
    size = HASH_BYTES - TEXT_HASH_BYTES
    if not metadata.num_columns:
        return [bytes(size)] * metadata.num_rows
    kinds = [[field.name, str(field.type)] for field in metadata.schema]
    canonical = json.dumps(kinds, ensure_ascii=True, separators=(",", ":"))
    person = hashlib.blake2b(canonical.encode(), digest_size=16).digest()
    columns = [encoded(metadata[name].combine_chunks()) for name in metadata.column_names]
    message = pc.binary_join_element_wise(*columns, b"") if len(columns) > 1 else columns[0]
    blake2b = hashlib.blake2b
    return [
        blake2b(value, digest_size=size, person=person).digest() for value in message.to_pylist()
    ]


def encoded(column: pa.Array) -> pa.BinaryArray:
    """The canonical form of each value, with its length or as a null; never null itself."""
    values = _value_bytes(column)
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    head = np.zeros(len(values), np.dtype([("valid", "u1"), ("length", "<u8")]))
    head["valid"], head["length"] = 1, lengths
    fixed = pa.Array.from_buffers(pa.binary(9), len(values), [None, pa.py_buffer(head)])
    joined = pc.binary_join_element_wise(fixed.cast(pa.binary()), values, b"")
    return pc.fill_null(joined, b"\0")


def _value_bytes(column: pa.Array) -> pa.BinaryArray:
    kind = column.type
    if pt.is_string(kind) or pt.is_binary(kind):
        return column.cast(pa.binary())
    if pt.is_boolean(kind):
        return _fixed(column, pc.fill_null(column, False).to_numpy(zero_copy_only=False), "u1")
    if pt.is_uint64(kind):
        return _fixed(column, pc.fill_null(column, 0).to_numpy(), "<u8")
    if pt.is_integer(kind):
        return _fixed(column, pc.fill_null(column.cast(pa.int64()), 0).to_numpy(), "<i8")
    if pt.is_floating(kind):
        numbers = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
        numbers = np.where(np.isnan(numbers), np.nan, numbers) + 0.0
        return _fixed(column, numbers, "<f8")
    if pt.is_date(kind) or pt.is_time(kind) or pt.is_timestamp(kind) or pt.is_duration(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        ticks = pc.fill_null(column.cast(width).cast(pa.int64()), 0).to_numpy()
        return _fixed(column, ticks, "<i8")
    texts = [None if value is None else _as_json(value) for value in column.to_pylist()]
    return pa.array(texts, pa.binary())


def _fixed(column: pa.Array, values: NDArray[Any], dtype: str) -> pa.BinaryArray:
    data = np.ascontiguousarray(values.astype(dtype))
    kind = pa.binary(data.dtype.itemsize)
    plain = pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)]).cast(pa.binary())
    return pc.if_else(column.is_valid(), plain, pa.scalar(None, pa.binary()))


def _as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str).encode()
