"""What the pages of a Parquet file say of themselves, read before anything of them is decoded.

A few bytes of a dictionary page and of run lengths can stand for terabytes of text; the footer may
lie about it, the headers of the pages cannot: the decoder goes by them. Knows headers, no values.
Source: the Parquet format specification, parquet.thrift (PageHeader).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.sources.expansion import MAX_VALUE_BYTES, Expansion
from pipeline.sources.reasons import BadFileError, Reason
from pipeline.thrift_compact import Struct, decode_at

# Some old writers leave the dictionary's header out of a chunk's length; decoders read on so far.
_PADDING_BYTES = 100
_MAX_HEADER_BYTES = 1 << 20
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DELTA_BYTE_ARRAY = 7
# What comes of reading bytes as a header that are none.
_DAMAGED = (LookupError, ValueError, TypeError, AttributeError, RecursionError)
# Fields of PageHeader.
_TYPE, _UNCOMPRESSED, _COMPRESSED, _HEADER, _HEADER_DICTIONARY, _HEADER_V2 = 1, 2, 3, 5, 7, 8


@dataclass(frozen=True)
class ChunkLimits:
    """How large the values of a column chunk can be.

    `num_values` counts elements of lists; `max_value_bytes` is a bound for a single value of
    variable length that few stored bytes can repeat, 0 where each value has its own bytes.
    `has_prefixes` says that values can repeat the start of the one before, beside the dictionary's;
    `dictionary` is the page with its header.
    """

    num_values: int
    max_value_bytes: int
    has_prefixes: bool = False
    dictionary: bytes = b""


class RangeFile(io.RawIOBase):
    """A file of which some ranges were read already and are served from memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ranges: list[tuple[int, bytes]] = []
        self._at = 0

    def load(self, start: int, length: int) -> bytes:
        """Read a range and keep it."""
        self._file.seek(start)
        data = self._file.read(length)
        self._ranges.append((start, data))
        return data

    def forget(self) -> None:
        """Keep no range any longer."""
        self._ranges.clear()

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move, as files do."""
        if whence == io.SEEK_END:
            self._at = self._file.seek(offset, whence)
        else:
            self._at = offset + (self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, all of the rest if it is negative."""
        data = self._from_memory(size) if size >= 0 else None
        if data is None:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data

    def _from_memory(self, size: int) -> bytes | None:
        for start, data in self._ranges:
            if start <= self._at and self._at + size <= start + len(data):
                return data[self._at - start : self._at - start + size]
        return None


def chunk_limits(path: str, chunk: Any, file: RangeFile, file_bytes: int) -> ChunkLimits:
    """Read a column chunk into memory and look at the headers of its pages.

    Args:
        path: URL of the file, for messages.
        chunk: its ColumnChunkMetaData.
        file: the file; it keeps the chunk.
        file_bytes: length of the file.

    Raises:
        BadFileError: the chunk lies outside of the file, or its pages expand too far.
    """
    starts = [chunk.data_page_offset]
    if chunk.dictionary_page_offset:
        starts.append(chunk.dictionary_page_offset)
    start, length = min(starts), chunk.total_compressed_size
    if start < 0 or length < 0 or start + length > file_bytes:
        raise _bad(path, f"column {chunk.path_in_schema} lies outside of the file")
    data = file.load(start, min(length + _PADDING_BYTES, file_bytes - start))
    is_text = chunk.physical_type == "BYTE_ARRAY"
    num_values = max_value_bytes = dictionary_bytes = 0
    has_prefixes, dictionary = False, b""
    expansion = Expansion(path)
    for header, page in _pages(path, data, chunk.num_values):
        kind, size = header[_TYPE][1], header[_UNCOMPRESSED][1]
        if size > MAX_VALUE_BYTES:
            raise _bad(
                path,
                f"a page of column {chunk.path_in_schema} declares {size} bytes, at most "
                f"{MAX_VALUE_BYTES} are possible",
            )
        expansion.add(size, file_bytes)
        if kind == _DICTIONARY_PAGE:
            dictionary_bytes, dictionary = size, bytes(page)
            continue
        num_values += _page_values(header)
        if is_text:
            is_delta = _encoding(header) == _DELTA_BYTE_ARRAY
            has_prefixes |= is_delta
            max_value_bytes = max(max_value_bytes, dictionary_bytes, size if is_delta else 0)
    return ChunkLimits(num_values, max_value_bytes, has_prefixes, dictionary)


def longest_entry(chunk: Any, page: bytes) -> int | None:
    """Bytes of the longest entry of a chunk's dictionary; None if it cannot be told.

    Args:
        chunk: its ColumnChunkMetaData.
        page: of its ChunkLimits.
    """
    try:
        header, end = decode_at(page, 0)
        values = page[end:]
        if chunk.compression != "UNCOMPRESSED":
            name = {"LZ4": "lz4_raw"}.get(chunk.compression, chunk.compression.lower())
            values = pa.Codec(name).decompress(values, header[_UNCOMPRESSED][1], asbytes=True)
        at = longest = 0
        for _ in range(header[_HEADER_DICTIONARY][1][1][1]):
            (size,) = struct.unpack_from("<I", values, at)
            longest = max(longest, size)
            at += 4 + size
        return longest
    except (*_DAMAGED, struct.error, OSError):
        return None


def _pages(path: str, data: bytes, num_values: int) -> Iterator[tuple[Struct, memoryview]]:
    """The pages of a chunk, as far as a decoder would read them: header, and header with body."""
    at = seen = 0
    view = memoryview(data)
    while seen < num_values:
        try:
            header, length = decode_at(view[at : at + _MAX_HEADER_BYTES], 0)
            size, uncompressed = int(header[_COMPRESSED][1]), int(header[_UNCOMPRESSED][1])
            values, _ = _page_values(header), _encoding(header)
            seen += values if header[_TYPE][1] in (_DATA_PAGE, _DATA_PAGE_V2) else 0
        except _DAMAGED:
            raise _bad(path, "the header of a page is damaged") from None
        end = at + length + size
        if size < 0 or uncompressed < 0 or end > len(data):
            raise _bad(path, "a page ends outside of its column")
        yield header, view[at:end]
        at = end


def _page_values(header: Struct) -> int:
    inner = header.get(_HEADER) or header.get(_HEADER_V2)
    values: Sequence[Any] = () if inner is None else inner[1].get(1, ())
    count = int(values[1]) if values else 0
    if count < 0:
        raise ValueError("a negative number of values")
    return count


def _encoding(header: Struct) -> int | None:
    if _HEADER_V2 in header:
        found = header[_HEADER_V2][1].get(4)
    else:
        found = header[_HEADER][1].get(2) if _HEADER in header else None
    return None if found is None else int(found[1])


def _bad(path: str, problem: str) -> BadFileError:
    return BadFileError(Reason.CORRUPT_FILE, f"{path}: not a readable Parquet file: {problem}")
