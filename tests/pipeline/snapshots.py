"""Snapshots and data files that the tests of several modules build."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import OutputConfig, VectorConfig
from pipeline.data_files import DataFileWriter
from pipeline.schema import output_schema
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage

DIM = 8
FINGERPRINT = "f" * 64


def table_schema(
    dtype: str = "float16", partition_columns: Sequence[str] = (), dim: int = DIM
) -> pa.Schema:
    """Schema of a table of document vectors with a carried column `title`."""
    vectors = VectorConfig(dtype=dtype)  # type: ignore[arg-type]
    schema = output_schema(vectors, dim, ["vector"], [pa.field("title", pa.string())])
    for name in partition_columns:
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def rows(ids: Sequence[str], *, dtype: str = "float16", text: str = "text") -> pa.RecordBatch:
    """One row an id, with vectors that follow from id and text."""
    schema = table_schema(dtype)
    hashes = [hashlib.blake2b(f"{id_} {text}".encode(), digest_size=16).digest() for id_ in ids]
    vectors_ND = np.stack(
        [np.random.default_rng(list(digest)).standard_normal(DIM) for digest in hashes]
    ).astype(dtype)
    values = pa.array(vectors_ND.reshape(-1))
    vector = pa.FixedSizeListArray.from_arrays(values, type=schema.field("vector").type)
    titles = pa.array([f"title of {id_}" for id_ in ids])
    columns = [pa.array(ids), pa.array(hashes, pa.binary(16)), titles, vector]
    return pa.record_batch(columns, schema=schema)


def write_file(
    storage: Storage,
    ids: Sequence[str],
    *,
    partition: Mapping[str, str | None] | None = None,
    output: OutputConfig | None = None,
    dtype: str = "float16",
    text: str = "text",
) -> DataFile:
    """Write one data file with one row an id."""
    output = output or OutputConfig(path=storage.url)
    writer = DataFileWriter(storage, table_schema(dtype), output, partition or {}, "run-1")
    writer.write(rows(ids, dtype=dtype, text=text))
    return writer.close()


def snapshot(files: Sequence[DataFile] = (), **values: Any) -> Snapshot:
    """A snapshot of these files, the first one by default."""
    columns = tuple(files[0].partition) if files else ()
    defaults: dict[str, Any] = {
        "number": 1,
        "parent": None,
        "run_id": "run-1",
        "idempotency_key": "key",
        "operation": "embed",
        "fingerprint": FINGERPRINT,
        "encoder": {"layers": "average"},
        "config": {"output": {"path": "s3://key:secret@bucket/x"}},
        "schema": table_schema(partition_columns=columns),
        "partition_columns": columns,
        "files": files,
        "counts": {
            "documents": sum(file.num_documents for file in files),
            "rows": sum(file.num_rows for file in files),
        },
        "lineage": {"source": ["s3://bucket/corpus"]},
    }
    return Snapshot.new(**{**defaults, **values})
