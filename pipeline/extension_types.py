"""Arrow's extension types in foreign files: which may be there, which are read. Knows schemas only.

A type that another package has registered runs that package's code when a schema or a value is
read, and some unpickle (`ray.data.arrow_pickled_object`, `arrow.py_extension_type`): a file could
run any program. So a schema may name types of the lists below and no others, in any column and at
any depth, whether this process knows them or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.types as pt

from pipeline.errors import ConfigError

# These only say how to read their storage, which is what is read.
READ_TYPES = frozenset({"arrow.json", "arrow.uuid"})
# These do no more, and may stand in columns that are not read.
LET_PASS_TYPES = READ_TYPES | {
    "arrow.bool8",
    "arrow.fixed_shape_tensor",
    "arrow.opaque",
    "arrow.parquet.variant",
    "arrow.timestamp_with_offset",
    "arrow.variable_shape_tensor",
    "geoarrow.wkb",
    "geoarrow.wkt",
    "pandas.interval",
    "pandas.period",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
}
# With this, Ray's tensor types unpickle their metadata as soon as a schema is looked at.
UNPICKLING_VARIABLE = "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"

_NAME_KEY = b"ARROW:extension:name"


def extension_names(field: pa.Field) -> Iterator[str]:
    """Names of the extension types in a field, at any depth, registered here or not."""
    name = (field.metadata or {}).get(_NAME_KEY)
    if name is not None:
        yield name.decode(errors="replace")
    yield from _names_in(field.type)


def refuse_unpickling() -> None:
    """Refuse to look at foreign schemas where the environment lets Ray unpickle parts of them.

    Raises:
        ConfigError: names the variable.
    """
    if os.environ.get(UNPICKLING_VARIABLE, "0") not in ("", "0"):
        raise ConfigError(
            f"{UNPICKLING_VARIABLE} is set: with it, a file of the corpus could run any program "
            "while its schema is read; unset it, and write such files again with a newer Ray"
        )


def said_by(error: Exception) -> str:
    """The first line of what Arrow said; Ray's advice to set the variable is left out."""
    said = str(error).split("\n")[0]
    if UNPICKLING_VARIABLE in said:
        return "the metadata of one of Ray's extension types is no JSON"
    return said


def _names_in(data_type: pa.DataType) -> Iterator[str]:
    if isinstance(data_type, pa.BaseExtensionType):
        yield data_type.extension_name
        yield from _names_in(data_type.storage_type)
    elif pt.is_dictionary(data_type):
        yield from _names_in(data_type.value_type)
    else:
        for number in range(data_type.num_fields):
            yield from extension_names(data_type.field(number))
