"""Stream the rows of files of word vectors: word2vec's text and binary formats, GloVe's text.

| format | first line | each row |
|---|---|---|
| `word2vec` | number of words, blank, width | word, blank, numbers in decimals, newline |
| `word2vec-binary` | the same | word, blank, little-endian float32s, perhaps a newline |
| `glove` | none | as `word2vec` |

Each may be compressed with gzip. The content tells which it is, never the name. A row is the bytes
of a word and those of its numbers; numbers are read for the rows that are wanted. Memory is bounded
by one row, whatever a file claims. Knows no vocabulary and no model.

Axis: P numbers of a vector.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from elmo_model.errors import ModelFileError

WordVectorFormat = Literal["word2vec", "word2vec-binary", "glove"]
Row = tuple[int, bytes, bytes]
"""Line (from 1) or byte (from 0) at which the row starts, word, numbers."""

MAX_WIDTH = 1 << 14
MAX_WORD_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
# Enough to find the usual number of fields though words may hold blanks.
_SAMPLE_LINES = 50
_SAMPLE_BYTES = 1 << 12

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_HEADER = re.compile(rb"[ \t]*(\d{1,18})[ \t]+(\d{1,18})[ \t]*")
# Phrases such as "Windows 3.1" are words; a number of three decimals or more belongs to a vector.
_ENDS_IN_ELEMENT = re.compile(rb".*[ \t][-+]?\d*\.\d{3,}(?:[eE][-+]?\d+)?", re.DOTALL)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\xba\x16\x4f\x2f", "fastText's own format; use the .vec file that comes with it"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array without words"),
    (b"\x80", "a pickle, which is not opened; save it in word2vec's format"),
    (b"BZh", "compressed with bzip2; unpack it"),
    (b"\xfd7zXZ", "compressed with xz; unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page, probably an error message of the server it was fetched from"),
    (b"<!doctype", "a web page, probably an error message of the server it was fetched from"),
    (b"<html", "a web page, probably an error message of the server it was fetched from"),
)


@dataclass(frozen=True)
class VectorRows:
    """An opened file.

    Attributes:
        where: its name, for messages.
        format: which of the three it is.
        width: P, numbers of every vector.
        num_declared: words that the header promises; None without a header.
        rows: all rows in order, once. Raises ModelFileError where the file is damaged.
    """

    where: str
    format: WordVectorFormat
    width: int
    num_declared: int | None
    rows: Iterator[Row]

    def numbers(self, row: Row) -> NDArray[np.float32]:
        """The vector (P,) of a row.

        Raises:
            ModelFileError: something that is no number, or a number that is not finite.
        """
        is_binary = self.format == "word2vec-binary"
        vector_P = np.frombuffer(row[2], "<f4") if is_binary else _decimals(row[2])
        if len(vector_P) == self.width and np.isfinite(vector_P).all():
            return vector_P.astype(np.float32, copy=False)
        place, word, values = row
        where = f"{self.where}: {'byte' if is_binary else 'line'} {place}, word {shown(word)}"
        if len(vector_P) != self.width:
            raise ModelFileError(
                f"{where}: expected {self.width} numbers, found "
                f"{values[:80].decode('utf-8', 'replace')!r}; correct or remove the line"
            )
        raise ModelFileError(
            f"{where}: holds numbers that are not finite in float32; the file is damaged or its "
            "training diverged, remove the word or use another file"
        )


@contextmanager
def opened_word_vectors(
    path: str | Path, file_format: WordVectorFormat | None = None
) -> Iterator[VectorRows]:
    """Open a file of word vectors; its rows may be read within the `with` block.

    Args:
        path: local file, compressed with gzip or not.
        file_format: the format; None finds it from the first rows.

    Raises:
        ModelFileError: no such file, empty, or none of the formats; also, within the block, where
            the compressed data are damaged.
    """
    if file_format is not None and file_format not in get_args(WordVectorFormat):
        raise ModelFileError(
            f"{path}: no format {file_format!r}; the formats are "
            f"{', '.join(get_args(WordVectorFormat))}"
        )
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", _BLOCK_BYTES))
            is_gzip = file.read(2) == _GZIP_MAGIC
            file.seek(0)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            stream: BinaryIO = file
            if is_gzip:
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
                # GzipFile's own readline is Python; this one is not.
                stream = io.BufferedReader(unpacked, _BLOCK_BYTES)
            head = stream.read(MAX_LINE_BYTES)
            stream.seek(0)
            yield _rows_of(stream, str(path), head, file_format)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ModelFileError(
                f"{path}: damaged gzip ({error}); copy or fetch the file again"
            ) from error


def shown(word: bytes) -> str:
    """A word as messages show it."""
    return repr(word[:60].decode("utf-8", "replace"))


def _rows_of(
    stream: BinaryIO, where: str, head: bytes, wanted: WordVectorFormat | None
) -> VectorRows:
    """Tell the format and the width from the first bytes."""
    if not head:
        raise ModelFileError(f"{where}: is empty; expected word vectors")
    for magic, what in _FOREIGN:
        if wanted is None and head.startswith(magic):
            raise ModelFileError(f"{where}: expected word vectors, found {what}")
    first, _, rest = head.removeprefix(_BYTE_ORDER_MARK).partition(b"\n")
    header = _HEADER.fullmatch(first.rstrip(b"\r"))
    if wanted == "glove" or (wanted is None and header is None):
        width = _usual_width(where, head)
        return VectorRows(where, "glove", width, None, _text_rows(stream, where, width, None))
    if header is None:
        raise ModelFileError(
            f"{where}: line 1: expected the number of words and the width, found {shown(first)}; "
            f"{wanted} files start with both, a file without them is of format glove"
        )
    num_declared, width = int(header[1]), int(header[2])
    if not 0 < width <= MAX_WIDTH or not num_declared:
        raise ModelFileError(
            f"{where}: line 1 declares {num_declared} words with {width} numbers each; expected "
            f"words, with 1 to {MAX_WIDTH} numbers: was another file given?"
        )
    if wanted == "word2vec" or (wanted is None and _is_text(rest, width)):
        rows = _text_rows(stream, where, width, num_declared)
        return VectorRows(where, "word2vec", width, num_declared, rows)
    start = len(head) - len(rest)
    rows = _binary_rows(stream, where, width, num_declared, start)
    return VectorRows(where, "word2vec-binary", width, num_declared, rows)


def _is_text(after_header: bytes, width: int) -> bool:
    """Whether the rows after the header are text: the first ends in numbers, or all is readable."""
    first = after_header.partition(b"\n")[0]
    # A number ends the first "line" of one binary file in 6,000, two end one in 40 million.
    if not after_header or _num_trailing_numbers(first) >= min(width, 2):
        return True
    sample = after_header[:_SAMPLE_BYTES]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return _CONTROL.search(sample) is None


def _usual_width(where: str, head: bytes) -> int:
    """How many numbers most of the first lines end in."""
    lines = head.split(b"\n")
    # The last line may be cut off.
    lines = lines[: min(max(len(lines) - 1, 1), _SAMPLE_LINES)]
    if len(lines[0]) == MAX_LINE_BYTES:
        _fail_long_line(where, 1)
    widths = Counter(_num_trailing_numbers(line) for line in lines if line.strip())
    width = max(widths, key=lambda found: (widths[found], -found), default=0)
    if not width:
        raise ModelFileError(
            f"{where}: expected word vectors (word2vec's text or binary format, or GloVe's text), "
            f"but line 1 is {shown(lines[0])}"
        )
    if width > MAX_WIDTH:
        raise ModelFileError(f"{where}: lines of {width} numbers, expected at most {MAX_WIDTH}")
    return width


def _num_trailing_numbers(line: bytes) -> int:
    """Numbers at the end of a line, without its first field, which is of the word."""
    found = 0
    for part in reversed(line.split()[1:]):
        try:
            float(part)
        except ValueError:
            break
        found += 1
    return found


def _text_rows(stream: BinaryIO, where: str, width: int, num_declared: int | None) -> Iterator[Row]:
    num_rows = 0
    for number, line in _lines(stream, where):
        if number == 1 and num_declared is not None:
            continue
        num_rows += 1
        if num_declared is not None and num_rows > num_declared:
            raise ModelFileError(
                f"{where}: line 1 declares {num_declared} words, line {number} is one more; "
                "correct the header, or fetch the file again"
            )
        if line.count(b" ") == width:
            word, _, values = line.partition(b" ")
        else:
            word, values = _odd_row(line, where, number, width)
        if len(word) > MAX_WORD_BYTES:
            _fail_long_word(where, f"line {number}")
        yield number, word, values
    if num_declared is not None and num_rows < num_declared:
        raise ModelFileError(
            f"{where}: line 1 declares {num_declared} words, but the file ends after {num_rows}; "
            "it is cut off: copy or fetch it again"
        )


def _lines(stream: BinaryIO, where: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without the blanks at their ends; empty ones may only be the last."""
    for number in count(1):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            _fail_long_line(where, number)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        line = line.rstrip(_BLANKS)
        if not line:
            if stream.read(_BLOCK_BYTES).strip(_BLANKS):
                raise ModelFileError(f"{where}: line {number} is empty; remove it")
            return
        yield number, line


