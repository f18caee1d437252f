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
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from pipeline import cluster, dataset
from pipeline.backend import Backend, EncoderDescription
from pipeline.cluster import Allocation
from pipeline.config import EmbedConfig
from pipeline.errors import ConfigError, PipelineError, SourceError, TooManyRejectsError
from pipeline.plan import Plan, make_plan
from pipeline.schema import output_schema
from pipeline.snapshot.commit import RunRecord, RunStart, SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.sources.discover import Discovery, discover
from pipeline.storage import open_storage, probe
from pipeline.worker import WorkerCounts, WorkerRecord, WorkerSpec

log = logging.getLogger(__name__)

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
    """A run that passed all checks and knows what it has to do."""

    config: EmbedConfig
    backend: Backend
    store: SnapshotStore
    discovery: Discovery
    encoder: EncoderDescription
    parent: Snapshot | None
    reembed: bool
    idempotency_key: str
    run_id: str
    plan: Plan | None = None
    allocation: Allocation | None = None

    @property
    def base_files(self) -> tuple[DataFile, ...]:
        """Files of the parent that the new snapshot may keep."""
        return () if self.parent is None or self.reembed else self.parent.files

    @property
    def is_repeat(self) -> bool:
        """True when the parent came of the same input, encoder and configuration."""
        return self.plan is None


@dataclass(frozen=True)
class RunReport:
    """What a run did. `snapshot` is None when there was nothing to commit."""

    snapshot: Snapshot | None
    num_new: int = 0
    num_changed: int = 0
    num_unchanged: int = 0
    num_deleted: int = 0
    rejected_by_code: dict[str, int] = field(default_factory=dict)
    rejected_files: tuple[str, ...] = ()
    counts: WorkerCounts = WorkerCounts()
    num_files_written: int = 0
    bytes_written: int = 0
    seconds: float = 0.0


def prepare(
    config: EmbedConfig,
    *,
    backend: Backend | None = None,
    reembed: bool = False,
    allow_mass_delete: bool = False,
) -> PreparedRun:
    """Check everything that can be checked before work starts, then plan.

    Args:
        config: the validated configuration.
        backend: what embeds; ELMo by default.
        reembed: embed all documents anew where the encoder or the columns differ from the parent's.
        allow_mass_delete: let more documents go than `run.max_deleted_share`.

    Raises:
        ConfigError: paths, model and options do not fit, or the encoder differs and `reembed` is
            not set.
        UnsafeStoreError: the output's store does not honour put-if-absent.
        SourceError: the corpus is missing, broken, or lost too many documents.
        ClusterError: the actors do not fit.
    """
    if backend is None:
        from pipeline.model import ElmoBackend

        backend = ElmoBackend()
    storage = open_storage(config.output.path)
    store = SnapshotStore(storage)
    discovery = discover(config.source)
    encoder = backend.describe(config)
    probe(storage)
    parent = store.latest()
    differs = parent is not None and _differs(config, discovery, encoder, parent)
    if parent is not None and differs and not reembed:
        raise ConfigError(
            f"{storage.url}: snapshot {parent.number} was made with encoder fingerprint "
            f"{parent.fingerprint[:12]} and its columns, this configuration gives "
            f"{encoder.fingerprint[:12]}; vectors of the two may not be mixed: pass --reembed to "
            "embed the whole corpus anew, or choose another output.path"
        )
    prepared = PreparedRun(
        config=config,
        backend=backend,
        store=store,
        discovery=discovery,
        encoder=encoder,
        parent=parent,
        reembed=differs,
        idempotency_key=_idempotency_key(config, discovery, encoder),
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
    )
    if parent is not None and parent.idempotency_key == prepared.idempotency_key:
        return prepared
    cluster.connect()
    allocation = cluster.allocate(config.run, cluster.nodes())
    plan = make_plan(config, discovery, None if prepared.reembed else parent)
    _check_deletes(config, plan, prepared, allow_mass_delete)
    if not plan.corpus.documents and not plan.num_rejected:
        raise SourceError(
            f"{', '.join(config.source.paths)}: the corpus has no documents; expected at least one"
        )
    return PreparedRun(**{**vars(prepared), "plan": plan, "allocation": allocation})


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
    output = prepared.config.output.path
    parent = prepared.parent.number if prepared.parent else None
    start = RunStart(
        prepared.run_id, prepared.idempotency_key, prepared.encoder.fingerprint, parent
    )
    if plan.reads:
        RunRecord(prepared.store.storage, prepared.run_id).start(start)
    rejected_files, by_code = dataset.write_rejected_tables(output, prepared.run_id, plan.rejected)
    _check_rejects(prepared, by_code, rejected_files)
    records = _embed(prepared, plan, allocation, progress)
    for record in records:
        if record.rejected_file is not None:
            rejected_files.append(record.rejected_file)
        for code, count in record.rejected_by_code.items():
            by_code[code] = by_code.get(code, 0) + count
    _check_rejects(prepared, by_code, rejected_files)
    counts = sum((record.counts for record in records), WorkerCounts())
    new_files = [file for record in records for file in record.files]
    report = RunReport(
        snapshot=None,
        num_new=plan.num_new,
        num_changed=plan.num_changed,
        num_unchanged=plan.num_unchanged,
        num_deleted=plan.num_gone,
        rejected_by_code=dict(sorted(by_code.items())),
        rejected_files=tuple(rejected_files),
        counts=counts,
        num_files_written=len(new_files),
        bytes_written=sum(file.size_bytes for file in new_files),
    )
    if not new_files and not plan.drops and not prepared.reembed:
        return RunReport(**{**vars(report), "seconds": time.monotonic() - started})
    files = _next_files(prepared, plan, new_files)
    _check_complete(prepared, plan, records, files)
    snapshot = prepared.store.commit(_snapshot(prepared, report, files))
    seconds = time.monotonic() - started
    return RunReport(**{**vars(report), "snapshot": snapshot, "seconds": seconds})


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
    if not plan.reads:
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


