"""The columns of a snapshot's data files, from the configuration. Knows no files, Ray or torch."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.config import VectorConfig

ELEMENT_TYPES = {"float16": pa.float16(), "float32": pa.float32()}

# Offsets are code points into the normalised text; indices count from 0 within the document.
_LEVEL_FIELDS: dict[str, tuple[pa.Field, ...]] = {
    "document": (),
    "sentence": (
        pa.field("sentence_index", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ),
    "token": (
        pa.field("sentence_index", pa.int32(), nullable=False),
        pa.field("token_index", pa.int32(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ),
}


def level_fields(level: str) -> tuple[pa.Field, ...]:
    """The columns that say which part of the document a row stands for."""
    return _LEVEL_FIELDS[level]


def vector_type(dtype: str, dim: int) -> pa.DataType:
    """Type of a vector column: fixed_size_list of `dim` halffloat or float, never null."""
    return pa.list_(pa.field("item", ELEMENT_TYPES[dtype], nullable=False), dim)


def output_schema(
    vectors: VectorConfig,
    dim: int,
    vector_columns: Sequence[str],
    carried_fields: Sequence[pa.Field],
) -> pa.Schema:
    """Schema of a data file, partition columns left out: they stand in the path.

    Args:
        vectors: level and element type.
        dim: elements of one vector.
        vector_columns: `vector`, or one name a layer.
        carried_fields: columns copied from the source.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("content_hash", pa.binary(16), nullable=False),
            *carried_fields,
            *level_fields(vectors.level),
            *(
                pa.field(name, vector_type(vectors.dtype, dim), nullable=False)
                for name in vector_columns
            ),
        ]
    )
