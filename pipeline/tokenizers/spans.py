"""What goes into a tokeniser and what comes out, as flat numpy arrays. Knows no language.

Legend: D documents, N tokens, B bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextBuffer:
    """The UTF-8 bytes of D documents end to end.

    `data` is uint8 (B,); document d is `data[offsets[d]:offsets[d + 1]]`, with `offsets`
    int64 (D + 1,) and `offsets[0] == 0`.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def from_arrow(cls, text: pa.StringArray) -> TextBuffer:
        """View a string array without nulls; the bytes are shared, not copied."""
        _, offset_buffer, data_buffer = text.buffers()
        if not len(text) or data_buffer is None:
            return cls(np.zeros(0, np.uint8), np.zeros(len(text) + 1, np.int64))
        last = text.offset + len(text)
        offsets = np.frombuffer(offset_buffer, np.int32, last + 1)[text.offset :].astype(np.int64)
        data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
        return cls(data, offsets - offsets[0])

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TokenSpans:
    """The tokens of D documents in reading order.

    Document d holds the tokens from `document_offsets[d]` up to `document_offsets[d + 1]` (int64,
    D + 1). `byte_starts` and `byte_ends` (int32, N) count in the whole buffer, `starts` and `ends`
    (int32, N) count code points from the start of the document. `sentence_starts` (bool, N) is
    True on the first token of each sentence, so always on the first token of a document.
    """

    document_offsets: NDArray[np.int64]
    byte_starts: NDArray[np.int32]
    byte_ends: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    sentence_starts: NDArray[np.bool_]


class Tokeniser(Protocol):
    """Turns text into tokens; equal text gives equal tokens wherever and whenever it runs."""

    @property
    def fingerprint(self) -> str:
        """Name and version; it changes whenever the output for any text could change."""

    @property
    def solid_pattern(self) -> str:
        """RE2 pattern that is found in a text exactly if the text has a token."""

    def spans(self, text: TextBuffer) -> TokenSpans:
        """Find the tokens and sentences of each document."""


def code_point_index(data: NDArray[np.uint8]) -> NDArray[np.int32] | None:
    """For each byte the number of code points that start before it; None if all are one byte.

    Returns: int32 (B + 1,), the last element being the number of code points in all.
    """
    if not len(data) or int(data.max()) < 0x80:
        return None
    index = np.zeros(len(data) + 1, np.int32)
    np.cumsum((data & 0xC0) != 0x80, out=index[1:])
    return index


def gather(
    data: NDArray[np.uint8], starts: NDArray[np.int32], ends: NDArray[np.int32]
) -> pa.StringArray:
    """The strings `data[start:end]` as one array; spans are in order and do not overlap."""
    edge = np.zeros(len(data) + 1, np.int8)
    edge[starts] += 1
    edge[ends] -= 1
    kept = np.cumsum(edge[:-1], dtype=np.int8).view(bool)
    offsets = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(ends - starts, out=offsets[1:])
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(data[kept]))
