"""The `words` tokeniser: languages that put spaces between words.

Chunks between blanks are found by array operations over the bytes of many documents; each distinct
chunk is split once (`words.split`); the results are spread over all places by array operations
again. Time is linear in the text, memory a small multiple of it.

Legend: N tokens, C chunks, U distinct chunks, B bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.tokenizers.blanks import SOLID_PATTERN, Chunks, find_chunks
from pipeline.tokenizers.sentences import (
    ChunkContext,
    TokenContext,
    layout_starts,
    line_starts,
    sentence_starts,
)
from pipeline.tokenizers.spans import TextBuffer, TokenSpans, code_point_index, gather
from pipeline.tokenizers.words import MAX_CACHED_LENGTH, split, split_cached

# Chunks are split in runs of about this many bytes, which bounds the Python objects alive at once.
RUN_BYTES = 1 << 21


@dataclass(frozen=True)
class _Pieces:
    """Tokens of C chunks: how many each has, and of the N tokens the sizes and kinds."""

    num_tokens: NDArray[np.int32]
    byte_lengths: NDArray[np.int32]
    lengths: NDArray[np.int32]
    kinds: NDArray[np.uint8]


@dataclass(frozen=True)
class WordTokeniser:
    """Words, numbers, punctuation; sentences by full stops, quotes, abbreviations and layout."""

    @property
    def fingerprint(self) -> str:
        """Changes with every change of the rules or word lists."""
        return "words-1"

    @property
    def solid_pattern(self) -> str:
        """RE2 pattern of a character that belongs to a token."""
        return SOLID_PATTERN

    def spans(self, text: TextBuffer) -> TokenSpans:
        """Find the tokens and sentences of each document."""
        chunks = find_chunks(text)
        pieces = _split_chunks(text.data, chunks)
        chunk_of_token = np.repeat(np.arange(len(chunks.starts)), pieces.num_tokens)
        first_token = np.cumsum(pieces.num_tokens) - pieces.num_tokens
        byte_starts = _starts_within(pieces.byte_lengths, first_token, chunk_of_token)
        byte_starts += chunks.starts[chunk_of_token]
        starts = byte_starts
        chunk_starts, chunk_ends = chunks.starts, chunks.ends
        index = code_point_index(text.data)
        if index is not None:
            chunk_starts, chunk_ends = index[chunks.starts], index[chunks.ends]
            starts = _starts_within(pieces.lengths, first_token, chunk_of_token)
            starts += chunk_starts[chunk_of_token]
        document_starts = text.offsets[:-1] if index is None else index[text.offsets[:-1]]
        base = document_starts.astype(np.int32)[chunks.document]
        starts = starts - base[chunk_of_token]
        context = ChunkContext(
            starts=chunk_starts - base,
            ends=chunk_ends - base,
            document=chunks.document,
            newlines=chunks.newlines,
            first_kind=pieces.kinds[first_token],
            alone=pieces.num_tokens == 1,
        )
        return TokenSpans(
            document_offsets=_document_offsets(text, chunks, pieces.num_tokens),
            byte_starts=byte_starts,
            byte_ends=byte_starts + pieces.byte_lengths,
            starts=starts,
            ends=starts + pieces.lengths,
            sentence_starts=sentence_starts(
                _token_context(pieces.kinds, first_token, chunks.after_blank, context)
            ),
        )


def _token_context(
    kinds: NDArray[np.uint8],
    first_token: NDArray[np.int64],
    after_blank: NDArray[np.bool_],
    chunks: ChunkContext,
) -> TokenContext:
    def on_first_token(flag: NDArray[np.bool_]) -> NDArray[np.bool_]:
        spread = np.zeros(len(kinds), bool)
        spread[first_token] = flag
        return spread

    return TokenContext(
        kinds=kinds,
        spaced=on_first_token(after_blank),
        line_start=on_first_token(line_starts(chunks)),
        hard=on_first_token(layout_starts(chunks)),
    )


def _starts_within(
    lengths: NDArray[np.int32], first_token: NDArray[np.int64], chunk_of_token: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Where each token starts, counted from the start of its chunk."""
    before = np.cumsum(lengths, dtype=np.int32) - lengths
    return before - before[first_token][chunk_of_token]


def _document_offsets(
    text: TextBuffer, chunks: Chunks, num_tokens: NDArray[np.int32]
) -> NDArray[np.int64]:
    offsets = np.zeros(text.num_documents + 1, np.int64)
    per_document = np.bincount(chunks.document, weights=num_tokens, minlength=text.num_documents)
    np.cumsum(per_document.astype(np.int64), out=offsets[1:])
    return offsets


def _split_chunks(data: NDArray[np.uint8], chunks: Chunks) -> _Pieces:
    edges = [0]
    while edges[-1] < len(chunks.starts):
        limit = int(chunks.starts[edges[-1]]) + RUN_BYTES
        edges.append(max(edges[-1] + 1, int(np.searchsorted(chunks.starts, limit))))
    runs = [
        _split_run(data, chunks.starts[first:last], chunks.ends[first:last])
        for first, last in zip(edges[:-1], edges[1:], strict=True)
    ]
    if len(runs) == 1:
        return runs[0]
    empty = np.zeros(0, np.int32)
    nothing = _Pieces(empty, empty, empty, np.zeros(0, np.uint8))
    return _Pieces(
        *(
            np.concatenate([getattr(run, name) for run in [nothing, *runs]])
            for name in ("num_tokens", "byte_lengths", "lengths", "kinds")
        )
    )


def _split_run(
    data: NDArray[np.uint8], starts: NDArray[np.int32], ends: NDArray[np.int32]
) -> _Pieces:
    encoded = gather(data, starts, ends).dictionary_encode()
    distinct = _split_distinct(encoded.dictionary.to_pylist())
    first = np.cumsum(distinct.num_tokens) - distinct.num_tokens
    chosen = encoded.indices.to_numpy()
    num_tokens = distinct.num_tokens[chosen]
    # Token k of a chunk lies k places after the first token of the same distinct chunk.
    token_first = np.cumsum(num_tokens) - num_tokens
    source = np.repeat(first[chosen] - token_first, num_tokens)
    source += np.arange(len(source))
    return _Pieces(
        num_tokens, distinct.byte_lengths[source], distinct.lengths[source], distinct.kinds[source]
    )


def _split_distinct(chunks: list[str]) -> _Pieces:
    num_tokens: list[int] = []
    lengths: list[int] = []
    byte_lengths: list[int] = []
    kinds = bytearray()
    for chunk in chunks:
        ends, chunk_kinds = (split_cached if len(chunk) <= MAX_CACHED_LENGTH else split)(chunk)
        num_tokens.append(len(ends))
        kinds += chunk_kinds
        start = 0
        if chunk.isascii():
            for end in ends:
                lengths.append(end - start)
                byte_lengths.append(end - start)
                start = end
        else:
            for end in ends:
                lengths.append(end - start)
                byte_lengths.append(len(chunk[start:end].encode()))
                start = end
    return _Pieces(
        np.array(num_tokens, np.int32),
        np.array(byte_lengths, np.int32),
        np.array(lengths, np.int32),
        np.frombuffer(bytes(kinds), np.uint8),
    )
