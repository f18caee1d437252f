"""One embedding run, from configuration to committed snapshot: check, plan, embed, commit.

What can go wrong for a reason that the user can mend is checked before any work starts. Knows the
order of things; Ray, files and the model are behind the modules that it calls.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa

from pipeline import cluster, dataset
from pipeline.accounting import Accounting
from pipeline.backend import Backend, EncoderDescription
from pipeline.cluster import Allocation
from pipeline.compare import KnownFiles
from pipeline.config import EmbedConfig
from pipeline.errors import (
    CommitConflictError,
    ConfigError,
    EmptySourceError,
    PipelineError,
    SourceError,
    StorageError,
)
from pipeline.finish import Finish
from pipeline.plan import Plan, make_plan
from pipeline.rejected import check_rejected
from pipeline.schema import output_schema
from pipeline.snapshot.changes import ADD, DELETE, UPDATE
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.snapshot.run_record import (
    Interrupted,
    RunRecord,
    RunStart,
    check_there,
    forget,
    interrupted_files,
)
from pipeline.sources.discover import Discovery, discover
from pipeline.storage import open_storage, probe
from pipeline.worker import WorkerCounts, WorkerRecord, WorkerSpec

log = logging.getLogger(__name__)

# A run that loses this many races in a row gives up; each costs a pass over the corpus.
MAX_RACES = 5
# What one call of an actor embeds when the configuration leaves it open: enough tokens to keep
# batches full and Ray's overhead small, few enough that progress shows and little is ever redone.
TOKENS_PER_CPU_TASK = 200_000
TOKENS_PER_GPU_TASK = 8_000_000
TASKS_PER_ACTOR = 4
# A few new documents are not worth a task, and a file, each.
MIN_TOKENS_PER_TASK = 5_000
MAX_DOCUMENTS_PER_TASK = 50_000

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class PreparedRun:
    """A run that passed all checks and knows what it has to do.

    `schema` is the whole table's, partition columns last. With `reembed` nothing of the parent can
    be kept. `interrupted` is what runs that never committed have left.
    """

    config: EmbedConfig
    backend: Backend
    store: SnapshotStore
    discovery: Discovery
    encoder: EncoderDescription
    schema: pa.Schema
    parent: Snapshot | None
    reembed: bool
    operation: str
    idempotency_key: str
    run_id: str
    interrupted: Interrupted = Interrupted()
    plan: Plan | None = None
    allocation: Allocation | None = None

    @property
    def parent_files(self) -> tuple[DataFile, ...]:
        """Files of the parent."""
        return () if self.parent is None else self.parent.files

    @property
    def known_files(self) -> tuple[DataFile, ...]:
        """Files whose documents have vectors: the parent's, then those of interrupted runs."""
        return (*self.parent_files, *self.interrupted.files)

    @property
    def data_schema(self) -> pa.Schema:
        """Columns of a data file."""
        columns = self.config.source.partition_columns
        return pa.schema([item for item in self.schema if item.name not in columns])

    @property
    def is_repeat(self) -> bool:
        """True when the parent came of the same input, encoder and configuration."""
        return self.plan is None


