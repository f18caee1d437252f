"""Remove files that no snapshot names and no run at work can need. Knows names and ages only.

Only names that the writers of this package give are ever removed, only when they are older than a
limit, and only after all manifests could be read. Never run on a guess: one manifest that cannot be
read stops everything before the first file is gone.

Wherever the process ends, what it leaves is garbage for the next time: no file of a snapshot is
ever touched, and a run's records go before the files that they list.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from pipeline.data_files import DATA
from pipeline.errors import ConfigError
from pipeline.snapshot.changes import CHANGES
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.tags import EXPIRING
from pipeline.storage import FileInfo, Storage

DEFAULT_HOURS = 72.0
MIN_HOURS = 24.0
DELETES_AT_ONCE = 8
DELETES_PER_LOOK = 200

_RUN = r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})"
_HEX = r"[0-9a-f]{32}"
RECORD = "run record"
_RUNS = "_runs"
_DIRECTORIES = (_RUNS, DATA, CHANGES, "_rejected", EXPIRING)
# What may be removed, by kind and in this order; a pattern's group is the run that wrote the file.
_KINDS = {
    RECORD: re.compile(rf"_runs/{_RUN}/(?:run|{_HEX})\.json"),
    "data file": re.compile(rf"data/(?:[^/]+/)*{_RUN}-{_HEX}\.(?:parquet|arrow)"),
    "change feed": re.compile(rf"changes/\d{{8,}}/{_RUN}-{_HEX}\.parquet"),
    "rejected rows": re.compile(rf"_rejected/{_RUN}/{_HEX}\.parquet"),
    "probe": re.compile(rf"_probe-{_HEX}"),
    "announcement": re.compile(rf"{EXPIRING}/{_HEX}\.json"),
    "partial file": re.compile(rf"(?:.*/)?\.{_HEX}\.partial"),
}


@dataclass(frozen=True)
class GarbageReport:
    """What was removed, or would be in a dry run.

    `paths` in the order of removal, `size_bytes` their sum, `num_by_kind` their number by kind.
    `num_young` counts files that no snapshot names and that stay: too young, or of a run that may
    be at work.
    """

    paths: tuple[str, ...]
    size_bytes: int
    num_by_kind: dict[str, int]
    num_young: int
    dry_run: bool = False


def collect_garbage(
    store: SnapshotStore,
    *,
    older_than_hours: float = DEFAULT_HOURS,
    dry_run: bool = False,
    force: bool = False,
    now: float | None = None,
) -> GarbageReport:
    """Remove orphans: files of stopped runs, lost races and expired snapshots.

    A run is taken to be at work while its newest record is younger than the limit; then its files
    stay, however old, and so does all that any run has recorded, because the run at work may be
    about to take it over. Memory holds the paths of all files in the directory.

    Args:
        store: the snapshots.
        older_than_hours: the limit; ages are told by the store's own times.
        dry_run: remove nothing.
        force: allow a limit below MIN_HOURS: right only when nothing else is at work here.
        now: the present, seconds since 1970; for tests. None asks the store by writing a small
            file (in a dry run this machine's clock).

    Raises:
        ConfigError: the limit is too low, or a manifest is of a later format version.
        CorruptFileError: a manifest is damaged, so it is not known what may go.
        StorageError: the store failed.
    """
    if not 0 <= older_than_hours < 1e6 or (older_than_hours < MIN_HOURS and not force):
        raise ConfigError(
            f"gc: older than {older_than_hours:g} hours: expected {MIN_HOURS:g} or more; the files "
            "of a run at work look like garbage until it commits. If nothing runs here, --force "
            "allows less"
        )
    storage = store.storage
    if now is None:
        now = time.time() if dry_run else _time_of(storage)
    cutoff = now - older_than_hours * 3600
    # Files first, manifests after: what a commit in between takes in is seen to be named.
    candidates = _candidates(storage)
    named = _Named(store)
    unnamed = [item for item in candidates if item.info.path not in named.paths]
    live = _live_runs(candidates, cutoff)
    recorded = {item.run for item in candidates if item.kind == RECORD} if live else set()
    garbage = [
        item
        for item in unnamed
        if item.info.modified_at < cutoff and item.run not in live | recorded
    ]
    if not dry_run:
        garbage = _remove(storage, named, garbage, cutoff)
    num_by_kind: dict[str, int] = {}
    for item in garbage:
        num_by_kind[item.kind] = num_by_kind.get(item.kind, 0) + 1
    return GarbageReport(
        paths=tuple(item.info.path for item in garbage),
        size_bytes=sum(item.info.size_bytes for item in garbage),
        num_by_kind=num_by_kind,
        num_young=len(unnamed) - len(garbage),
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class _Candidate:
    """A file of a kind that may be removed; `run` wrote it, where its name says so."""

    kind: str
    run: str | None
    info: FileInfo

    @property
    def stage(self) -> tuple[int, bool]:
        """What has to go first: without its run.json, no run takes over what the others list."""
        return (list(_KINDS).index(self.kind), not self.info.path.endswith("/run.json"))


class _Named:
    """The paths that the manifests name; looks for new manifests when it is told to."""

    def __init__(self, store: SnapshotStore) -> None:
        self.paths: set[str] = set()
        self._store = store
        self._seen: set[int] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the manifests that were not there before.

        Raises:
            CorruptFileError, ConfigError: one cannot be read.
        """
        for number in self._store.numbers():
            if number not in self._seen:
                self._seen.add(number)
                try:
                    snapshot = self._store.load(number)
                except ConfigError:
                    if self._store.storage.exists(manifest_path(number)):
                        raise
                    continue  # It has just expired.
                self.paths.update(file.path for file in snapshot.files)
                self.paths.update(snapshot.rejected_files)
                self.paths.update(snapshot.changes or ())
                self.paths.update(snapshot.moved)


def _candidates(storage: Storage) -> list[_Candidate]:
    """Every file of a kind that may be removed, in the order of removal."""
    infos = [info for directory in _DIRECTORIES for info in storage.list_files(directory)]
    infos += storage.glob("_probe-*")
    infos += storage.list_partial_files()
    return sorted(_recognised(infos), key=lambda item: item.stage)


def _records(storage: Storage) -> list[_Candidate]:
    return _recognised(storage.list_files(_RUNS))


def _recognised(infos: Sequence[FileInfo]) -> list[_Candidate]:
    found = []
    for info in infos:
        for kind, pattern in _KINDS.items():
            match = pattern.fullmatch(info.path)
            if match:
                found.append(_Candidate(kind, match[1] if pattern.groups else None, info))
                break
    return found


def _live_runs(candidates: Sequence[_Candidate], cutoff: float) -> set[str | None]:
    return {
        item.run for item in candidates if item.kind == RECORD and item.info.modified_at >= cutoff
    }


def _remove(
    storage: Storage, named: _Named, garbage: Sequence[_Candidate], cutoff: float
) -> list[_Candidate]:
    """Remove stage by stage, a few at once, and look for new manifests before each few."""
    removed: list[_Candidate] = []
    forgotten: set[str | None] = set()
    spared: set[str | None] = set()
    with ThreadPoolExecutor(DELETES_AT_ONCE, thread_name_prefix="garbage") as pool:
        for _, stage in groupby(garbage, key=lambda item: item.stage):
            items = list(stage)
            if items[0].kind == RECORD:
                forgotten |= {item.run for item in items}
            elif forgotten and not spared and _live_runs(_records(storage), cutoff):
                # A run started meanwhile, and may have read the records before they went.
                spared = forgotten
            for first in range(0, len(items), DELETES_PER_LOOK):
                named.refresh()
                few = [
                    item
                    for item in items[first : first + DELETES_PER_LOOK]
                    if item.info.path not in named.paths and item.run not in spared
                ]
                list(pool.map(lambda item: storage.delete(item.info.path), few))
                removed += few
    return removed


def _time_of(storage: Storage) -> float:
    """What the store's clock says, by a file that is written and removed."""
    path = f"_probe-{uuid.uuid4().hex}"
    storage.put(path, b"")
    try:
        return float(storage.info(path).modified_at)
    finally:
        storage.delete(path)
