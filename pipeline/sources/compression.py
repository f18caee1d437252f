"""Plain bytes from compressed files, in bounded memory. Knows no format of what is inside.

Every read gives at most what was asked for, however far the data expands, and data that expand out
of all proportion are a bad file; concatenated members of one file are read one after the other. A
file that ends in the middle, or whose check sum is wrong, is a bad file and never a short one.
"""

from __future__ import annotations

import lzma
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from pipeline.sources.expansion import Expansion
from pipeline.sources.formats import Compression
from pipeline.sources.reasons import BadFileError, Reason, is_of_the_system

READ_BYTES = 1 << 20
# The dictionary of an .xz file may ask for 4 GiB; xz itself never writes more than 65 MiB needs.
MAX_XZ_MEMORY_BYTES = 256 << 20


class ByteStream(Protocol):
    """Something to read from, once and forwards."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none only at the end."""


def decompressed(file: BinaryIO, compression: Compression | None, where: str) -> ByteStream:
    """Read a file's content.

    Args:
        file: the file, at its start.
        compression: how it is compressed; None reads it as it is.
        where: its URL, for messages.

    Returns: a stream whose `read` raises BadFileError on data that cannot be decompressed.
    """
    if compression is None:
        return file
    if compression == "xz":
        return _Counted(_XzStream(file, where), file, where)
    return _Counted(_ArrowStream(file, compression, where), file, where)


class _Counted:
    """Sees that what comes out stays in proportion to what was read of the file."""

    def __init__(self, stream: ByteStream, file: BinaryIO, where: str) -> None:
        self._stream = stream
        self._file = file
        self._expansion = Expansion(where)

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._expansion.add(len(data), self._file.tell())
        return data


class _ArrowStream:
    def __init__(self, file: BinaryIO, compression: str, where: str) -> None:
        self._file = file
        self._where = where
        self._compression = compression
        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
        self._is_empty = True

    def read(self, size: int, /) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except OSError as error:
            if is_of_the_system(error):
                raise
            raise _bad(self._where, self._compression, str(error)) from None
        if self._is_empty and not data and self._file.seek(0, 2) == 0:
            raise _bad(self._where, self._compression, "Truncated: the file has no bytes")
        self._is_empty = False
        return data


class _XzStream:
    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self._decoder = _new_xz_decoder()
        self._input = b""
        self._started = False

    def read(self, size: int, /) -> bytes:
        try:
            while True:
                if self._decoder.eof and not self._next_member():
                    return b""
                if self._decoder.needs_input and not self._input:
                    self._input = self._file.read(READ_BYTES)
                    if not self._input:
                        raise _bad(self._where, "xz", "Truncated compressed stream")
                self._started = True
                data = self._decoder.decompress(self._input, size)
                self._input = b""
                if data:
                    return data
        except lzma.LZMAError as error:
            raise _bad(self._where, "xz", str(error)) from None

    def _next_member(self) -> bool:
        rest = self._decoder.unused_data
        # Members may be padded with zeros to a multiple of four bytes.
        while not (rest := rest.lstrip(b"\0")):
            rest = self._file.read(READ_BYTES)
            if not rest:
                return False
        self._decoder = _new_xz_decoder()
        self._input = rest
        return True


def _new_xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY_BYTES)


def _bad(where: str, compression: str, said: str) -> BadFileError:
    if said.startswith("Truncated"):
        return BadFileError(
            Reason.TRUNCATED_FILE,
            f"{where}: the {compression} data ends in the middle; write the file again",
        )
    return BadFileError(
        Reason.CORRUPT_FILE,
        f"{where}: not valid {compression} data ({said}); write the file again",
    )
