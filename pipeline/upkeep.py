"""Keep a snapshot directory small after a run: compact, expire, collect garbage. Knows no encoder.

Each step is safe by itself and beside other runs; what one night leaves out, the next one does.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import EmbedConfig
from pipeline.maintenance import compact
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.expire import ExpireReport, expire
from pipeline.snapshot.garbage import GarbageReport, collect_garbage
from pipeline.snapshot.metadata import Snapshot


@dataclass(frozen=True)
class UpkeepReport:
    """What was done; None where the configuration turns a step off, or nothing was to be done."""

    compacted: Snapshot | None
    expired: ExpireReport | None
    garbage: GarbageReport | None


def keep_up(store: SnapshotStore, config: EmbedConfig) -> UpkeepReport:
    """Do the upkeep of a snapshot directory that the section `nightly` asks for.

    Raises:
        CorruptFileError: a file, manifest or tag is damaged; nothing that is needed was removed.
        StorageError: the store failed; the next upkeep goes on.
        ClusterError: Ray failed.
    """
    latest = store.latest()
    if latest is None:
        return UpkeepReport(None, None, None)
    nightly = config.nightly
    compacted = None
    below_bytes = nightly.compact_below_bytes
    if below_bytes is not None:
        num_small = sum(file.size_bytes < below_bytes for file in latest.files)
        if num_small >= nightly.compact_min_files:
            target = config.output.target_file_bytes
            compacted = compact(store, below_bytes=below_bytes, target_file_bytes=target)
    expired = None
    if nightly.keep_snapshots is not None or nightly.keep_days is not None:
        expired = expire(store, keep=nightly.keep_snapshots, keep_days=nightly.keep_days)
    garbage = None
    if nightly.gc_older_than_hours is not None:
        garbage = collect_garbage(store, older_than_hours=nightly.gc_older_than_hours)
    return UpkeepReport(compacted, expired, garbage)
