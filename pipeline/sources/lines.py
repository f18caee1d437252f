"""Lines of a byte stream with their positions, in bounded memory. Knows bytes only.

A line ends at a newline; a carriage return before it belongs to the line's end. A line over the
limit is passed over without being held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.sources.compression import READ_BYTES, ByteStream

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What is kept of a line that is too long, to show.
HEAD_BYTES = 1024


@dataclass
class LineBlock:
    """Some lines in order, without their ends, and the byte offset of each one's start.

    `too_long` has the offsets of lines over the limit, which are left out, and `heads` the first
    bytes of each of those.
    """

    lines: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)

    def add_too_long(self, offset: int, start: bytes) -> None:
        """Note a line over the limit."""
        self.too_long.append(offset)
        self.heads.append(start[:HEAD_BYTES])


def read_lines(
    stream: ByteStream, max_line_bytes: int, *, start: int = 0, end: int | None = None
) -> Iterator[LineBlock]:
    """Read the lines that begin in [start, end).

    Args:
        stream: stands at byte `start`, or one byte before it if `start` is not 0: that byte tells
            whether a line begins at `start`.
        max_line_bytes: longer lines are passed over.
        start: first byte of the range.
        end: first byte after it; None reads to the end of the stream.
    """
    position = max(start - 1, 0)
    pending: list[bytes] = []
    # In the middle of a line that is not ours: an earlier range's, or one that is too long.
    skipping = start > 0
    while end is None or position < end:
        data = stream.read(READ_BYTES)
        if not data:
            break
        newline = data.find(b"\n") if skipping else data.rfind(b"\n")
        if skipping:
            position += newline + 1 if newline >= 0 else len(data)
            if newline < 0:
                continue
            data = data[newline + 1 :]
            skipping = False
            newline = data.rfind(b"\n")
        block = LineBlock()
        if newline >= 0:
            whole = b"".join([*pending, data[:newline]])
            position = _add_lines(block, whole.split(b"\n"), position, end, max_line_bytes)
            pending, data = [], data[newline + 1 :]
        if data:
            pending.append(data)
        num_pending = sum(map(len, pending))
        if num_pending > max_line_bytes and (end is None or position < end):
            block.add_too_long(position, pending[0])
            position += num_pending
            pending, skipping = [], True
        yield block
    if pending and (end is None or position < end):
        block = LineBlock()
        _add_lines(block, [b"".join(pending)], position, end, max_line_bytes)
        yield block


def _add_lines(
    block: LineBlock, lines: list[bytes], position: int, end: int | None, max_line_bytes: int
) -> int:
    """Add whole lines to the block; returns the position after them."""
    for line in lines:
        if end is not None and position >= end:
            break
        length = len(line) + 1
        if position == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > max_line_bytes:
            block.add_too_long(position, line)
        else:
            block.lines.append(line[:-1] if line.endswith(b"\r") else line)
            block.offsets.append(position)
        position += length
    return position
