"""Tables of words and how often they occur: count, merge, divide, choose. Knows no files or Ray."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elmo_model.vocabulary import MARKS, MAX_WORD_CHARACTERS, SKIPPED_LINE
from pipeline.compare import bucket_of
from pipeline.errors import ConfigError
from pipeline.vocabulary_config import VocabularyLimits

# Each word stands in one row.
COUNTS_SCHEMA = pa.schema(
    [
        pa.field("word", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)
# Arrow's strings have 32-bit offsets: what is merged at once must not hold more text than that.
MAX_MERGED_BYTES = (1 << 31) - 1
# Words are hashed in Python, which holds so many of them as strings at once.
HASHED_ROWS = 1 << 17
# A line that a vocabulary file cannot hold: empty, with a line break, or with ASCII blanks at an
# end, which readers take off.
_NOT_A_LINE = r"^$|[\n\r]|^[ \t\x0b\x0c]|[ \t\x0b\x0c]$"


@dataclass(frozen=True)
class BucketTally:
    """What was counted of the words of one bucket, or of several.

    `num_kept` words occur often enough and can stand in a file, which takes `kept_bytes` for them;
    `num_faulty` words (`num_faulty_tokens` of the text) cannot stand in one. `num_mark_tokens` of
    the text are marks. `max_count` is the count of the most frequent word.
    """

    num_distinct: int = 0
    num_kept: int = 0
    kept_bytes: int = 0
    num_faulty: int = 0
    num_faulty_tokens: int = 0
    num_mark_tokens: int = 0
    max_count: int = 0

    def __add__(self, other: BucketTally) -> BucketTally:
        """Both together."""
        summed = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return BucketTally(**summed | {"max_count": max(self.max_count, other.max_count)})


class HeldCounts:
    """Counts of the words of a growing text, within a limit of memory."""

    def __init__(self, max_bytes: int) -> None:
        """Hold at most `max_bytes` of counts, beside those of the last `add`."""
        self._max_bytes = max_bytes
        self._parts = [COUNTS_SCHEMA.empty_table()]
        self._num_bytes = 0

    def add(self, tokens: pa.ChunkedArray) -> bool:
        """Count some more text, strings without nulls.

        Returns: whether the limit is reached, so that the counts should be taken now.
        """
        counted = pc.value_counts(tokens)
        columns = [counted.field("values"), counted.field("counts")]
        self._parts.append(pa.table(columns, schema=COUNTS_SCHEMA))
        self._num_bytes += self._parts[-1].nbytes
        if self._num_bytes < self._max_bytes:
            return False
        self._merge()
        # Where merging frees less than half, it would have to be done again and again.
        return self._num_bytes > self._max_bytes // 2

    def take(self) -> pa.Table:
        """All counts since the last `take`, merged (COUNTS_SCHEMA)."""
        self._merge()
        taken = self._parts[0]
        self._parts, self._num_bytes = [COUNTS_SCHEMA.empty_table()], 0
        return taken

    def _merge(self) -> None:
        self._parts = [merge_counts(*self._parts)]
        self._num_bytes = self._parts[0].nbytes


def merge_counts(*tables: pa.Table) -> pa.Table:
    """Add up tables of COUNTS_SCHEMA, at least one.

    Raises:
        ConfigError: they are too large for one merge.
    """
    table = pa.concat_tables(tables)
    if table["word"].nbytes > MAX_MERGED_BYTES:
        raise ConfigError(
            f"run.num_buckets: the words of one bucket take {table['word'].nbytes:,} bytes where "
            f"they are merged, {MAX_MERGED_BYTES:,} are allowed: set it to a larger number than "
            "the one that --dry-run shows"
        )
    # Without threads, since as many tasks run at once as there are processors.
    merged = table.group_by("word", use_threads=False).aggregate([("count", "sum")])
    return pa.table([merged["word"], merged["count_sum"]], schema=COUNTS_SCHEMA)


def split_by_bucket(counts: pa.Table, num_buckets: int) -> list[pa.Table]:
    """Divide words by a hash, into `num_buckets` tables that share no memory."""
    if num_buckets == 1:
        return [counts]
    words = counts["word"]
    slices = [words.slice(row, HASHED_ROWS) for row in range(0, max(len(words), 1), HASHED_ROWS)]
    bucket = np.concatenate([bucket_of(some, num_buckets) for some in slices])
    order = np.argsort(bucket, kind="stable")
    edges = np.searchsorted(bucket[order], np.arange(num_buckets + 1)).tolist()
    # A slice would carry all of its parent's buffers along when it is pickled.
    return [
        counts.take(pa.array(order[first:last]))
        for first, last in zip(edges[:-1], edges[1:], strict=True)
    ]


def finish_bucket(limits: VocabularyLimits, *tables: pa.Table) -> tuple[pa.Table, BucketTally]:
    """Merge all counts of one bucket and keep what can be in the vocabulary.

    Args:
        limits: which words are kept.
        tables: COUNTS_SCHEMA, at least one.

    Returns: the kept words as `top_words` gives them, without the marks, and what was counted.

    Raises:
        ConfigError: they are too large for one merge.
    """
    counts = merge_counts(*tables)
    words, occurrences = counts["word"], counts["count"]
    is_mark = pc.is_in(words, value_set=pa.array(MARKS))
    is_faulty = _is_faulty(words)
    is_frequent = pc.greater_equal(occurrences, limits.min_count)
    kept = counts.filter(pc.and_not(pc.and_not(is_frequent, is_mark), is_faulty))
    tally = BucketTally(
        num_distinct=counts.num_rows,
        num_kept=kept.num_rows,
        kept_bytes=kept.num_rows + _sum(pc.binary_length(kept["word"])),
        num_faulty=_sum(is_faulty),
        num_faulty_tokens=_sum(occurrences.filter(is_faulty)),
        num_mark_tokens=_sum(occurrences.filter(is_mark)),
        max_count=pc.max(occurrences).as_py() or 0,
    )
    return top_words(limits.room, kept), tally


def top_words(room: int | None, *tables: pa.Table) -> pa.Table:
    """The most frequent words of tables that share none, at most `room` of them.

    Returns: COUNTS_SCHEMA, by falling count, words of equal count by code point.
    """
    table = pa.concat_tables(tables)
    if room is not None and table.num_rows > room:
        occurrences = table["count"].to_numpy()
        threshold = np.partition(occurrences, len(occurrences) - room)[len(occurrences) - room]
        table = table.filter(pc.greater_equal(table["count"], int(threshold)))
    # UTF-8 sorts by bytes as Unicode does by code points.
    order = pc.sort_indices(table, [("count", "descending"), ("word", "ascending")])
    return table.take(order if room is None else order.slice(0, room)).combine_chunks()


def _is_faulty(words: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which words no vocabulary file can hold: those that `Vocabulary.from_counts` leaves out."""
    is_faulty = pc.match_substring_regex(words, _NOT_A_LINE)
    is_faulty = pc.or_(is_faulty, pc.equal(words, SKIPPED_LINE))
    return pc.or_(is_faulty, pc.greater(pc.utf8_length(words), MAX_WORD_CHARACTERS))


def _sum(values: pa.ChunkedArray) -> int:
    return int(pc.sum(values).as_py() or 0)
