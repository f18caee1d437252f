"""Prepare a corpus for training, once: read, tokenise, hold out, write as shards of units.

A restart goes on with the same text even if the corpus has changed meanwhile, and a pass over it
costs no tokenising. Where the work runs is the caller's choice (`local`, or Ray: ray_text.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pipeline.config import SourceConfig, TextConfig
from pipeline.errors import SourceError
from pipeline.pretraining.shards import (
    PreparedText,
    Shard,
    ShardWriter,
    read_prepared,
    write_prepared,
)
from pipeline.pretraining.text_part import text_hashes
from pipeline.records import SourceSplit
from pipeline.rejected import count_by_code
from pipeline.sources.discover import Discovery, discover
from pipeline.sources.read import read_documents
from pipeline.storage import Storage
from pipeline.text import tokenise, tokenizer_fingerprint

# Input of one task: small files are read many at a time, so that shards are not as small.
GROUP_BYTES = 64 << 20
NO_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class TextGroup:
    """Some splits that one task prepares, and where to."""

    splits: tuple[SourceSplit, ...]
    prefix: str


@dataclass(frozen=True)
class GroupText:
    """What one task made; `least_hash` is the smallest of its documents' hashes."""

    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    num_train_documents: int
    num_held_out_documents: int
    least_hash: float
    rejected_by_code: dict[str, int]

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GroupText:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        for name in ("train", "held_out"):
            values[name] = tuple(
                Shard(**{**shard, "unit_tokens": tuple(shard["unit_tokens"])})
                for shard in values[name]
            )
        return cls(**values)


@dataclass(frozen=True)
class GroupTask:
    """How a group of splits is prepared; picklable.

    Documents with a hash below `limit` are held out.
    """

    storage: Storage
    source: SourceConfig
    text: TextConfig
    limit: float

    def __call__(self, group: TextGroup) -> GroupText:
        """Read, tokenise and write one group.

        Raises:
            SourceError: an input cannot be read, or changed since it was listed.
            StorageError: a store failed.
        """
        train = ShardWriter(self.storage, f"{group.prefix}-train")
        held_out = ShardWriter(self.storage, f"{group.prefix}-held-out")
        rejected: Counter[str] = Counter()
        num_train = num_held_out = 0
        least = 1.0
        for split in group.splits:
            for batch in read_documents(split, self.source, self.text):
                rejected.update(count_by_code(batch.rejected))
                if not batch.documents.num_rows:
                    continue
                hashes_D = text_hashes(batch.documents["text"])
                tokenised = tokenise(batch.documents, self.text)
                is_held_out_D = hashes_D < self.limit
                least = min(least, float(hashes_D.min()))
                num_held_out += int(is_held_out_D.sum())
                num_train += int((~is_held_out_D).sum())
                train.write(tokenised.filter(pa.array(~is_held_out_D)))
                held_out.write(tokenised.filter(pa.array(is_held_out_D)))
        return GroupText(
            train.close(), held_out.close(), num_train, num_held_out, least, dict(rejected)
        )


RunTasks = Callable[[GroupTask, Sequence[TextGroup]], Iterable[GroupText]]


def local(task: GroupTask, groups: Sequence[TextGroup]) -> Iterator[GroupText]:
    """Prepare the groups one after another in this process."""
    return map(task, groups)


