"""The change feed: which documents a snapshot adds, updates and deletes. Knows no encoder or Ray.

The feed of snapshot N lies in the files that its manifest lists under `changes`. It is written
before the commit, so that a visible snapshot always has its feed; files of lost races are never
listed and are collected with other orphans.
"""

from __future__ import annotations

import io
import uuid

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage

CHANGES = "changes"
ADD, UPDATE, DELETE = "add", "update", "delete"

# `file` is the data file that holds the document's rows in that snapshot; null for deletes.
CHANGE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field("file", pa.string()),
    ]
)


def write_changes(storage: Storage, number: int, run_id: str, changes: pa.Table) -> str:
    """Write a part of a snapshot's feed, before the commit.

    Args:
        storage: the snapshot directory.
        number: of the snapshot that is about to be committed.
        run_id: the first part of the file's name.
        changes: CHANGE_SCHEMA, any order.

    Returns: the path of the file, for the manifest.

    Raises:
        StorageError: the store failed.
    """
    path = f"{CHANGES}/{number:08d}/{run_id}-{uuid.uuid4().hex}.parquet"
    buffer = io.BytesIO()
    pq.write_table(changes.cast(CHANGE_SCHEMA), buffer, compression="zstd")
    storage.put_if_absent(path, buffer.getvalue())
    return path