def _next_files(
    prepared: PreparedRun, plan: Plan, new_files: list[DataFile]
) -> tuple[DataFile, ...]:
    """The parent's files, those with dropped documents rewritten without them, and the new ones."""
    rewritten = dataset.rewrite_files(
        prepared.config.output, prepared.run_id, prepared.base_files, plan.drops
    )
    kept = [rewritten.get(index, file) for index, file in enumerate(prepared.base_files)]
    return (*(file for file in kept if file is not None), *new_files)


def _check_complete(
    prepared: PreparedRun, plan: Plan, records: list[WorkerRecord], files: tuple[DataFile, ...]
) -> None:
    """Nothing is lost in silence: every selected document was written or rejected."""
    rejected = sum(sum(record.rejected_by_code.values()) for record in records)
    embedded = sum(record.counts.documents for record in records)
    base = sum(file.num_documents for file in prepared.base_files)
    expected = base - sum(drop.num_documents for drop in plan.drops) + embedded
    found = sum(file.num_documents for file in files)
    if embedded + rejected != plan.num_selected or found != expected:
        raise PipelineError(
            f"{prepared.store.url}: {plan.num_selected} documents were to be embedded, {embedded} "
            f"were and {rejected} were rejected; the files would hold {found} documents instead of "
            f"{expected}. Nothing was committed; please report this with the log"
        )


def _snapshot(prepared: PreparedRun, report: RunReport, files: tuple[DataFile, ...]) -> Snapshot:
    config, parent, encoder = prepared.config, prepared.parent, prepared.encoder
    return Snapshot.new(
        number=1 if parent is None else parent.number + 1,
        parent=None if parent is None else parent.number,
        run_id=prepared.run_id,
        idempotency_key=prepared.idempotency_key,
        operation="reembed" if prepared.reembed else "embed",
        fingerprint=encoder.fingerprint,
        encoder=encoder.details,
        config=config.model_dump(mode="json"),
        schema=table_schema(config, prepared.discovery, encoder),
        partition_columns=config.source.partition_columns,
        files=files,
        rejected_files=report.rejected_files,
        counts={
            "documents": sum(file.num_documents for file in files),
            "rows": sum(file.num_rows for file in files),
            "added": report.num_new,
            "changed": report.num_changed,
            "unchanged": report.num_unchanged,
            "deleted": report.num_deleted,
            "rejected": sum(report.rejected_by_code.values()),
            "embedded_documents": report.counts.documents,
            "embedded_sentences": report.counts.sentences,
            "embedded_tokens": report.counts.tokens,
            "cut_tokens": report.counts.cut_tokens,
            "split_sentences": report.counts.split_sentences,
        },
        lineage={
            "source": list(config.source.paths),
            "listing_hash": prepared.discovery.listing_hash,
            "num_source_files": len(prepared.discovery.files),
            "source_bytes": sum(file.size_bytes for file in prepared.discovery.files),
        },
    )


def _differs(
    config: EmbedConfig, discovery: Discovery, encoder: EncoderDescription, parent: Snapshot
) -> bool:
    schema = table_schema(config, discovery, encoder)
    return parent.fingerprint != encoder.fingerprint or not parent.schema.equals(schema)


def _idempotency_key(config: EmbedConfig, discovery: Discovery, encoder: EncoderDescription) -> str:
    """Equal keys mean: the same input listing, encoder and configuration of the result."""
    parts = {
        "listing": discovery.listing_hash,
        "fingerprint": encoder.fingerprint,
        "source": config.source.model_dump(mode="json"),
        "output": config.output.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_deletes(
    config: EmbedConfig, plan: Plan, prepared: PreparedRun, allow_mass_delete: bool
) -> None:
    documents = sum(file.num_documents for file in prepared.base_files)
    if allow_mass_delete or not documents:
        return
    share = plan.num_gone / documents
    if share > config.run.max_deleted_share:
        raise SourceError(
            f"{', '.join(config.source.paths)}: {plan.num_gone} of the snapshot's {documents} "
            f"documents ({share:.0%}) are gone from the corpus, more than run.max_deleted_share = "
            f"{config.run.max_deleted_share:.0%}; if that is right, pass --allow-mass-delete"
        )


def _check_rejects(
    prepared: PreparedRun, by_code: dict[str, int], rejected_files: list[str]
) -> None:
    assert prepared.plan is not None
    # Equal texts without ids of their own are one document; that is no fault of the input.
    rejected = sum(count for code, count in by_code.items() if code != "duplicate_text")
    total = prepared.plan.corpus.documents + prepared.plan.corpus.rejected
    limit = prepared.config.run.max_rejected_share
    if not rejected or rejected <= limit * total:
        return
    codes = ", ".join(f"{count} {code}" for code, count in sorted(by_code.items()))
    raise TooManyRejectsError(
        f"{', '.join(prepared.config.source.paths)}: {rejected} of {total} rows were rejected "
        f"({codes}), more than run.max_rejected_share = {limit:.2%}; nothing was committed. "
        f"Source, offset and reason of each: {prepared.store.url}/{rejected_files[0]}"
        + (f" and {len(rejected_files) - 1} more files" if len(rejected_files) > 1 else "")
    )
