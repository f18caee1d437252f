"""The plan pass: what of the corpus is new, changed, unchanged or gone, found by Ray tasks.

A map-reduce over object refs: one task a group of input splits indexes documents (id, content
hash, position) into buckets by a hash of the id; one task a group of data files does the same for
what has vectors already; one task a bucket compares the two. The driver holds refs and counts, so
its memory does not grow with the corpus. Knows no encoder and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from pipeline.cluster import ray_errors
from pipeline.compare import KnownFiles
from pipeline.config import EmbedConfig
from pipeline.errors import SourceError
from pipeline.plan_tasks import (
    BucketSummary,
    CompareTask,
    CorpusCounts,
    NumberedFile,
    compare_bucket,
    concat_selected,
    index_group,
    index_known,
)
from pipeline.records import SourceSplit, rejected_table
from pipeline.snapshot.metadata import DataFile
from pipeline.sources.discover import Discovery
from pipeline.watch import gather

MAX_GROUPS = 200
DOCUMENTS_PER_BUCKET = 500_000
MAX_PARTITIONS = 10_000


@dataclass(frozen=True)
class PlannedRead:
    """A group of splits with documents that get new rows.

    `selected` is a ref to a table of SELECTED_SCHEMA, in the order of the splits. `num_documents`
    are to be embedded, the vectors of `num_metadata_only` more are known.
    """

    splits: tuple[SourceSplit, ...]
    selected: Any
    num_documents: int
    num_metadata_only: int = 0


@dataclass(frozen=True)
class PlannedDrop:
    """How many documents leave one known file."""

    file: int
    num_documents: int


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    `dropped` has a ref to a table of KNOWN_SCHEMA for each bucket, by ascending `file`: what leaves
    its file; `operations` one to a table of OPERATION_SCHEMA. `unusable` are the numbers of known
    files that must not be listed.
    """

    corpus: CorpusCounts
    num_new: int
    num_changed: int
    num_unchanged: int
    num_resumed: int
    num_metadata_only: int
    num_gone: int
    num_duplicates: int
    reads: tuple[PlannedRead, ...]
    drops: tuple[PlannedDrop, ...]
    dropped: tuple[Any, ...]
    rejected: tuple[Any, ...]
    operations: tuple[Any, ...]
    unusable: frozenset[int]

    @property
    def num_selected(self) -> int:
        """Documents to embed."""
        return self.num_new + self.num_changed - self.num_resumed - self.num_metadata_only

    @property
    def has_work(self) -> bool:
        """Whether the new snapshot would hold other documents than the parent."""
        return bool(self.num_new + self.num_changed + self.num_gone)

    @property
    def num_rejected(self) -> int:
        """Rows rejected so far, duplicates included."""
        return self.corpus.rejected + self.num_duplicates

    @property
    def num_rows_in(self) -> int:
        """Rows of the input: documents and what was rejected; a bad file counts as one."""
        return self.corpus.documents + self.corpus.rejected

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


def make_plan(
    config: EmbedConfig, discovery: Discovery, known: Sequence[DataFile], how: KnownFiles
) -> Plan:
    """Compare the corpus with what has vectors already.

    Args:
        config: the run's configuration.
        discovery: the input's splits.
        known: data files of the parent, then those of interrupted runs.
        how: how many of them are the parent's, and what they are good for.

    Raises:
        SourceError: an input file is broken, or there are too many partitions.
        CorruptFileError: a file of the parent is damaged.
        ClusterError: nothing moved for too long.
    """
    with ray_errors():
        return _make_plan(config, discovery, known, how)


