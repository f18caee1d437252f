"""Count the words of a corpus with Ray tasks and choose those of a vocabulary.

One task a group of splits counts words and hands partial counts on, bucket by bucket; they are
merged as they come, a few at a time; one task a bucket keeps what can be in the vocabulary; of that
the most frequent stay, again a few tables at a time. The driver holds refs and in the end the
vocabulary, never all words.

Plain tasks and not Ray Data, whose aggregating shuffle holds all partial counts in the memory of
its actors until reading ends, where objects of tasks are spilled to disk and made again when lost.
Knows no files that are written.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from elmo_model.files import MAX_VOCABULARY_BYTES
from pipeline.cluster import connect, nodes, ray_errors
from pipeline.count_tasks import ReadTally, count_group
from pipeline.errors import ConfigError, EmptySourceError
from pipeline.merge_tree import FAN_IN, MergeTree
from pipeline.plan import group_splits
from pipeline.records import SourceSplit, rejected_table
from pipeline.rejected import check_rejected
from pipeline.sources.discover import Discovery
from pipeline.vocabulary_config import VocabularyConfig
from pipeline.watch import POLL_S, gather, no_progress
from pipeline.word_counts import BucketTally, finish_bucket, merge_counts, top_words

# Reading tasks are as large as this, or larger where there would be too many.
TASK_BYTES = 256 << 20
MIN_TASKS, MAX_TASKS = 200, 2000
# So much of the corpus may lie behind one bucket of words. As text grows, new words become rarer:
# a bucket of the largest corpora, a trillion words, holds a few million.
BUCKET_BYTES = 128 << 20
MAX_BUCKETS = 200
# Reading tasks that are started or wait for a processor, for each processor of the cluster.
TASKS_PER_CPU = 2

log = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CountingPlan:
    """How a corpus is divided: the splits of each reading task, and the buckets of its words."""

    groups: tuple[tuple[SourceSplit, ...], ...]
    num_buckets: int


@dataclass(frozen=True)
class CountedWords:
    """What a count found.

    `kept` are the vocabulary's words with their counts (COUNTS_SCHEMA), without the marks, as
    `top_words` gives them. `read` is of the whole corpus, `words` of all its words.
    """

    kept: pa.Table
    read: ReadTally
    words: BucketTally

    @property
    def num_covered_tokens(self) -> int:
        """Tokens of the corpus that are kept words or marks."""
        return int(pc.sum(self.kept["count"]).as_py()) + self.words.num_mark_tokens

    @property
    def covered_share(self) -> float:
        """Their share of all tokens."""
        return self.num_covered_tokens / self.read.tokens


def plan_counting(config: VocabularyConfig, discovery: Discovery) -> CountingPlan:
    """Divide a corpus by its size in files; nothing is read."""
    num_tasks = min(max(discovery.size_bytes // TASK_BYTES, MIN_TASKS), MAX_TASKS)
    chosen = min(1 + discovery.size_bytes // BUCKET_BYTES, MAX_BUCKETS)
    num_buckets = config.run.num_buckets or chosen
    return CountingPlan(group_splits(discovery.splits, num_tasks), num_buckets)


def count_words(
    config: VocabularyConfig,
    discovery: Discovery,
    on_progress: ProgressCallback = lambda documents, tokens, note: None,
) -> CountedWords:
    """Count all words of a corpus and choose those of the vocabulary.

    Args:
        config: source, text, limits.
        discovery: of `config.source`.
        on_progress: gets the documents and tokens read by now, and how many tasks are done.

    Raises:
        EmptySourceError: the corpus has no documents.
        TooManyRejectsError: over the limits of `config.run`.
        ConfigError: no word is left by `vocabulary.min_count`, or too many.
        SourceError: a file is bad, or changed meanwhile.
        ClusterError: nothing moved for too long, or a file killed the tasks that read it.
    """
    connect()
    plan = plan_counting(config, discovery)
    timeout_s = config.run.no_progress_timeout_s
    with ray_errors():
        reading = _Reading(config, plan, on_progress)
        reading.tally.rejected.reject(rejected_table(discovery.rejected))
        reading.run()
        _check_read(config, reading.tally)
        finish_task = ray.remote(num_returns=2)(finish_bucket)
        finished = [finish_task.remote(config.vocabulary, *tree.parts()) for tree in reading.trees]
        reading.trees.clear()
        tallies = gather([refs[1] for refs in finished], "merging the counts of words", timeout_s)
        words = sum(tallies, BucketTally())
        _check_kept(config, words)
        top_task = ray.remote(top_words)
        refs = [refs[0] for refs in finished]
        while len(refs) > 1:
            few = [refs[first : first + FAN_IN] for first in range(0, len(refs), FAN_IN)]
            refs = [top_task.remote(config.vocabulary.room, *some) for some in few]
        (kept,) = gather(refs, "choosing the most frequent words", timeout_s)
    return CountedWords(kept, reading.tally, words)


class _Reading:
    """The reading tasks, and the merges of what they hand on."""

    def __init__(
        self, config: VocabularyConfig, plan: CountingPlan, on_progress: ProgressCallback
    ) -> None:
        merge_task = ray.remote(merge_counts)
        self.trees = [MergeTree[Any](merge_task.remote) for _ in range(plan.num_buckets)]
        self.tally = ReadTally()
        self._config = ray.put(config)
        self._timeout_s = config.run.no_progress_timeout_s
        self._waiting = deque(plan.groups)
        self._num_groups = len(plan.groups)
        self._running: dict[Any, _Stream] = {}
        self._on_progress = on_progress

    def run(self) -> None:
        """Read everything.

        Raises:
            PipelineError: what a task raised, or nothing moved for too long.
        """
        count_task = ray.remote(num_returns="streaming")(count_group)
        started, moved = time.monotonic(), None
        try:
            while self._waiting or self._running:
                self._start(count_task)
                ready, _ = ray.wait(list(self._running), timeout=POLL_S, fetch_local=False)
                if ready:
                    moved = time.monotonic()
                    self._take(ready[0])
                elif time.monotonic() - (moved or started) >= self._timeout_s:
                    done = f"{self._describe()} are done"
                    raise no_progress("counting words", done, self._timeout_s, started, moved)
        except BaseException:
            for task in self._running:
                with contextlib.suppress(Exception):
                    ray.cancel(task, force=True)
            raise

    def _start(self, count_task: Any) -> None:
        if not self._waiting:
            return
        num_cpus = sum(node.num_cpus for node in nodes())
        while self._waiting and len(self._running) < max(1, TASKS_PER_CPU * num_cpus):
            group = self._waiting.popleft()
            task = count_task.remote(self._config, group, len(self.trees))
            self._running[task] = _Stream(_name(group))

    def _take(self, task: Any) -> None:
        """Take the next object of a task: the counts of a bucket, or after the last a tally."""
        stream = self._running[task]
        try:
            ref = next(task)
        except StopIteration:
            del self._running[task]
            if stream.bucket:
                # What should have been a bucket's counts is the task's error.
                gather([stream.last], "counting words", self._timeout_s, [stream.name])
            self._report()
            return
        if stream.bucket < len(self.trees):
            stream.last = ref
            self.trees[stream.bucket].add(ref)
            stream.bucket += 1
            return
        stream.bucket = 0
        (tally,) = gather([ref], "counting words", self._timeout_s, [stream.name])
        self.tally.add(tally)
        self._report()

    def _report(self) -> None:
        self._on_progress(self.tally.documents, self.tally.tokens, self._describe())

    def _describe(self) -> str:
        num_done = self._num_groups - len(self._waiting) - len(self._running)
        return f"{num_done} of {self._num_groups} tasks"


@dataclass
class _Stream:
    """What comes of a reading task: `bucket` is that of its next object, `last` the last one."""

    name: str
    bucket: int = 0
    last: Any = None


def _name(group: Sequence[SourceSplit]) -> str:
    paths = list(dict.fromkeys(split.path for split in group))
    return paths[0] + (f" or one of {len(paths) - 1} other files" if len(paths) > 1 else "")


def _check_read(config: VocabularyConfig, read: ReadTally) -> None:
    paths = ", ".join(config.source.paths)
    num_rows = read.documents + read.rejected.total
    read.rejected.tell(num_rows)
    check_rejected(read.rejected.by_code, num_rows, config.run.reject_limits, paths)
    if not read.documents:
        raise EmptySourceError(
            f"{paths}: expected at least one document to count the words of, found none among "
            f"{num_rows} rows; mend the path, or the input"
        )


def _check_kept(config: VocabularyConfig, words: BucketTally) -> None:
    limits = config.vocabulary
    if not words.num_kept:
        raise ConfigError(
            f"vocabulary.min_count: expected words that occur at least {limits.min_count} times, "
            f"found none among the {words.num_distinct:,} of {', '.join(config.source.paths)}, of "
            f"which the most frequent occurs {words.max_count:,} times; lower it, or take more text"
        )
    if limits.max_size is None and words.kept_bytes > MAX_VOCABULARY_BYTES:
        raise ConfigError(
            f"vocabulary.max_size: the file of all {words.num_kept:,} words that occur at least "
            f"{limits.min_count} times would have {words.kept_bytes:,} bytes, readers take at most "
            f"{MAX_VOCABULARY_BYTES:,}; set it, or raise vocabulary.min_count"
        )
