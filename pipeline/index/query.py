"""Queries to an index: whose encoder embeds them, and what is like a document. Knows no index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data_files import vector_columns
from pipeline.errors import CompatibilityError, ConfigError
from pipeline.hits import Hit
from pipeline.index.feed import SnapshotRows
from pipeline.index.protocol import IndexReader, IndexState
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import Storage


def snapshot_of(storage: Storage, state: IndexState) -> Snapshot:
    """The snapshot that an index holds, or the latest one where that has expired.

    Args:
        storage: the snapshot directory.
        state: of the index.

    Raises:
        CompatibilityError: it was made by another encoder than the index's vectors.
        ConfigError: there is no snapshot.
    """
    store = SnapshotStore(storage)
    snapshot = store.load(state.snapshot) if state.snapshot in store.numbers() else store.latest()
    if snapshot is None:
        raise ConfigError(f"{storage.url}: there is no snapshot here")
    if snapshot.fingerprint != state.fingerprint:
        raise CompatibilityError(
            f"{storage.url}: snapshot {snapshot.number} was made with encoder "
            f"{snapshot.fingerprint[:12]}, the index holds vectors of {state.fingerprint[:12]}; "
            "give the snapshot directory that the index was fed from, or feed it again"
        )
    return snapshot


def layer_of(snapshot: Snapshot, state: IndexState) -> int:
    """Which of the encoder's outputs the index holds.

    Raises:
        CompatibilityError: the snapshot has no such vectors.
    """
    names = vector_columns(snapshot.schema)
    if state.vector_column not in names:
        raise CompatibilityError(
            f"the index holds {state.vector_column}, snapshot {snapshot.number} has "
            f"{', '.join(names)}; feed the index again"
        )
    return names.index(state.vector_column)


def vectors_like(
    storage: Storage, snapshot: Snapshot, vector_column: str, ids: Sequence[str]
) -> NDArray[np.float32]:
    """The vectors of documents, (num_ids, D): the mean of a document's rows where it has several.

    Raises:
        ConfigError: a document is not in the snapshot.
    """
    rows = SnapshotRows(storage, snapshot, vector_column)
    found = []
    for id_ in ids:
        vectors_ND = rows.vectors_of(id_)
        if not len(vectors_ND):
            raise ConfigError(
                f"--like {id_}: no such document in snapshot {snapshot.number} of {storage.url}"
            )
        found.append(vectors_ND.mean(axis=0))
    return np.stack(found)


def nearest_in_index(
    reader: IndexReader,
    queries_QD: NDArray[np.floating],
    num_hits: int,
    where: Mapping[str, str | None],
    left_out: Sequence[str | None],
) -> list[list[Hit]]:
    """The rows of highest cosine with each query.

    Args:
        reader: the index.
        queries_QD: one vector of the encoder a query.
        num_hits: rows wanted per query.
        where: only rows with these values of their columns.
        left_out: for each query a document that is no answer to it, None for none.
    """
    hits: list[list[Hit]] = []
    projection = reader.state.read_projection()
    if projection is not None:
        queries_QD = projection.apply(queries_QD)
    for query_D, id_ in zip(queries_QD, left_out, strict=True):
        # A document's rows are among the nearest to itself: ask for more until they are all passed.
        wanted, found = num_hits, reader.search(query_D[None], num_hits, where)[0]
        kept = [hit for hit in found if hit.id != id_]
        while len(kept) < num_hits and len(found) == wanted:
            wanted *= 2
            found = reader.search(query_D[None], wanted, where)[0]
            kept = [hit for hit in found if hit.id != id_]
        hits.append(kept[:num_hits])
    return hits
