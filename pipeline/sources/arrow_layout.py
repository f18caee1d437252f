"""What the messages of an Arrow file say of their sizes, read before anything is decompressed.

A compressed buffer begins with the length that it expands to, and a decoder allocates just that.
Knows FlatBuffers as far as Arrow's messages use them, no values.
Source: the Arrow columnar format specification (Message.fbs, File.fbs; FlatBuffers internals).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.sources.expansion import Expansion, check_rows
from pipeline.sources.reasons import BadFileError, Reason

_FOOTER_TAIL_BYTES = 10  # the footer's length and the magic
_CONTINUATION = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_BLOCK_BYTES = 24
_BUFFER_BYTES = 16
_MAX_METADATA_BYTES = 256 << 20


def check_file(path: str, file: BinaryIO, size_bytes: int, first: int, last: int | None) -> None:
    """Check the dictionaries of a file and its record batches first ... last - 1 (None: all).

    Raises:
        BadFileError: they lie outside of the file, hold absurd numbers of rows, or expand too far.
    """
    checker = _Checker(path, file, size_bytes)
    with checker.damage_is_bad():
        footer = checker.footer()
        dictionaries, batches = list(footer.blocks(2)), list(footer.blocks(3))
        for offset, metadata_bytes in (*dictionaries, *batches[first:last]):
            checker.message(offset, checker.read(offset, metadata_bytes))


def batch_rows(path: str, file: BinaryIO, size_bytes: int) -> list[int]:
    """Rows of each record batch of a file, as it says.

    Raises:
        BadFileError: as `check_file`.
    """
    checker = _Checker(path, file, size_bytes)
    rows = []
    with checker.damage_is_bad():
        for offset, metadata_bytes in checker.footer().blocks(3):
            batch = _message(checker.read(offset, metadata_bytes)).table(2)
            rows.append(0 if batch is None else batch.integer(0, "<q"))
            check_rows(path, rows[-1], size_bytes)
    return rows


def check_stream(path: str, file: BinaryIO, size_bytes: int) -> None:
    """Check all batches of a stream.

    Raises:
        BadFileError: as `check_file`.
    """
    checker = _Checker(path, file, size_bytes)
    at = 0
    with checker.damage_is_bad():
        while at + 4 <= size_bytes:
            (length,) = struct.unpack("<I", checker.read(at, 4))
            head = 4
            if length == _CONTINUATION:
                (length,) = struct.unpack("<I", checker.read(at + 4, 4))
                head = 8
            if not length:
                return
            at += checker.message(at, checker.read(at, head + length))


class _Checker:
    """Adds up what the messages of one file expand to."""

    def __init__(self, path: str, file: BinaryIO, size_bytes: int) -> None:
        self._path = path
        self._file = file
        self._size_bytes = size_bytes
        self._expansion = Expansion(path)

    def damage_is_bad(self) -> _DamageIsBad:
        """A block in which bytes that are no messages are a bad file."""
        return _DamageIsBad(self._path)

    def read(self, start: int, length: int) -> bytes:
        """A range of the file."""
        if start < 0 or not 0 <= length <= _MAX_METADATA_BYTES or start + length > self._size_bytes:
            raise ValueError("a message lies outside of the file")
        self._file.seek(start)
        return self._file.read(length)

    def footer(self) -> _Table:
        """The footer at the end of a file."""
        tail = self.read(self._size_bytes - _FOOTER_TAIL_BYTES, _FOOTER_TAIL_BYTES)
        (length,) = struct.unpack_from("<i", tail)
        return _Table.root(self.read(self._size_bytes - _FOOTER_TAIL_BYTES - length, length))

    def message(self, offset: int, encapsulated: bytes) -> int:
        """Check one message; returns the bytes it takes with its body."""
        message = _message(encapsulated)
        body = offset + len(encapsulated)
        body_bytes = message.integer(3, "<q")
        if body_bytes < 0 or body + body_bytes > self._size_bytes:
            raise ValueError("the body of a message lies outside of the file")
        kind = message.integer(1, "<B")
        batch = message.table(2)
        if kind == _DICTIONARY_BATCH and batch is not None:
            batch = batch.table(1)
        if kind in (_DICTIONARY_BATCH, _RECORD_BATCH) and batch is not None:
            self._batch(batch, body, body_bytes)
        return len(encapsulated) + body_bytes

    def _batch(self, batch: _Table, body: int, body_bytes: int) -> None:
        check_rows(self._path, batch.integer(0, "<q"), self._size_bytes)
        if batch.table(3) is None:
            return  # Not compressed: each buffer is a part of the body.
        for offset, length in batch.buffers(2):
            if not length:
                continue
            if offset < 0 or length < 8 or offset + length > body_bytes:
                raise ValueError("a buffer lies outside of its message")
            (expanded,) = struct.unpack("<q", self.read(body + offset, 8))
            if expanded < -1:
                raise ValueError("a buffer has a negative length")
            self._expansion.add(length if expanded == -1 else expanded, self._size_bytes)


def _message(encapsulated: bytes) -> _Table:
    (first,) = struct.unpack_from("<I", encapsulated)
    return _Table.root(encapsulated[8 if first == _CONTINUATION else 4 :])


class _DamageIsBad:
    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing is prepared."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (ValueError, struct.error)):
            raise BadFileError(
                Reason.CORRUPT_FILE,
                f"{self._path}: not a readable Arrow IPC file or stream: {error}",
            ) from None


@dataclass(frozen=True)
class _Table:
    """A table of a FlatBuffer: its fields by their numbers, absent ones with their defaults."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, _unpack("<I", data, 0))

    def table(self, number: int) -> _Table | None:
        place = self._place(number)
        return None if place is None else _Table(self.data, place + _unpack("<I", self.data, place))

    def integer(self, number: int, kind: str) -> int:
        place = self._place(number)
        return 0 if place is None else _unpack(kind, self.data, place)

    def blocks(self, number: int) -> Iterator[tuple[int, int]]:
        """Offset and length of the metadata of each message in a vector of Block."""
        for place in self._vector(number, _BLOCK_BYTES):
            yield _unpack("<q", self.data, place), _unpack("<i", self.data, place + 8)

    def buffers(self, number: int) -> Iterator[tuple[int, int]]:
        """Offset and length of each element in a vector of Buffer."""
        for place in self._vector(number, _BUFFER_BYTES):
            yield _unpack("<q", self.data, place), _unpack("<q", self.data, place + 8)

    def _place(self, number: int) -> int | None:
        vtable = self.at - _unpack("<i", self.data, self.at)
        size = _unpack("<H", self.data, vtable)
        offset = 4 + 2 * number
        found = _unpack("<H", self.data, vtable + offset) if offset + 2 <= size else 0
        return self.at + found if found else None

    def _vector(self, number: int, element_bytes: int) -> range:
        place = self._place(number)
        if place is None:
            return range(0)
        start = place + _unpack("<I", self.data, place)
        count = _unpack("<I", self.data, start)
        end = start + 4 + count * element_bytes
        if end > len(self.data):
            raise ValueError("a list is longer than its message")
        return range(start + 4, end, element_bytes)


def _unpack(kind: str, data: bytes, place: int) -> int:
    if place < 0:
        raise ValueError("an offset points before its message")
    return int(struct.unpack_from(kind, data, place)[0])
