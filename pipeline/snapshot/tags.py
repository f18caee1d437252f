"""Names for snapshots that must stay, and the agreement by which tagging and expiring never meet.

A tag is `_tags/<name>.json`. Whoever is about to remove manifests first announces it under
`_expiring/` and only then reads the tags; whoever tags first writes the tag and only then reads the
announcements. So of a tag and an expire that meet, at least one sees the other: the expire leaves
the snapshot alone, or the tag is taken back and refused. Knows no data files.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.errors import (
    AlreadyExistsError,
    CommitConflictError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
)
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.storage import Storage

TAGS = "_tags"
EXPIRING = "_expiring"
MAX_TAG_BYTES = 64 << 10
MAX_ANNOUNCEMENT_BYTES = 64 << 20

# A name of digits alone would be taken for the number of a snapshot.
_NAME = re.compile(r"(?!\d+\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Tag:
    """A name for a snapshot; `created_at` is ISO 8601 in UTC."""

    name: str
    number: int
    created_at: str


def check_name(name: str) -> None:
    """Make sure that a tag may have this name.

    Raises:
        ConfigError: it may not; says which names are possible.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"tag {name[:110]!r}: a name has letters, digits, '.', '_' and '-', at most 100, "
            "begins with a letter or digit, and is not a number"
        )


def read_tags(storage: Storage) -> tuple[Tag, ...]:
    """All tags, by name.

    Raises:
        CorruptFileError: one cannot be read, so it is not known what it keeps.
        StorageError: the store failed.
    """
    found = []
    for info in storage.glob(f"{TAGS}/*.json"):
        name = info.path.removeprefix(f"{TAGS}/").removesuffix(".json")
        if _NAME.fullmatch(name):
            tag = find_tag(storage, name)
            found += [tag] if tag else []
    return tuple(found)


def find_tag(storage: Storage, name: str) -> Tag | None:
    """The tag of this name, None if there is none.

    Raises:
        ConfigError: no tag can have this name.
        CorruptFileError: it cannot be read.
    """
    check_name(name)
    path = _tag_path(name)
    try:
        values = _read(storage, path, MAX_TAG_BYTES)
    except MissingFileError:
        return None
    number, created_at = values.get("number"), values.get("created_at")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CorruptFileError(
            f"{storage.url_of(path)}: number: a snapshot number is expected, found {number!r}; "
            "delete the tag and set it again"
        )
    return Tag(name, number, str(created_at))


def put_tag(store: SnapshotStore, name: str, number: int, *, move: bool = False) -> Tag:
    """Name a snapshot; it will not expire as long as the tag is there.

    Args:
        store: the snapshots.
        name: the tag, as `check_name` allows.
        number: the snapshot.
        move: take the name from the snapshot that has it now.

    Raises:
        ConfigError: no such snapshot or name, or another snapshot has the name and `move` is off.
        CommitConflictError: the snapshot is being expired at this moment; nothing is tagged.
    """
    storage = store.storage
    before = find_tag(storage, name)
    if before is not None and before.number == number:
        _check_stays(store, number)
        return before
    if before is not None and not move:
        raise ConfigError(
            f"{store.url}: tag {name!r} names snapshot {before.number}; move it with --force, or "
            "choose another name"
        )
    store.load(number)
    tag = Tag(name, number, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    path = _tag_path(name)
    if before is None:
        try:
            storage.put_if_absent(path, _tag_bytes(tag))
        except AlreadyExistsError:
            stored = find_tag(storage, name)
            if stored is None or stored.number != number:
                raise ConfigError(
                    f"{store.url}: tag {name!r} was set by another in this moment; look at it with "
                    "'snapshots tag'"
                ) from None
    else:
        storage.put(path, _tag_bytes(tag))
    try:
        _check_stays(store, number)
    except (CommitConflictError, ConfigError):
        if before is None:
            storage.delete(path)
        else:
            storage.put(path, _tag_bytes(before))
        raise
    return tag


def delete_tag(storage: Storage, name: str) -> Tag:
    """Remove a tag; its snapshot may expire from now on.

    Returns: what the tag was.

    Raises:
        ConfigError: there is none of this name.
    """
    tag = find_tag(storage, name)
    if tag is None:
        raise ConfigError(f"{storage.url}: there is no tag {name!r}; 'snapshots tag' lists all")
    storage.delete(_tag_path(name))
    return tag


@contextmanager
def pinned(store: SnapshotStore, number: int, purpose: str) -> Iterator[None]:
    """Keep a snapshot from expiring for the length of a block.

    A process that dies in the block leaves the tag `<purpose>-<uuid>`, which can be deleted.

    Raises:
        ConfigError: there is no such snapshot.
        CommitConflictError: the snapshot is being expired.
    """
    name = f"{purpose}-{uuid.uuid4().hex}"
    put_tag(store, name, number)
    try:
        yield
    finally:
        store.storage.delete(_tag_path(name))


@contextmanager
def expiring(storage: Storage, numbers: Collection[int]) -> Iterator[frozenset[int]]:
    """Announce that manifests are about to be removed, for the length of a block.

    Yields: those of `numbers` that no tag names and that nobody can tag any more before the block
        ends. Only these may be removed.

    A process that dies in the block leaves its announcement: its numbers cannot be tagged until
    garbage collection removes it.
    """
    path = f"{EXPIRING}/{uuid.uuid4().hex}.json"
    announced = {
        "numbers": sorted(numbers),
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    storage.put_if_absent(path, json.dumps(announced).encode())
    tagged = {tag.number for tag in read_tags(storage)}
    yield frozenset(numbers) - tagged
    # Not after an error: an outcome may be unknown, and then nobody may tag these.
    storage.delete(path)


def _check_stays(store: SnapshotStore, number: int) -> None:
    """Make sure that a stored tag holds: its snapshot is there, and nobody removes it."""
    storage = store.storage
    for info in storage.glob(f"{EXPIRING}/*.json"):
        try:
            announced = _read(storage, info.path, MAX_ANNOUNCEMENT_BYTES)
        except MissingFileError:
            continue  # The expire has ended; what it removed is gone by now.
        numbers = announced.get("numbers")
        if not isinstance(numbers, list) or number in numbers:
            raise CommitConflictError(
                f"{store.url}: snapshot {number} is being expired (announced at "
                f"{announced.get('created_at')} in {info.path}), so it was not tagged. If no "
                "expire is at work any more, 'snapshots gc' removes the old announcement"
            )
    if not storage.exists(manifest_path(number)):
        raise ConfigError(f"{store.url}: there is no snapshot {number}; it may have just expired")


def _tag_path(name: str) -> str:
    return f"{TAGS}/{name}.json"


def _tag_bytes(tag: Tag) -> bytes:
    values = {"number": tag.number, "created_at": tag.created_at}
    return json.dumps(values).encode() + b"\n"


def _read(storage: Storage, path: str, max_bytes: int) -> dict[str, object]:
    data = storage.read_bytes(path, max_bytes)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{storage.url_of(path)}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CorruptFileError(f"{storage.url_of(path)}: not a JSON object")
    return values
