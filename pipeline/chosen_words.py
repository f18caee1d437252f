"""Choose the words of a vocabulary from tables of counts, in bounded memory and without Ray.

What fits is merged in memory. What does not is first divided on the local disk, by a hash of the
words, into parts that do. `count_words` does the same with the tasks of a cluster.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import pyarrow as pa

from pipeline.vocabulary_config import VocabularyLimits
from pipeline.word_counts import (
    COUNTS_SCHEMA,
    BucketTally,
    finish_bucket,
    split_by_bucket,
    top_words,
)

# Counts that are merged at once; merging takes a few times as much.
BUCKET_BYTES = 64 << 20
# Each is an open file.
MAX_BUCKETS = 500


def choose_words(
    limits: VocabularyLimits,
    tables: Iterable[pa.Table],
    table_bytes: int,
    bucket_bytes: int = BUCKET_BYTES,
) -> tuple[pa.Table, BucketTally]:
    """The words that a vocabulary keeps, and what was counted.

    Args:
        limits: which words are kept.
        tables: COUNTS_SCHEMA; a word may stand in many of them.
        table_bytes: what all of them take in memory.
        bucket_bytes: of them may be merged at once.

    Returns: the kept words as `word_counts.top_words` gives them, without the marks, and the tally.
    """
    num_buckets = min(1 + table_bytes // bucket_bytes, MAX_BUCKETS)
    kept, tally = COUNTS_SCHEMA.empty_table(), BucketTally()
    with contextlib.closing(_buckets(tables, num_buckets)) as buckets:
        for bucket in buckets:
            found, counted = finish_bucket(limits, bucket)
            kept = top_words(limits.room, kept, found)
            tally += counted
    return kept, tally


def _buckets(tables: Iterable[pa.Table], num_buckets: int) -> Generator[pa.Table, None, None]:
    if num_buckets == 1:
        yield pa.concat_tables([COUNTS_SCHEMA.empty_table(), *tables])
        return
    with tempfile.TemporaryDirectory(prefix="elmo-counts-") as folder:
        paths = [Path(folder, str(bucket)) for bucket in range(num_buckets)]
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(pa.ipc.new_stream(path, COUNTS_SCHEMA)) for path in paths
            ]
            for table in tables:
                parts = split_by_bucket(table, num_buckets)
                for writer, part in zip(writers, parts, strict=True):
                    writer.write_table(part)
        for path in paths:
            with pa.OSFile(str(path)) as file:
                yield pa.ipc.open_stream(file).read_all()
            path.unlink()
