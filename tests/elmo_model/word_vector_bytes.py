"""Files of word vectors, byte by byte as the programs write them that made the formats known."""

from __future__ import annotations

import struct

import numpy as np


def word2vec_text(vectors, header=None):
    """As word2vec.c with `-binary 0`: a blank after every number; fastText's .vec is the same."""
    width = len(next(iter(vectors.values())))
    first = f"{len(vectors)} {width}\n" if header is None else header
    rows = (f"{word} " + "".join(f"{x:.6f} " for x in row) for word, row in vectors.items())
    return (first + "".join(f"{row}\n" for row in rows)).encode()


def word2vec_binary(vectors, newline=b"\n", header=None):
    """As word2vec.c with `-binary 1`; the Google News file has no newlines after its vectors."""
    width = len(next(iter(vectors.values())))
    first = f"{len(vectors)} {width}\n" if header is None else header
    rows = (
        (word if isinstance(word, bytes) else word.encode())
        + b" "
        + struct.pack(f"<{width}f", *row)
        + newline
        for word, row in vectors.items()
    )
    return first.encode() + b"".join(rows)


def glove_text(vectors):
    """As GloVe writes its numbers, without a header."""
    rows = (" ".join([word, *(f"{x:.5g}" for x in row)]) for word, row in vectors.items())
    return "".join(f"{row}\n" for row in rows).encode()


def random_vectors(words, width, seed=0):
    """Vectors that all formats give back exactly: multiples of 1/8."""
    random = np.random.default_rng(seed)
    return {word: (random.integers(-99, 99, width) / 8).astype(np.float32) for word in words}
