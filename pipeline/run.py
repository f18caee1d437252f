"""One embedding run, from configuration to committed snapshot: prepare, embed, publish.

Knows the order of things; Ray, files and the model are behind the modules that it calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from pipeline import dataset
from pipeline.accounting import Accounting
from pipeline.cluster import Allocation
from pipeline.errors import CommitConflictError, StorageError
from pipeline.finish import Finish
from pipeline.plan import Plan
from pipeline.prepare import (
    PreparedRun,
    documents_per_task,
    prepare,
    readers,
    schema_hash,
    worker_spec,
)
from pipeline.publish import RunReport, publish
from pipeline.rejected import check_rejected
from pipeline.snapshot.run_record import RunRecord, RunStart, forget
from pipeline.worker import WorkerCounts, WorkerRecord

__all__ = [
    "PreparedRun",
    "RunReport",
    "documents_per_task",
    "execute",
    "prepare",
    "run_to_commit",
    "worker_spec",
]

log = logging.getLogger(__name__)

# A run that loses this many races in a row gives up; each costs a pass over the corpus.
MAX_RACES = 5
ProgressCallback = Callable[[int, int], None]


def execute(prepared: PreparedRun, progress: ProgressCallback | None = None) -> RunReport:
    """Embed what the plan selected and commit the new snapshot.

    Args:
        prepared: of `prepare`.
        progress: called with the documents and tokens done so far.

    Returns: what was done; its `snapshot` is None when nothing changed, and then nothing was
        committed.

    Raises:
        TooManyRejectsError: over `run.max_rejected_share`; the rejected rows can be read.
        SourceError: the corpus changed during the run.
        CommitConflictError: another run committed first.
        CommitUnknownError: the store did not say whether the commit happened.
    """
    started = time.monotonic()
    plan, allocation = prepared.plan, prepared.allocation
    if plan is None or allocation is None:
        return RunReport(None)
    finish = Finish(prepared.config, prepared.run_id, prepared.data_schema)
    record = _start_record(prepared, plan)
    rejected_files, by_code = finish.write_rejected(plan.rejected)
    _check_rejects(prepared, plan, by_code, rejected_files)
    worker_records = _embed(prepared, plan, allocation, progress)
    for worker_record in worker_records:
        if worker_record.rejected_file is not None:
            rejected_files.append(worker_record.rejected_file)
        for code, count in worker_record.rejected_by_code.items():
            by_code[code] = by_code.get(code, 0) + count
    _check_rejects(prepared, plan, by_code, rejected_files)
    counts = sum((item.counts for item in worker_records), WorkerCounts())
    new_files = [file for item in worker_records for file in item.files]
    report = RunReport(
        snapshot=None,
        num_new=plan.num_new,
        num_changed=plan.num_changed,
        num_unchanged=plan.num_unchanged,
        num_deleted=plan.num_gone,
        accounting=Accounting(
            rows_in=plan.num_rows_in,
            embedded=counts.documents,
            resumed=plan.num_resumed,
            metadata_only=plan.num_metadata_only,
            unchanged=plan.num_unchanged,
            rejected=sum(by_code.values()),
        ),
        rejected_by_code=dict(sorted(by_code.items())),
        rejected_files=tuple(rejected_files),
        counts=counts,
        kernels=_distinct(item.kernel for item in worker_records),
        advice=_distinct(item.advice for item in worker_records),
        num_files_written=len(new_files),
        bytes_written=sum(file.size_bytes for file in new_files),
    )
    report.accounting.check(prepared.store.url)
    touched = any(drop.file < len(prepared.parent_files) for drop in plan.drops)
    if new_files or touched or plan.num_resumed or plan.num_metadata_only or prepared.reembed:
        new_files += finish.copy_metadata(plan.reads, prepared.known_files)
        report = publish(prepared, plan, finish, report, new_files)
        _tidy(prepared, record)
    return replace(report, seconds=time.monotonic() - started)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in texts if text}))


def _start_record(prepared: PreparedRun, plan: Plan) -> RunRecord:
    """Record what the run is; what it takes over of others is recorded as its own."""
    record = RunRecord(prepared.store.storage, prepared.run_id)
    if plan.reads or prepared.interrupted.files:
        record.start(
            RunStart(
                run_id=prepared.run_id,
                idempotency_key=prepared.idempotency_key,
                fingerprint=prepared.encoder.fingerprint,
                columns=schema_hash(prepared.schema),
                parent=prepared.parent.number if prepared.parent else None,
            )
        )
    if prepared.interrupted.files:
        record.add(prepared.interrupted.files)
    return record


def _tidy(prepared: PreparedRun, record: RunRecord) -> None:
    """Remove the records of what is committed now; what stays is found by a later run, or by gc."""
    try:
        record.delete()
        forget(prepared.store.storage, prepared.interrupted)
    except StorageError as error:
        log.warning("the snapshot is committed; records of the run were left behind: %s", error)


def run_to_commit(
    prepare_run: Callable[[], PreparedRun],
    execute_run: Callable[[PreparedRun], RunReport] = execute,
) -> tuple[PreparedRun, RunReport]:
    """Prepare and execute; after a race that was lost, do so again on what the winner committed.

    What a lost try has embedded is found by the next one, as that of an interrupted run.

    Args:
        prepare_run: makes a prepared run of the latest snapshot.
        execute_run: executes it.

    Raises:
        CommitConflictError: MAX_RACES races were lost.
        PipelineError: what `prepare` and `execute` raise.
    """
    for _ in range(MAX_RACES - 1):
        prepared = prepare_run()
        try:
            return prepared, execute_run(prepared)
        except CommitConflictError as error:
            log.warning("%s", error)
    prepared = prepare_run()
    return prepared, execute_run(prepared)


def _embed(
    prepared: PreparedRun, plan: Plan, allocation: Allocation, progress: ProgressCallback | None
) -> list[WorkerRecord]:
    if not plan.num_selected:
        return []
    embed_pass = dataset.EmbedPass(
        worker_spec(prepared), allocation, documents_per_task(prepared), readers(prepared)
    )
    records: list[WorkerRecord] = []
    documents = tokens = 0
    for record in embed_pass.run(plan.reads):
        records.append(record)
        documents += record.counts.documents + sum(record.rejected_by_code.values())
        tokens += record.counts.tokens
        if progress is not None:
            progress(documents, tokens)
    return records


def _check_rejects(
    prepared: PreparedRun, plan: Plan, by_code: dict[str, int], rejected_files: list[str]
) -> None:
    config = prepared.config
    urls = [f"{prepared.store.url}/{path}" for path in rejected_files]
    check_rejected(by_code, plan.num_rows_in, config.run, ", ".join(config.source.paths), urls)
