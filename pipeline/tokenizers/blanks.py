"""Where text is blank: the characters that separate tokens and belong to none. Knows bytes only.

Blank are white space (Unicode White_Space), control characters (NUL too), the zero-width space,
the byte order mark and the marks that only set the direction of writing. The list is written out,
so it does not change with the Unicode data of the Python that runs it.

Legend: B bytes, C chunks (longest runs without a blank).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.tokenizers.spans import TextBuffer

# A chunk longer than this is cut, so that no single token or step is larger.
MAX_CHUNK_BYTES = 1 << 16

_BLANK_RANGES = (
    (0x00, 0x20),
    (0x7F, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200B),
    (0x200E, 0x200F),
    (0x2028, 0x202F),
    (0x205F, 0x205F),
    (0x2066, 0x2069),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
SOLID_PATTERN = "[^" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in _BLANK_RANGES) + "]"

BLANK_CHARACTERS = tuple(chr(c) for a, b in _BLANK_RANGES for c in range(a, b + 1))
_WIDE_NEWLINES = ("\u0085", "\u2028", "\u2029")
_IS_BLANK_BYTE = np.zeros(256, bool)
_IS_BLANK_BYTE[[ord(c) for c in BLANK_CHARACTERS if ord(c) < 0x80]] = True
_IS_NEWLINE_BYTE = np.zeros(256, bool)
_IS_NEWLINE_BYTE[[0x0A, 0x0B, 0x0C, 0x0D]] = True


@dataclass(frozen=True)
class Chunks:
    """The chunks of some text, in order.

    `starts` and `ends` (int32, C) are byte positions, `document` (int32, C) the document of each.
    `after_blank` (bool, C) is False only where a long chunk was cut. `newlines` (int32, C) counts
    the line breaks before each chunk in the whole buffer.
    """

    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    document: NDArray[np.int32]
    after_blank: NDArray[np.bool_]
    newlines: NDArray[np.int32]


def find_chunks(text: TextBuffer) -> Chunks:
    """Find the longest runs without a blank; no chunk reaches over the end of its document."""
    data, offsets = text.data, text.offsets
    blank = _IS_BLANK_BYTE[data]
    wide = len(data) > 0 and int(data.max()) >= 0x80
    if wide:
        _mark(data, blank, BLANK_CHARACTERS)
    start_positions, end_positions = runs(~blank, offsets)
    after_blank = np.ones(len(start_positions), bool)
    if len(start_positions) and int((end_positions - start_positions).max()) > MAX_CHUNK_BYTES:
        start_positions, end_positions, after_blank = _cut_long(
            data, start_positions, end_positions
        )
    document = np.searchsorted(offsets, start_positions, side="right") - 1
    newlines = np.searchsorted(_newline_positions(data, wide), start_positions)
    return Chunks(
        starts=start_positions.astype(np.int32),
        ends=end_positions.astype(np.int32),
        document=document.astype(np.int32),
        after_blank=after_blank,
        newlines=newlines.astype(np.int32),
    )


def runs(
    solid: NDArray[np.bool_], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends of the longest runs of True that stay inside one document.

    Args:
        solid: bool (B,).
        offsets: where the documents start, and B, as in `TextBuffer`.
    """
    first_byte = np.zeros(len(solid) + 1, bool)
    first_byte[offsets] = True
    begins, ends = solid.copy(), solid.copy()
    begins[1:] &= ~solid[:-1] | first_byte[1:-1]
    ends[:-1] &= ~solid[1:] | first_byte[1:-1]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _newline_positions(data: NDArray[np.uint8], wide: bool) -> NDArray[np.int64]:
    newline = _IS_NEWLINE_BYTE[data]
    returns = np.flatnonzero(data == 0x0D)
    if len(returns):
        pairs = returns[returns < len(data) - 1]
        newline[pairs[data[pairs + 1] == 0x0A]] = False
    if wide:
        _mark(data, newline, _WIDE_NEWLINES, first_byte_only=True)
    return np.flatnonzero(newline)


def _mark(
    data: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    characters: tuple[str, ...],
    *,
    first_byte_only: bool = False,
) -> None:
    """Set `mask` on the bytes of the characters that take two or three bytes."""
    tails: dict[int, dict[int, list[int]]] = {}
    for character in characters:
        lead, *rest = character.encode()
        if rest:
            tails.setdefault(lead, {}).setdefault(len(rest), []).append(
                int.from_bytes(bytes(rest), "big")
            )
    for lead, by_length in tails.items():
        positions = np.flatnonzero(data == lead)
        for length, values in by_length.items():
            tail = np.zeros(len(positions), np.int64)
            for step in range(1, length + 1):
                tail = (tail << 8) | data[positions + step]
            found = positions[np.isin(tail, values)]
            mask[found] = True
            if not first_byte_only:
                for step in range(1, length + 1):
                    mask[found + step] = True


def _cut_long(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    new_starts: list[int] = []
    new_ends: list[int] = []
    after_blank: list[bool] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        first = True
        while start < end:
            stop = min(end, start + MAX_CHUNK_BYTES)
            while stop < end and data[stop] & 0xC0 == 0x80:
                stop -= 1
            new_starts.append(start)
            new_ends.append(stop)
            after_blank.append(first)
            first, start = False, stop
    return np.array(new_starts), np.array(new_ends), np.array(after_blank)
