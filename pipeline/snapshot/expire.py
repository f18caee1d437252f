"""Remove old snapshots: their manifests and change feeds. Data files are left to `garbage`.

Manifests go first, the oldest first, each in one request: wherever the process ends, what is left
is whole snapshots, and files that no snapshot names. Knows no data files.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.snapshot.changes import CHANGES
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.tags import expiring, read_tags


@dataclass(frozen=True)
class ExpireReport:
    """What was removed, or would be in a dry run.

    `expired` and `kept` are snapshot numbers, ascending; `tagged` are those among the kept that
    only a tag keeps. `num_change_files` counts the removed files of change feeds.
    """

    expired: tuple[int, ...]
    kept: tuple[int, ...]
    tagged: tuple[int, ...]
    num_change_files: int
    dry_run: bool = False


def expire(
    store: SnapshotStore,
    *,
    keep: int | None = None,
    keep_days: float | None = None,
    now: datetime | None = None,
    dry_run: bool = False,
) -> ExpireReport:
    """Remove snapshots that nobody needs any more; never the latest, never a tagged one.

    Readers of a snapshot that is removed can go on until `garbage.collect_garbage` removes its
    files. Consumers of the change feed that are further behind must read a whole snapshot.

    Args:
        store: the snapshots.
        keep: keep this many of the newest.
        keep_days: keep a snapshot for this many days after a newer one took its place. Given both,
            a snapshot stays if either keeps it.
        now: the present, with a time zone; for tests.
        dry_run: remove nothing.

    Raises:
        ConfigError: neither or a senseless limit is given.
        CorruptFileError: a manifest's time or a tag cannot be read; nothing was removed.
        StorageError: the store failed; what is left is whole.
    """
    if keep is None and keep_days is None:
        raise ConfigError("expire: say how many snapshots to keep, or for how many days")
    if keep is not None and keep < 1:
        raise ConfigError(f"expire: keep {keep}: at least the latest snapshot stays, from 1 on")
    if keep_days is not None and not 0 <= keep_days < 1e6:
        raise ConfigError(f"expire: keep {keep_days} days: expected a number of days from 0 on")
    numbers = store.numbers()
    old = set(numbers[: -(keep or 1)])
    if keep_days is not None:
        old &= _replaced_before(store, numbers, (now or datetime.now(UTC)), keep_days)
    tagged = {tag.number for tag in read_tags(store.storage)}
    removable = tuple(number for number in numbers if number in old - tagged)
    expired: tuple[int, ...] = removable
    num_change_files = 0
    if dry_run:
        num_change_files = sum(len(_change_files(store, number)) for number in removable)
    elif removable:
        expired, num_change_files = _remove(store, removable)
    return ExpireReport(
        expired=expired,
        kept=tuple(number for number in numbers if number not in expired),
        tagged=tuple(number for number in numbers if number in old and number not in expired),
        num_change_files=num_change_files,
        dry_run=dry_run,
    )


def _remove(store: SnapshotStore, numbers: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    num_change_files = 0
    with expiring(store.storage, numbers) as allowed:
        removed = tuple(number for number in numbers if number in allowed)
        for number in removed:
            store.storage.delete(manifest_path(number))
        # The number is never given out again, so all that lies in its directory has lost its use.
        for number in removed:
            for path in _change_files(store, number):
                store.storage.delete(path)
                num_change_files += 1
    return removed, num_change_files


def _change_files(store: SnapshotStore, number: int) -> list[str]:
    return [info.path for info in store.storage.list_files(f"{CHANGES}/{number:08d}")]


def _replaced_before(
    store: SnapshotStore, numbers: tuple[int, ...], now: datetime, keep_days: float
) -> set[int]:
    """The snapshots whose successor is older than this."""
    cutoff = now - timedelta(days=keep_days)
    replaced = set()
    for number, successor in zip(numbers[:-1], numbers[1:], strict=True):
        created_at = store.load(successor).created_at
        try:
            created = datetime.fromisoformat(created_at)
        except ValueError:
            raise CorruptFileError(
                f"{store.storage.url_of(manifest_path(successor))}: created_at: a time in ISO 8601 "
                f"is expected, found {created_at!r}"
            ) from None
        if created.astimezone(UTC) < cutoff:
            replaced.add(number)
    return replaced
