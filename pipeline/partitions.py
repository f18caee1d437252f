"""Names of partition directories: `key=value`, percent-encoded. Knows text only.

The convention is Hive's, as pyarrow, DuckDB and Polars read it: a null is
`__HIVE_DEFAULT_PARTITION__`, and every byte of the UTF-8 form outside A-Z a-z 0-9 _ . ~ - is
percent-encoded, so that no value can leave its directory or look like another key. An empty value
is `key=`.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

from pipeline.errors import ConfigError

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
MAX_DIRECTORY_BYTES = 255  # of one `key=value`: the longest name in a Linux directory


def partition_path(partition: Mapping[str, str | None]) -> str:
    """Directory of a partition, `key=value/key=value`; empty without keys.

    Raises:
        ConfigError: a value that cannot be a directory name: see `partition_problem`.
    """
    for key, value in partition.items():
        problem = partition_problem(key, value)
        if problem is not None:
            raise ConfigError(f"partition column {key!r}: {problem}")
    return "/".join(_directory(key, value) for key, value in partition.items())


def partition_problem(key: str, value: str | None) -> str | None:
    """Why a value cannot name a partition, or None when it can.

    A value that is spelled like the null cannot be told from it (readers decode before they
    compare), and a directory name has a limited length.
    """
    if value == NULL_PARTITION:
        return f"{NULL_PARTITION} stands for null and cannot be a value"
    try:
        length = len(_directory(key, value))
    except UnicodeEncodeError:
        return "a value with lone surrogates has no UTF-8 form"
    if length > MAX_DIRECTORY_BYTES:
        return (
            f"a value takes {length} bytes as a directory name, percent-encoded, and at most "
            f"{MAX_DIRECTORY_BYTES} are possible: found {str(value)[:40]!r}..."
        )
    return None


def parse_partition(path: str) -> dict[str, str | None]:
    """Keys and values of the `key=value` directories in the path of a file, in order."""
    partition: dict[str, str | None] = {}
    for directory in path.split("/")[:-1]:
        key, equals, value = directory.partition("=")
        if equals:
            partition[unquote(key)] = None if value == NULL_PARTITION else unquote(value)
    return partition


def _directory(key: str, value: str | None) -> str:
    encoded = NULL_PARTITION if value is None else quote(value, safe="")
    return f"{quote(key, safe='')}={encoded}"
