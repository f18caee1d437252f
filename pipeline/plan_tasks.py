"""What the tasks of the plan pass do: index parts of the corpus and the snapshot, compare buckets.

Plain functions over tables: no Ray here. Every task returns a tuple with one table for each task of
the next step, so that nobody reads more than its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.compare import (
    INDEX_SCHEMA,
    KNOWN_SCHEMA,
    Comparison,
    KnownFiles,
    bucket_of,
    compare,
)
from pipeline.config import EmbedConfig
from pipeline.embed import Partition
from pipeline.errors import CorruptFileError, PipelineError
from pipeline.excerpt import MAX_MESSAGE_CHARS
from pipeline.known import read_known
from pipeline.records import REJECTED_SCHEMA, SourceSplit
from pipeline.snapshot.metadata import DataFile
from pipeline.sources.read import read_documents
from pipeline.storage import Storage, open_storage
from pipeline.text import tokenise

SAMPLED_DOCUMENTS = 64

# Data files with their numbers in the run's list of known files.
NumberedFile = tuple[int, DataFile]


@dataclass
class CorpusCounts:
    """What the index tasks saw; the estimates come from a sample of every split."""

    documents: int = 0
    rejected: int = 0
    bad_files: int = 0
    text_bytes: int = 0
    sampled_bytes: int = 0
    sampled_documents: int = 0
    sampled_sentences: int = 0
    sampled_tokens: int = 0
    partitions: dict[Partition, int] = field(default_factory=dict)

    def add(self, other: CorpusCounts) -> None:
        """Add another group's counts to these."""
        for name in vars(self):
            if name != "partitions":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for partition, count in other.partitions.items():
            self.partitions[partition] = self.partitions.get(partition, 0) + count


@dataclass(frozen=True)
class BucketSummary:
    """The counts of one bucket.

    Selected documents are counted by group of splits. `dropped_files` are the numbers of the files
    that lose documents, `dropped_counts` how many: as arrays, since the driver holds those of all
    buckets at once.
    """

    num_new: int
    num_changed: int
    num_unchanged: int
    num_resumed: int
    num_metadata_only: int
    num_gone: int
    num_duplicates: int
    embedded_per_group: tuple[int, ...]
    metadata_only_per_group: tuple[int, ...]
    dropped_files: NDArray[np.int32]
    dropped_counts: NDArray[np.int64]


@dataclass(frozen=True)
class CompareTask:
    """What all buckets have in common.

    `first_splits` are the numbers with which the groups of splits begin; `num_corpus` of the tables
    that a task gets are of the corpus, the rest known.
    """

    files: KnownFiles
    splits: tuple[SourceSplit, ...]
    first_splits: tuple[int, ...]
    num_corpus: int
    duplicate_code: str

    @property
    def num_returns(self) -> int:
        """Tables and records that `compare_bucket` returns."""
        return len(self.first_splits) + 4


def index_group(
    config: EmbedConfig, splits: Sequence[SourceSplit], num_buckets: int
) -> tuple[Any, ...]:
    """Index some splits of the corpus.

    Returns: a table of INDEX_SCHEMA for each bucket, then CorpusCounts, then the rejected rows.
    """
    counts = CorpusCounts()
    tables: list[pa.Table] = []
    rejected = [REJECTED_SCHEMA.empty_table()]
    for split in splits:
        sampled = False
        for batch in read_documents(split, config.source, config.text):
            documents = batch.documents
            rejected.append(batch.rejected.table)
            if documents.num_rows and not sampled:
                _sample(documents.slice(0, SAMPLED_DOCUMENTS), config, counts)
                sampled = True
            counts.documents += documents.num_rows
            counts.text_bytes += documents["text"].nbytes
            _count_partitions(documents, config.source.partition_columns, counts.partitions)
            split_column = pa.repeat(pa.scalar(split.index, pa.int32()), documents.num_rows)
            columns = [documents["id"], documents["content_hash"], split_column]
            columns.append(documents["_offset"])
            tables.append(pa.table(columns, schema=INDEX_SCHEMA))
    rejected_rows = pa.concat_tables(rejected)
    counts.rejected = rejected_rows.num_rows
    counts.bad_files = rejected_rows["offset"].null_count
    index = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()
    return (*split_by_bucket(index, num_buckets), counts, rejected_rows)


def _sample(documents: pa.Table, config: EmbedConfig, counts: CorpusCounts) -> None:
    tokens = tokenise(documents, config.text)
    counts.sampled_documents += documents.num_rows
    counts.sampled_bytes += documents["text"].nbytes
    counts.sampled_sentences += len(tokens["sentence_lengths"].combine_chunks().flatten())
    counts.sampled_tokens += len(tokens["tokens"].combine_chunks().flatten())


def _count_partitions(
    documents: pa.Table, columns: Sequence[str], partitions: dict[Partition, int]
) -> None:
    if not columns:
        if documents.num_rows:
            partitions[()] = partitions.get((), 0) + documents.num_rows
        return
    counted = documents.group_by(list(columns)).aggregate([([], "count_all")])
    keys = zip(*(counted[name].to_pylist() for name in columns), strict=True)
    for key, count in zip(keys, counted["count_all"].to_pylist(), strict=True):
        partitions[key] = partitions.get(key, 0) + count


