"""Turn what a run wrote into the next snapshot and commit it.

The files that stay, those that were copied without what left them, and the new ones become one
manifest with its change feed. Knows no encoder; the work on files is done by `pipeline.finish`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.accounting import Accounting
from pipeline.errors import PipelineError
from pipeline.finish import Finish
from pipeline.plan import Plan
from pipeline.prepare import PreparedRun
from pipeline.snapshot.changes import ADD, DELETE, UPDATE
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.snapshot.run_record import check_there
from pipeline.worker import WorkerCounts


@dataclass(frozen=True)
class RunReport:
    """What a run did. `snapshot` is None when there was nothing to commit.

    New and changed are against the parent; `accounting` says what became of every row. `kernels`
    are what ran the model on the machines of the cluster, `advice` what would be faster there.
    """

    snapshot: Snapshot | None
    num_new: int = 0
    num_changed: int = 0
    num_unchanged: int = 0
    num_deleted: int = 0
    accounting: Accounting = Accounting(0)
    rejected_by_code: dict[str, int] = field(default_factory=dict)
    rejected_files: tuple[str, ...] = ()
    counts: WorkerCounts = WorkerCounts()
    kernels: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    num_files_written: int = 0
    num_files_rewritten: int = 0
    bytes_written: int = 0
    bytes_rewritten: int = 0
    seconds: float = 0.0


def publish(
    prepared: PreparedRun, plan: Plan, finish: Finish, report: RunReport, new_files: list[DataFile]
) -> RunReport:
    """Make the new snapshot of the files that stay, rewritten and new ones, and commit it.

    Args:
        prepared: the run.
        plan: its plan.
        finish: its tasks.
        report: what was done so far.
        new_files: what was embedded or copied to new metadata.

    Returns: the report with the snapshot.

    Raises:
        CommitConflictError: another run committed first.
        CommitUnknownError: the store did not say whether the commit happened.
        CorruptFileError: a file that had to be rewritten is damaged.
        PipelineError: files and feed do not agree; nothing was committed.
    """
    known = prepared.known_files
    num_parent_files = len(prepared.parent_files)
    rewritten = finish.rewrite(known, plan.drops, plan.dropped)
    left_out = plan.unusable | (set(range(num_parent_files)) if prepared.reembed else set())
    placed = {
        number: rewritten.get(number, file)
        for number, file in enumerate(known)
        if number not in left_out
    }
    kept = {number: file for number, file in placed.items() if file is not None}
    files = (*kept.values(), *new_files)
    number = 1 if prepared.parent is None else prepared.parent.number + 1
    changes, operations = finish.write_changes(
        number, plan.operations, {n: file.path for n, file in kept.items()}, new_files
    )
    _check_complete(prepared, operations, files)
    moved = {known[n].path: kept[n].path for n in rewritten if n < num_parent_files and n in kept}
    copies = [file for file in rewritten.values() if file is not None]
    report = replace(
        report,
        num_files_rewritten=len(rewritten),
        bytes_rewritten=sum(file.size_bytes for file in copies),
    )
    taken_over = [kept[number] for number in kept if number >= num_parent_files]
    check_there(prepared.store.storage, taken_over)
    snapshot = _snapshot(prepared, report, files, operations)
    snapshot = replace(snapshot, changes=changes, rewritten=moved)
    return replace(report, snapshot=prepared.store.commit(snapshot))


def _check_complete(
    prepared: PreparedRun, operations: Mapping[str, int], files: Sequence[DataFile]
) -> None:
    """Nothing is lost in silence: the files hold what the parent held and the feed says."""
    before = sum(file.num_documents for file in prepared.parent_files)
    expected = before + operations[ADD] - operations[DELETE]
    found = sum(file.num_documents for file in files)
    if found != expected:
        raise PipelineError(
            f"{prepared.store.url}: the parent has {before} documents, {operations[ADD]} were "
            f"added and {operations[DELETE]} left, but the files would hold {found} instead of "
            f"{expected}. Nothing was committed; please report this with the log"
        )


def _snapshot(
    prepared: PreparedRun,
    report: RunReport,
    files: tuple[DataFile, ...],
    operations: Mapping[str, int],
) -> Snapshot:
    config, parent, encoder = prepared.config, prepared.parent, prepared.encoder
    return Snapshot.new(
        number=1 if parent is None else parent.number + 1,
        parent=None if parent is None else parent.number,
        run_id=prepared.run_id,
        idempotency_key=prepared.idempotency_key,
        operation=prepared.operation,
        fingerprint=encoder.fingerprint,
        encoder=encoder.details,
        config=config.model_dump(mode="json"),
        schema=prepared.schema,
        partition_columns=config.source.partition_columns,
        files=files,
        rejected_files=report.rejected_files,
        counts={
            "documents": sum(file.num_documents for file in files),
            "rows": sum(file.num_rows for file in files),
            "added": operations[ADD],
            "changed": operations[UPDATE],
            "unchanged": report.num_unchanged,
            "deleted": operations[DELETE],
            "rejected": report.accounting.rejected,
            **{f"rejected_{code}": n for code, n in report.rejected_by_code.items()},
            **report.accounting.to_counts(),
            "embedded_documents": report.counts.documents,
            "embedded_sentences": report.counts.sentences,
            "embedded_tokens": report.counts.tokens,
            "cut_tokens": report.counts.cut_tokens,
            "split_sentences": report.counts.split_sentences,
            **_trouble(report.counts),
        },
        lineage={
            "source": list(config.source.paths),
            "listing_hash": prepared.discovery.listing_hash,
            "num_source_files": len(prepared.discovery.files),
            "source_bytes": sum(file.size_bytes for file in prepared.discovery.files),
        },
    )


def _trouble(counts: WorkerCounts) -> dict[str, int]:
    """What the actors met and overcame; absent where there was nothing."""
    found = {
        "oom_splits": counts.num_oom_splits,
        "safe_tokens": counts.safe_tokens or 0,
        "retried_blocks": counts.num_retries,
        "isolated_blocks": counts.num_isolated,
    }
    return {name: count for name, count in found.items() if count}
