"""Merge small data files into larger ones, as a new snapshot with the same rows. Knows no Ray.

Rows are copied as they are, bit for bit, whole documents and in order. The merging itself is a pure
function of the files, so that the caller decides where it runs: in threads here, in the tasks of a
cluster by `pipeline.maintenance`.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.config import OutputConfig
from pipeline.data_files import DataFileWriter, read_batches, read_schema, verified_file
from pipeline.errors import (
    CommitConflictError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    PipelineError,
)
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage, open_storage

log = logging.getLogger(__name__)

NUM_THREADS = 4
ATTEMPTS = 20


@dataclass(frozen=True)
class Merge:
    """Files of one partition and format that become one; at least two, in the manifest's order."""

    files: tuple[DataFile, ...]
    output: OutputConfig
    run_id: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that are merged."""
        return sum(file.size_bytes for file in self.files)


# Carries out merges; returns the new file of each, in order.
MergeRunner = Callable[[Sequence[Merge]], Sequence[DataFile]]


def compact(
    store: SnapshotStore,
    *,
    below_bytes: int,
    target_file_bytes: int | None = None,
    run: MergeRunner | None = None,
) -> Snapshot | None:
    """Merge the small files of the latest snapshot and commit the result.

    The new snapshot has the idempotency key of its parent, so that the next run over the same
    corpus still finds nothing to do. After a lost race it starts over on what the winner left;
    merges whose files are all still there are used again. Memory and disk hold what one merge
    needs, for each merge that runs at the same time.

    Args:
        store: the snapshots.
        below_bytes: smaller files are merged, those of one partition with one another.
        target_file_bytes: a merged file is not larger than about this; None takes the snapshot's
            `output.target_file_bytes`.
        run: carries out the merges; None runs NUM_THREADS at once in this process.

    Returns: the committed snapshot; None when there was nothing to merge.

    Raises:
        ConfigError: the sizes make no sense, or there is no snapshot.
        CorruptFileError: a file is not what its manifest promises; nothing was committed.
        CommitConflictError: the race was lost too often.
        CommitUnknownError: the store did not say whether the commit happened.
        StorageError: the store failed.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    done: dict[tuple[str, ...], DataFile] = {}
    for attempt in range(ATTEMPTS):
        parent = latest_or_error(store)
        reused = _still_right(parent, done)
        taken = {path for paths in reused for path in paths}
        merges = plan_merges(parent, below_bytes, target_file_bytes, run_id, without=taken)
        if not merges and not reused:
            return None
        try:
            files = (run or InThreads(store.storage.url, store.storage))(merges)
        except MissingFileError:
            if store.latest_number() == parent.number:
                raise
            continue  # Expired and collected meanwhile; the latest snapshot has others.
        done |= {
            tuple(file.path for file in merge.files): merged
            for merge, merged in zip(merges, files, strict=True)
        }
        try:
            return store.commit(_successor(parent, _still_right(parent, done), run_id))
        except CommitConflictError:
            if attempt == ATTEMPTS - 1:
                raise
            log.info("another run committed first; compacting what it left")
        time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
    raise CommitConflictError(
        f"{store.url}: the snapshot changed {ATTEMPTS} times; try again later"
    )


def latest_or_error(store: SnapshotStore) -> Snapshot:
    """The latest snapshot.

    Raises:
        ConfigError: there is none.
    """
    snapshot = store.latest()
    if snapshot is None:
        raise ConfigError(f"{store.url}: there is no snapshot here")
    return snapshot


def plan_merges(
    snapshot: Snapshot,
    below_bytes: int,
    target_file_bytes: int | None = None,
    run_id: str = "compact",
    without: set[str] | None = None,
) -> tuple[Merge, ...]:
    """Which files of a snapshot are to become one; arguments as for `compact`.

    Args:
        snapshot: the snapshot.
        below_bytes: smaller files are merged.
        target_file_bytes: what is merged has at most this many bytes together.
        run_id: the first part of new files' names.
        without: paths of files to leave alone.

    Raises:
        ConfigError: the sizes make no sense.
    """
    output = _output(snapshot)
    target = target_file_bytes if target_file_bytes is not None else output.target_file_bytes
    if not 0 < below_bytes <= target:
        raise ConfigError(
            f"compact: files below {below_bytes} bytes are to be merged into files of up to "
            f"{target}: expected 1 to {target}; a larger target allows more"
        )
    by_place: dict[tuple[Any, ...], list[list[DataFile]]] = {}
    for file in snapshot.files:
        if file.size_bytes < below_bytes and file.path not in (without or ()):
            format_ = file.path.rpartition(".")[2]
            groups = by_place.setdefault((format_, *file.partition.items()), [[]])
            if sum(member.size_bytes for member in groups[-1]) + file.size_bytes > target:
                groups.append([])
            groups[-1].append(file)
    return tuple(
        Merge(tuple(group), output.model_copy(update={"format": format_}), run_id)
        for (format_, *_), groups in by_place.items()
        for group in groups
        if len(group) > 1
    )