def index_known(
    url: str, files: Sequence[NumberedFile], num_parent_files: int, num_buckets: int
) -> tuple[Any, ...]:
    """Index some data files.

    Returns: a table of KNOWN_SCHEMA for each bucket, then the numbers of those files of interrupted
        runs that cannot be used.

    Raises:
        CorruptFileError: a file of the parent does not hold what its manifest says.
    """
    storage = open_storage(url)
    tables = [KNOWN_SCHEMA.empty_table()]
    unusable: list[int] = []
    for number, file in files:
        try:
            known = _documents(storage, file)
        except PipelineError:
            if number < num_parent_files:
                raise
            unusable.append(number)
            continue
        file_column = pa.repeat(pa.scalar(number, pa.int32()), known.num_rows)
        tables.append(known.append_column(KNOWN_SCHEMA.field("file"), file_column))
    return (*split_by_bucket(pa.concat_tables(tables), num_buckets), unusable)


def _documents(storage: Storage, file: DataFile) -> pa.Table:
    known = read_known(storage, file.path)
    if known.num_rows != file.num_documents:
        raise CorruptFileError(
            f"{storage.url_of(file.path)}: the manifest promises {file.num_documents} documents, "
            f"found {known.num_rows}: the file was changed or damaged; restore it, or roll back to "
            "a snapshot that does not hold it"
        )
    return known


def compare_bucket(task: CompareTask, *tables: pa.Table) -> tuple[Any, ...]:
    """Compare one bucket: its tables of the corpus first, then those of known files, in order.

    Returns: the selected rows (SELECTED_SCHEMA) of each group of splits, then the dropped rows
        (KNOWN_SCHEMA, by ascending `file`), the operations, the rejected duplicates and the
        summary.
    """
    corpus = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables[: task.num_corpus]])
    known = pa.concat_tables([KNOWN_SCHEMA.empty_table(), *tables[task.num_corpus :]])
    result = compare(corpus, known, task.files)
    # The corpus is in the order of its splits, so each group's part is one run of rows.
    selected = _cut(result.selected, "split", task.first_splits)
    return (
        *selected,
        result.dropped.combine_chunks(),
        result.operations,
        _duplicate_rows(result.duplicates, corpus, task),
        _summary(result, selected),
    )


def concat_selected(*tables: pa.Table) -> pa.Table:
    """The selected rows of one group of splits from all buckets, in the order of the splits."""
    table = pa.concat_tables(tables)
    return table.take(pc.sort_indices(table["split"]))


def _cut(table: pa.Table, column: str, firsts: Sequence[int]) -> list[pa.Table]:
    numbers = table[column].to_numpy()
    edges = [*np.searchsorted(numbers, firsts).tolist(), len(numbers)]
    return [_copy_rows(table, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _summary(result: Comparison, selected: Sequence[pa.Table]) -> BucketSummary:
    files, counts = np.unique(result.dropped["file"].to_numpy(), return_counts=True)
    embedded = tuple(table["file"].null_count for table in selected)
    return BucketSummary(
        num_new=result.num_new,
        num_changed=result.num_changed,
        num_unchanged=result.num_unchanged,
        num_resumed=result.num_resumed,
        num_metadata_only=result.num_metadata_only,
        num_gone=result.num_gone,
        num_duplicates=result.duplicates.num_rows,
        embedded_per_group=embedded,
        metadata_only_per_group=tuple(
            table.num_rows - count for table, count in zip(selected, embedded, strict=True)
        ),
        dropped_files=files,
        dropped_counts=counts,
    )


def split_by_bucket(table: pa.Table, num_buckets: int) -> list[pa.Table]:
    """Divide rows by the bucket of their `id`; their order stays."""
    if num_buckets == 1:
        return [table.combine_chunks()]
    bucket = bucket_of(table["id"], num_buckets)
    order = np.argsort(bucket, kind="stable")
    edges = np.searchsorted(bucket[order], np.arange(num_buckets + 1))
    ordered = table.take(pa.array(order)).combine_chunks()
    return [
        _copy_rows(ordered, first, last)
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]


def _copy_rows(table: pa.Table, first: int, last: int) -> pa.Table:
    # A slice would carry all of its parent's buffers along when it is pickled.
    return table.take(pa.array(np.arange(first, last)))


def _duplicate_rows(duplicates: pa.Table, corpus: pa.Table, task: CompareTask) -> pa.Table:
    num_rows = duplicates.num_rows
    if not num_rows:
        return REJECTED_SCHEMA.empty_table()
    # Of equal values the index is that of the first, which is the row that is kept.
    kept = corpus.take(pc.index_in(duplicates["id"], value_set=corpus["id"].combine_chunks()))
    numbers = pa.array([split.index for split in task.splits], pa.int32())
    paths = pa.array([split.path for split in task.splits], pa.string())
    kept_source = paths.take(pc.index_in(kept["split"], value_set=numbers))
    same = "id" if task.duplicate_code == "duplicate_id" else "text"
    messages = pc.binary_join_element_wise(
        f"an earlier row of the corpus has the same {same}; that one is kept: offset ",
        kept["offset"].cast(pa.string()),
        " of ",
        kept_source,
        "",
    )
    return pa.table(
        [
            paths.take(pc.index_in(duplicates["split"], value_set=numbers)),
            duplicates["offset"],
            duplicates["id"],
            pa.repeat(pa.scalar("plan"), num_rows),
            pa.repeat(pa.scalar(task.duplicate_code), num_rows),
            pc.utf8_slice_codeunits(messages, 0, MAX_MESSAGE_CHARS),
            pa.nulls(num_rows, pa.string()),
            kept_source,
        ],
        schema=REJECTED_SCHEMA,
    )
