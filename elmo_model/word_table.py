"""Context-free vectors of a vocabulary, made once on a machine and shared by its processes.

A table is one safetensors file, mapped into memory read-only, so that all processes that use it
hold it once. Its name says what it was made of: a table that would differ has another. Knows no
model: a function makes the vectors.

Axes: U words, P projection width.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elmo_model.files import replacing

_NAME = "vectors"
# A table that nobody opened for so long is removed when a new one is made.
_UNUSED_DAYS = 30
_WORDS_AT_ONCE = 8192


class WordTable:
    """Vectors (U, P) of words, in the memory of the host: `row` finds a word's."""

    def __init__(self, words: Sequence[str], vectors_UP: Tensor) -> None:
        """Take the words and their vectors; of two equal words the first counts."""
        self._rows: dict[str, int] = {}
        for row, word in enumerate(words):
            self._rows.setdefault(word, row)
        self.vectors_UP = vectors_UP

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, word: str) -> int | None:
        """The row of a word's vector, None if it is not there."""
        return self._rows.get(word)


def shared_word_table(
    folder: Path,
    words: Sequence[str],
    width: int,
    made_by: str,
    make: Callable[[Sequence[str]], Tensor],
) -> WordTable:
    """Open the table of these words, or make it where no process of this machine has yet.

    Processes that need the same table at once wait for the one that makes it.

    Args:
        folder: where tables are kept; made if missing.
        words: the vocabulary.
        width: P.
        made_by: everything besides the words that decides the vectors' bits.
        make: vectors (N, P) of N words.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = "\n".join([made_by, str(width), *words])
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    path = folder / f"{digest}.safetensors"
    with _alone(path.with_suffix(".lock")):
        vectors = _open(path, (len(words), width))
        if vectors is None:
            _remove_unused(folder)
            parts = [
                make(words[start : start + _WORDS_AT_ONCE]).cpu()
                for start in range(0, len(words), _WORDS_AT_ONCE)
            ]
            with replacing(path) as temporary:
                save_file({_NAME: torch.cat([torch.empty(0, width), *parts])}, temporary)
            vectors = _open(path, (len(words), width))
        if vectors is None:
            raise OSError(f"{path}: a table of vectors was written there and cannot be read")
        # Access times are often not kept; this says when the table was last of use.
        os.utime(path)
    return WordTable(words, vectors)


def _open(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The mapped vectors; None if they are not there, or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            vectors: Tensor = file.get_tensor(_NAME)
    except (OSError, SafetensorError):
        return None
    return vectors if tuple(vectors.shape) == shape else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; wait for whoever holds it."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - _UNUSED_DAYS * 24 * 3600
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
                path.with_suffix(".lock").unlink(missing_ok=True)