@dataclass(frozen=True)
class RunReport:
    """What a run did. `snapshot` is None when there was nothing to commit.

    New and changed are against the parent; `accounting` says what became of every row.
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
    num_files_written: int = 0
    num_files_rewritten: int = 0
    bytes_written: int = 0
    bytes_rewritten: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Permissions:
    """What a run may do that would wipe an index if its input were broken.

    `reembed` embeds all documents anew where the encoder or the columns differ from the parent's;
    `mass_delete` lets more documents go than `run.max_deleted_share`; `empty_source` takes a source
    without documents, or a missing one, for a corpus from which all are gone.
    """

    reembed: bool = False
    mass_delete: bool = False
    empty_source: bool = False


def prepare(
    config: EmbedConfig,
    *,
    backend: Backend | None = None,
    reembed: bool = False,
    allow_mass_delete: bool = False,
    allow_empty_source: bool = False,
    only_files: frozenset[str] | None = None,
) -> PreparedRun:
    """Check everything that can be checked before work starts, then plan.

    Args:
        config: the validated configuration.
        backend: what embeds; ELMo by default.
        reembed: see `Permissions`.
        allow_mass_delete: see `Permissions`.
        allow_empty_source: see `Permissions`.
        only_files: look at these source files (URLs) alone, and let nothing count as gone.

    Raises:
        ConfigError: paths, model and options do not fit, or the encoder differs and `reembed` is
            not set.
        UnsafeStoreError: the output's store does not honour put-if-absent.
        SourceError: the corpus is missing, empty, broken, or lost too many documents.
        CorruptFileError: a file of the parent is damaged.
        ClusterError: the actors do not fit, or nothing moved for too long.
    """
    if backend is None:
        from pipeline.model import ElmoBackend

        backend = ElmoBackend()
    may = Permissions(reembed, allow_mass_delete, allow_empty_source)
    storage = open_storage(config.output.path)
    store = SnapshotStore(storage)
    discovery = _discover(config, may, only_files)
    encoder = backend.describe(config)
    probe(storage)
    parent = store.latest()
    # A source without files has no columns that could differ.
    schema = table_schema(config, discovery, encoder)
    if parent is not None and not discovery.files:
        schema = parent.schema
    differs = _check_same_table(parent, encoder, schema, may, storage.url)
    prepared = PreparedRun(
        config=config,
        backend=backend,
        store=store,
        discovery=discovery,
        encoder=encoder,
        schema=schema,
        parent=parent,
        reembed=differs,
        operation="replay" if only_files is not None else "reembed" if differs else "embed",
        idempotency_key=_idempotency_key(config, discovery, encoder, only_files),
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
    )
    # A replay is never a repeat: what failed may succeed now, though the input is the same.
    is_same = parent is not None and parent.idempotency_key == prepared.idempotency_key
    if is_same and only_files is None:
        return prepared
    cluster.connect()
    allocation = cluster.allocate(config.run, cluster.nodes())
    interrupted = interrupted_files(
        storage,
        encoder.fingerprint,
        schema_hash(schema),
        {file.path for file in prepared.parent_files},
    )
    prepared = replace(prepared, interrupted=interrupted, allocation=allocation)
    how = KnownFiles(
        len(prepared.parent_files), reuse_parent=not differs, keep_gone=only_files is not None
    )
    plan = make_plan(config, discovery, prepared.known_files, how)
    _check_deletes(prepared, plan, may)
    return replace(prepared, plan=plan)


def _discover(
    config: EmbedConfig, may: Permissions, only_files: frozenset[str] | None
) -> Discovery:
    try:
        discovery = discover(config.source)
    except EmptySourceError:
        if not may.empty_source:
            raise
        log.warning("%s: the source is empty", ", ".join(config.source.paths))
        return Discovery.nothing()
    return discovery if only_files is None else discovery.restricted(only_files)


def _check_same_table(
    parent: Snapshot | None,
    encoder: EncoderDescription,
    schema: pa.Schema,
    may: Permissions,
    url: str,
) -> bool:
    """Whether the parent's rows are of another encoder or have other columns."""
    if parent is None:
        return False
    same_encoder = parent.fingerprint == encoder.fingerprint
    if same_encoder and parent.schema.equals(schema):
        return False
    if not may.reembed:
        what = (
            "other columns"
            if same_encoder
            else f"encoder fingerprint {parent.fingerprint[:12]}, this configuration gives "
            f"{encoder.fingerprint[:12]}"
        )
        raise ConfigError(
            f"{url}: snapshot {parent.number} was made with {what}; vectors and rows of the two "
            "may not be mixed: pass --reembed to embed the whole corpus anew, or choose another "
            "output.path"
        )
    return True


def documents_per_task(prepared: PreparedRun) -> int:
    """Documents of one actor call: the configured number, or one that fits the corpus.

    A small corpus is cut finely enough that all actors have work.
    """
    run, plan, allocation = prepared.config.run, prepared.plan, prepared.allocation
    if run.documents_per_task is not None:
        return run.documents_per_task
    if plan is None or allocation is None or not plan.num_selected:
        return 1
    budget = TOKENS_PER_GPU_TASK if allocation.actor_gpus else TOKENS_PER_CPU_TASK
    documents_per_token = plan.num_selected / max(plan.estimated_tokens, 1)
    by_actors = -(-plan.num_selected // (allocation.num_actors * TASKS_PER_ACTOR))
    at_least = math.ceil(MIN_TOKENS_PER_TASK * documents_per_token)
    at_most = min(math.ceil(budget * documents_per_token), MAX_DOCUMENTS_PER_TASK)
    return max(1, min(max(by_actors, at_least), at_most, plan.num_selected))


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
        num_files_written=len(new_files),
        bytes_written=sum(file.size_bytes for file in new_files),
    )
    report.accounting.check(prepared.store.url)
    touched = any(drop.file < len(prepared.parent_files) for drop in plan.drops)
    if new_files or touched or plan.num_resumed or plan.num_metadata_only or prepared.reembed:
        new_files += finish.copy_metadata(plan.reads, prepared.known_files)
        report = _commit(prepared, plan, finish, report, new_files)
        _tidy(prepared, record)
    return replace(report, seconds=time.monotonic() - started)


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