def _odd_row(line: bytes, where: str, number: int, width: int) -> tuple[bytes, bytes]:
    """The word and the numbers of a row with tabs, more than one blank, or blanks in its word."""
    word, *values = line.rsplit(None, width)
    if len(values) != width or _ENDS_IN_ELEMENT.fullmatch(word):
        raise ModelFileError(
            f"{where}: line {number}, word {shown(line.split()[0])}: expected {width} numbers, "
            f"found {len(line.split()) - 1} fields after the word; correct or remove the line"
        )
    return word, b" ".join(values)


def _binary_rows(
    stream: BinaryIO, where: str, width: int, num_declared: int, start: int
) -> Iterator[Row]:
    """Rows out of large blocks; `start` is the size of the header in bytes."""
    stream.read(start)
    size = 4 * width
    buffer, offset, position, num_rows = b"", start, 0, 0
    while num_rows < num_declared:
        blank = buffer.find(b" ", position, position + MAX_WORD_BYTES + 1)
        if blank >= 0 and blank + 1 + size <= len(buffer):
            # The newline is of the row before.
            word = buffer[position:blank].lstrip(b"\n")
            yield offset + position, word, buffer[blank + 1 : blank + 1 + size]
            position = blank + 1 + size
            num_rows += 1
            continue
        if blank < 0 and len(buffer) - position > MAX_WORD_BYTES:
            _fail_long_word(where, f"byte {offset + position}")
        offset, buffer, position = offset + position, buffer[position:], 0
        block = stream.read(_BLOCK_BYTES)
        if not block:
            raise ModelFileError(
                f"{where}: the header declares {num_declared} words, but the file ends in row "
                f"{num_rows + 1}, which starts at byte {offset}: expected a word, a blank and "
                f"{size} bytes, found {len(buffer)} bytes; it is cut off: copy or fetch it again"
            )
        buffer += block
    end = offset + position
    if (buffer[position:] + stream.read(_BLOCK_BYTES)).strip(_BLANKS):
        raise ModelFileError(
            f"{where}: the header declares {num_declared} words, but more follow at byte {end}; "
            "the header or the width in it is wrong: fetch the file again"
        )


def _decimals(values: bytes) -> NDArray[np.float32]:
    """The numbers of a row of text; none where something is no number."""
    try:
        # The last number is ours: numpy may stop before it, but then it is missing.
        return np.fromstring(values + b" 0", np.float32, sep=" ")[:-1]
    except (ValueError, DeprecationWarning):
        return np.empty(0, np.float32)


def _fail_long_line(where: str, number: int) -> NoReturn:
    raise ModelFileError(
        f"{where}: line {number} is longer than {MAX_LINE_BYTES} bytes; a word with 300 numbers "
        "has about 3,000: was another file given?"
    )


def _fail_long_word(where: str, place: str) -> NoReturn:
    raise ModelFileError(
        f"{where}: {place}: a word longer than {MAX_WORD_BYTES} bytes; was another file given, or "
        "another format?"
    )
