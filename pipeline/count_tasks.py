"""What the reading tasks of a word count do: read, tokenise, count, hand on. No Ray here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.records import SourceSplit
from pipeline.rejected import RejectedTally
from pipeline.sources.read import read_documents
from pipeline.text import tokenise
from pipeline.vocabulary_config import VocabularyConfig
from pipeline.word_counts import HeldCounts, split_by_bucket


@dataclass
class ReadTally:
    """What reading met."""

    documents: int = 0
    tokens: int = 0
    cut_tokens: int = 0
    rejected: RejectedTally = field(default_factory=RejectedTally)

    def add(self, other: ReadTally) -> None:
        """Add another tally to this one."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.cut_tokens += other.cut_tokens
        self.rejected.add(other.rejected)


def count_group(
    config: VocabularyConfig, splits: Sequence[SourceSplit], num_buckets: int
) -> Iterator[pa.Table | ReadTally]:
    """Count the words of some splits.

    Yields, once or more often: the counts of every bucket (COUNTS_SCHEMA, words hashed as
    `split_by_bucket` does), then the tally of what they were counted in. Never more than
    `run.max_held_bytes` of counts are held, beside those of one batch of documents.

    Raises:
        SourceError: a file is bad, has changed or is gone.
        StorageError: the store failed.
    """
    held = HeldCounts(config.run.max_held_bytes)
    tally = ReadTally()
    for split in splits:
        for batch in read_documents(split, config.source, config.text):
            tally.rejected.reject(batch.rejected.table)
            if not batch.documents.num_rows:
                continue
            tokenised = tokenise(batch.documents, config.text)
            chunks = [chunk.flatten() for chunk in tokenised["tokens"].chunks]
            tally.documents += tokenised.num_rows
            tally.tokens += sum(map(len, chunks))
            tally.cut_tokens += sum(tokenised["num_cut_tokens"].to_pylist())
            if held.add(pa.chunked_array(chunks)):
                # Not `yield from`: Ray sends values into the generator, which lists do not take.
                for counts in split_by_bucket(held.take(), num_buckets):
                    yield counts
                yield tally
                tally = ReadTally()
    for counts in split_by_bucket(held.take(), num_buckets):
        yield counts
    yield tally
