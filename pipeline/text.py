"""From text to sentences of tokens: normalise, tokenise, keep to the limits. Knows no files or Ray.

Positions are code points in the normalised text; `text[start:end]` is the token. Equal text and
configuration give equal tokens wherever they run: that is what a tokeniser's fingerprint stands
for.

Legend: D documents, S sentences, N tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import TextConfig
from pipeline.normal_form import normal_form
from pipeline.records import TOKEN_FIELDS
from pipeline.tokenizers.chinese import ChineseTokeniser
from pipeline.tokenizers.pretokenized import PretokenizedText
from pipeline.tokenizers.spans import TextBuffer, Tokeniser, TokenSpans, gather
from pipeline.tokenizers.word_tokeniser import WordTokeniser

# Documents are tokenised in groups of about this much text: the arrays of one group stay small
# enough for the processor's cache. A larger document is a group of its own.
GROUP_BYTES = 1 << 20
# A document larger than this is tokenised in stretches, each ending at a blank line, line break or
# blank where there is one near: the arrays of one stretch take about 100 bytes a token.
STRETCH_BYTES = 4 << 20
STRETCH_SEARCH_BYTES = 64 << 10


@lru_cache(maxsize=3)
def make_tokeniser(name: Literal["words", "chinese", "pretokenized"]) -> Tokeniser:
    """The tokeniser of that name.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    if name == "chinese":
        return ChineseTokeniser()
    return WordTokeniser() if name == "words" else PretokenizedText()


def tokenizer_fingerprint(text: TextConfig) -> str:
    """Name and version of the configured tokeniser, without the limits.

    Raises:
        ConfigError: the tokeniser needs a package that is not installed.
    """
    return make_tokeniser(text.tokenizer).fingerprint


def normalise(text: pa.Array, form: Literal["NFC", "NFKC"] | None) -> pa.Array:
    """Bring every string into the Unicode normal form; nulls stay null.

    Most text is ASCII or normal already: only the rest is rewritten.
    """
    if form is None:
        return text
    candidates = pc.fill_null(pc.invert(pc.string_is_ascii(text)), False)
    positions = np.flatnonzero(candidates.to_numpy(zero_copy_only=False))
    changed: list[int] = []
    replacements: list[str] = []
    values = text.take(pa.array(positions)).to_pylist()
    for position, value in zip(positions.tolist(), values, strict=True):
        if not unicodedata.is_normalized(form, value):
            changed.append(position)
            replacements.append(normal_form(value, form))
    if not changed:
        return text
    mask = np.zeros(len(text), bool)
    mask[changed] = True
    return pc.replace_with_mask(text, pa.array(mask), pa.array(replacements, text.type))


def has_tokens(text: pa.Array, config: TextConfig) -> pa.BooleanArray:
    """Whether `tokenise` finds a token in each string (null for null)."""
    pattern = make_tokeniser(config.tokenizer).solid_pattern
    return pc.match_substring_regex(text, pattern)


def tokenise(documents: pa.Table, text: TextConfig, *, keep_text: bool = False) -> pa.Table:
    """Replace the column `text` by TOKEN_FIELDS, row for row.

    Args:
        documents: has a column `text`, normalised strings without nulls.
        text: tokeniser and limits.
        keep_text: keep the column `text`, before the new ones.

    Returns: the rows and other columns of `documents`. A document in which `has_tokens` finds
        none (`read_documents` lets none through) has empty lists.

    Raises:
        ConfigError: the tokeniser needs a package that is not installed.
    """
    tokeniser = make_tokeniser(text.tokenizer)
    groups = [_tokenise_group(group, tokeniser, text) for group in _groups(documents["text"])]
    fields: list[pa.Field] = []
    columns: list[pa.ChunkedArray] = []
    for field, column in zip(documents.schema, documents.columns, strict=True):
        if field.name != "text" or keep_text:
            fields.append(field)
            columns.append(column)
        if field.name == "text":
            fields.extend(TOKEN_FIELDS)
            columns.extend(
                pa.chunked_array([group[number] for group in groups], token_field.type)
                for number, token_field in enumerate(TOKEN_FIELDS)
            )
    return pa.table(columns, schema=pa.schema(fields, documents.schema.metadata))


def _groups(text: pa.ChunkedArray) -> Iterator[pa.StringArray]:
    for chunk in text.chunks:
        offsets = TextBuffer.from_arrow(chunk).offsets
        first = 0
        while first < len(chunk):
            last = int(np.searchsorted(offsets, offsets[first] + GROUP_BYTES, side="right")) - 1
            last = min(max(last, first + 1), len(chunk))
            yield chunk.slice(first, last - first)
            first = last


