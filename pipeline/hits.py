"""What a search finds, and the piece of text that shows it. Knows no index, encoder or file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

EXCERPT_CHARACTERS = 100


@dataclass(frozen=True)
class Hit:
    """One row found: cosine similarity, id, the other columns, and a piece of its text if kept."""

    score: float
    id: str
    columns: dict[str, Any]
    excerpt: str


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT_CHARACTERS else flat[: EXCERPT_CHARACTERS - 3] + "..."


def around(text: str, start: int, end: int) -> str:
    """The passage from `start` to `end` in the middle of about EXCERPT_CHARACTERS characters."""
    margin = max(0, (EXCERPT_CHARACTERS - (end - start)) // 2)
    first, last = max(0, start - margin), min(len(text), end + margin)
    piece = " ".join(text[first:last].split())
    return ("..." if first else "") + piece + ("..." if last < len(text) else "")


def matrix_of(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """A column of vectors as (N, D) float32."""
    flat = column.flatten().to_numpy(zero_copy_only=False)
    matrix: NDArray[np.float32] = flat.reshape(len(column), column.type.list_size).astype(
        np.float32
    )
    return matrix


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors (..., D) scaled to length 1; one of zeros stays as it is."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: NDArray[np.floating] = vectors / np.maximum(norms, 1e-12)
    return result
