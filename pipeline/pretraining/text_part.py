"""Tokenised documents as numbers of their distinct words. Knows no files, vocabulary or model.

Shape suffixes: D documents, S sentences, N tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_HASH_BYTES = 8


@dataclass(frozen=True)
class TextPart:
    """Some tokenised documents, with distinct words of their own.

    `ids_N` are places in `words`; sentences follow one another as in the text.
    """

    words: list[str]
    ids_N: NDArray[np.int32]
    sentence_lengths_S: NDArray[np.int64]
    num_sentences_D: NDArray[np.int64]

    @classmethod
    def of(cls, documents: pa.Table) -> TextPart:
        """Number the words of documents with `tokens` and `sentence_lengths`."""
        tokens = documents["tokens"].combine_chunks()
        lengths = documents["sentence_lengths"].combine_chunks()
        numbered = tokens.flatten()
        if not pa.types.is_dictionary(numbered.type):
            numbered = numbered.dictionary_encode()
        return cls(
            numbered.dictionary.to_pylist(),
            numbered.indices.to_numpy(zero_copy_only=False),
            lengths.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
            lengths.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64),
        )


def text_hashes(text: pa.ChunkedArray) -> NDArray[np.float64]:
    """A number from 0 to 1 for each text, evenly spread: the leading bytes of its BLAKE2b hash."""
    digests = b"".join(
        hashlib.blake2b(value.encode(), digest_size=_HASH_BYTES).digest()
        for value in text.to_pylist()
    )
    return np.frombuffer(digests, ">u8") / 2.0 ** (8 * _HASH_BYTES)
