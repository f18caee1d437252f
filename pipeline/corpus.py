"""Write a corpus of documentation as hive-partitioned Parquet. Knows no docstrings and no jobs.

`package=<name>/part-0.parquet` holds the columns id, kind and text; `package` stands in the path
only. The same entries always give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documentation import DocEntry
from pipeline.errors import ConfigError
from pipeline.storage import Storage, open_storage

CORPUS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
_OWN_FILE = re.compile(r"package=\w+/part-0\.parquet")


@dataclass(frozen=True)
class PackageStats:
    """What was written of one package; `text_bytes` counts UTF-8 before compression."""

    package: str
    num_documents: int
    text_bytes: int


def sample_entries(entries: Sequence[DocEntry], max_documents: int) -> list[DocEntry]:
    """Take at most `max_documents` entries, spread over all packages, always the same ones."""

    def rank(entry: DocEntry) -> bytes:
        return hashlib.blake2b(entry.id.encode(), digest_size=8).digest()

    return sorted(sorted(entries, key=rank)[:max_documents])


def check_output(url: str, *, overwrite: bool) -> None:
    """Make sure that a corpus may be written to `url`.

    Raises:
        ConfigError: something is there and `overwrite` is not given, or what is there is not a
            corpus of this module, which is never replaced.
    """
    files = [info.path for info in open_storage(url).list_files()]
    if files and not overwrite:
        raise ConfigError(
            f"{url}: expected no files there, found {len(files)}; give --overwrite to replace an "
            "older corpus, or choose another --output"
        )
    others = [path for path in files if not _OWN_FILE.fullmatch(path)]
    if others:
        raise ConfigError(
            f"{url}: holds files that are no part of a corpus, such as {others[0]}; nothing is "
            "replaced: choose another --output"
        )


def write_corpus(
    entries: Sequence[DocEntry], url: str, *, overwrite: bool = False
) -> list[PackageStats]:
    """Write entries, which are sorted by package, to a directory.

    On local disk the directory appears whole, by a rename. In an object store every file appears
    whole, and files of an older corpus go last.

    Raises:
        ConfigError: see `check_output`.
        StorageError: the store failed.
    """
    check_output(url, overwrite=overwrite)
    storage = open_storage(url)
    if not storage.is_local:
        stats = _write_files(entries, storage)
        written = {_file_path(item.package) for item in stats}
        for info in storage.list_files():
            if info.path not in written:
                storage.delete(info.path)
        return stats
    target = Path(storage.url)
    staged = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    try:
        stats = _write_files(entries, open_storage(str(staged)))
        if target.exists():
            target.rename(replaced)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return stats


def _write_files(entries: Sequence[DocEntry], storage: Storage) -> list[PackageStats]:
    stats = []
    for package, group in groupby(entries, key=lambda entry: entry.package):
        rows = list(group)
        columns = [[getattr(row, name) for row in rows] for name in CORPUS_SCHEMA.names]
        table = pa.table(columns, schema=CORPUS_SCHEMA)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=["kind"])
        storage.put(_file_path(package), sink.getvalue().to_pybytes())
        text_bytes = sum(len(row.text.encode()) for row in rows)
        stats.append(PackageStats(package, len(rows), text_bytes))
    return stats


def _file_path(package: str) -> str:
    return f"package={package}/part-0.parquet"
