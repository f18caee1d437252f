"""Everything that is checked and planned before a run does any work.

What can go wrong for a reason that the user can mend goes wrong here. Knows the order of things;
Ray, files and the model are behind the modules that it calls.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa

from pipeline import cluster
from pipeline.backend import Backend, EncoderDescription
from pipeline.batch_sizes import batch_sizes
from pipeline.cluster import Allocation
from pipeline.compare import KnownFiles
from pipeline.config import EmbedConfig
from pipeline.errors import ConfigError, EmptySourceError, SourceError
from pipeline.gpus import with_gpus
from pipeline.plan import Plan, make_plan
from pipeline.schema import output_schema
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.snapshot.run_record import Interrupted, interrupted_files
from pipeline.sources.discover import Discovery, discover
from pipeline.storage import open_storage, probe
from pipeline.worker import WorkerSpec

log = logging.getLogger(__name__)

# What one call of an actor embeds when the configuration leaves it open: enough tokens to keep
# batches full and Ray's overhead small, few enough that progress shows and little is ever redone.
TOKENS_PER_CPU_TASK = 200_000
TOKENS_PER_GPU_TASK = 8_000_000
TASKS_PER_ACTOR = 4
TOKENS_PER_READER = 1_000_000
# A few new documents are not worth a task, and a file, each; and a GPU wants full batches.
MIN_TOKENS_PER_CPU_TASK = 20_000
MIN_TOKENS_PER_GPU_TASK = 500_000
MAX_DOCUMENTS_PER_TASK = 50_000


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
    nodes = cluster.nodes()
    settled = with_gpus(config, [node.num_gpus for node in nodes])
    allocation = cluster.allocate(settled.run, nodes)
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
    budget, least = TOKENS_PER_CPU_TASK, MIN_TOKENS_PER_CPU_TASK
    if allocation.actor_gpus:
        budget, least = TOKENS_PER_GPU_TASK, MIN_TOKENS_PER_GPU_TASK
    documents_per_token = plan.num_selected / max(plan.estimated_tokens, 1)
    by_actors = -(-plan.num_selected // (allocation.num_actors * TASKS_PER_ACTOR))
    at_least = math.ceil(least * documents_per_token)
    at_most = min(math.ceil(budget * documents_per_token), MAX_DOCUMENTS_PER_TASK)
    return max(1, min(max(by_actors, at_least), at_most, plan.num_selected))


def readers(prepared: PreparedRun) -> int:
    """Reading tasks to run at once; little text is not worth the start of many processes."""
    plan, allocation = prepared.plan, prepared.allocation
    if plan is None or allocation is None:
        return 1
    return max(1, min(allocation.num_readers, -(-plan.estimated_tokens // TOKENS_PER_READER)))


def worker_spec(prepared: PreparedRun) -> WorkerSpec:
    """What the run's actors are built from."""
    allocation = prepared.allocation
    assert allocation is not None
    num_threads, gpus = allocation.threads_per_actor, allocation.actor_gpus
    sizes = batch_sizes(prepared.config.batch, num_threads, on_gpu=gpus > 0)
    config = with_gpus(prepared.config, [gpus])
    return WorkerSpec(
        config=config,
        run_id=prepared.run_id,
        carried_fields=prepared.discovery.carried_fields,
        load_model=prepared.backend.loader(config, num_threads),
        window_tokens=sizes.window_tokens,
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
