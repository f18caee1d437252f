"""Texts as the tasks hand them to whatever makes vectors: sentences of tokens. Knows no vectors."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import TextConfig
from pipeline.text import tokenise
from pipeline.token_window import TokenWindow

Sentence = Sequence[str]
Document = Sequence[Sentence]
Item = TypeVar("Item")

WORDS = TextConfig(tokenizer="words")
CHINESE = TextConfig(tokenizer="chinese")
# A text without a token gets this one, so that every text has a vector.
NO_TOKEN: Document = ((".",),)
HELD_OUT_SHARE = 0.2


def tokenised(texts: Sequence[str], config: TextConfig) -> list[Document]:
    """Each text's sentences of tokens, as `elmo embed` would make them.

    Raises:
        ConfigError: the tokeniser needs a package that is not installed.
    """
    form = config.unicode_form
    normal = [unicodedata.normalize(form, text) if form else text for text in texts]
    if not normal:
        return []
    table = tokenise(pa.table({"text": normal}), config)
    documents: list[Document] = []
    lists = zip(table["tokens"].to_pylist(), table["sentence_lengths"].to_pylist(), strict=True)
    for tokens, lengths in lists:
        ends = accumulate(lengths)
        document = [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        documents.append(document or NO_TOKEN)
    return documents


def flat_tokens(document: Document) -> list[str]:
    """All tokens of a document in their order."""
    return [token for sentence in document for token in sentence]


def window_of(documents: Sequence[Document]) -> TokenWindow:
    """The documents as ids into their distinct words."""
    number: dict[str, int] = {}
    tokens = (token for document in documents for sentence in document for token in sentence)
    word_ids = np.fromiter((number.setdefault(token, len(number)) for token in tokens), np.int32)
    lengths = [len(sentence) for document in documents for sentence in document]
    return TokenWindow(
        words=list(number),
        word_ids=word_ids,
        sentence_lengths=np.array(lengths, np.int64),
        sentences_per_document=np.array([len(document) for document in documents], np.int64),
    )


def is_held_out(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each text belongs to the fifth that is tested; equal texts fall on the same side."""
    limit = int(HELD_OUT_SHARE * 2**32)
    digests = (hashlib.sha256(text.encode()).digest()[:4] for text in texts)
    return np.array([int.from_bytes(digest, "big") < limit for digest in digests], bool)


def thinned(items: Sequence[Item], max_items: int | None) -> list[Item]:
    """At most so many items, at even distances, since files are often sorted."""
    if max_items is None or len(items) <= max_items:
        return list(items)
    places = np.linspace(0, len(items) - 1, max_items).round().astype(int)
    return [items[place] for place in places.tolist()]
