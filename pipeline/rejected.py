"""Write rejected rows beside the snapshot, where a person or a later run finds them. Knows no Ray.

`_rejected/<run>/<uuid>.parquet` in the output's storage, one row (REJECTED_SCHEMA) for each piece
of input that was not embedded. The files are ordinary Parquet; no reader of vectors lists them.
"""

from __future__ import annotations

import io
import uuid
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records import REJECTED_SCHEMA, RejectedRow, rejected_table
from pipeline.storage import Storage


def write_rejected(storage: Storage, run_id: str, rows: Sequence[RejectedRow] | pa.Table) -> str:
    """Write rejected rows as one new file.

    Args:
        storage: the output's storage.
        run_id: names the directory.
        rows: at least one row; a table has REJECTED_SCHEMA.

    Returns: the file's path in the storage.

    Raises:
        StorageError: the store failed.
        ValueError: there are no rows.
    """
    table = rows if isinstance(rows, pa.Table) else rejected_table(rows)
    if not table.num_rows:
        raise ValueError("there are no rejected rows to write")
    path = f"_rejected/{run_id}/{uuid.uuid4().hex}.parquet"
    buffer = io.BytesIO()
    pq.write_table(table.cast(REJECTED_SCHEMA), buffer, compression="zstd")
    storage.put_if_absent(path, buffer.getvalue())
    return path


def count_by_code(rows: Sequence[RejectedRow] | pa.Table) -> dict[str, int]:
    """How many rows were rejected for each reason, most first, then by name."""
    if isinstance(rows, pa.Table):
        counted = pc.value_counts(rows["code"].combine_chunks())
        counts = {item["values"].as_py(): item["counts"].as_py() for item in counted}
    else:
        counts = dict(Counter(row.code for row in rows))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
