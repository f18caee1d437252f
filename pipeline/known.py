"""Which documents a data file holds: one id and content hash a document. Knows no Ray or torch."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.compare import distinct_runs
from pipeline.errors import CorruptFileError
from pipeline.storage import Storage

_COLUMNS = ["id", "content_hash"]
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
    ]
)


def read_known(storage: Storage, path: str) -> pa.Table:
    """Ids (string) and content hashes (16 bytes) of a data file, one row a document.

    Only these two columns are read. A document's rows stand side by side in its file, so the first
    row of each run of equal ids stands for it.

    Args:
        storage: the snapshot's storage.
        path: path of the data file as the manifest names it.

    Raises:
        CorruptFileError: it is not a data file.
        StorageError: the store failed.
    """
    try:
        return _read_known(storage, path)
    except (pa.ArrowException, KeyError) as error:
        raise CorruptFileError(f"{storage.url_of(path)}: cannot be read: {error}") from None


def _read_known(storage: Storage, path: str) -> pa.Table:
    kind = "parquet" if path.endswith(".parquet") else "ipc"
    # With a schema of our own: the types that the file names could run code.
    dataset = pads.dataset(
        [path], schema=_SCHEMA, format=kind, filesystem=storage.as_arrow_filesystem()
    )
    tables = [_SCHEMA.empty_table()]
    last_id: str | None = None
    for batch in dataset.to_batches(columns=_COLUMNS, fragment_readahead=1):
        if not batch.num_rows:
            continue
        first = distinct_runs(batch["id"])
        first[0] = batch["id"][0].as_py() != last_id
        last_id = batch["id"][-1].as_py()
        tables.append(pa.Table.from_batches([batch]).filter(pa.array(first)).cast(_SCHEMA))
    return pa.concat_tables(tables)
