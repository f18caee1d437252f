"""What a run has written so far, so that whoever continues it need not write it again.

`_runs/<run>/run.json` says what the run is, `_runs/<run>/<uuid>.json` lists data files that are
complete. All are created once and never changed. No reader of snapshots looks at them: a file that
is only recorded is not part of any table. Knows records, not what is in data files.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.errors import (
    CommitConflictError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
)
from pipeline.snapshot.metadata import DataFile
from pipeline.storage import Storage

log = logging.getLogger(__name__)

RUNS = "_runs"
MAX_RECORD_BYTES = 64 << 20
NUM_THREADS = 16
# A run that started within this time may still be alive, and then needs its run.json.
MAY_BE_ALIVE_S = 24 * 3600

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RECORD = re.compile(rf"{RUNS}/([^/]+)/[0-9a-f]{{32}}\.json")


@dataclass(frozen=True)
class RunStart:
    """What a run was about to do: its files are of use to a run with equal vectors and columns.

    `columns` is the SHA-256 of the table's Arrow schema.
    """

    run_id: str
    idempotency_key: str
    fingerprint: str
    columns: str
    parent: int | None


@dataclass(frozen=True)
class Interrupted:
    """What runs that never committed have left: complete data files, and the records of them."""

    files: tuple[DataFile, ...] = ()
    records: tuple[str, ...] = ()


class RunRecord:
    """The records of one run."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        """Use the records of one run; nothing is read or written yet.

        Raises:
            ConfigError: the run id cannot be the name of a directory.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigError(
                f"run id {run_id!r}: letters, digits, '.', '_' and '-' are allowed, at most 100"
            )
        self._storage = storage
        self._directory = f"{RUNS}/{run_id}"

    def start(self, start: RunStart) -> None:
        """Record what the run is about to do.

        Raises:
            AlreadyExistsError: a run of this id has started before.
        """
        self._put("run.json", vars(start))

    def started(self) -> RunStart | None:
        """What `start` recorded, None if it was not called or by another version of this program.

        Raises:
            CorruptFileError: the record is damaged.
        """
        path = f"{self._directory}/run.json"
        try:
            values = _read(self._storage, path)
        except MissingFileError:
            return None
        return RunStart(**values) if values.keys() == RunStart.__dataclass_fields__.keys() else None

    def add(self, files: Sequence[DataFile]) -> str:
        """Record complete data files; returns the path of the record."""
        return self._put(f"{uuid.uuid4().hex}.json", {"files": [file.to_json() for file in files]})

    def files(self) -> tuple[DataFile, ...]:
        """All data files recorded so far, in no particular order.

        Raises:
            CorruptFileError: a record is damaged.
        """
        infos = self._storage.glob(f"{self._directory}/*.json")
        paths = [info.path for info in infos if _RECORD.fullmatch(info.path)]
        return tuple(file for path in paths for file in _recorded_files(self._storage, path))

    def delete(self) -> None:
        """Remove all records of the run, once what they list is in a snapshot."""
        _delete(self._storage, [info.path for info in self._storage.list_files(self._directory)])

    def _put(self, name: str, values: object) -> str:
        path = f"{self._directory}/{name}"
        self._storage.put_if_absent(path, json.dumps(values).encode())
        return path


def recorded_runs(storage: Storage) -> tuple[str, ...]:
    """Ids of the runs that have left a record, sorted."""
    return tuple(sorted({info.path.split("/")[1] for info in storage.list_files(RUNS)}))


def interrupted_files(
    storage: Storage, fingerprint: str, columns: str, committed: Collection[str]
) -> Interrupted:
    """What runs with these vectors and columns have written and no snapshot lists.

    A run that is still at work counts too: what it has recorded is complete, and whoever commits
    first, the other finds the files in its parent. Records that cannot be read are left out with a
    warning, and so are files that are gone or have another size.

    Args:
        storage: the snapshot directory.
        fingerprint: of the encoder.
        columns: as in RunStart.
        committed: paths of the files of the parent snapshot.

    Raises:
        StorageError: the store failed.
    """
    by_run: dict[str, list[str]] = {}
    for info in storage.list_files(RUNS):
        match = _RECORD.fullmatch(info.path)
        if match and _RUN_ID.fullmatch(match[1]):
            by_run.setdefault(match[1], []).append(info.path)
    records: list[str] = []
    for run_id, paths in sorted(by_run.items()):
        try:
            start = RunRecord(storage, run_id).started()
        except CorruptFileError as error:
            log.warning("what run %s has written is left out: %s", run_id, error)
            continue
        if start is not None and (start.fingerprint, start.columns) == (fingerprint, columns):
            records += paths
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="run-records") as pool:
        found = {
            file.path: file
            for files in pool.map(lambda path: _files_or_none(storage, path), records)
            for file in files
            if file.path not in committed
        }
        files = [found[path] for path in sorted(found)]
        is_there = list(pool.map(lambda file: _is_there(storage, file), files))
    kept = tuple(file for file, there in zip(files, is_there, strict=True) if there)
    return Interrupted(kept, tuple(records))


def check_there(storage: Storage, files: Sequence[DataFile]) -> None:
    """Make sure that recorded files are still there, right before a manifest lists them.

    Raises:
        CommitConflictError: garbage collection removed one meanwhile; planning again helps.
    """
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="run-records") as pool:
        found = list(pool.map(lambda file: _is_there(storage, file), files))
    for file, there in zip(files, found, strict=True):
        if not there:
            raise CommitConflictError(
                f"{storage.url_of(file.path)}: this file of an interrupted run was removed while "
                "it was being taken over, by 'snapshots gc' or by hand; planning again embeds its "
                "documents"
            )


def forget(storage: Storage, interrupted: Interrupted) -> None:
    """Remove the records that a run has taken over, once it has committed.

    A run.json stays while its run may be alive, so that what that run writes later counts.
    """
    _delete(storage, interrupted.records)
    old = time.time() - MAY_BE_ALIVE_S
    for run_id in {path.split("/")[1] for path in interrupted.records}:
        left = storage.list_files(f"{RUNS}/{run_id}")
        if all(info.modified_at < old and not _RECORD.fullmatch(info.path) for info in left):
            _delete(storage, [info.path for info in left])


def _files_or_none(storage: Storage, path: str) -> tuple[DataFile, ...]:
    try:
        return _recorded_files(storage, path)
    except (CorruptFileError, MissingFileError) as error:
        log.warning("a run record is left out: %s", error)
        return ()


def _is_there(storage: Storage, file: DataFile) -> bool:
    info = storage.info_or_none(file.path)
    return info is not None and info.size_bytes == file.size_bytes


def _recorded_files(storage: Storage, path: str) -> tuple[DataFile, ...]:
    values = _read(storage, path).get("files")
    where = storage.url_of(path)
    if not isinstance(values, list):
        raise CorruptFileError(f"{where}: key 'files' is missing")
    return tuple(DataFile.from_json(value, where) for value in values)


def _read(storage: Storage, path: str) -> dict[str, Any]:
    data = storage.read_bytes(path, MAX_RECORD_BYTES)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{storage.url_of(path)}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CorruptFileError(f"{storage.url_of(path)}: not a JSON object")
    return values


def _delete(storage: Storage, paths: Sequence[str]) -> None:
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="run-records") as pool:
        for _ in pool.map(storage.delete, paths):
            pass
