"""A FAISS index in memory with the rows that its labels stand for. Knows no store and no snapshot.

FAISS numbers its vectors; a table beside it says which row of which document a number is. Flat and
IVF indexes forget removed vectors. A graph (HNSW) cannot: there, a vector whose number is no longer
in the table is dead, and a search passes over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ConfigError, RebuildNeededError
from pipeline.hits import Hit, stored_matrix, unit
from pipeline.index.config import FaissSection
from pipeline.index.protocol import (
    EXCERPT,
    MIN_SHARE_FOR_APPROXIMATION,
    VECTOR,
    check_where,
)

# The number of a row's vector; the other columns are those of the feed.
LABEL = "_label"
# k-means wants this many rows for each list.
TRAIN_ROWS_PER_LIST = 40
CODE_BITS = 8
# With fewer rows there is nothing to train on, and a flat index does as well.
_MIN_TRAIN_ROWS = {"ivf": 1, "ivf_pq": 1 << CODE_BITS}


class FaissRows:
    """Vectors in FAISS, and the table of their rows in the order of their labels."""

    def __init__(
        self, index: Any, rows: pa.Table, settings: FaissSection, next_label: int, url: str
    ) -> None:
        """Use an index.

        Args:
            index: of FAISS, which takes ids; trained.
            rows: LABEL and the columns of the feed, without the vectors.
            settings: what it was made by.
            next_label: greater than all labels that were ever given.
            url: where it is, for messages.
        """
        self.index = index
        self.settings = settings
        self.next_label = next_label
        self._url = url
        self._parts = [rows]

    @classmethod
    def empty(
        cls,
        schema: pa.Schema,
        settings: FaissSection,
        train_ND: NDArray[np.float32],
        num_rows: int,
        url: str,
    ) -> FaissRows:
        """An index without rows.

        Args:
            schema: of the feed's rows.
            settings: what to make.
            train_ND: vectors of length 1 to train on; not looked at by flat and hnsw. With too
                few of them for lists or codes the index is flat.
            num_rows: rows that are about to come.
            url: where it will be, for messages.

        Raises:
            ConfigError: the settings do not fit the vectors.
        """
        dim = schema.field(VECTOR).type.list_size
        if len(train_ND) < _MIN_TRAIN_ROWS.get(settings.type, 0):
            index = _make(dim, settings.model_copy(update={"type": "flat"}), 0, 0)
        else:
            index = _make(dim, settings, num_rows, len(train_ND))
        if not index.is_trained:
            index.train(train_ND)
        _reserve(index, num_rows)
        columns = [field for field in schema if field.name != VECTOR]
        rows = pa.schema([pa.field(LABEL, pa.int64()), *columns]).empty_table()
        return cls(index, rows, settings, 0, url)

    @property
    def rows(self) -> pa.Table:
        """The table of the rows, ascending labels."""
        if len(self._parts) > 1:
            self._parts = [pa.concat_tables(self._parts)]
        return self._parts[0]

    @property
    def num_rows(self) -> int:
        """Rows that a search can find."""
        return sum(part.num_rows for part in self._parts)

    @property
    def num_dead(self) -> int:
        """Vectors of the graph whose rows were removed."""
        return int(self.index.ntotal) - self.num_rows

    def check_growth(self, trained_rows: int) -> None:
        """Make sure that the lists fit the number of rows.

        Raises:
            RebuildNeededError: they were made for far fewer.
        """
        if self.settings.type not in _MIN_TRAIN_ROWS:
            return
        if isinstance(self.index, faiss.IndexIVF):
            limit = int(self.settings.max_growth * trained_rows)
        else:
            limit = _MIN_TRAIN_ROWS[self.settings.type] - 1
        if self.num_rows > limit:
            raise RebuildNeededError(
                f"{self._url}: the index holds {self.num_rows:,} rows and was trained for "
                f"{trained_rows:,}; with more than {limit:,} its lists are made anew "
                f"(faiss.max_growth = {self.settings.max_growth:g})"
            )

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows of the feed."""
        labels = np.arange(self.next_label, self.next_label + batch.num_rows)
        self.next_label += batch.num_rows
        is_computed = isinstance(self.index, faiss.IndexIVF) or self.settings.type == "hnsw"
        with nullcontext() if is_computed else _one_thread():
            self.index.add_with_ids(stored_matrix(batch[VECTOR]), labels)
        columns = [pa.array(labels)]
        columns += [batch[name] for name in batch.schema.names if name != VECTOR]
        self._parts.append(pa.table(columns, schema=self._parts[0].schema))

    def remove(self, ids: pa.Array) -> None:
        """Remove all rows of these documents; those that are not there are no error.

        Raises:
            RebuildNeededError: too large a share of the graph would be dead.
        """
        rows = self.rows
        is_gone = pc.is_in(rows["id"], value_set=ids)
        labels = rows[LABEL].filter(is_gone).to_numpy()
        if not len(labels):
            return
        self._parts = [rows.filter(pc.invert(is_gone)).combine_chunks()]
        if self.settings.type != "hnsw":
            self.index.remove_ids(faiss.IDSelectorBatch(labels))
        elif self.num_dead > self.settings.max_dead_share * self.index.ntotal:
            raise RebuildNeededError(
                f"{self._url}: {self.num_dead:,} of {self.index.ntotal:,} rows of the graph are "
                f"deleted, more than faiss.max_dead_share = {self.settings.max_dead_share:g}"
            )

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `protocol.IndexReader.search`."""
        rows = self.rows
        columns = [name for name in rows.schema.names if name != LABEL]
        check_where(where or {}, columns, self._url)
        chosen = _chosen(rows, where) if where else rows
        queries_QD = np.ascontiguousarray(unit(queries_QD.astype(np.float32)), np.float32)
        if not chosen.num_rows or not len(queries_QD):
            return [[] for _ in queries_QD]
        scores_QK, labels_QK = self._search(queries_QD, num_hits, chosen)
        positions_QK = np.searchsorted(rows[LABEL].to_numpy(), labels_QK)
        return [
            self._hits(rows, scores_K, positions_K, labels_K >= 0)
            for scores_K, positions_K, labels_K in zip(
                scores_QK, positions_QK, labels_QK, strict=True
            )
        ]

    def _search(
        self, queries_QD: NDArray[np.float32], num_hits: int, chosen: pa.Table
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and labels (Q, K) of the nearest of the chosen rows; label -1 is none."""
        num_hits = min(num_hits, chosen.num_rows)
        selector, labels = None, chosen[LABEL].to_numpy()
        if chosen.num_rows < self.index.ntotal:
            selector = _selector(labels, self.next_label)
        is_few = len(labels) < MIN_SHARE_FOR_APPROXIMATION * self.index.ntotal
        if isinstance(self.index, faiss.IndexIVF):
            probes = self.index.nlist if is_few else self.settings.num_probes
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        elif self.settings.type == "hnsw" and is_few:
            return self._search_all(queries_QD, num_hits, labels)
        elif self.settings.type == "hnsw":
            depth = max(self.settings.search_depth, num_hits)
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=depth)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self.index.search(
            queries_QD, num_hits, params=parameters
        )
        return found

    def _search_all(
        self, queries_QD: NDArray[np.float32], num_hits: int, labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Look at every one of the chosen rows of a graph, in the store that it walks through."""
        label_of = faiss.vector_to_array(self.index.id_map)
        positions = np.flatnonzero(np.isin(label_of, labels))
        storage = faiss.downcast_index(faiss.downcast_index(self.index.index).storage)
        parameters = faiss.SearchParameters(sel=_selector(positions, len(label_of)))
        scores_QK, found_QK = storage.search(queries_QD, num_hits, params=parameters)
        return scores_QK, np.where(found_QK >= 0, label_of[found_QK], -1)

    def _hits(
        self,
        rows: pa.Table,
        scores_K: NDArray[np.float32],
        positions_K: NDArray[np.int64],
        is_found_K: NDArray[np.bool_],
    ) -> list[Hit]:
        found = rows.take(pa.array(positions_K[is_found_K])).drop_columns([LABEL]).to_pylist()
        hits = []
        for score, values in zip(scores_K[is_found_K].tolist(), found, strict=True):
            excerpt = values.pop(EXCERPT, None) or ""
            hits.append(Hit(score, values.pop("id"), values, excerpt))
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def write_vectors(rows: FaissRows, output: Any) -> None:
    """Write the index of FAISS to an open file, piece by piece."""
    faiss.write_index(rows.index, faiss.PyCallbackIOWriter(output.write))


def write_table(rows: FaissRows, output: Any) -> None:
    """Write the table of the rows as Parquet."""
    pq.write_table(rows.rows, pa.PythonFile(output, mode="w"), compression="zstd")


def read_vectors(source: pa.NativeFile) -> Any:
    """Read what `write_vectors` wrote."""
    return faiss.read_index(faiss.PyCallbackIOReader(source.read))


def _selector(numbers: NDArray[np.int64], limit: int) -> Any:
    """What lets a search pass these numbers, all below `limit`: a bit for each, as FAISS reads it.

    A set of them takes sixty times as long to make, and is made for every search.
    """
    is_wanted = np.zeros(limit, np.bool_)
    is_wanted[numbers] = True
    return faiss.IDSelectorBitmap(np.packbits(is_wanted, bitorder="little"))


def _chosen(rows: pa.Table, where: Mapping[str, str | None]) -> pa.Table:
    for name, value in where.items():
        column = rows[name]
        is_wanted = column.is_null() if value is None else pc.equal(column.cast("string"), value)
        rows = rows.filter(is_wanted)
    return rows


def _make(dim: int, settings: FaissSection, num_rows: int, num_train_rows: int) -> Any:
    """An index of FAISS that compares by inner product: of vectors of length 1, the cosine."""
    flat = "SQfp16" if settings.dtype == "float16" else "Flat"
    if settings.type == "flat":
        return faiss.index_factory(dim, f"IDMap,{flat}", faiss.METRIC_INNER_PRODUCT)
    if settings.type == "hnsw":
        spec = f"IDMap,HNSW{settings.num_links}_{flat}"
        index = faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
        faiss.downcast_index(index.index).hnsw.efConstruction = settings.build_depth
        return index
    num_lists = settings.num_lists or min(
        4 * math.isqrt(num_rows), num_train_rows // TRAIN_ROWS_PER_LIST
    )
    num_lists = max(1, num_lists)
    if num_lists > num_train_rows:
        raise ConfigError(
            f"faiss.num_lists: {num_lists:,} lists need as many rows to train on, found "
            f"{num_train_rows:,} (of {num_rows:,}; faiss.max_train_rows is "
            f"{settings.max_train_rows:,}); take fewer lists, or null, which fits them to the rows"
        )
    if settings.type == "ivf":
        spec = f"IVF{num_lists},{flat}"
        index = _quiet(faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT))
        # Rows as they are, not less the centre of their list: a score is that of a flat index,
        # whatever the lists were trained on.
        index.by_residual = False
        return index
    code_bytes = settings.code_bytes or max(dim // 4, 1)
    if dim % code_bytes:
        raise ConfigError(
            f"faiss.code_bytes: a vector has {dim} elements, which {code_bytes} does not divide"
        )
    spec = f"IVF{num_lists},PQ{code_bytes}x{CODE_BITS}"
    index = _quiet(faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT))
    index.pq.cp.min_points_per_centroid = 1
    # It orders the codes for comparisons by single bits, which no search here makes, and takes most
    # of the training.
    index.do_polysemous_training = False
    return index


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep FAISS from sharing out what is sooner done than its threads have met."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _reserve(index: Any, num_rows: int) -> None:
    """Take the vectors' memory at once: what grows holds them twice whenever it is moved."""
    if isinstance(index, faiss.IndexIVF):
        return  # Its lists are many, and move one at a time.
    store = faiss.downcast_index(index.index)
    if isinstance(store, faiss.IndexHNSW):
        store = faiss.downcast_index(store.storage)
    store.codes.resize(num_rows * store.code_size)
    store.codes.clear()


def _quiet(index: Any) -> Any:
    # Few rows for each list are said in the documentation, not by a line of C++ on stderr.
    index.cp.min_points_per_centroid = 1
    return index
