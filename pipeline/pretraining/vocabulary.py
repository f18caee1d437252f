"""The vocabulary of a training: a given file, or the frequent words of the prepared text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from elmo_model.vocabulary import Vocabulary
from pipeline.errors import SourceError
from pipeline.pretraining.config import VocabularyConfig
from pipeline.pretraining.shards import PreparedText, read_unit
from pipeline.pretraining.text_part import TextPart
from pipeline.sources.files import locate
from pipeline.storage import Storage

MAX_FILE_BYTES = 1 << 28


def make_vocabulary(
    config: VocabularyConfig, storage: Storage, text: PreparedText
) -> tuple[Vocabulary, float]:
    """The vocabulary, and the share of the training tokens that are in it.

    Raises:
        ModelFileError: the file is no vocabulary.
        SourceError: no word is frequent enough.
        StorageError: a store failed.
    """
    if config.file is not None:
        store, path = locate(config.file)
        vocabulary = Vocabulary.from_bytes(store.read_bytes(path, MAX_FILE_BYTES), config.file)
        covered = _count_covered(storage, text, vocabulary)
    else:
        counts = count_words(storage, text)
        vocabulary = Vocabulary.from_counts(counts, config.min_count, config.max_size)
        covered = sum(counts[word] for word in vocabulary.words)
    if not covered:
        raise SourceError(
            f"no word of the training text is in the vocabulary of {len(vocabulary)} words, "
            + (
                f"read from {config.file}; give one that was made for this text"
                if config.file is not None
                else f"as none occurs {config.min_count} times; lower vocabulary.min_count"
            )
        )
    return vocabulary, covered / sum(shard.num_tokens for shard in text.train)


def count_words(storage: Storage, text: PreparedText) -> Counter[str]:
    """How often each word occurs in the training text; holds all of its distinct words."""
    counts: Counter[str] = Counter()
    for part in _parts(storage, text):
        per_word = np.bincount(part.ids_N, minlength=len(part.words)).tolist()
        for word, count in zip(part.words, per_word, strict=True):
            if count:
                counts[word] += count
    return counts


def _count_covered(storage: Storage, text: PreparedText, vocabulary: Vocabulary) -> int:
    """Tokens of the training text that are in the vocabulary, in the memory of one unit."""
    covered = 0
    for part in _parts(storage, text):
        is_known_U = np.fromiter((word in vocabulary for word in part.words), bool)
        covered += int(is_known_U[part.ids_N].sum())
    return covered


def _parts(storage: Storage, text: PreparedText) -> Iterator[TextPart]:
    for shard in text.train:
        for unit in range(len(shard.unit_tokens)):
            yield read_unit(storage, shard, unit)
