"""Decide where sentences start, from what each token is and how tokens are set apart.

Two kinds of border: a hard one by the layout (a new document, a blank line, a line that was ended
on purpose, a list item) and a soft one by what is written (a full stop that is no abbreviation's,
and something after it that can start a sentence). Knows kinds and positions, no text.

Legend: N tokens, C chunks, L lines that hold a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.tokenizers.kinds import Kind

# A paragraph of wrapped lines is this wide (code points), and this share of its line breaks look
# like wrapping. A line shorter than its share of the width was ended on purpose.
MIN_WRAP_WIDTH = 40
MAX_WRAP_WIDTH = 200
MIN_WRAPPED_SHARE = 0.75
MIN_LINE_SHARE = 0.6
# So many line breaks of a document must look alike before they say something of its other ones.
MIN_WRAPPED_LINES = 4


def _table(*kinds: Kind) -> NDArray[np.bool_]:
    table = np.zeros(256, bool)
    table[list(kinds)] = True
    return table


_ENDERS = _table(
    Kind.STOP, Kind.END, Kind.WIDE_END, Kind.ELLIPSIS, Kind.ABBREVIATION, Kind.INITIAL, Kind.EMOTE
)
_TRAILERS = _table(Kind.CLOSE, Kind.QUOTE, Kind.STOP, Kind.END, Kind.WIDE_END, Kind.ELLIPSIS)
_OPENERS = _table(Kind.OPEN, Kind.QUOTE)
_CAPITALS = _table(
    Kind.UPPER, Kind.STARTER, Kind.MONTH, Kind.TITLE, Kind.INITIAL, Kind.ABBREVIATION, Kind.LABEL
)
_STARTS = _CAPITALS | _table(Kind.NUMBER, Kind.CASELESS, Kind.BULLET)


@dataclass(frozen=True)
class TokenContext:
    """What is known of each of the N tokens.

    `kinds` (uint8), `spaced` (bool: a blank stands before it), `line_start` (bool: first token of
    its line), `hard` (bool: the layout starts a sentence here).
    """

    kinds: NDArray[np.uint8]
    spaced: NDArray[np.bool_]
    line_start: NDArray[np.bool_]
    hard: NDArray[np.bool_]


def sentence_starts(tokens: TokenContext) -> NDArray[np.bool_]:
    """True (N) on each token that starts a sentence."""
    kinds, num_tokens = tokens.kinds, len(tokens.kinds)
    starts = tokens.hard.copy()
    ender = np.flatnonzero(_ENDERS[kinds])
    # Closing brackets, quotation marks and emoticons stay with the sentence that they follow.
    trails = _TRAILERS[kinds] & ~tokens.spaced
    trails = (trails | (kinds == Kind.EMOTE)) & ~tokens.hard
    follower = _next_false(trails)[ender + 1]
    inside = follower < num_tokens
    ender, follower = ender[inside], follower[inside]
    apart = tokens.spaced[follower] | (kinds[ender] == Kind.WIDE_END)
    ender, follower = ender[apart], follower[apart]
    head = np.minimum(_next_false(_OPENERS[kinds])[follower], num_tokens - 1)
    chosen = _starts_sentence(tokens, ender, follower, head)
    starts[follower[chosen]] = True
    # A number that starts a sentence and has a full stop counts list items.
    item = (kinds[ender] == Kind.STOP) & (kinds[ender - 1] == Kind.NUMBER) & starts[ender - 1]
    starts[follower[item & ~tokens.hard[follower]]] = False
    return starts


def _starts_sentence(
    tokens: TokenContext,
    ender: NDArray[np.int64],
    follower: NDArray[np.int64],
    head: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether `follower` starts a sentence after `ender`; `head` is its first word."""
    kinds = tokens.kinds
    kind, head_kind = kinds[ender], kinds[head]
    before_kind = kinds[np.maximum(ender - 1, 0)]
    goes_on = ((before_kind == Kind.LABEL) & (head_kind == Kind.NUMBER)) | (
        (before_kind == Kind.NUMBER) & (head_kind == Kind.MONTH)
    )
    starter = head_kind == Kind.STARTER
    # A lower-case word starts a sentence too, unless a quotation mark stands between:
    # "What?" he asked.
    loose = _STARTS[head_kind] | ((follower == ender + 1) & (follower == head))
    result: NDArray[np.bool_] = (
        ((kind == Kind.STOP) & loose & ~goes_on)
        | ((kind == Kind.END) & loose)
        | (kind == Kind.WIDE_END)
        | (((kind == Kind.ELLIPSIS) | (kind == Kind.EMOTE)) & _CAPITALS[head_kind])
        | (((kind == Kind.ABBREVIATION) | (kind == Kind.INITIAL)) & starter)
    )
    return result


