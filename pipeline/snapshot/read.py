"""Open a snapshot as a pyarrow dataset over exactly the files of its manifest. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.errors import ConfigError
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage, open_storage

_FORMATS = {".parquet": pads.ParquetFileFormat, ".arrow": pads.IpcFileFormat}


def open_snapshot(
    url: str, number: int | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Snapshot, pads.Dataset]:
    """Open a snapshot to read.

    Args:
        url: the snapshot directory, as for `open_storage`.
        number: which snapshot; None is the latest.
        options: for the store's client, as for `open_storage`.

    Returns: the snapshot, and a dataset with its schema, partition columns included. Nothing but
        the manifest has been read yet; filters on partition columns skip whole files.

    Raises:
        ConfigError: there is no such snapshot.
        CorruptFileError: the manifest is damaged.
        StorageError: the store failed.
    """
    storage = open_storage(url, options)
    store = SnapshotStore(storage)
    snapshot = store.latest() if number is None else store.load(number)
    if snapshot is None:
        raise ConfigError(
            f"{storage.url}: there is no snapshot here; a run commits the first one, or the path "
            "is another"
        )
    return snapshot, snapshot_dataset(storage, snapshot)


def snapshot_dataset(storage: Storage, snapshot: Snapshot) -> pads.Dataset:
    """The rows of a snapshot as a dataset; nothing is read yet.

    Args:
        storage: the snapshot directory.
        snapshot: which of its snapshots.
    """
    filesystem = storage.as_arrow_filesystem()
    children = []
    for ending, format_class in _FORMATS.items():
        format_ = format_class()
        fragments = [
            format_.make_fragment(
                file.path, filesystem, partition_expression(file), file_size=file.size_bytes
            )
            for file in snapshot.files
            if file.path.endswith(ending)
        ]
        if fragments:
            children.append(pads.FileSystemDataset(fragments, snapshot.schema, format_, filesystem))
    if len(children) == 1:
        return children[0]
    if not children:
        return pads.FileSystemDataset([], snapshot.schema, pads.ParquetFileFormat(), filesystem)
    return pads.UnionDataset(snapshot.schema, children)


def partition_expression(file: DataFile) -> pc.Expression:
    """What is true of all rows of a file: its partition columns have these values."""
    expression = pc.scalar(True)
    for name, value in file.partition.items():
        field = pc.field(name)
        condition = field.is_null() if value is None else field == value
        expression = condition if expression.equals(pc.scalar(True)) else expression & condition
    return expression
