"""Published states of an index in a directory of any store: seen whole, or not at all.

    _versions/00000003.json     what the index holds and in which files; the highest number counts
    data/<uuid>.<ending>        files that versions name; written once, under new names. Or a
                                directory, whose content is the business of the index

A version is published by one put-if-absent of its record, as snapshots are. Files that no version
names do not exist for readers. Knows no index and no vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa

from pipeline.data_files import verified_file
from pipeline.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CorruptFileError,
    MissingFileError,
    PipelineError,
    StorageError,
)
from pipeline.index.protocol import IndexState
from pipeline.snapshot.metadata import DataFile
from pipeline.storage import OutputFile, Storage, probe

VERSIONS, DATA = "_versions", "data"
# Of some kinds it names a file for every few megabytes.
MAX_RECORD_BYTES = 16 << 20
# Files of a feeder that was killed: no feeder works for longer than this.
ORPHAN_HOURS = 24

_RECORD = re.compile(rf"{VERSIONS}/(\d{{8,}})\.json")
_FILE = re.compile(rf"{DATA}/[0-9a-f]{{32}}\.[a-z]+")

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """A file that versions name."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Version:
    """One published state.

    Attributes:
        number: 1, 2, 3 ...; the highest one is the index.
        state: what it holds.
        files: by what they are for.
        details: JSON values that the index needs to read them.
        directories: those that it needs.
    """

    number: int
    state: IndexState
    files: Mapping[str, StoredFile] = field(hash=False)
    details: Mapping[str, Any] = field(hash=False)
    directories: tuple[str, ...] = ()

    @property
    def paths(self) -> set[str]:
        """Of all its files and directories."""
        return {*(file.path for file in self.files.values()), *self.directories}

    def to_json(self) -> bytes:
        """The record, UTF-8 JSON."""
        values = {
            "number": self.number,
            "state": self.state.to_json(),
            "files": {name: vars(file) for name, file in self.files.items()},
            "directories": list(self.directories),
            "details": dict(self.details),
        }
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Version:
        """Read a record.

        Raises:
            CorruptFileError: it is not one.
        """
        try:
            values = json.loads(data)
            files = {name: StoredFile(**file) for name, file in values["files"].items()}
            directories = tuple(values.get("directories", ()))
            if not all(map(_FILE.fullmatch, [*(f.path for f in files.values()), *directories])):
                raise ValueError(f"a file that is not under {DATA}/")
            number, state, details = values["number"], values["state"], dict(values["details"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{where}: not the record of an index ({error}); restore it, or build the index "
                "anew in an empty directory"
            ) from error
        return cls(number, IndexState.from_json(state, where), files, details, directories)


class IndexVersions:
    """The versions of one index."""

    def __init__(self, storage: Storage, min_stay_s: float = 0.0) -> None:
        """Use those in `storage`; nothing is read yet.

        Args:
            storage: the directory of the index.
            min_stay_s: a version that was followed by another one stays for at least this long.
        """
        self.storage = storage
        self._min_stay_s = min_stay_s

    def numbers(self) -> list[int]:
        """Numbers of all versions that are there, ascending."""
        return list(self.published_at())

    def latest(self) -> Version | None:
        """The current version, None before the first.

        Raises:
            CorruptFileError: its record is damaged.
        """
        numbers = self.numbers()
        return self.load(numbers[-1]) if numbers else None

    def load(self, number: int) -> Version:
        """Read one version.

        Raises:
            MissingFileError: it is not there any more.
            CorruptFileError: its record is damaged.
        """
        path = _record_path(number)
        where = self.storage.url_of(path)
        return Version.from_json(self.storage.read_bytes(path, MAX_RECORD_BYTES), where)

    def open_latest(self, read: Callable[[Version], T]) -> T | None:
        """Read the files of the current version, None before the first.

        A version may be replaced and removed while it is being read; then the new one is read.

        Args:
            read: opens the files of a version.

        Raises:
            MissingFileError: a file of the version that is still the current one is not there.
        """
        failed: int | None = None
        while True:
            numbers = self.numbers()
            if not numbers:
                return None
            try:
                return read(self.load(numbers[-1]))
            # A local file is opened by Arrow after it was checked.
            except (MissingFileError, FileNotFoundError):
                if failed == numbers[-1]:
                    raise
                failed = numbers[-1]

    @contextmanager
    def open_file(self, file: StoredFile) -> Iterator[pa.NativeFile]:
        """Open a file after its size and SHA-256 were found right.

        Raises:
            CorruptFileError: its bytes are not those that were written.
            MissingFileError: it is gone.
        """
        described = DataFile(file.path, 0, 0, file.size_bytes, file.sha256)
        with verified_file(self.storage, described) as source:
            yield source

    def write_file(self, ending: str, write: Callable[[HashingOutput], None]) -> StoredFile:
        """Write a file under a new name; it belongs to no version yet.

        Args:
            ending: of its name.
            write: writes its content.

        Raises:
            StorageError: the store failed, or holds fewer bytes than were written.
        """
        path = f"{DATA}/{uuid.uuid4().hex}.{ending}"
        with self.storage.open_output(path) as output:
            hashing = HashingOutput(output)
            write(hashing)
        stored = self.storage.size_bytes(path)
        if stored != hashing.size_bytes:
            raise StorageError(
                f"{self.storage.url_of(path)}: {hashing.size_bytes} bytes were written, {stored} "
                "stored; run again"
            )
        return StoredFile(path, hashing.size_bytes, hashing.sha256.hexdigest())

    def publish(self, version: Version, keep: int) -> None:
        """Make a version the current one, and remove those that are too old.

        Args:
            version: the successor of the version that it was made from; its files are written.
            keep: versions that stay, this one among them.

        Raises:
            CommitConflictError: somebody else published this number; nothing of it was touched.
            UnknownOutcomeError: the store did not say whether it is published; run again.
            UnsafeStoreError: the store does not honour put-if-absent.
        """
        if version.number == 1:
            probe(self.storage)
        numbers = self.numbers()
        path = _record_path(version.number)
        try:
            if numbers and numbers[-1] >= version.number:
                raise AlreadyExistsError(f"{path}: version {numbers[-1]} is there")
            self.storage.put_if_absent(path, version.to_json())
        except AlreadyExistsError as error:
            raise CommitConflictError(
                f"{self.storage.url}: another feeder published version {version.number} of this "
                "index meanwhile. Nothing of either is lost; run again"
            ) from error
        self._prune(version, keep)

    def discard(self, paths: Iterable[str]) -> None:
        """Remove files or directories that were written and that no version names."""
        for path in paths:
            with suppress(StorageError):
                self.remove(path)

    def published_at(self) -> dict[int, int]:
        """When each version was published, in seconds since 1970, in order of their numbers."""
        found = [(_RECORD.fullmatch(i.path), i) for i in self.storage.glob(f"{VERSIONS}/*")]
        return dict(sorted((int(match[1]), info.modified_at) for match, info in found if match))

    def _prune(self, newest: Version, keep: int) -> None:
        # What cannot be removed now is removed by a later run: it must not fail what is published.
        with suppress(PipelineError):
            now, published_at = time.time(), self.published_at()
            numbers = list(published_at)
            old = [
                number
                for number, follower in zip(numbers[:-keep], numbers[1:], strict=False)
                if published_at[follower] <= now - self._min_stay_s
            ]
            kept = set(newest.paths)
            for number in sorted({*numbers} - {*old}):
                kept |= self.load(number).paths
            gone: set[str] = set()
            for number in old:
                gone |= self.load(number).paths
                self.storage.delete(_record_path(number))
            self._remove_unnamed(kept, gone, now - ORPHAN_HOURS * 3600)

    def _remove_unnamed(self, kept: set[str], gone: set[str], old: float) -> None:
        """Remove what no version names: at once what one did name, and the rest when it is old."""
        last_change: dict[str, int] = {}
        for info in self.storage.list_files(DATA):
            path = "/".join(info.path.split("/")[:2])
            last_change[path] = max(info.modified_at, last_change.get(path, 0))
        for path, modified_at in last_change.items():
            if path not in kept and (path in gone or modified_at < old):
                self.remove(path)

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        if self.storage.is_local and os.path.isdir(self.storage.url_of(path)):
            shutil.rmtree(self.storage.url_of(path), ignore_errors=True)
            return
        for file in self.storage.list_files(path):
            self.storage.delete(file.path)
        self.storage.delete(path)


class HashingOutput:
    """A file being written, and the size and hash of what passed."""

    closed = False

    def __init__(self, output: OutputFile | BinaryIO) -> None:
        """Write to `output`, which the caller closes."""
        self._output = output
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes; returns their number."""
        self.sha256.update(data)
        self.size_bytes += len(data)
        self._output.write(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: the store is told when the file is closed."""


def _record_path(number: int) -> str:
    return f"{VERSIONS}/{number:08d}.json"