def _make_plan(
    config: EmbedConfig, discovery: Discovery, known: Sequence[DataFile], how: KnownFiles
) -> Plan:
    groups = group_splits(discovery.splits, MAX_GROUPS)
    file_groups = _group_files(known)
    num_buckets = _num_buckets(discovery, known)
    index_task = ray.remote(num_returns=num_buckets + 2)(index_group)
    known_task = ray.remote(num_returns=num_buckets + 1)(index_known)
    of_corpus = [index_task.remote(config, group, num_buckets) for group in groups]
    of_known = [
        known_task.remote(config.output.path, files, how.num_parent_files, num_buckets)
        for files in file_groups
    ]
    timeout_s = config.run.no_progress_timeout_s
    corpus = CorpusCounts()
    done = [refs[-2] for refs in of_corpus]
    for counts in gather(done, "indexing the corpus", timeout_s, _names(groups)):
        corpus.add(counts)
    if len(corpus.partitions) > MAX_PARTITIONS:
        raise SourceError(
            f"source.partition_columns {list(config.source.partition_columns)} have more than "
            f"{MAX_PARTITIONS} distinct values; every one is a folder of the output: choose "
            "columns with fewer values"
        )
    # What an unreadable file held is not gone: nothing is known about it.
    keep_gone = how.keep_gone or bool(discovery.files_rejected or corpus.bad_files)
    task = CompareTask(
        files=replace(how, keep_gone=keep_gone and how.reuse_parent),
        splits=discovery.splits,
        first_splits=tuple(group[0].index for group in groups),
        num_corpus=len(groups),
        duplicate_code="duplicate_text" if config.source.id_column is None else "duplicate_id",
    )
    compare_task = ray.remote(num_returns=task.num_returns)(compare_bucket)
    task_ref = ray.put(task)
    compared = [
        compare_task.remote(
            task_ref, *(refs[bucket] for refs in of_corpus), *(refs[bucket] for refs in of_known)
        )
        for bucket in range(num_buckets)
    ]
    summaries = gather([refs[-1] for refs in compared], "comparing with the snapshot", timeout_s)
    unusable = gather([refs[-1] for refs in of_known], "indexing the snapshot", timeout_s)
    rejected = [refs[-1] for refs in of_corpus] + [refs[-2] for refs in compared]
    if discovery.rejected:
        rejected.append(ray.put(rejected_table(discovery.rejected)))
        corpus.rejected += len(discovery.rejected)
    return Plan(
        corpus=corpus,
        **{
            name: sum(getattr(summary, name) for summary in summaries)
            for name in BucketSummary.__dataclass_fields__
            if name.startswith("num_")
        },
        reads=_planned_reads(groups, compared, summaries),
        drops=_planned_drops(len(known), summaries),
        dropped=tuple(refs[-4] for refs in compared),
        rejected=tuple(rejected),
        operations=tuple(refs[-3] for refs in compared),
        unusable=frozenset(number for numbers in unusable for number in numbers),
    )


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


def _names(groups: Sequence[Sequence[SourceSplit]]) -> list[str]:
    """What to call each group in a message: its first files."""
    names = []
    for group in groups:
        paths = list(dict.fromkeys(split.path for split in group))
        more = f" or one of {len(paths) - 3} other files" if len(paths) > 3 else ""
        names.append(", ".join(paths[:3]) + more)
    return names


def _group_files(files: Sequence[DataFile]) -> list[list[NumberedFile]]:
    numbered = list(enumerate(files))
    size = max(1, -(-len(numbered) // MAX_GROUPS))
    return [numbered[first : first + size] for first in range(0, len(numbered), size)]


def _num_buckets(discovery: Discovery, known: Sequence[DataFile]) -> int:
    # The number of documents is not known yet; 100 bytes a document errs towards more buckets.
    guess = sum(split.size_bytes for split in discovery.splits) // 100
    guess = max(guess, sum(file.num_documents for file in known))
    return int(min(MAX_GROUPS, 1 + guess // DOCUMENTS_PER_BUCKET))


def _planned_reads(
    groups: Sequence[tuple[SourceSplit, ...]],
    compared: Sequence[Sequence[Any]],
    summaries: Sequence[BucketSummary],
) -> tuple[PlannedRead, ...]:
    concat_task = ray.remote(concat_selected)
    reads = []
    for number, group in enumerate(groups):
        embedded = sum(summary.embedded_per_group[number] for summary in summaries)
        metadata_only = sum(summary.metadata_only_per_group[number] for summary in summaries)
        if embedded or metadata_only:
            refs = [refs[number] for refs in compared]
            # One ref a group: every reading task carries the refs of all groups along.
            selected = refs[0] if len(refs) == 1 else concat_task.remote(*refs)
            reads.append(PlannedRead(group, selected, embedded, metadata_only))
    return tuple(reads)


def _planned_drops(num_known: int, summaries: Sequence[BucketSummary]) -> tuple[PlannedDrop, ...]:
    counts = np.zeros(num_known, np.int64)
    for summary in summaries:
        counts[summary.dropped_files] += summary.dropped_counts
    return tuple(PlannedDrop(int(n), int(counts[n])) for n in np.flatnonzero(counts))
