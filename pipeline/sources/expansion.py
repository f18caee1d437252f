"""How far stored bytes may expand, so that a small hostile file cannot fill the memory.

Knows Arrow arrays and counts, no formats. The limit is wide for anything that people write, and a
file that is refused can be unpacked or written again without compression.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from pipeline.sources.reasons import BadFileError, Reason

# Natural language shrinks by 3 to 10 times, the most repetitive logs by about 100.
MAX_EXPANSION = 200
FREE_EXPANSION_BYTES = 256 << 20
# What one step of reading may decode at once, a single value aside.
MAX_DECODED_BYTES = 64 << 20
# A value that no reader here would keep is not decoded at all.
MAX_VALUE_BYTES = 1 << 30
# Even a row of nulls costs its position and its part of each column.
ROW_BYTES = 16


class Expansion:
    """Adds up what a file has given, and stops it where it is out of all proportion."""

    def __init__(self, where: str) -> None:
        """Start at nothing; `where` is the file's URL, for messages."""
        self._where = where
        self._decoded_bytes = 0

    def add(self, decoded_bytes: int, stored_bytes: int) -> None:
        """Count more bytes.

        Args:
            decoded_bytes: that came out, or are about to.
            stored_bytes: of the file (or of its part that was read so far), in all.

        Raises:
            BadFileError: more than 256 MiB and 200 times the stored bytes.
        """
        self._decoded_bytes += decoded_bytes
        if self._decoded_bytes > FREE_EXPANSION_BYTES + MAX_EXPANSION * stored_bytes:
            raise BadFileError(
                Reason.CORRUPT_FILE,
                f"{self._where}: {stored_bytes} stored bytes expand to more than "
                f"{FREE_EXPANSION_BYTES >> 20} MiB and {MAX_EXPANSION} times as much, as in a file "
                "made to fill the memory; if it is meant, unpack it or write it without "
                "compression",
            )


def slices(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Cut a batch so that no part decodes to much more than 64 MiB; a row is never cut.

    Yields: the part, and its bytes once dictionaries and views are written out.
    """
    total = np.cumsum(_row_bytes(batch))
    first = 0
    while first < batch.num_rows:
        before = int(total[first - 1]) if first else 0
        last = int(np.searchsorted(total, before + MAX_DECODED_BYTES, side="right"))
        last = min(max(last, first + 1), batch.num_rows)
        yield batch.slice(first, last - first), int(total[last - 1]) - before
        first = last


def check_rows(where: str, num_rows: int, stored_bytes: int) -> None:
    """Refuse a number of rows that the bytes of a file cannot mean.

    Raises:
        BadFileError: more than 16 Mi rows and 12.5 a stored byte.
    """
    Expansion(where).add(num_rows * ROW_BYTES, stored_bytes)


def _row_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    total = np.full(batch.num_rows, ROW_BYTES, np.int64)
    for column in batch.columns:
        if batch.num_rows:
            total += _value_bytes(column)
    return total


def _entry_bytes(dictionary: pa.Array) -> NDArray[np.int64]:
    """Bytes of each entry of a dictionary, any of which may be repeated without end."""
    if pt.is_nested(dictionary.type):
        # A bound: the entries of nested types are not measured one by one.
        return np.full(len(dictionary), dictionary.nbytes, np.int64)
    if _has_lengths(dictionary.type):
        lengths: NDArray[np.int64] = pc.fill_null(pc.binary_length(dictionary), 0).to_numpy()
        return lengths.astype(np.int64)
    return np.broadcast_to(np.asarray(_value_bytes(dictionary), np.int64), len(dictionary))


def _has_lengths(kind: pa.DataType) -> bool:
    return bool(
        pt.is_string(kind)
        or pt.is_large_string(kind)
        or pt.is_binary(kind)
        or pt.is_large_binary(kind)
    )


def _value_bytes(column: pa.Array) -> NDArray[np.int64] | int:
    """Bytes of each value, decoded; one number where all take the same."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _value_bytes(column.storage)
    if pt.is_dictionary(kind):
        values = _entry_bytes(column.dictionary)
        indices = pc.fill_null(column.indices.cast(pa.int64()), -1).to_numpy()
        taken: NDArray[np.int64] = np.append(values, 0)[indices]
        return taken
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        # A view is 16 bytes, the first four of which are its length.
        lengths: NDArray[np.int32] = np.frombuffer(column.buffers()[1], np.int32)[::4]
        return lengths[column.offset : column.offset + len(column)].astype(np.int64)
    # Other types hold nothing twice: their memory is there already.
    return int(-(-column.nbytes // max(len(column), 1)))
