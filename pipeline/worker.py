"""What one embedding actor does: a table of documents in, data files out. A plain class, no Ray.

The vectors go from the model straight into files at their final names, which no reader lists; only
the description of the files is returned, so vectors never enter Ray's object store. Writing happens
on a thread of its own while the next window is encoded.

A block whose earlier attempt died is embedded in a process of its own (`attempts.py`,
`isolation.py`): what kills it there is found, and the actor lives on.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.attempts import ActorStarts, BlockAttempts, block_key
from pipeline.backend import ModelLoader
from pipeline.batch_sizes import MIN_WINDOW_TOKENS
from pipeline.config import EmbedConfig
from pipeline.data_files import DataFileWriter
from pipeline.embed import EmbeddedBatch, Embedder, Partition
from pipeline.isolation import IsolatedModel
from pipeline.records import RejectedRow
from pipeline.rejected import count_by_code, write_rejected
from pipeline.schema import output_schema
from pipeline.snapshot.metadata import DataFile
from pipeline.snapshot.run_record import RunRecord
from pipeline.storage import Storage, open_storage
from pipeline.token_window import VectorModel, least

log = logging.getLogger(__name__)

RECORD_SCHEMA = pa.schema([pa.field("record", pa.string(), nullable=False)])
# Windows that may wait for the writer; each holds the vectors of `window_tokens` tokens.
MAX_WAITING_WINDOWS = 2


@dataclass(frozen=True)
class WorkerCounts:
    """What one call of a worker did. Times are seconds, tokens are without sentence marks.

    `num_oom_splits` batches did not fit into memory, and `safe_tokens` is the least budget of
    padded tokens that this led to (None: all fitted). `num_retries` counts earlier attempts that
    died, `num_isolated` blocks embedded in a process of their own, `num_process_starts` such
    processes. `made_words` are those that went through the character encoder.
    """

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    cut_tokens: int = 0
    split_sentences: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    made_words: int = 0
    num_oom_splits: int = 0
    safe_tokens: int | None = None
    num_retries: int = 0
    num_isolated: int = 0
    num_process_starts: int = 0
    encode_s: float = 0.0
    call_s: float = 0.0

    @property
    def padding_share(self) -> float:
        """Share of the padded tokens that are padding."""
        return 1 - self.real_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def __add__(self, other: WorkerCounts) -> WorkerCounts:
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in vars(self)
            if name != "safe_tokens"
        }
        return WorkerCounts(**sums, safe_tokens=least(self.safe_tokens, other.safe_tokens))


@dataclass(frozen=True)
class WorkerRecord:
    """What one call produced: the files, and the rejected rows written to `rejected_file`.

    `kernel` says what ran the model, and `advice` what would make that faster, if anything.
    """

    files: tuple[DataFile, ...] = ()
    rejected_file: str | None = None
    rejected_by_code: Mapping[str, int] = field(default_factory=dict)
    counts: WorkerCounts = WorkerCounts()
    kernel: str = ""
    advice: str = ""

    def to_json(self) -> str:
        """The record as one line of JSON; `from_json` reads it back."""
        files = [file.to_json() for file in self.files]
        return json.dumps({**asdict(replace(self, files=())), "files": files})

    @classmethod
    def from_json(cls, text: str) -> WorkerRecord:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(
            files=tuple(DataFile.from_json(file) for file in values["files"]),
            rejected_file=values["rejected_file"],
            rejected_by_code=values["rejected_by_code"],
            counts=WorkerCounts(**values["counts"]),
            kernel=values["kernel"],
            advice=values["advice"],
        )


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker needs, picklable: it is built anew in each actor's process.

    `window_tokens` tokens are sorted by length together. `max_starts` workers of a run may die
    while they load the model before the run is given up.
    """

    config: EmbedConfig
    run_id: str
    carried_fields: tuple[pa.Field, ...]
    load_model: ModelLoader
    window_tokens: int = MIN_WINDOW_TOKENS
    max_starts: int = 100


