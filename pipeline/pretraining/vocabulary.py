"""The vocabulary of a training: a given file, or the frequent words of the prepared text.

The words were counted when the text was prepared; here the counts are merged, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from elmo_model.vocabulary import MARKS, Vocabulary
from pipeline.chosen_words import choose_words
from pipeline.errors import SourceError
from pipeline.pretraining.config import VocabularyConfig
from pipeline.pretraining.shards import PreparedText, read_counts
from pipeline.sources.files import locate
from pipeline.storage import Storage
from pipeline.vocabulary_config import VocabularyLimits

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
    tables = (read_counts(storage, counts) for counts in text.counts)
    if config.file is not None:
        store, path = locate(config.file)
        vocabulary = Vocabulary.from_bytes(store.read_bytes(path, MAX_FILE_BYTES), config.file)
        covered = _count_covered(tables, vocabulary)
        advice = f"read from {config.file}; give one that was made for this text"
    else:
        vocabulary, covered, most = _counted(config, tables, text)
        advice = (
            f"as none occurs {config.min_count} times and the most frequent {most} times; lower "
            "vocabulary.min_count, or give more text"
        )
    if not covered:
        raise SourceError(
            f"no word of the training text is in the vocabulary of {len(vocabulary)} words, "
            f"{advice}"
        )
    return vocabulary, covered / sum(shard.num_tokens for shard in text.train)


def _counted(
    config: VocabularyConfig, tables: Iterator[pa.Table], text: PreparedText
) -> tuple[Vocabulary, int, int]:
    """The frequent words, how many tokens they cover, and how often the most frequent occurs."""
    limits = VocabularyLimits(min_count=config.min_count, max_size=config.max_size)
    table_bytes = sum(counts.table_bytes for counts in text.counts)
    kept, tally = choose_words(limits, tables, table_bytes)
    words = (*MARKS, *kept["word"].to_pylist())
    covered = int(pc.sum(kept["count"]).as_py() or 0) + tally.num_mark_tokens
    return Vocabulary(words, "the words that were counted"), covered, tally.max_count


def _count_covered(tables: Iterator[pa.Table], vocabulary: Vocabulary) -> int:
    """Tokens of the training text that are in the vocabulary."""
    words = pa.array(vocabulary.words, pa.string())
    covered = 0
    for table in tables:
        is_known = pc.is_in(table["word"], value_set=words)
        covered += int(pc.sum(table["count"].filter(is_known)).as_py() or 0)
    return covered
