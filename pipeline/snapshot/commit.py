"""Commit snapshots so that none is lost and none is seen in part. Knows manifests, not data files.

A commit is one put-if-absent of `_snapshots/<number>.json`; the highest number is the current
state. Of several runs that commit the same number one wins; the others read again and decide again.
When the store gives no clear answer, the number is looked at before anything else is done, and
nothing is ever deleted.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

from pipeline.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    StorageError,
    UnknownOutcomeError,
)
from pipeline.snapshot.metadata import MAX_MANIFEST_BYTES, Snapshot
from pipeline.storage import Storage

SNAPSHOTS = "_snapshots"

_MANIFEST = re.compile(rf"{SNAPSHOTS}/(\d{{8,}})\.json")
# The storage has tried each put often enough before its outcome is called unknown.
_PUT_ATTEMPTS = 2
_COMMIT_ATTEMPTS = 50


def manifest_path(number: int) -> str:
    """Path of a snapshot's manifest: `_snapshots/00000042.json`."""
    return f"{SNAPSHOTS}/{number:08d}.json"


class SnapshotStore:
    """The snapshots of one directory."""

    def __init__(self, storage: Storage) -> None:
        """Use the snapshots in `storage`; nothing is read yet."""
        self.storage = storage

    @property
    def url(self) -> str:
        """URL of the snapshot directory."""
        return self.storage.url

    def numbers(self) -> tuple[int, ...]:
        """Numbers of all snapshots that are there, ascending."""
        found = []
        for info in self.storage.glob(f"{SNAPSHOTS}/*"):
            match = _MANIFEST.fullmatch(info.path)
            # One number has one name: with leading zeros to spare, two files could claim it.
            if match and manifest_path(int(match[1])) == info.path and int(match[1]) > 0:
                found.append(int(match[1]))
        return tuple(sorted(found))

    def latest_number(self) -> int | None:
        """Number of the current snapshot, None before the first commit."""
        numbers = self.numbers()
        return numbers[-1] if numbers else None

    def latest(self) -> Snapshot | None:
        """The current snapshot, None before the first commit."""
        number = self.latest_number()
        while number is not None:
            try:
                return self.load(number)
            except ConfigError:
                newer = self.latest_number()
                if newer == number:
                    raise
                number = newer  # Replaced and expired between the two requests.
        return None

    def load(self, number: int) -> Snapshot:
        """Read one snapshot.

        Raises:
            ConfigError: there is none of this number; names those that there are.
            CorruptFileError: the manifest is damaged.
        """
        path = manifest_path(number)
        where = self.storage.url_of(path)
        try:
            data = self.storage.read_bytes(path, MAX_MANIFEST_BYTES)
        except MissingFileError:
            numbers = self.numbers()
            there = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
            raise ConfigError(
                f"{self.url}: there is no snapshot {number}; found: {there}"
            ) from None
        snapshot = Snapshot.from_json(data, where)
        if snapshot.number != number:
            raise CorruptFileError(f"{where}: holds snapshot {snapshot.number}")
        return snapshot

    def commit(self, snapshot: Snapshot) -> Snapshot:
        """Make a snapshot visible, as the next one after its parent.

        Returns: the snapshot as it is stored. If this very run has committed the number already,
            that is what was stored then: a repeated commit is none.

        Raises:
            CommitConflictError: another run has this number, or the parent is not the latest.
            CommitUnknownError: the store gave no clear answer, and looking did not help.
        """
        snapshot.check(f"snapshot {snapshot.number}")
        latest = self.latest_number() or 0
        if latest != snapshot.number - 1:
            return self._committed_earlier(snapshot, latest)
        data = snapshot.to_json()
        path = manifest_path(snapshot.number)
        for attempt in range(_PUT_ATTEMPTS):
            try:
                self.storage.put_if_absent(path, data)
                return snapshot
            except AlreadyExistsError:
                return self._ours_or_conflict(snapshot)
            except UnknownOutcomeError as error:
                # Put again: should the first request still arrive, one of the two finds the other.
                stored = self._look(snapshot, error)
                if stored is not None:
                    return stored
            time.sleep(0.2 * 2**attempt * random.uniform(0.5, 1.5))
        raise self._unknown(snapshot)

    def commit_next(self, build: Callable[[Snapshot | None], Snapshot | None]) -> Snapshot | None:
        """Build the successor of the latest snapshot and commit it; start over after a lost race.

        Args:
            build: makes the successor of the given parent (None: the first snapshot), or returns
                None when nothing needs to be committed. Called again after each lost race.

        Returns: the committed snapshot, or None as `build` did.

        Raises:
            CommitConflictError: the race was lost too often.
        """
        for attempt in range(_COMMIT_ATTEMPTS):
            snapshot = build(self.latest())
            if snapshot is None:
                return None
            try:
                return self.commit(snapshot)
            except CommitConflictError:
                if attempt == _COMMIT_ATTEMPTS - 1:
                    raise
            time.sleep(random.uniform(0, 0.05 * min(attempt + 1, 10)))
        raise AssertionError("unreachable")

    def _committed_earlier(self, snapshot: Snapshot, latest: int) -> Snapshot:
        if snapshot.number <= latest:
            return self._ours_or_conflict(snapshot)
        raise CommitConflictError(
            f"{self.url}: snapshot {snapshot.number} was built on {snapshot.parent}, the latest is "
            f"{latest or 'none'}; read it again and rebuild"
        )

    def _ours_or_conflict(self, snapshot: Snapshot) -> Snapshot:
        try:
            stored: Snapshot | None = self.load(snapshot.number)
        except ConfigError:
            stored = None  # Expired meanwhile, or of a later format: not ours in either case.
        except StorageError as error:
            raise self._unknown(snapshot) from error
        if stored is not None and stored.run_id == snapshot.run_id:
            return stored
        by = f"run {stored.run_id} committed it first" if stored else "it existed before"
        raise CommitConflictError(
            f"{self.url}: snapshot {snapshot.number} is taken: {by}. Nothing of either run is "
            "lost; start again, and only what is still missing will be done"
        )

    def _look(self, snapshot: Snapshot, cause: UnknownOutcomeError) -> Snapshot | None:
        """The stored snapshot if it is ours, None if there is none."""
        try:
            if not self.storage.exists(manifest_path(snapshot.number)):
                return None
            return self._ours_or_conflict(snapshot)
        except StorageError:
            raise self._unknown(snapshot) from cause

    def _unknown(self, snapshot: Snapshot) -> CommitUnknownError:
        return CommitUnknownError(
            f"{self.storage.url_of(manifest_path(snapshot.number))}: the store did not say whether "
            f"this manifest of run {snapshot.run_id} was written. Nothing was deleted. Look with "
            "'jobs.snapshots list' once the store answers; starting the run again is safe in "
            "either case"
        )