def _tokenise_group(
    text: pa.StringArray, tokeniser: Tokeniser, config: TextConfig
) -> list[pa.Array]:
    buffer = TextBuffer.from_arrow(text)
    if len(text) == 1 and len(buffer.data) > STRETCH_BYTES:
        spans, num_found = _spans_of_large(buffer.data, tokeniser, config.max_document_tokens)
    else:
        spans = tokeniser.spans(buffer)
        num_found = np.diff(spans.document_offsets)
        spans = _cut_documents(spans, config.max_document_tokens)
    limited = _limit(spans, num_found, config)
    spans = limited.spans
    token_offsets = pa.array(spans.document_offsets.astype(np.int32))
    sentence_offsets = pa.array(limited.sentence_offsets.astype(np.int32))
    tokens = gather(buffer.data, spans.byte_starts, spans.byte_ends)
    return [
        pa.ListArray.from_arrays(token_offsets, tokens),
        pa.ListArray.from_arrays(sentence_offsets, pa.array(limited.sentence_lengths)),
        pa.ListArray.from_arrays(token_offsets, pa.array(spans.starts)),
        pa.ListArray.from_arrays(token_offsets, pa.array(spans.ends)),
        pa.array(limited.num_cut_tokens),
        pa.array(limited.num_split_sentences),
    ]


@dataclass(frozen=True)
class _Limited:
    """Token spans within the limits.

    Document d has the sentences from `sentence_offsets[d]` (int64, D + 1) on, of
    `sentence_lengths` (int32, S) tokens; the counts are int32 (D).
    """

    spans: TokenSpans
    sentence_offsets: NDArray[np.int64]
    sentence_lengths: NDArray[np.int32]
    num_cut_tokens: NDArray[np.int32]
    num_split_sentences: NDArray[np.int32]


def _limit(spans: TokenSpans, num_found: NDArray[np.int64], config: TextConfig) -> _Limited:
    """Split long sentences of documents that had `num_found` tokens and were cut to `spans`."""
    offsets = spans.document_offsets
    first = np.flatnonzero(spans.sentence_starts)
    lengths = np.diff(np.append(first, offsets[-1]))
    document = np.searchsorted(offsets, first, side="right") - 1
    limit = config.max_sentence_tokens
    num_pieces = -(-lengths // limit)
    pieces = np.full(int(num_pieces.sum()), limit, np.int32)
    pieces[np.cumsum(num_pieces) - 1] = lengths - (num_pieces - 1) * limit
    num_documents = len(offsets) - 1
    sentence_offsets = np.zeros(num_documents + 1, np.int64)
    per_document = np.bincount(document, weights=num_pieces, minlength=num_documents)
    np.cumsum(per_document.astype(np.int64), out=sentence_offsets[1:])
    split = np.bincount(document[num_pieces > 1], minlength=num_documents)
    return _Limited(
        spans,
        sentence_offsets,
        pieces,
        (num_found - np.diff(offsets)).astype(np.int32),
        split.astype(np.int32),
    )


def _cut_documents(spans: TokenSpans, max_tokens: int) -> TokenSpans:
    offsets = spans.document_offsets
    found = np.diff(offsets)
    if not (found > max_tokens).any():
        return spans
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], found)
    kept = place < max_tokens
    new_offsets = np.zeros_like(offsets)
    np.cumsum(np.minimum(found, max_tokens), out=new_offsets[1:])
    return TokenSpans(
        new_offsets,
        spans.byte_starts[kept],
        spans.byte_ends[kept],
        spans.starts[kept],
        spans.ends[kept],
        spans.sentence_starts[kept],
    )


def _spans_of_large(
    data: NDArray[np.uint8], tokeniser: Tokeniser, max_tokens: int
) -> tuple[TokenSpans, NDArray[np.int64]]:
    """The first `max_tokens` tokens of one large document, and how many it has in all."""
    parts: list[TokenSpans] = []
    num_found = num_kept = num_code_points = position = 0
    while position < len(data):
        end = _stretch_end(data, position)
        stretch = data[position:end]
        spans = tokeniser.spans(TextBuffer(stretch, np.array([0, len(stretch)])))
        num_found += int(spans.document_offsets[-1])
        if num_kept < max_tokens:
            spans = _cut_documents(spans, max_tokens - num_kept)
            num_kept += int(spans.document_offsets[-1])
            parts.append(_shifted(spans, position, num_code_points))
            num_code_points += int(np.count_nonzero((stretch & 0xC0) != 0x80))
        position = end
    joined = TokenSpans(
        np.array([0, num_kept]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("byte_starts", "byte_ends", "starts", "ends", "sentence_starts")
        ),
    )
    return joined, np.array([num_found])


def _stretch_end(data: NDArray[np.uint8], start: int) -> int:
    limit = start + STRETCH_BYTES
    if limit >= len(data):
        return len(data)
    window = data[limit - STRETCH_SEARCH_BYTES : limit].tobytes()
    for border in (b"\n\n", b"\n", b" "):
        place = window.rfind(border)
        if place >= 0:
            return limit - STRETCH_SEARCH_BYTES + place + len(border)
    while data[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit


def _shifted(spans: TokenSpans, num_bytes: int, num_code_points: int) -> TokenSpans:
    return TokenSpans(
        spans.document_offsets,
        spans.byte_starts + np.int32(num_bytes),
        spans.byte_ends + np.int32(num_bytes),
        spans.starts + np.int32(num_code_points),
        spans.ends + np.int32(num_code_points),
        spans.sentence_starts,
    )
