"""A table of LanceDB at one of its versions: written, indexed, searched. Knows no records of ours.

Every change makes a new version of the table; what is open goes on seeing its own. N rows, Q
queries of D elements, K of the best rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import HnswSq, IvfPq
from numpy.typing import NDArray

from pipeline.errors import (
    CommitConflictError,
    ConfigError,
    MissingFileError,
    PipelineError,
    StorageError,
)
from pipeline.hits import Hit, matrix_of, unit
from pipeline.index.config import LancedbSection
from pipeline.index.protocol import EXCERPT, MIN_SHARE_FOR_APPROXIMATION, VECTOR, check_where
from pipeline.redaction import redact_message
from pipeline.storage import Storage

# Lists and codes are trained on this many rows at least; with fewer, all of them are looked at.
MIN_INDEXED_ROWS = 256
# Documents that one statement deletes: its text stays small.
DELETED_AT_ONCE = 10_000
SCANNED_AT_ONCE = 4096
_ROW_ID = "_rowid"
# Of LanceDB's messages: another writer's version cannot be joined with ours, and what is gone.
_CONFLICTS = ("incompatible transaction", "commit conflict", "concurrent writers")
_MISSING = ("not found", "no longer exists", "does not exist")

Scores: TypeAlias = NDArray[np.float32]


class LanceRows:
    """A table at a version, and how it is searched."""

    def __init__(self, table: Any, section: LancedbSection, url: str) -> None:
        """Use an open table of lancedb; `url` is for messages."""
        self._table = table
        self._section = section
        self._url = url
        with reporting(url):
            self.version = int(table.version)
            self._schema: pa.Schema = table.schema

    @classmethod
    def create(
        cls, storage: Storage, path: str, schema: pa.Schema, section: LancedbSection
    ) -> LanceRows:
        """A new table without rows.

        Args:
            storage: the directory of the index.
            path: of the table in it, ending in `.lance`.
            schema: of the feed's rows.
            section: what to make.

        Raises:
            ConfigError: Lance cannot hold such columns, or opens no such store.
            StorageError: the store failed.
        """
        for name in schema.names:
            if set(name) & {".", "`"}:
                raise ConfigError(
                    f"index.kind: lancedb holds no column whose name has a '.' or '`', found "
                    f"{name!r}; give the partition another name, or take another kind"
                )
        dim = schema.field(VECTOR).type.list_size
        if section.type == "ivf_pq" and dim % code_bytes(section, dim):
            raise ConfigError(
                f"lancedb.code_bytes: a vector has {dim} elements, which "
                f"{section.code_bytes} does not divide"
            )
        vector = pa.field(VECTOR, pa.list_(element_type(section), dim))
        stored = pa.schema([*(field for field in schema if field.name != VECTOR), vector])
        database, name = _database_of(storage, path)
        url = storage.url_of(path)
        with reporting(url):
            return cls(database.create_table(name, schema=stored), section, url)

    @classmethod
    def open(cls, storage: Storage, path: str, version: int, section: LancedbSection) -> LanceRows:
        """A table as it was at a version.

        Raises:
            MissingFileError: the table or the version is gone.
            ConfigError: Lance opens no such store.
            StorageError: the store failed.
        """
        database, name = _database_of(storage, path)
        url = storage.url_of(path)
        with reporting(url):
            table = database.open_table(name)
            table.checkout(version)
        return cls(table, section, url)

    @property
    def num_rows(self) -> int:
        """Rows of this version."""
        with reporting(self._url):
            return int(self._table.count_rows())

    def continue_here(self) -> None:
        """Make what is open the newest version of the table, so that changes follow it.

        Whoever else was making changes cannot go on: LanceDB refuses theirs from then on.
        """
        with reporting(self._url):
            self._table.restore()
            self.version = int(self._table.version)

    def remove(self, ids: pa.Array) -> int:
        """Remove all rows of these documents, and say how many those were.

        Raises:
            CommitConflictError: somebody else wrote to the table meanwhile.
        """
        num_removed = 0
        for start in range(0, len(ids), DELETED_AT_ONCE):
            part = ids.slice(start, DELETED_AT_ONCE).to_pylist()
            with reporting(self._url):
                done = self._table.delete(f"id IN ({', '.join(map(_literal, part))})")
            self._advance(done.version)
            num_removed += done.num_deleted_rows
        return num_removed

    def add(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Append rows of the feed as they come, and say how many those were.

        Raises:
            CommitConflictError: somebody else wrote to the table meanwhile.
            PipelineError: what `batches` raises.
        """
        stream = _Stream(batches, self._schema)
        if stream.is_empty:
            return 0
        reader = pa.RecordBatchReader.from_batches(self._schema, stream)
        try:
            with reporting(self._url):
                done = self._table.add(reader)
        except PipelineError:
            # LanceDB passes on the text of an error alone.
            if stream.error is not None:
                raise stream.error from None
            raise
        self._advance(done.version)
        return stream.num_rows

    def make_index(self) -> None:
        """Train lists on the rows that are there, and sort all rows into them."""
        section = self._section
        dim = self._schema.field(VECTOR).type.list_size
        lists = section.num_lists
        if lists is not None:
            lists = max(1, min(lists, self.num_rows // MIN_INDEXED_ROWS))
        options: dict[str, Any] = {"distance_type": "cosine", "num_partitions": lists}
        if section.type == "ivf_pq":
            config: Any = IvfPq(num_sub_vectors=code_bytes(section, dim), **options)
        else:
            config = HnswSq(m=section.num_links, ef_construction=section.build_depth, **options)
        with reporting(self._url):
            self._table.create_index(VECTOR, config=config, replace=True)
            self._advance(self._table.version)

    def compact(self, keep_s: float) -> None:
        """Leave out deleted rows, join small parts, sort new rows into the lists that there are.

        Args:
            keep_s: versions of the table that are younger stay; older ones are removed.
        """
        num_rows = self.num_rows
        with reporting(self._url):
            self._table.optimize(cleanup_older_than=timedelta(seconds=keep_s))
            self.version = int(self._table.version)
        if self.num_rows != num_rows:
            raise self._disturbed()

    def set_tags(self, version_of: Mapping[str, int], prefix: str) -> None:
        """Name versions of the table, which no other program's clean-up removes then.

        Args:
            version_of: the tags that are to be there.
            prefix: other tags that begin so are taken away.
        """
        with reporting(self._url):
            tags = self._table.tags
            found = tags.list()
            for name in found:
                if name.startswith(prefix) and name not in version_of:
                    tags.delete(name)
            for name, version in version_of.items():
                if name not in found:
                    tags.create(name, version)

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `protocol.IndexReader.search`."""
        columns = [name for name in self._schema.names if name != VECTOR]
        check_where(where or {}, columns, self._url)
        condition = " AND ".join(self._condition(*pair) for pair in (where or {}).items())
        queries_QD = np.ascontiguousarray(unit(queries_QD.astype(np.float32)), np.float32)
        with reporting(self._url):
            if not self._table.list_indices() or self._is_rare(condition):
                return self._exact(queries_QD, num_hits, condition, columns)
            return [
                self._approximate(query_D, num_hits, condition, columns) for query_D in queries_QD
            ]

    def _is_rare(self, condition: str) -> bool:
        """Whether a filter leaves so few rows that an index would find too few of them."""
        if not condition:
            return False
        num_left = self._table.count_rows(condition)
        return bool(num_left < MIN_SHARE_FOR_APPROXIMATION * self._table.count_rows())

    def _exact(
        self, queries_QD: Scores, num_hits: int, condition: str, columns: list[str]
    ) -> list[list[Hit]]:
        """Look at every row that the filter leaves, once for all queries."""
        num_queries = len(queries_QD)
        best_QK = np.empty((num_queries, 0), np.float32)
        ids_QK = np.empty((num_queries, 0), np.int64)
        query = self._table.search().select([VECTOR]).with_row_id(True)
        if condition:
            query = query.where(condition)
        for batch in query.to_batches(batch_size=SCANNED_AT_ONCE):
            if not batch.num_rows:
                continue
            scores_QN = queries_QD @ matrix_of(batch[VECTOR]).T
            ids_QN = np.broadcast_to(batch[_ROW_ID].to_numpy().astype(np.int64), scores_QN.shape)
            best_QK = np.concatenate([best_QK, scores_QN], axis=1)
            ids_QK = np.concatenate([ids_QK, ids_QN], axis=1)
            if best_QK.shape[1] > num_hits:
                keep_QK = np.argpartition(-best_QK, num_hits - 1, axis=1)[:, :num_hits]
                best_QK = np.take_along_axis(best_QK, keep_QK, 1)
                ids_QK = np.take_along_axis(ids_QK, keep_QK, 1)
        if not ids_QK.size:
            return [[] for _ in queries_QD]
        taken = self._table.take_row_ids(np.unique(ids_QK).tolist()).with_row_id()
        found = taken.select(columns).to_arrow().to_pylist()
        row_of = {row.pop(_ROW_ID): row for row in found}
        return [
            _sorted_hits(scores_K.tolist(), [row_of[id_] for id_ in ids_K])
            for scores_K, ids_K in zip(best_QK, ids_QK.tolist(), strict=True)
        ]

    def _approximate(
        self, query_D: Scores, num_hits: int, condition: str, columns: list[str]
    ) -> list[Hit]:
        """Ask the index; the scores are those of the vectors as stored."""
        factor = self._section.refine_factor
        query = self._table.search(query_D, vector_column_name=VECTOR, query_type="vector")
        # Without its own distance in the selection, LanceDB warns.
        query = query.select([*columns, VECTOR, "_distance"])
        query = query.distance_type("cosine").limit(num_hits).refine_factor(factor)
        # Further lists are looked at where the filter leaves too few rows in these; 0 is no limit.
        query = query.minimum_nprobes(self._section.num_probes).maximum_nprobes(0)
        if self._section.type == "hnsw":
            query = query.ef(max(self._section.search_depth, num_hits * factor))
        if condition:
            query = query.where(condition, prefilter=True)
        rows = query.to_arrow()
        scores_K = matrix_of(rows[VECTOR].combine_chunks()) @ query_D
        return _sorted_hits(scores_K.tolist(), rows.select(columns).to_pylist())

    def _condition(self, name: str, value: str | None) -> str:
        if value is None:
            return f"`{name}` IS NULL"
        is_text = pa.types.is_string(self._schema.field(name).type)
        column = f"`{name}`" if is_text else f"CAST(`{name}` AS STRING)"
        return f"{column} = {_literal(value)}"

    def _advance(self, version: int) -> None:
        """Note the version that a change of ours made: the next one, unless others wrote too."""
        if version != self.version + 1:
            raise self._disturbed()
        self.version = version

    def _disturbed(self) -> CommitConflictError:
        return CommitConflictError(
            f"{self._url}: another feeder or program wrote to this table meanwhile. What is "
            "published is as it was; run again when it is done"
        )


def element_type(section: LancedbSection) -> pa.DataType:
    """Of the stored vectors."""
    default = "float32" if section.type == "ivf_pq" else "float16"
    return pa.float32() if (section.dtype or default) == "float32" else pa.float16()


def code_bytes(section: LancedbSection, dim: int) -> int:
    """Of a row, in ivf_pq."""
    return section.code_bytes or next(dim // part for part in (16, 8, 4, 2, 1) if dim % part == 0)


class _Stream:
    """Batches as the table stores them; keeps the error that ended them."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        self._batches = iter(batches)
        self._schema = schema
        self._first = next(self._batches, None)
        self.num_rows = 0
        self.error: PipelineError | None = None

    @property
    def is_empty(self) -> bool:
        return self._first is None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            batch = self._first
            self._first = None
            while batch is not None:
                self.num_rows += batch.num_rows
                yield self._stored(batch)
                batch = next(self._batches, None)
        except PipelineError as error:
            self.error = error
            raise

    def _stored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        type_ = self._schema.field(VECTOR).type
        flat = batch[VECTOR].flatten().to_numpy().astype(type_.value_type.to_pandas_dtype())
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(flat), type=type_)
            if name == VECTOR
            else batch[name]
            for name in self._schema.names
        ]
        return pa.record_batch(columns, schema=self._schema)


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turn what LanceDB raises into the errors of the pipeline.

    Raises:
        CommitConflictError: another writer's version came in between.
        MissingFileError: something is gone.
        StorageError: all else.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        said = " ".join(redact_message(str(error)).split())
        lower = said.lower()
        if any(text in lower for text in _CONFLICTS):
            raise CommitConflictError(
                f"{url}: another feeder is at work on this table ({said}). What is published is as "
                "it was; run again when it is done"
            ) from error
        if any(text in lower for text in _MISSING):
            raise MissingFileError(
                f"{url}: this version of the index is not there any more: {said}; open the index "
                "again, and where that fails too build it anew with --rebuild"
            ) from error
        raise StorageError(f"{url}: LanceDB: {said}") from error


def _database_of(storage: Storage, path: str) -> tuple[Any, str]:
    """The database of lancedb that a table is in, and the table's name."""
    directory, _, name = path.rpartition("/")
    options = storage.object_store_options()
    url = storage.url_of(directory)
    with reporting(url):
        return lancedb.connect(url, storage_options=options), name.removesuffix(".lance")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _sorted_hits(scores: Iterable[float], rows: Iterable[dict[str, Any]]) -> list[Hit]:
    hits = []
    for score, values in zip(scores, rows, strict=True):
        kept = dict(values)
        excerpt = kept.pop(EXCERPT, None) or ""
        hits.append(Hit(score, kept.pop("id"), kept, excerpt))
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))
