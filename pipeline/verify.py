"""Check a snapshot against its manifest: files, hashes, counts, values, ids, and its change feed.

Each file is read twice: once for its SHA-256, once for its rows. Memory holds one batch a thread
and 8 bytes a document, so that ids can be found unique across files. Knows no encoder: a callable
may embed a sample of documents again, and its vectors are compared with the stored ones. Changes
nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data_files import (
    DATA,
    document_starts,
    read_batches,
    read_schema,
    vector_columns,
    verified_file,
)
from pipeline.errors import ConfigError, CorruptFileError, MissingFileError
from pipeline.partitions import parse_partition
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage
from pipeline.verify_feed import check_feed
from pipeline.verify_sample import Problem, Reembed, Reembedded, SampledDocument, check_sample

__all__ = ["Problem", "Reembed", "Reembedded", "VerifyReport", "orphans", "verify_snapshot"]

MAX_EXAMPLES = 5
_EXPONENT_BITS = {pa.float16(): (np.uint16, 0x7C00), pa.float32(): (np.uint32, 0x7F800000)}

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and found. `orphans` are data files that no snapshot names: no problem.

    `feed_missing` says why the change feed was not checked; None where it was.
    """

    number: int
    num_files: int
    num_rows: int
    num_documents: int
    size_bytes: int
    problems: tuple[Problem, ...]
    orphans: tuple[str, ...]
    reembedded: Reembedded | None = None
    feed_missing: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify_snapshot(
    storage: Storage,
    snapshot: Snapshot,
    *,
    reembed: Reembed | None = None,
    sample_documents: int = 32,
    num_threads: int = 4,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check one snapshot.

    Args:
        storage: the snapshot directory.
        snapshot: the one to check.
        reembed: embeds a sample of its documents again; None leaves this out.
        sample_documents: size of that sample; the same documents for the same snapshot.
        num_threads: files that are checked at once.
        progress: called with the files done and all files.

    Raises:
        StorageError: the store failed, so nothing is known. A missing file is a finding instead.
    """
    findings: list[_FileFindings] = []
    with ThreadPoolExecutor(num_threads) as pool:
        results = pool.map(
            lambda file: _check_file(storage, snapshot, file, sample_documents), snapshot.files
        )
        for result in results:
            findings.append(result)
            if progress is not None:
                progress(len(findings), len(snapshot.files))
    problems = [problem for finding in findings for problem in finding.problems]
    problems += _check_rejected_files(storage, snapshot)
    problems += _check_counts(snapshot)
    problems += _check_unique(storage, snapshot, findings)
    feed = check_feed(storage, snapshot)
    problems += feed.problems
    reembedded = None
    if reembed is not None:
        samples = heapq.nsmallest(
            sample_documents, (entry for finding in findings for entry in finding.sample)
        )
        reembedded, more = check_sample(storage, snapshot, reembed, samples)
        problems += more
    found_orphans: tuple[str, ...] = ()
    try:
        found_orphans = orphans(storage)
    except CorruptFileError as error:
        problems.append(Problem("other_manifest", None, str(error)))
    return VerifyReport(
        number=snapshot.number,
        num_files=len(snapshot.files),
        num_rows=sum(finding.num_rows for finding in findings),
        num_documents=sum(len(finding.hashes) for finding in findings),
        size_bytes=snapshot.size_bytes,
        problems=tuple(problems),
        orphans=found_orphans,
        reembedded=reembedded,
        feed_missing=feed.missing,
    )


def orphans(storage: Storage) -> tuple[str, ...]:
    """Data files that no snapshot names: of lost races, of stopped runs, or of runs under way.

    Raises:
        CorruptFileError: a manifest is damaged, so the files it names are not known.
    """
    store = SnapshotStore(storage)
    named = {file.path for number in store.numbers() for file in store.load(number).files}
    return tuple(info.path for info in storage.list_files(DATA) if info.path not in named)


@dataclass
class _FileFindings:
    """What one file holds; `sample` has the documents with the least hashes."""

    problems: list[Problem] = field(default_factory=list)
    num_rows: int = 0
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    sample: list[SampledDocument] = field(default_factory=list)


def _check_file(
    storage: Storage, snapshot: Snapshot, file: DataFile, sample_documents: int
) -> _FileFindings:
    findings = _FileFindings()

    def report(code: str, message: str) -> None:
        findings.problems.append(Problem(code, file.path, message))

    try:
        with verified_file(storage, file) as source:
            table_schema = read_schema(source, file.path)
            for name in snapshot.partition_columns:
                table_schema = table_schema.append(snapshot.schema.field(name))
            if not table_schema.equals(snapshot.schema):
                report("schema", _difference(snapshot.schema, table_schema))
                return findings
            rows = _RowChecks(snapshot.schema)
            hashes: list[int] = []
            for ids in rows.documents(read_batches(source, file.path)):
                new = [SampledDocument(_hash(id_), id_, file.path) for id_ in ids]
                hashes += [document.hash for document in new]
                findings.sample = heapq.nsmallest(sample_documents, findings.sample + new)
    except MissingFileError:
        report("missing", "the file is not there")
        return findings
    except CorruptFileError as error:
        report("corrupt", str(error).removeprefix(f"{storage.url_of(file.path)}: "))
        return findings
    findings.hashes = np.array(hashes, np.uint64)
    findings.num_rows = rows.num_rows
    for code, message in rows.problems():
        report(code, message)
    if parse_partition(file.path) != dict(file.partition):
        report("partition", f"the path says otherwise than the manifest: {dict(file.partition)}")
    expected = (file.num_rows, file.num_documents, file.min_id, file.max_id)
    found = (rows.num_rows, len(hashes), rows.min_id, rows.max_id)
    if expected != found:
        report("counts", f"rows, documents, least and greatest id: {expected}, found {found}")
    return findings


def _difference(expected: pa.Schema, found: pa.Schema) -> str:
    """The columns in which two schemas differ, on one line."""
    here, there = (
        {item.name: f"{item.type}{'' if item.nullable else ' not null'}" for item in schema}
        for schema in (expected, found)
    )
    parts = [
        f"{name}: expected {here.get(name, 'no such column')}, found {there.get(name, 'none')}"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    return "; ".join(parts) or f"expected the order {list(here)}, found {list(there)}"


class _RowChecks:
    """Goes through the rows of one file and counts what must not be there."""

    def __init__(self, schema: pa.Schema) -> None:
        self.num_rows = 0
        self.min_id = ""
        self.max_id = ""
        self._schema = schema
        self._vectors = frozenset(vector_columns(schema))
        self._nulls: dict[str, int] = {}
        self._not_finite: dict[str, list[str]] = {}
        self._num_not_finite = 0

    def documents(self, batches: Iterator[pa.RecordBatch]) -> Iterator[list[str]]:
        """Check batch by batch; yields the ids of the documents that start in each."""
        previous: str | None = None
        for batch in batches:
            if not batch.num_rows:
                continue
            ids = batch.column("id")
            self._check_values(batch, ids)
            least, greatest = (scalar.as_py() or "" for scalar in pc.min_max(ids).values())
            self.min_id = min(self.min_id, least) if self.num_rows else least
            self.max_id = max(self.max_id, greatest)
            self.num_rows += batch.num_rows
            yield [id_ for id_ in document_starts(ids, previous).to_pylist() if id_ is not None]
            previous = ids[-1].as_py()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Code and message of each kind of bad value."""
        for name, count in self._nulls.items():
            yield "null", f"column {name!r} holds {count} nulls and may hold none"
        for name, examples in self._not_finite.items():
            shown = ", ".join(map(repr, examples))
            yield "not_finite", f"column {name!r} holds NaN or infinity, first in {shown}"

    def _check_values(self, batch: pa.RecordBatch, ids: pa.Array) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            is_vector = name in self._vectors
            num_nulls = column.null_count + (column.flatten().null_count if is_vector else 0)
            if num_nulls and not self._schema.field(name).nullable:
                self._nulls[name] = self._nulls.get(name, 0) + num_nulls
            elif is_vector:
                present = column.is_valid()
                bad = np.flatnonzero(~finite_rows(column.filter(present)))
                examples = self._not_finite.get(name, [])
                examples += (
                    ids.filter(present)
                    .take(pa.array(bad[: MAX_EXAMPLES - len(examples)]))
                    .to_pylist()
                )
                if examples:
                    self._not_finite[name] = examples


def finite_rows(vectors: pa.FixedSizeListArray) -> NDArray[np.bool_]:
    """True where all elements of a row are finite; (N,) for a fixed_size_list column without nulls.

    Raises:
        KeyError: the elements are neither halffloat nor float.
    """
    integer, exponent = _EXPONENT_BITS[vectors.type.value_type]
    bits_ND = vectors.flatten().to_numpy().view(integer).reshape(-1, vectors.type.list_size)
    # All exponent bits are set in NaN and infinity only; far faster than asking halffloats.
    finite: NDArray[np.bool_] = ((bits_ND & exponent) != exponent).all(axis=1)
    return finite


def _check_rejected_files(storage: Storage, snapshot: Snapshot) -> Iterator[Problem]:
    for path in snapshot.rejected_files:
        try:
            there = storage.exists(path)
        except ConfigError as error:
            yield Problem("rejected_file", path, str(error))
            continue
        if not there:
            yield Problem("missing", path, "the file of rejected rows is not there")


def _check_counts(snapshot: Snapshot) -> Iterator[Problem]:
    found = {
        "documents": snapshot.num_documents,
        "rows": sum(file.num_rows for file in snapshot.files),
    }
    for key, value in found.items():
        promised = snapshot.counts.get(key, value)
        if promised != value:
            yield Problem(
                "counts", None, f"counts.{key} is {promised}, the files add up to {value}"
            )


def _check_unique(
    storage: Storage, snapshot: Snapshot, findings: Sequence[_FileFindings]
) -> Iterator[Problem]:
    """Find ids that several documents have; equal hashes are only a suspicion, ids decide."""
    hashes, counts = np.unique(
        np.concatenate([finding.hashes for finding in findings] or [np.empty(0, np.uint64)]),
        return_counts=True,
    )
    suspects = hashes[counts > 1]
    if not len(suspects):
        return
    suspected = set(suspects.tolist())
    places: dict[str, list[str]] = {}
    for file, finding in zip(snapshot.files, findings, strict=True):
        if np.isin(finding.hashes, suspects).any():
            for id_ in _document_ids(storage, file):
                if _hash(id_) in suspected:
                    places.setdefault(id_, []).append(file.path)
    repeated = {id_: paths for id_, paths in sorted(places.items()) if len(paths) > 1}
    if repeated:
        shown = [f"{id_!r} in {', '.join(p)}" for id_, p in [*repeated.items()][:MAX_EXAMPLES]]
        yield Problem(
            "duplicate_id",
            None,
            f"{len(repeated)} ids stand for several documents: {'; '.join(shown)}"
            + ("; ..." if len(repeated) > MAX_EXAMPLES else ""),
        )


def _document_ids(storage: Storage, file: DataFile) -> Iterator[str]:
    previous: str | None = None
    with verified_file(storage, file) as source:
        for batch in read_batches(source, file.path, ["id"]):
            ids = batch.column(0)
            if len(ids):
                yield from document_starts(ids, previous).to_pylist()
                previous = ids[-1].as_py()


def _hash(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")
