"""The `pretokenized` tokeniser: a line is a sentence, space, tab or return separates tokens.

Nothing else does: a no-break space or an ideographic space is part of its token, unlike with
Python's `str.split`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.tokenizers.blanks import runs
from pipeline.tokenizers.spans import TextBuffer, TokenSpans, code_point_index

_IS_SEPARATOR = np.zeros(256, bool)
_IS_SEPARATOR[[0x09, 0x0A, 0x0D, 0x20]] = True


@dataclass(frozen=True)
class PretokenizedText:
    """Text that another program has split already; empty lines hold no sentence."""

    @property
    def fingerprint(self) -> str:
        """Changes with every change of the rules."""
        return "pretokenized-1"

    @property
    def solid_pattern(self) -> str:
        """RE2 pattern of a character that belongs to a token."""
        return r"[^ \t\r\n]"

    def spans(self, text: TextBuffer) -> TokenSpans:
        """Find the tokens and sentences of each document."""
        byte_starts, byte_ends = runs(~_IS_SEPARATOR[text.data], text.offsets)
        document = np.searchsorted(text.offsets, byte_starts, side="right") - 1
        line = np.searchsorted(np.flatnonzero(text.data == 0x0A), byte_starts)
        first = np.ones(len(byte_starts), bool)
        first[1:] = (np.diff(line) > 0) | (np.diff(document) > 0)
        index = code_point_index(text.data)
        base = text.offsets[document]
        starts, ends = byte_starts - base, byte_ends - base
        if index is not None:
            starts, ends = index[byte_starts] - index[base], index[byte_ends] - index[base]
        return TokenSpans(
            document_offsets=np.searchsorted(document, np.arange(text.num_documents + 1)),
            byte_starts=byte_starts.astype(np.int32),
            byte_ends=byte_ends.astype(np.int32),
            starts=starts.astype(np.int32),
            ends=ends.astype(np.int32),
            sentence_starts=first,
        )
