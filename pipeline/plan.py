"""The plan pass: what of the corpus is new, changed, unchanged or gone, found by Ray tasks.

A map-reduce over object refs: one task a group of input splits indexes documents (id, content
hash, position) into buckets by a hash of the id; one task a group of data files does the same for
the snapshot; one task a bucket compares the two. The driver holds refs and counts, so its memory
does not grow with the corpus. Knows no encoder and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline.cluster import ray_errors
from pipeline.compare import INDEX_SCHEMA, KNOWN_SCHEMA, bucket_of, compare
from pipeline.config import EmbedConfig
from pipeline.embed import Partition
from pipeline.errors import SourceError
from pipeline.known import read_known
from pipeline.records import REJECTED_SCHEMA, RejectedRow, SourceSplit, rejected_table
from pipeline.snapshot.metadata import Snapshot
from pipeline.sources.discover import Discovery
from pipeline.sources.read import read_documents
from pipeline.storage import open_storage
from pipeline.text import tokenise

MAX_GROUPS = 200
DOCUMENTS_PER_BUCKET = 500_000
MAX_PARTITIONS = 10_000
SAMPLED_DOCUMENTS = 64


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
class PlannedRead:
    """A group of splits with the documents to embed: a ref to a table of INDEX_SCHEMA."""

    splits: tuple[SourceSplit, ...]
    selected: Any
    num_documents: int


@dataclass(frozen=True)
class PlannedDrop:
    """Documents that leave one data file of the parent: refs to tables of KNOWN_SCHEMA."""

    file: int
    dropped: tuple[Any, ...]
    num_documents: int


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    corpus: CorpusCounts
    num_new: int
    num_changed: int
    num_unchanged: int
    num_gone: int
    num_duplicates: int
    reads: tuple[PlannedRead, ...]
    drops: tuple[PlannedDrop, ...]
    rejected: tuple[Any, ...]

    @property
    def num_selected(self) -> int:
        """Documents to embed."""
        return self.num_new + self.num_changed

    @property
    def num_rejected(self) -> int:
        """Rows rejected so far, duplicates included."""
        return self.corpus.rejected + self.num_duplicates

    @property
    def estimated_tokens(self) -> int:
        """Tokens of the documents to embed, extrapolated from the sample."""
        return self._extrapolate(self.corpus.sampled_tokens)

    @property
    def estimated_sentences(self) -> int:
        """Sentences of the documents to embed, extrapolated from the sample."""
        return self._extrapolate(self.corpus.sampled_sentences)

    def _extrapolate(self, sampled: int) -> int:
        corpus = self.corpus
        if not corpus.documents or not corpus.sampled_bytes:
            return 0
        share = self.num_selected / corpus.documents
        return round(sampled * corpus.text_bytes / corpus.sampled_bytes * share)


def make_plan(config: EmbedConfig, discovery: Discovery, parent: Snapshot | None) -> Plan:
    """Compare the corpus with the parent snapshot.

    Args:
        config: the run's configuration.
        discovery: the input's splits.
        parent: the snapshot to build on; None embeds everything.

    Raises:
        SourceError: an input file is broken, or there are too many partitions.
    """
    with ray_errors():
        return _make_plan(config, discovery, parent)


def _make_plan(config: EmbedConfig, discovery: Discovery, parent: Snapshot | None) -> Plan:
    groups = group_splits(discovery.splits, MAX_GROUPS)
    known_documents = sum(file.num_documents for file in parent.files) if parent else 0
    source_bytes = sum(split.size_bytes for split in discovery.splits)
    # The number of documents is not known yet; 100 bytes a document errs towards more buckets.
    guess = max(known_documents, source_bytes // 100)
    num_buckets = min(MAX_GROUPS, 1 + guess // DOCUMENTS_PER_BUCKET)
    index_task = ray.remote(num_returns=num_buckets + 2)(_index_group)
    known_task = ray.remote(num_returns=num_buckets)(_index_known)
    indexed = [index_task.remote(config, group, num_buckets) for group in groups]
    known = [
        _as_list(known_task.remote(config.output.path, files, num_buckets))
        for files in _group_files(parent)
    ]
    corpus = CorpusCounts()
    for refs in indexed:
        corpus.add(ray.get(refs[-2]))
        if len(corpus.partitions) > MAX_PARTITIONS:
            raise SourceError(
                f"source.partition_columns {list(config.source.partition_columns)} have more than "
                f"{MAX_PARTITIONS} distinct values; every one is a folder of the output: choose "
                "columns with fewer values"
            )
    compare_task = ray.remote(num_returns=len(groups) + 3)(_compare_bucket)
    first_splits = [group[0].index for group in groups]
    compared = [
        compare_task.remote(
            first_splits,
            discovery.splits,
            # What an unreadable file held is not gone: nothing is known about it.
            bool(discovery.files_rejected or corpus.bad_files),
            "duplicate_text" if config.source.id_column is None else "duplicate_id",
            [refs[bucket] for refs in indexed],
            [refs[bucket] for refs in known],
        )
        for bucket in range(num_buckets)
    ]
    summaries: list[_BucketSummary] = ray.get([refs[-3] for refs in compared])
    rejected = [refs[-1] for refs in indexed] + [refs[-1] for refs in compared]
    if discovery.rejected:
        rejected.append(ray.put(rejected_table(discovery.rejected)))
        corpus.rejected += len(discovery.rejected)
    return Plan(
        corpus=corpus,
        num_new=sum(summary.num_new for summary in summaries),
        num_changed=sum(summary.num_changed for summary in summaries),
        num_unchanged=sum(summary.num_unchanged for summary in summaries),
        num_gone=sum(summary.num_gone for summary in summaries),
        num_duplicates=sum(summary.num_duplicates for summary in summaries),
        reads=_planned_reads(groups, compared, summaries),
        drops=_planned_drops(compared, summaries),
        rejected=tuple(rejected),
    )


@dataclass(frozen=True)
class _BucketSummary:
    num_new: int
    num_changed: int
    num_unchanged: int
    num_gone: int
    num_duplicates: int
    selected_per_group: tuple[int, ...]
    dropped_per_file: dict[int, int]


def group_splits(
    splits: Sequence[SourceSplit], max_groups: int
) -> tuple[tuple[SourceSplit, ...], ...]:
    """Consecutive splits in at most `max_groups` groups of about equal bytes, none empty."""
    if not splits:
        return ()
    sizes = np.array([max(split.size_bytes, 1) for split in splits], dtype=np.float64)
    middles = np.cumsum(sizes) - sizes / 2
    num_groups = min(max_groups, len(splits))
    group_of_split = np.floor(middles / sizes.sum() * num_groups).astype(int)
    groups: dict[int, list[SourceSplit]] = {}
    for group, split in zip(group_of_split.tolist(), splits, strict=True):
        groups.setdefault(group, []).append(split)
    return tuple(tuple(group) for group in groups.values())


def _group_files(parent: Snapshot | None) -> list[list[tuple[int, str]]]:
    if parent is None or not parent.files:
        return []
    numbered = [(index, file.path) for index, file in enumerate(parent.files)]
    size = -(-len(numbered) // MAX_GROUPS)
    return [numbered[first : first + size] for first in range(0, len(numbered), size)]


def _index_group(
    config: EmbedConfig, splits: Sequence[SourceSplit], num_buckets: int
) -> tuple[Any, ...]:
    """Returns a table of INDEX_SCHEMA a bucket, then the counts, then the rejected rows."""
    counts = CorpusCounts()
    tables: list[pa.Table] = []
    rejected: list[RejectedRow] = []
    for split in splits:
        sampled = False
        for batch in read_documents(split, config.source, config.text):
            documents = batch.documents
            rejected.extend(batch.rejected)
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
    counts.rejected = len(rejected)
    counts.bad_files = sum(row.offset is None for row in rejected)
    index = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()
    return (*_split_by_bucket(index, num_buckets), counts, rejected_table(rejected))


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


def _index_known(url: str, files: Sequence[tuple[int, str]], num_buckets: int) -> Any:
    storage = open_storage(url)
    tables = [KNOWN_SCHEMA.empty_table()]
    for index, path in files:
        known = read_known(storage, path)
        file_column = pa.repeat(pa.scalar(index, pa.int32()), known.num_rows)
        tables.append(known.append_column(KNOWN_SCHEMA.field("file"), file_column))
    buckets = _split_by_bucket(pa.concat_tables(tables), num_buckets)
    return buckets if num_buckets > 1 else buckets[0]


def _split_by_bucket(table: pa.Table, num_buckets: int) -> list[pa.Table]:
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


def _compare_bucket(
    first_splits: Sequence[int],
    splits: Sequence[SourceSplit],
    keep_gone: bool,
    duplicate_code: str,
    corpus_refs: Sequence[Any],
    known_refs: Sequence[Any],
) -> tuple[Any, ...]:
    """Returns the selected rows of each group, then the summary, dropped and rejected rows."""
    corpus = pa.concat_tables([INDEX_SCHEMA.empty_table(), *ray.get(list(corpus_refs))])
    known = pa.concat_tables([KNOWN_SCHEMA.empty_table(), *ray.get(list(known_refs))])
    result = compare(corpus, known, keep_gone=keep_gone)
    # The corpus is in source order, so each group's selection is one run of rows.
    split_numbers = result.selected["split"].to_numpy()
    edges = [*np.searchsorted(split_numbers, first_splits).tolist(), len(split_numbers)]
    selected = [
        _copy_rows(result.selected, first, last)
        for first, last in zip(edges[:-1], edges[1:], strict=True)
    ]
    files, counts = np.unique(result.dropped["file"].to_numpy(), return_counts=True)
    summary = _BucketSummary(
        num_new=result.num_new,
        num_changed=result.num_changed,
        num_unchanged=result.num_unchanged,
        num_gone=result.num_gone,
        num_duplicates=result.duplicates.num_rows,
        selected_per_group=tuple(table.num_rows for table in selected),
        dropped_per_file=dict(zip(files.tolist(), counts.tolist(), strict=True)),
    )
    return (
        *selected,
        summary,
        result.dropped,
        _duplicate_rows(result.duplicates, splits, duplicate_code),
    )


def _duplicate_rows(duplicates: pa.Table, splits: Sequence[SourceSplit], code: str) -> pa.Table:
    same = "id" if code == "duplicate_id" else "text"
    path_of_split = {split.index: split.path for split in splits}
    if not duplicates.num_rows:
        return REJECTED_SCHEMA.empty_table()
    return rejected_table(
        [
            RejectedRow(
                source=path_of_split[row["split"]],
                offset=row["offset"],
                id=row["id"],
                stage="plan",
                code=code,
                message=f"an earlier row of the corpus has the same {same}; that one is kept",
            )
            for row in duplicates.to_pylist()
        ]
    )


def _planned_reads(
    groups: Sequence[tuple[SourceSplit, ...]],
    compared: Sequence[Sequence[Any]],
    summaries: Sequence[_BucketSummary],
) -> tuple[PlannedRead, ...]:
    concat_task = ray.remote(_concat)
    reads = []
    for number, group in enumerate(groups):
        count = sum(summary.selected_per_group[number] for summary in summaries)
        if not count:
            continue
        refs = [refs[number] for refs in compared]
        selected = refs[0] if len(refs) == 1 else concat_task.remote(*refs)
        reads.append(PlannedRead(group, selected, count))
    return tuple(reads)


def _planned_drops(
    compared: Sequence[Sequence[Any]], summaries: Sequence[_BucketSummary]
) -> tuple[PlannedDrop, ...]:
    drops: dict[int, PlannedDrop] = {}
    for refs, summary in zip(compared, summaries, strict=True):
        for file, count in summary.dropped_per_file.items():
            drop = drops.get(file, PlannedDrop(file, (), 0))
            drops[file] = replace(
                drop,
                dropped=(*drop.dropped, refs[-2]),
                num_documents=drop.num_documents + count,
            )
    return tuple(drops[file] for file in sorted(drops))


def _concat(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables)


def _as_list(refs: Any) -> Sequence[Any]:
    return refs if isinstance(refs, list) else [refs]
