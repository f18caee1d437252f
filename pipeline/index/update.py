"""Make an index hold a snapshot: by what changed where that is possible, else as a whole.

Knows the snapshots and the protocol of indexes; no index.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import (
    CompatibilityError,
    ConfigError,
    CorruptFileError,
    MissingChangesError,
    RebuildNeededError,
)
from pipeline.index.config import IndexConfig
from pipeline.index.feed import SnapshotFeed, SnapshotRows
from pipeline.index.protocol import IndexFeeder, IndexState
from pipeline.index.quality import Quality, Tables, measure
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import open_storage

log = logging.getLogger(__name__)

# A mean of far fewer rows than there are now is no longer theirs.
MAX_SPACE_GROWTH = 4


@dataclass(frozen=True)
class IndexPlan:
    """What has to be done.

    Attributes:
        action: none where the index holds the snapshot already.
        reason: why it is not a delta; empty for a delta.
        rows: of the snapshot that is wanted.
        held: what the index holds now, None without an index.
        published: rows of the snapshot that it holds, where the two can be compared.
        changes: the change feed, for a delta.
    """

    action: Literal["none", "delta", "full"]
    reason: str
    rows: SnapshotRows
    held: IndexState | None
    published: SnapshotRows | None
    changes: Iterator[pa.Table] | None = None


@dataclass(frozen=True)
class IndexReport:
    """What was done.

    Attributes:
        action: full, delta, or none where there was nothing to do.
        reason: why it was built as a whole, or not at all.
        snapshot: that the draft holds.
        held: snapshot that the index held before; None without an index.
        num_documents_named: documents of the change feed; None for a full build.
        num_rows_in: rows that were fed.
        num_rows: rows of the draft.
        quality: what the draft is like; None where nothing was done.
        is_published: whether the draft is the index now.
    """

    action: str
    reason: str
    snapshot: int
    held: int | None
    num_documents_named: int | None
    num_rows_in: int
    num_rows: int
    quality: Quality | None
    is_published: bool


def plan_update(config: IndexConfig, feeder: IndexFeeder, *, rebuild: bool) -> IndexPlan:
    """Decide what has to be done; reads the index's state and manifests only.

    Args:
        config: what is wanted.
        feeder: of the index.
        rebuild: build it as a whole, whatever it holds.

    Raises:
        CompatibilityError: the index holds vectors of another encoder.
        ConfigError: there is no such snapshot, the index holds a later one, or one of another
            directory.
        StorageError: a store failed.
    """
    store = SnapshotStore(open_storage(config.snapshot.path))
    number = config.snapshot.number
    snapshot = store.latest() if number is None else store.load(number)
    if snapshot is None:
        raise ConfigError(f"{store.url}: there is no snapshot here; a run commits the first one")
    rows = SnapshotRows(store.storage, snapshot, config.snapshot.vector_column)
    held = feeder.read_state()
    if held is None:
        return IndexPlan("full", "there is no index yet", rows, None, None)
    before = _held_snapshot(store, held)
    published = None
    # Another directory's snapshot of the same number is not what the index holds.
    if before is not None and (before.run_id, before.fingerprint, rows.vector_column) == (
        held.run_id,
        snapshot.fingerprint,
        held.vector_column,
    ):
        published = SnapshotRows(store.storage, before, held.vector_column)
    if rebuild:
        return IndexPlan("full", "--rebuild was given", rows, held, published)
    _check(config, snapshot, held, before)
    if before is None:
        reason = f"snapshot {held.snapshot} has expired, so its history cannot be checked"
        return IndexPlan("full", reason, rows, held, None)
    reason = _why_anew(config, feeder, rows, held)
    if reason:
        return IndexPlan("full", reason, rows, held, published)
    if held.snapshot == snapshot.number:
        return IndexPlan("none", f"it holds snapshot {held.snapshot} already", rows, held, None)
    try:
        changes = read_changes(store, held.snapshot, snapshot.number)
    except MissingChangesError as error:
        return IndexPlan("full", str(error), rows, held, published)
    return IndexPlan("delta", "", rows, held, published, changes)


def update_index(config: IndexConfig, feeder: IndexFeeder, plan: IndexPlan) -> IndexReport:
    """Do what was planned, and publish the result if it is good enough.

    Where a delta turns out to be impossible (the change feed has a gap, the index cannot take it),
    the index is built as a whole.

    Args:
        config: what is wanted.
        feeder: of the index.
        plan: by `plan_update`; used up.

    Raises:
        CommitConflictError: another feeder published meanwhile.
        CommitUnknownError: it is not known whether the index was published.
        CorruptFileError: a file of the snapshot or of the index is damaged.
        StorageError: a store failed.
    """
    held = plan.held
    if plan.action == "none":
        assert held is not None
        return IndexReport(
            "none", plan.reason, held.snapshot, held.snapshot, None, 0, held.num_rows, None, False
        )
    reason, settings = plan.reason, feeder.settings
    if plan.changes is not None:
        try:
            feed = SnapshotFeed(plan.rows, settings, held, plan.changes)
            return _feed(config, feeder, plan, feed, reason)
        except (MissingChangesError, RebuildNeededError) as error:
            reason = str(error)
    level = logging.INFO if held is None else logging.WARNING
    log.log(level, "the index is built as a whole: %s", reason)
    feed = SnapshotFeed(plan.rows, settings, held, space=config.snapshot.space)
    return _feed(config, feeder, plan, feed, reason)


def _feed(
    config: IndexConfig, feeder: IndexFeeder, plan: IndexPlan, feed: SnapshotFeed, reason: str
) -> IndexReport:
    with feeder.draft(feed) as draft:
        reader = draft.reader()
        num_rows = plan.rows.num_rows if reader is None else reader.state.num_rows
        if num_rows != plan.rows.num_rows:
            found = (
                f"{config.index.path}: the index holds {num_rows:,} rows after it was fed, "
                f"snapshot {plan.rows.snapshot.number} has {plan.rows.num_rows:,}"
            )
            if feed.is_full:
                raise CorruptFileError(f"{found}; 'elmo verify' says what the snapshot holds")
            raise RebuildNeededError(f"{found}: it did not hold what it said")
        norm = None if feed.mean_norm is None else (feed.mean_norm, feed.num_rows_in)
        tables = Tables(plan.rows, plan.published, feed.state.read_projection())
        quality = measure(tables, reader, norm, config.quality)
        if not quality.problems:
            draft.publish()
    return IndexReport(
        action="full" if feed.is_full else "delta",
        reason=reason,
        snapshot=plan.rows.snapshot.number,
        held=None if plan.held is None else plan.held.snapshot,
        num_documents_named=None if feed.is_full else feed.num_documents_named,
        num_rows_in=feed.num_rows_in,
        num_rows=num_rows,
        quality=quality,
        is_published=not quality.problems,
    )


def _held_snapshot(store: SnapshotStore, held: IndexState) -> Snapshot | None:
    """The snapshot that the index holds, None where it has expired."""
    return store.load(held.snapshot) if held.snapshot in store.numbers() else None


def _check(
    config: IndexConfig, snapshot: Snapshot, held: IndexState, before: Snapshot | None
) -> None:
    where = config.index.path
    if held.fingerprint != snapshot.fingerprint:
        raise CompatibilityError(
            f"{where}: the index holds vectors of encoder {held.fingerprint[:12]}, snapshot "
            f"{snapshot.number} has those of {snapshot.fingerprint[:12]}, which cannot be compared "
            "with them; build the index anew with --rebuild"
        )
    if before is not None and before.run_id != held.run_id:
        raise ConfigError(
            f"{where}: the index holds snapshot {held.snapshot} of another history: of run "
            f"{held.run_id}, here it is of run {before.run_id}; give the index's own snapshot "
            "directory, or build it anew with --rebuild"
        )
    if held.snapshot > snapshot.number:
        raise ConfigError(
            f"{where}: the index holds snapshot {held.snapshot}, which is later than "
            f"{snapshot.number}; there is no feed that leads back: build it anew with --rebuild"
        )


def _why_anew(
    config: IndexConfig, feeder: IndexFeeder, rows: SnapshotRows, held: IndexState
) -> str:
    """Why what changed cannot be fed to the index; empty where it can."""
    for what, expected, found in (
        ("columns", rows.columns, held.columns),
        ("vector column", rows.vector_column, held.vector_column),
        ("space", config.snapshot.space, held.space),
        ("settings", dict(feeder.settings), dict(held.settings)),
    ):
        if expected != found:
            return f"the index has other {what}: {_difference(found, expected)}"
    if held.projection is not None and rows.num_rows > MAX_SPACE_GROWTH * held.fitted_rows:
        return (
            f"its space was made of {held.fitted_rows:,} rows, and there are now {rows.num_rows:,}"
        )
    return ""


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [n for n in {**found, **expected} if found.get(n) != expected.get(n)]
        return ", ".join(f"{n} was {found.get(n)}, is {expected.get(n)}" for n in names)
    return f"it was {_listed(found)}, is {_listed(expected)}"


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