def _commit(
    prepared: PreparedRun, plan: Plan, finish: Finish, report: RunReport, new_files: list[DataFile]
) -> RunReport:
    """Make the new snapshot of the files that stay, rewritten and new ones, and commit it."""
    known = prepared.known_files
    num_parent_files = len(prepared.parent_files)
    rewritten = finish.rewrite(known, plan.drops)
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


def worker_spec(prepared: PreparedRun) -> WorkerSpec:
    """What the run's actors are built from."""
    assert prepared.allocation is not None
    return WorkerSpec(
        config=prepared.config,
        run_id=prepared.run_id,
        carried_fields=prepared.discovery.carried_fields,
        load_model=prepared.backend.loader(prepared.config, prepared.allocation.threads_per_actor),
    )


def table_schema(
    config: EmbedConfig, discovery: Discovery, encoder: EncoderDescription
) -> pa.Schema:
    """Schema of the whole table as a reader of the snapshot sees it, partition columns last."""
    schema = output_schema(
        config.vectors, encoder.dim, encoder.vector_columns, discovery.carried_fields
    )
    for name in config.source.partition_columns:
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def _embed(
    prepared: PreparedRun, plan: Plan, allocation: Allocation, progress: ProgressCallback | None
) -> list[WorkerRecord]:
    if not plan.num_selected:
        return []
    embed_pass = dataset.EmbedPass(worker_spec(prepared), allocation, documents_per_task(prepared))
    records: list[WorkerRecord] = []
    documents = tokens = 0
    for record in embed_pass.run(plan.reads):
        records.append(record)
        documents += record.counts.documents + sum(record.rejected_by_code.values())
        tokens += record.counts.tokens
        if progress is not None:
            progress(documents, tokens)
    return records


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


def schema_hash(schema: pa.Schema) -> str:
    """SHA-256 (hex) of an Arrow schema."""
    return hashlib.sha256(schema.serialize()).hexdigest()


def _idempotency_key(
    config: EmbedConfig,
    discovery: Discovery,
    encoder: EncoderDescription,
    only_files: frozenset[str] | None,
) -> str:
    """Equal keys mean: the same input listing, encoder and configuration of the result."""
    parts = {
        "listing": discovery.listing_hash,
        "fingerprint": encoder.fingerprint,
        "source": config.source.model_dump(mode="json"),
        "output": config.output.model_dump(mode="json"),
        "only_files": None if only_files is None else sorted(only_files),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_deletes(prepared: PreparedRun, plan: Plan, may: Permissions) -> None:
    paths = ", ".join(prepared.config.source.paths)
    documents = sum(file.num_documents for file in prepared.parent_files)
    if not plan.num_rows_in and not (may.empty_source and documents):
        hint = "; if all of them are gone, pass --allow-empty-source" if documents else ""
        raise EmptySourceError(f"{paths}: the corpus has no documents; expected at least one{hint}")
    if not plan.num_rows_in or may.mass_delete or not documents:
        return
    share = plan.num_gone / documents
    limit = prepared.config.run.max_deleted_share
    if share > limit:
        raise SourceError(
            f"{paths}: {plan.num_gone} of the snapshot's {documents} documents ({share:.0%}) are "
            f"gone from the corpus, more than run.max_deleted_share = {limit:.0%}; if that is "
            "right, pass --allow-mass-delete"
        )


def _check_rejects(
    prepared: PreparedRun, plan: Plan, by_code: dict[str, int], rejected_files: list[str]
) -> None:
    config = prepared.config
    urls = [f"{prepared.store.url}/{path}" for path in rejected_files]
    check_rejected(by_code, plan.num_rows_in, config.run, ", ".join(config.source.paths), urls)
