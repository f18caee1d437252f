"""Give documents new metadata and keep their vectors: no model runs. Knows files, no Ray.

Of a document whose text is the same, all rows are copied from the file that holds them; the content
hash, the carried columns and the partition become those of the corpus as it is now.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import OutputConfig
from pipeline.data_files import DataFileWriter, read_batches, verified_file
from pipeline.errors import CorruptFileError
from pipeline.snapshot.metadata import DataFile
from pipeline.storage import Storage


def copy_with_metadata(
    storage: Storage,
    file: DataFile,
    metadata: pa.Table,
    schema: pa.Schema,
    output: OutputConfig,
    run_id: str,
) -> tuple[DataFile, ...]:
    """Copy the rows of some documents of a data file under new metadata.

    Memory holds the rows that are copied.

    Args:
        storage: the snapshot directory.
        file: the file that holds the documents.
        metadata: one row a document: `id`, `content_hash`, the carried columns, then the partition
            columns in their order.
        schema: columns of the new files, without partition columns.
        output: format, compression and size of the new files.
        run_id: the first part of their names.

    Returns: the new files, at least one for each partition that occurs.

    Raises:
        CorruptFileError: the file is not what was recorded of it, or lacks a document.
        StorageError: the store failed.
    """
    ids = metadata["id"].combine_chunks()
    parts: list[pa.RecordBatch] = []
    with verified_file(storage, file) as source:
        for batch in read_batches(source, file.path):
            position = pc.index_in(batch.column("id"), value_set=ids)
            if position.null_count < batch.num_rows:
                rows = batch.filter(position.is_valid())
                parts.append(rows.append_column("_row", position.drop_null()))
    rows = pa.Table.from_batches(parts) if parts else None
    if rows is None or len(pc.unique(rows["_row"])) != metadata.num_rows:
        raise CorruptFileError(
            f"{storage.url_of(file.path)}: of {metadata.num_rows} documents that it should hold, "
            "some are missing; restore the file, or roll back to a snapshot that does not list it"
        )
    columns = tuple(file.partition)
    renewed = {"content_hash", *metadata.column_names} - {"id"}
    merged = pa.table(
        {
            name: metadata[name].take(rows["_row"]) if name in renewed else rows[name]
            for name in (*schema.names, *columns)
        }
    )
    return tuple(_written(storage, merged, columns, schema, output, run_id))


def _written(
    storage: Storage,
    rows: pa.Table,
    columns: Sequence[str],
    schema: pa.Schema,
    output: OutputConfig,
    run_id: str,
) -> list[DataFile]:
    files: list[DataFile] = []
    for partition in _distinct(rows, columns):
        chosen = np.ones(rows.num_rows, bool)
        for name, value in partition.items():
            equal = pc.is_null(rows[name]) if value is None else pc.equal(rows[name], value)
            chosen &= pc.fill_null(equal, False).to_numpy()
        # A filter keeps the order, so a document's rows stay side by side.
        table = rows.filter(pa.array(chosen)).select(schema.names).cast(schema)
        with DataFileWriter(storage, schema, output, partition, run_id) as writer:
            for batch in table.to_batches():
                writer.write(batch)
            files.append(writer.close())
    return files


def _distinct(rows: pa.Table, columns: Sequence[str]) -> list[dict[str, str | None]]:
    if not columns:
        return [{}]
    return list(rows.select(list(columns)).group_by(list(columns)).aggregate([]).to_pylist())
