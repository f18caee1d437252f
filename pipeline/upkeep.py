"""Keep a snapshot directory small after a run: compact, expire, collect garbage. Knows no encoder.

Each step is safe by itself and beside other runs; what one night leaves out, the next one does.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import NightlyConfig
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.expire import ExpireReport, expire
from pipeline.snapshot.garbage import GarbageReport, collect_garbage


@dataclass(frozen=True)
class UpkeepReport:
    """What was done; None where the configuration turns a step off."""

    expired: ExpireReport | None
    garbage: GarbageReport | None


def keep_up(store: SnapshotStore, config: NightlyConfig) -> UpkeepReport:
    """Do the configured upkeep of a snapshot directory.

    Raises:
        CorruptFileError: a manifest or a tag is damaged; nothing that is needed was removed.
        StorageError: the store failed; the next upkeep goes on.
    """
    expired = None
    if store.latest_number() is None:
        return UpkeepReport(None, None)
    if config.keep_snapshots is not None or config.keep_days is not None:
        expired = expire(store, keep=config.keep_snapshots, keep_days=config.keep_days)
    garbage = None
    if config.gc_older_than_hours is not None:
        garbage = collect_garbage(store, older_than_hours=config.gc_older_than_hours)
    return UpkeepReport(expired, garbage)