class EmbedWorker:
    """Embeds tables of tokenised documents and writes their rows as data files."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._config = spec.config
        self._storage = open_storage(spec.config.output.path)
        starts = ActorStarts(self._storage, spec.run_id, spec.max_starts)
        starts.begin()
        self._model = spec.load_model()
        starts.succeeded()
        self._schema = output_schema(
            spec.config.vectors, self._model.dim, self._model.vector_columns, spec.carried_fields
        )

    def __call__(self, documents: pa.Table) -> pa.Table:
        """Embed and write one table of documents (TOKEN_FIELDS and the carried columns).

        Returns: one row of RECORD_SCHEMA; none for an empty table.
        """
        if not documents.num_rows:
            return RECORD_SCHEMA.empty_table()
        record = self.embed(documents)
        return pa.table({"record": [record.to_json()]}, schema=RECORD_SCHEMA)

    def embed(self, documents: pa.Table) -> WorkerRecord:
        """Embed and write one table of documents; nothing of a failed call is ever listed.

        What is recorded is returned: if another attempt at the same documents came to its end
        first, that is its record, and the files of this one are named nowhere.
        """
        attempts = BlockAttempts(self._storage, self._spec.run_id, block_key(documents))
        number = attempts.begin()
        if number == 1:
            record = self._embed(documents, self._model)
        else:
            record = self._complete(attempts.recorded()) or self._embed_isolated(documents, number)
        text = record.to_json()
        recorded = self._complete(attempts.record(text), text)
        if recorded is None:
            # What the record of the block lists is gone: this attempt has written it anew.
            RunRecord(self._storage, self._spec.run_id).add(record.files)
        return recorded or record

    def _complete(self, text: str | None, ours: str = "") -> WorkerRecord | None:
        """The record, None if one of its files is not there; what we just wrote is."""
        if text is None:
            return None
        record = WorkerRecord.from_json(text)
        infos = [] if text == ours else [self._storage.info_or_none(f.path) for f in record.files]
        sizes = [None if info is None else info.size_bytes for info in infos]
        return record if text == ours or sizes == [f.size_bytes for f in record.files] else None

    def _embed_isolated(self, documents: pa.Table, number: int) -> WorkerRecord:
        log.warning(
            "attempt %d at %d documents: the worker of the one before died, so they are embedded "
            "in a process of their own",
            number,
            documents.num_rows,
        )
        timeout_s = self._config.run.no_progress_timeout_s / 2
        model = self._model
        # What this process holds for later batches would be missing there.
        getattr(model, "release_memory", lambda: None)()
        with IsolatedModel(
            self._spec.load_model, model.dim, model.vector_columns, timeout_s
        ) as isolated:
            record = self._embed(documents, isolated)
        counts = replace(
            record.counts,
            num_retries=number - 1,
            num_isolated=1,
            num_process_starts=isolated.processes.num_starts,
        )
        return replace(record, counts=counts)

    def _embed(self, documents: pa.Table, model: VectorModel) -> WorkerRecord:
        started = time.monotonic()
        before = replace(model.counts)
        embedder = Embedder(
            model,
            self._schema,
            self._config.source.partition_columns,
            self._config.vectors.level,
            self._spec.window_tokens,
        )
        rejected: list[RejectedRow] = []
        with _BackgroundFiles(self._storage, self._spec, self._schema) as files:
            num_documents = 0
            for result in embedder.embed(documents):
                if isinstance(result, RejectedRow):
                    rejected.append(result)
                else:
                    files.write(result)
                    num_documents += result.num_documents
            encode_s = time.monotonic() - started
            data_files = files.close()
        done = model.counts.since(before)
        return WorkerRecord(
            files=data_files,
            rejected_file=write_rejected(self._storage, self._spec.run_id, rejected)
            if rejected
            else None,
            rejected_by_code=count_by_code(rejected),
            counts=WorkerCounts(
                documents=num_documents,
                sentences=_total_length(documents, "sentence_lengths"),
                tokens=_total_length(documents, "tokens"),
                cut_tokens=_total(documents, "num_cut_tokens"),
                split_sentences=_total(documents, "num_split_sentences"),
                real_tokens=done.real_tokens,
                padded_tokens=done.padded_tokens,
                made_words=done.made_words,
                num_oom_splits=done.num_oom_splits,
                safe_tokens=done.safe_tokens,
                encode_s=encode_s,
                call_s=time.monotonic() - started,
            ),
            kernel=getattr(self._model, "kernel", ""),
            advice=getattr(self._model, "advice", ""),
        )


class _BackgroundFiles:
    """Data files of one call, written by a thread: one open file at a time, partitions in order."""

    def __init__(self, storage: Storage, spec: WorkerSpec, schema: pa.Schema) -> None:
        self._storage = storage
        self._spec = spec
        self._schema = schema
        self._partition: Partition | None = None
        self._writer: DataFileWriter | None = None
        self._files: list[DataFile] = []
        self._error: BaseException | None = None
        self._waiting: queue.Queue[EmbeddedBatch | None] = queue.Queue(MAX_WAITING_WINDOWS)
        self._thread = threading.Thread(target=self._run, name="data-file-writer", daemon=True)

    def __enter__(self) -> _BackgroundFiles:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._thread.is_alive():
            self._error = self._error or InterruptedError("the call failed")
            self._waiting.put(None)
            self._thread.join()
        if self._writer is not None:
            self._writer.abort()

    def write(self, batch: EmbeddedBatch) -> None:
        """Queue a batch; waits when the writer is behind, and raises what it met."""
        self._waiting.put(batch)
        if self._error is not None:
            raise self._error

    def close(self) -> tuple[DataFile, ...]:
        """Wait until all is written and closed; returns the files in partition order."""
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return tuple(self._files)

    def _run(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._write(batch)
                except BaseException as error:  # handed to the caller's thread
                    self._error = error
        if self._error is None:
            try:
                self._close_writer()
            except BaseException as error:
                self._error = error

    def _write(self, batch: EmbeddedBatch) -> None:
        output = self._spec.config.output
        if self._writer is not None and (
            batch.partition != self._partition
            or self._writer.size_bytes >= output.target_file_bytes
        ):
            self._close_writer()
        if self._writer is None:
            names = self._spec.config.source.partition_columns
            partition = dict(zip(names, batch.partition, strict=True))
            self._writer = DataFileWriter(
                self._storage, self._schema, output, partition, self._spec.run_id
            )
            self._partition = batch.partition
        self._writer.write(batch.rows)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._files.append(self._writer.close())
            self._writer = None


def _total_length(documents: pa.Table, name: str) -> int:
    return sum(len(chunk.flatten()) for chunk in documents[name].chunks)


def _total(documents: pa.Table, name: str) -> int:
    return int(documents[name].to_numpy().sum())
