"""The content hash: 16 bytes that change whenever what is stored of a document would change.

BLAKE2b with a 16-byte digest over

    the metadata columns, in order: a null is the byte 0; a value is the byte 1, the length of its
    encoding (8 bytes, little-endian) and the encoding
    the normalised text as UTF-8

with `person` = the first 16 bytes of BLAKE2b over the JSON list of [name, type] of the metadata
columns; without such columns the hash is that of the text alone. Metadata columns are the
partition columns and the carried columns without `text`. Encodings: strings and bytes as they are;
booleans one byte; integers 8 bytes, floating-point numbers 8 bytes IEEE double (one NaN, no
negative zero), dates, times and timestamps 8 bytes integer of their unit, all little-endian; any
other type as compact JSON of the value.
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


def content_hashes(text: pa.StringArray, metadata: pa.Table) -> pa.FixedSizeBinaryArray:
    """Hash documents.

    Args:
        text: normalised texts, without nulls.
        metadata: as many rows; the partition columns, then the carried ones.

    Returns: fixed_size_binary[16], one for each text.
    """
    columns = [encoded(metadata[name].combine_chunks()) for name in metadata.column_names]
    message = text.cast(pa.binary())
    person = b""
    if columns:
        message = pc.binary_join_element_wise(*columns, message, b"")
        kinds = [[field.name, str(field.type)] for field in metadata.schema]
        canonical = json.dumps(kinds, ensure_ascii=True, separators=(",", ":"))
        person = hashlib.blake2b(canonical.encode(), digest_size=16).digest()
    blake2b = hashlib.blake2b
    digests = [
        blake2b(value, digest_size=HASH_BYTES, person=person).digest()
        for value in message.to_pylist()
    ]
    return pa.Array.from_buffers(
        pa.binary(HASH_BYTES), len(digests), [None, pa.py_buffer(b"".join(digests))]
    )


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
