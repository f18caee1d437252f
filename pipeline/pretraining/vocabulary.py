"""The vocabulary of a training: a given file, or the frequent words of the prepared text."""

from __future__ import annotations

from collections import Counter

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
    counts = count_words(storage, text)
    if config.file is not None:
        store, path = locate(config.file)
        vocabulary = Vocabulary.from_bytes(store.read_bytes(path, MAX_FILE_BYTES), config.file)
    else:
        vocabulary = Vocabulary.from_counts(counts, config.min_count, config.max_size)
    covered = sum(count for word, count in counts.items() if word in vocabulary)
    if not covered:
        raise SourceError(
            f"no word of the training text is in the vocabulary of {len(vocabulary)} words, "
            + (
                f"read from {config.file}; give one that was made for this text"
                if config.file is not None
                else f"as none occurs {config.min_count} times; lower vocabulary.min_count"
            )
        )
    return vocabulary, covered / counts.total()


def count_words(storage: Storage, text: PreparedText) -> Counter[str]:
    """How often each word occurs in the training text."""
    counts: Counter[str] = Counter()
    for shard in text.train:
        for unit in range(len(shard.unit_tokens)):
            count_part(read_unit(storage, shard, unit), counts)
    return counts


def count_part(part: TextPart, counts: Counter[str]) -> None:
    """Add the words of a part."""
    per_word = np.bincount(part.ids_N, minlength=len(part.words)).tolist()
    for word, count in zip(part.words, per_word, strict=True):
        if count:
            counts[word] += count
