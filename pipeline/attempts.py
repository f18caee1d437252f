"""Notes of what was begun, so that whoever comes after a dead process knows it. Knows no Ray.

An actor that dies says nothing; Ray starts it again and gives it the same block of documents. So
before a block is embedded a note of it is put into the run's records, and a note that is already
there means that an earlier attempt did not come to its end:

- `_runs/<run>/attempts/<block>-<number>`: attempt `number` at a block began; `<block>` is the hash
  of its documents, so that it has the same name wherever it is tried again.
- `_runs/<run>/<block>.json`: the block is done, this is its record. It is created once: of two
  attempts that both end, the later one finds the record of the other.
- `_runs/<run>/attempts/start-<uuid>` and `.../loaded`: actors that began to load the model, and
  that one ever succeeded.
"""

from __future__ import annotations

import hashlib
import uuid

import pyarrow as pa

from pipeline.errors import (
    AlreadyExistsError,
    ClusterError,
    MissingFileError,
    UnknownOutcomeError,
)
from pipeline.snapshot.run_record import MAX_RECORD_BYTES, RUNS
from pipeline.storage import Storage

# An actor may be killed for no fault of its block, several times; but not for ever.
MAX_ATTEMPTS = 8


def block_key(documents: pa.Table) -> str:
    """32 hexadecimal digits that name a block by the ids and content hashes of its documents."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("id", "content_hash"):
        for value in documents[name].to_pylist():
            data = value if isinstance(value, bytes) else value.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class BlockAttempts:
    """The notes and the record of one block of documents in one run."""

    def __init__(self, storage: Storage, run_id: str, key: str) -> None:
        """Use the notes of block `key`; nothing is read or written yet."""
        self._storage = storage
        self._notes = f"{RUNS}/{run_id}/attempts/{key}"
        self._record = f"{RUNS}/{run_id}/{key}.json"
        self._key = key

    def begin(self) -> int:
        """Note that an attempt begins; returns its number, 1 for the first.

        Raises:
            ClusterError: all of MAX_ATTEMPTS attempts have begun before and none came to its end.
            StorageError: the store failed.
        """
        content = uuid.uuid4().hex.encode()
        for number in range(1, MAX_ATTEMPTS + 1):
            if _create(self._storage, f"{self._notes}-{number}", content) == content:
                return number
        raise ClusterError(
            f"a block of documents was begun {MAX_ATTEMPTS} times and its worker died each time, "
            "also when the model ran in a process of its own"
            f" ({self._storage.url_of(self._notes)}-*). Nothing was committed, what was recorded "
            "is kept; look at the dead workers' logs in Ray's session directory, and at the memory "
            "of the nodes"
        )

    def recorded(self) -> str | None:
        """The record of an attempt that came to its end, None if there is none."""
        try:
            return self._storage.read_bytes(self._record, MAX_RECORD_BYTES).decode()
        except MissingFileError:
            return None

    def record(self, text: str) -> str:
        """Keep the record of this attempt, unless another one was faster; returns what is kept."""
        return _create(self._storage, self._record, text.encode()).decode()


class ActorStarts:
    """How often actors of one run began to load the model, as long as none has succeeded."""

    def __init__(self, storage: Storage, run_id: str, max_starts: int) -> None:
        """Use the notes of one run; nothing is read or written yet."""
        self._storage = storage
        self._notes = f"{RUNS}/{run_id}/attempts"
        self._max_starts = max_starts

    def begin(self) -> None:
        """Note that an actor begins to load the model.

        Raises:
            ClusterError: it was begun more than `max_starts` times and never succeeded.
            StorageError: the store failed.
        """
        if self._storage.exists(f"{self._notes}/loaded"):
            return
        _create(self._storage, f"{self._notes}/start-{uuid.uuid4().hex}", b"{}")
        num_starts = len(self._storage.glob(f"{self._notes}/start-*"))
        if num_starts > self._max_starts and not self._storage.exists(f"{self._notes}/loaded"):
            raise ClusterError(
                f"{num_starts - 1} actors died while they loaded the model, and none ever "
                "succeeded: nothing was embedded. Look at the dead workers' logs in Ray's session "
                "directory, at the memory of the nodes, and at the model's files"
            )

    def succeeded(self) -> None:
        """Note that an actor has loaded the model."""
        _create(self._storage, f"{self._notes}/loaded", b"{}")


def _create(storage: Storage, path: str, content: bytes) -> bytes:
    """Put a file if there is none; returns what the file then holds."""
    for last in (False, True):
        try:
            storage.put_if_absent(path, content)
            return content
        except AlreadyExistsError:
            # A retry inside the client may have met what its own first try wrote.
            break
        except UnknownOutcomeError:
            if last:
                raise
    return storage.read_bytes(path, MAX_RECORD_BYTES)
