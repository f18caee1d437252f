"""Prepare a corpus for training, once: read, tokenise, hold out, count, write as shards of units.

A restart goes on with the same text even if the corpus has changed meanwhile, and a pass over it
costs no tokenising. Where the work runs is the caller's choice (`local`, or Ray: ray_text.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pipeline.config import SourceConfig, TextConfig
from pipeline.errors import EmptySourceError
from pipeline.pretraining.shards import (
    MANIFEST_VERSION,
    CountWriter,
    PreparedText,
    Shard,
    ShardWriter,
    StoredCounts,
    read_prepared,
    write_prepared,
)
from pipeline.pretraining.text_part import text_hashes
from pipeline.records import SourceSplit, rejected_table
from pipeline.rejected import RejectedFile, RejectedTally, describe_row
from pipeline.sources.discover import Discovery, discover
from pipeline.sources.read import read_documents
from pipeline.storage import Storage
from pipeline.text import tokenise, tokenizer_fingerprint

# Input of one task: small files are read many at a time, so that shards are not as small.
GROUP_BYTES = 64 << 20
NO_LIMIT = (1 << 31) - 1
# Where a prepared text keeps what was rejected.
REJECTED = "rejected"


@dataclass(frozen=True)
class TextGroup:
    """Some splits that one task prepares; its files are in `folder` and have its number."""

    splits: tuple[SourceSplit, ...]
    folder: str
    number: int


@dataclass(frozen=True)
class GroupText:
    """What one task made; `least_hash` is the smallest of its documents' hashes."""

    number: int
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    counts: tuple[StoredCounts, ...]
    num_train_documents: int
    num_held_out_documents: int
    least_hash: float
    rejected: RejectedTally

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GroupText:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        for name in ("train", "held_out"):
            values[name] = tuple(map(Shard.from_json, values[name]))
        values["counts"] = tuple(StoredCounts(**entry) for entry in values["counts"])
        values["rejected"] = RejectedTally.from_json(values["rejected"])
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
        """Read, tokenise, count and write one group.

        Raises:
            SourceError: an input cannot be read, or changed since it was listed.
            StorageError: a store failed.
        """
        prefix = f"{group.folder}/{group.number:06d}"
        train = ShardWriter(self.storage, f"{prefix}-train")
        held_out = ShardWriter(self.storage, f"{prefix}-held-out")
        counts = CountWriter(self.storage, f"{prefix}-counts")
        rejected = RejectedTally()
        num_train = num_held_out = 0
        least = 1.0
        with RejectedFile(self.storage, _rejected_path(group.folder, group.number)) as file:
            for split in group.splits:
                for batch in read_documents(split, self.source, self.text):
                    rejected.reject(batch.rejected.table)
                    file.write(batch.rejected.table)
                    if not batch.documents.num_rows:
                        continue
                    hashes_D = text_hashes(batch.documents["text"])
                    is_held_out_D = hashes_D < self.limit
                    least = min(least, float(hashes_D.min()))
                    num_held_out += int(is_held_out_D.sum())
                    num_train += int((~is_held_out_D).sum())
                    tokenised = tokenise(batch.documents, self.text)
                    held_out.write(tokenised.filter(pa.array(is_held_out_D)))
                    learned = tokenised.filter(pa.array(~is_held_out_D))
                    train.write(learned)
                    counts.add(learned)
        return GroupText(
            group.number,
            train.close(),
            held_out.close(),
            counts.close(),
            num_train,
            num_held_out,
            least,
            rejected,
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
    discovery = discover(source)
    found = find_text(storage, folder, discovery, source, text, held_out_share)
    if found is not None:
        return found
    place = f"{folder}/{_key(discovery, source, text, held_out_share)}"
    # Long documents become several passages, so nothing of them is cut off.
    text = text.model_copy(update={"max_document_tokens": NO_LIMIT})
    groups = _groups(discovery, place)
    results = _run(storage, source, text, held_out_share, groups, run_tasks, on_progress)
    if held_out_share and not sum(result.num_held_out_documents for result in results):
        least = min((result.least_hash for result in results), default=1.0)
        # A hash equal to the smallest is that of a copy. Such a corpus is small.
        limit = float(np.nextafter(least, 2.0))
        results = _run(storage, source, text, limit, groups, run_tasks, on_progress)
    rejected = RejectedTally()
    with RejectedFile(storage, _rejected_path(place, None)) as file:
        bad_files = rejected_table(discovery.rejected)
        rejected.reject(bad_files)
        file.write(bad_files)
    for result in results:
        rejected.add(result.rejected)
    prepared = PreparedText(
        train=tuple(shard for result in results for shard in result.train),
        held_out=tuple(shard for result in results for shard in result.held_out),
        counts=tuple(counts for result in results for counts in result.counts),
        num_train_documents=sum(result.num_train_documents for result in results),
        num_held_out_documents=sum(result.num_held_out_documents for result in results),
        rejected=rejected,
        rejected_folders=(f"{place}/{REJECTED}",) if rejected.total else (),
    )
    _check(prepared, storage, source, held_out_share)
    write_prepared(storage, place, prepared)
    return prepared


def find_text(
    storage: Storage,
    folder: str,
    discovery: Discovery,
    source: SourceConfig,
    text: TextConfig,
    held_out_share: float,
) -> PreparedText | None:
    """What `prepare_text` would use again; None if it would prepare the corpus.

    Raises:
        CorruptFileError: its description is damaged.
        StorageError: the store failed.
    """
    return read_prepared(storage, f"{folder}/{_key(discovery, source, text, held_out_share)}")


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
    return sorted(results, key=lambda result: result.number)


def _check(
    prepared: PreparedText, storage: Storage, source: SourceConfig, held_out_share: float
) -> None:
    tokens = sum(shard.num_tokens for shard in prepared.train)
    if prepared.num_train_documents and tokens:
        return
    where = ", ".join(source.paths)
    found = prepared.num_train_documents + prepared.num_held_out_documents
    wanted = "at least two different documents, one to train on and one to measure with"
    if not held_out_share:
        wanted = "at least one document with tokens"
    rejected = prepared.rejected
    if not rejected.total:
        raise EmptySourceError(
            f"{where}: expected {wanted}, found {found}; give more text, or name another source"
        )
    raise EmptySourceError(
        f"{where}: expected {wanted}, found {found}, since {rejected.total:,} of "
        f"{prepared.num_rows:,} rows were rejected ({rejected.describe()}), the first as "
        f"{describe_row(rejected.shown[0])}. Mend the input, or name another source. All rejected "
        f"rows: {storage.url_of(prepared.rejected_folders[0])}"
    )


def _rejected_path(folder: str, number: int | None) -> str:
    """Where a group's rejected rows are; None: files that were rejected when they were listed."""
    name = "files" if number is None else f"{number:06d}"
    return f"{folder}/{REJECTED}/{name}.parquet"


def _groups(discovery: Discovery, place: str) -> list[TextGroup]:
    groups: list[list[SourceSplit]] = []
    size_bytes = 0
    for split in discovery.splits:
        if not groups or size_bytes + split.size_bytes > GROUP_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(split)
        size_bytes += split.size_bytes
    return [TextGroup(tuple(group), place, number) for number, group in enumerate(groups)]


def _key(
    discovery: Discovery, source: SourceConfig, text: TextConfig, held_out_share: float
) -> str:
    """Names the text that comes out: the files as listed, how they are read, how it is written."""
    parts = [
        str(MANIFEST_VERSION),
        *(f"{split.path} {split.version} {split.start} {split.end}" for split in discovery.splits),
        source.model_dump_json(),
        text.model_copy(update={"max_document_tokens": NO_LIMIT}).model_dump_json(),
        tokenizer_fingerprint(text),
        repr(held_out_share),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