def prepare_text(
    storage: Storage,
    folder: str,
    source: SourceConfig,
    text: TextConfig,
    held_out_share: float,
    run_tasks: RunTasks = local,
    on_progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> PreparedText:
    """The text of a corpus, prepared in a folder of its own, or what was prepared there before.

    A document is held out if a hash of its text is below `held_out_share`: the choice does not
    depend on order, ids or other documents, and copies of a text are on one side. If there is none
    such, the one with the smallest hash is held out. A share of 0 holds nothing out.

    Args:
        storage: where the text is kept.
        folder: directory in it.
        source: the corpus.
        text: how it is tokenised.
        held_out_share: share of the documents.
        run_tasks: where the work runs.
        on_progress: gets the documents and tokens prepared by now.

    Raises:
        SourceError: there is too little text, or the source cannot be read as configured.
        StorageError: a store failed.
    """
    # Long documents become several passages, so nothing of them is cut off.
    text = text.model_copy(update={"max_document_tokens": NO_LIMIT})
    discovery = discover(source)
    key = _key(discovery, source, text, held_out_share)
    place = f"{folder}/{key}"
    found = read_prepared(storage, place)
    if found is not None:
        return found
    groups = _groups(discovery, place)
    results = _run(storage, source, text, held_out_share, groups, run_tasks, on_progress)
    if held_out_share and not sum(result.num_held_out_documents for result in results):
        least = min((result.least_hash for result in results), default=1.0)
        # A hash equal to the smallest is that of a copy. Such a corpus is small.
        limit = float(np.nextafter(least, 2.0))
        results = _run(storage, source, text, limit, groups, run_tasks, on_progress)
    rejected = Counter(count_by_code(discovery.rejected))
    for result in results:
        rejected.update(result.rejected_by_code)
    prepared = PreparedText(
        train=tuple(shard for result in results for shard in result.train),
        held_out=tuple(shard for result in results for shard in result.held_out),
        num_train_documents=sum(result.num_train_documents for result in results),
        num_held_out_documents=sum(result.num_held_out_documents for result in results),
        rejected_by_code=dict(sorted(rejected.items())),
    )
    _check(prepared, source, held_out_share)
    write_prepared(storage, place, prepared)
    return prepared


def _run(
    storage: Storage,
    source: SourceConfig,
    text: TextConfig,
    limit: float,
    groups: Sequence[TextGroup],
    run_tasks: RunTasks,
    on_progress: Callable[[int, int], None],
) -> list[GroupText]:
    results = []
    documents = tokens = 0
    for result in run_tasks(GroupTask(storage, source, text, limit), groups):
        results.append(result)
        documents += result.num_train_documents + result.num_held_out_documents
        tokens += sum(shard.num_tokens for shard in (*result.train, *result.held_out))
        on_progress(documents, tokens)
    # Tasks end in any order; the text has that of the corpus.
    return sorted(
        results,
        key=lambda result: min(
            (shard.path for shard in (*result.train, *result.held_out)), default=""
        ),
    )


def _check(prepared: PreparedText, source: SourceConfig, held_out_share: float) -> None:
    where = ", ".join(source.paths)
    rejected = sum(prepared.rejected_by_code.values())
    found = prepared.num_train_documents + prepared.num_held_out_documents
    wanted = "at least two different documents, one to train on and one to measure with"
    if not held_out_share:
        wanted = "at least one document with tokens"
    tokens = sum(shard.num_tokens for shard in prepared.train)
    if not prepared.num_train_documents or not tokens:
        raise SourceError(
            f"{where}: expected {wanted}, found {found} with {tokens} tokens to train on "
            f"({rejected} rejected); give more text, or name another source"
        )


def _groups(discovery: Discovery, place: str) -> list[TextGroup]:
    groups: list[list[SourceSplit]] = []
    size_bytes = 0
    for split in discovery.splits:
        if not groups or size_bytes + split.size_bytes > GROUP_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(split)
        size_bytes += split.size_bytes
    return [TextGroup(tuple(group), f"{place}/{number:06d}") for number, group in enumerate(groups)]


def _key(
    discovery: Discovery, source: SourceConfig, text: TextConfig, held_out_share: float
) -> str:
    """Names the text that comes out: the files as they were listed, and how they are read."""
    parts = [
        *(f"{split.path} {split.version} {split.start} {split.end}" for split in discovery.splits),
        source.model_dump_json(),
        text.model_dump_json(),
        tokenizer_fingerprint(text),
        repr(held_out_share),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
