"""Sentences of the reference corpora for the encoder's benchmarks. Knows no model.

One news corpus, tokenised as the jobs do it, cut by length: the vocabulary stays the same and only
the lengths of the sentences change.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config import TextConfig
from pipeline.text import tokenise
from pipeline.token_window import TokenWindow

# Fewest and most tokens of a sentence of each kind of text.
LENGTHS = {"short": (3, 10), "mixed": (1, 256), "long": (40, 256)}


def news_sentences(path: Path, kind: str, num_sentences: int) -> list[list[str]]:
    """The first sentences of a kind, in the corpus's order; `path` is its JSON lines, xz."""
    shortest, longest = LENGTHS[kind]
    found: list[list[str]] = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        while len(found) < num_sentences and (lines := list(islice(file, 50))):
            texts = pa.table({"text": [json.loads(line)["text"] for line in lines]})
            for sentence in _sentences(tokenise(texts, TextConfig())):
                if shortest <= len(sentence) <= longest:
                    found.append(sentence)
    return found[:num_sentences]


def _sentences(table: pa.Table) -> list[list[str]]:
    tokens = table["tokens"].combine_chunks().flatten().to_pylist()
    lengths = table["sentence_lengths"].combine_chunks().flatten().to_numpy()
    ends = np.cumsum(lengths).tolist()
    return [tokens[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def window_of(sentences: Sequence[Sequence[str]]) -> TokenWindow:
    """A window in which every sentence is a document."""
    number: dict[str, int] = {}
    ids = [number.setdefault(word, len(number)) for sentence in sentences for word in sentence]
    return TokenWindow(
        words=list(number),
        word_ids=np.array(ids, np.int32),
        sentence_lengths=np.array([len(sentence) for sentence in sentences], np.int64),
        sentences_per_document=np.ones(len(sentences), np.int64),
    )