def merge_files(storage: Storage, merge: Merge) -> DataFile:
    """Write the rows of several files into one; the old ones stay as they are.

    Each file's bytes are checked before its rows are read (a remote one is copied to disk for
    that). Memory holds one row group.

    Raises:
        CorruptFileError: a file is not what its manifest promises; nothing was written.
        MissingFileError: a file is gone.
        StorageError: the store failed.
    """
    first = merge.files[0]
    writer: DataFileWriter | None = None
    try:
        for file in merge.files:
            with verified_file(storage, file) as source:
                schema = read_schema(source, file.path)
                if writer is None:
                    writer = DataFileWriter(
                        storage, schema, merge.output, first.partition, merge.run_id
                    )
                    expected = schema
                if not schema.equals(expected):
                    raise CorruptFileError(
                        f"{storage.url_of(file.path)}: its columns differ from those of "
                        f"{first.path}; one snapshot has one schema: see 'verify'"
                    )
                for batch in read_batches(source, file.path):
                    writer.write(batch)
        assert writer is not None
        merged = writer.close()
    finally:
        if writer is not None:
            writer.abort()
    promised = tuple(
        sum(counts)
        for counts in zip(*((f.num_rows, f.num_documents) for f in merge.files), strict=True)
    )
    if promised != (merged.num_rows, merged.num_documents):
        raise CorruptFileError(
            f"{storage.url}: {len(merge.files)} files from {first.path} on promise {promised} rows "
            f"and documents, and hold {(merged.num_rows, merged.num_documents)}; see 'verify'"
        )
    return merged


class InThreads:
    """Carries out merges in this process, NUM_THREADS at once."""

    def __init__(self, url: str, storage: Storage | None = None) -> None:
        self._storage = storage or open_storage(url)

    def __call__(self, merges: Sequence[Merge]) -> list[DataFile]:
        """The new files, in the order of the merges."""
        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="compact") as pool:
            return list(pool.map(lambda merge: merge_files(self._storage, merge), merges))


def _output(snapshot: Snapshot) -> OutputConfig:
    """How the snapshot's files are written, by the configuration that its manifest keeps."""
    kept = snapshot.config.get("output")
    values = kept if isinstance(kept, Mapping) else {}
    known = {key: values[key] for key in ("compression", "target_file_bytes") if key in values}
    return OutputConfig.model_validate({**known, "path": "."})


def _still_right(
    parent: Snapshot, done: Mapping[tuple[str, ...], DataFile]
) -> dict[tuple[str, ...], DataFile]:
    paths = {file.path for file in parent.files}
    return {merged: file for merged, file in done.items() if paths.issuperset(merged)}


def _successor(
    parent: Snapshot, merged: Mapping[tuple[str, ...], DataFile], run_id: str
) -> Snapshot:
    rewritten = {path: file.path for paths, file in merged.items() for path in paths}
    new_files = {paths[0]: file for paths, file in merged.items()}
    files = [
        new_files.get(file.path, file)
        for file in parent.files
        if file.path not in rewritten or file.path in new_files
    ]
    num_documents = sum(file.num_documents for file in files)
    if num_documents != parent.num_documents:
        raise PipelineError(
            f"snapshot {parent.number}: {parent.num_documents} documents would become "
            f"{num_documents} by merging files. Nothing was committed; please report this"
        )
    return Snapshot.new(
        number=parent.number + 1,
        parent=parent.number,
        run_id=run_id,
        idempotency_key=parent.idempotency_key,
        operation="compact",
        fingerprint=parent.fingerprint,
        encoder=parent.encoder,
        config=parent.config,
        schema=parent.schema,
        partition_columns=parent.partition_columns,
        files=files,
        rejected_files=parent.rejected_files,
        counts={
            **{name: parent.counts[name] for name in ("rejected",) if name in parent.counts},
            "documents": num_documents,
            "rows": sum(file.num_rows for file in files),
            "added": 0,
            "changed": 0,
            "deleted": 0,
            "unchanged": num_documents,
            "merged_files": len(rewritten),
        },
        lineage=parent.lineage,
        changes=(),
        rewritten=rewritten,
    )