def _next_false(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position and the one past the end: the first position from there on that is False.

    Returns: int64 (N + 1); N where there is none.
    """
    position = np.arange(len(mask) + 1)
    position[:-1][mask] = len(mask)
    return np.minimum.accumulate(position[::-1])[::-1]


@dataclass(frozen=True)
class ChunkContext:
    """What is known of each of the C chunks.

    `starts` and `ends` (int32) count code points from the start of the document, `document` and
    `newlines` (int32) are those of `Chunks`, `first_kind` (uint8) is the kind of its first token
    and `alone` (bool) says that it is the only one.
    """

    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    document: NDArray[np.int32]
    newlines: NDArray[np.int32]
    first_kind: NDArray[np.uint8]
    alone: NDArray[np.bool_]


def line_starts(chunks: ChunkContext) -> NDArray[np.bool_]:
    """True (C) on the first chunk of each line."""
    first = np.ones(len(chunks.starts), bool)
    first[1:] = (np.diff(chunks.document) > 0) | (np.diff(chunks.newlines) > 0)
    return first


def layout_starts(chunks: ChunkContext) -> NDArray[np.bool_]:
    """True (C) on each chunk before which the layout ends a sentence.

    That is before a document, after a blank line, before a list item, and after a line that was
    ended on purpose: one that does not belong to a paragraph of wrapped lines.
    """
    line_first = np.flatnonzero(line_starts(chunks))
    hard = np.zeros(len(chunks.starts), bool)
    if not len(line_first):
        return hard
    line_last = np.append(line_first[1:], len(chunks.starts)) - 1
    document, newlines = chunks.document[line_first], chunks.newlines[line_first]
    new_block = np.ones(len(line_first), bool)
    new_block[1:] = (np.diff(document) > 0) | (np.diff(newlines) > 1)
    lengths = chunks.ends[line_last] - chunks.starts[line_first]
    first_lengths = chunks.ends[line_first] - chunks.starts[line_first]
    kinds = chunks.first_kind[line_first]
    wrapped = _wrapped(new_block, document, lengths, first_lengths, _STARTS[kinds])
    item = (kinds == Kind.BULLET) & chunks.alone[line_first]
    hard[line_first] = new_block | item | ~wrapped
    return hard


def _wrapped(
    new_block: NDArray[np.bool_],
    document: NDArray[np.int32],
    lengths: NDArray[np.int32],
    first_lengths: NDArray[np.int32],
    capital: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """True (L) on each line that only goes on with the one before.

    Whoever wraps text fills the lines: after a full one the next word had no room. Where text is
    wrapped loosely, lines are nearly full and go on in lower case.
    """
    block_first = np.flatnonzero(new_block)
    block = np.cumsum(new_block) - 1
    width = np.maximum.reduceat(lengths, block_first)
    full, nearly = ~new_block, ~new_block
    full[1:] &= lengths[:-1] + 1 + first_lengths[1:] > width[block[1:]]
    nearly[1:] &= lengths[:-1] >= MIN_LINE_SHARE * width[block[1:]]
    num_breaks = np.diff(np.append(block_first, len(new_block))) - 1
    # Two lines say little, a heading and its text look like one wrapped line: then the rest of the
    # document decides.
    is_long = num_breaks[block] > 1
    sure = (full & (~capital | is_long)) | (nearly & ~capital)
    num_sure = np.bincount(document, weights=sure & is_long)
    num_asked = np.bincount(document, weights=is_long & ~new_block)
    is_wrapped = (num_asked >= MIN_WRAPPED_LINES) & (num_sure >= MIN_WRAPPED_SHARE * num_asked)
    evident = sure | (full & is_wrapped[document])
    num_evident = np.add.reduceat(evident.astype(np.int64), block_first)
    is_paragraph = (
        (width >= MIN_WRAP_WIDTH)
        & (width <= MAX_WRAP_WIDTH)
        & (num_evident >= MIN_WRAPPED_SHARE * num_breaks)
    )
    wrapped: NDArray[np.bool_] = (full | nearly) & is_paragraph[block]
    return wrapped
