"""Find the files of a corpus: paths, globs and directories, and the hive keys in their paths.

Knows names, sizes and versions; opens files for the formats' readers and looks into none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.config import SourceConfig
from pipeline.errors import EmptySourceError, SourceError
from pipeline.partitions import parse_partition
from pipeline.sources.formats import (
    COMPRESSION_ENDINGS,
    FORMAT_ENDINGS,
    Compression,
    Format,
    compression_of,
    format_of,
)
from pipeline.storage import FileInfo, Storage, open_storage, redact_url, split_pattern


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    `path` is its URL; `version` changes with its content (ETag, modification time).
    """

    path: str
    size_bytes: int
    version: str
    format: Format
    compression: Compression | None

    @property
    def hive_keys(self) -> tuple[tuple[str, str | None], ...]:
        """Keys and values of the `key=value` directories in the path."""
        return tuple(parse_partition(self.path).items())


@dataclass(frozen=True)
class FoundFiles:
    """The input files, sorted by path, and what was found beside them and left out."""

    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...]


def find_files(source: SourceConfig) -> FoundFiles:
    """List the configured paths.

    Directories are searched to any depth. In directories and globs, names that start with `_` or
    `.` are left out (`_SUCCESS`, `.part.crc`; a hive directory `_key=value` is not), and so are,
    with format `auto`, files whose endings stand for no format.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
        ConfigError, StorageError: the store cannot be listed.
    """
    found: dict[str, SourceFile] = {}
    ignored: list[str] = []
    for url in source.paths:
        storage, is_single, infos = _list(url)
        for info, relative_path in infos:
            path = storage.url_of(info.path)
            if not is_single and _is_hidden(relative_path):
                continue
            file_format = source.format if source.format != "auto" else format_of(path)
            if file_format is not None:
                found[path] = _source_file(path, info, file_format)
            elif is_single:
                raise SourceError(f"{redact_url(path)}: {_UNKNOWN_ENDING}")
            else:
                ignored.append(path)
        if not infos:
            raise EmptySourceError(
                f"source.path {redact_url(url)}: there is no such file, and nothing below or "
                "matching it; mend the path"
            )
    if not found:
        some = ", ".join(redact_url(path) for path in ignored[:3]) or "hidden files only"
        raise SourceError(
            f"source.path {', '.join(map(redact_url, source.paths))}: no file that can be read "
            f"among {len(ignored)} found ({some}): {_UNKNOWN_ENDING}"
        )
    return FoundFiles(tuple(found[path] for path in sorted(found)), tuple(sorted(ignored)))


_UNKNOWN_ENDING = (
    f"the name's ending should be one of {' '.join(FORMAT_ENDINGS)} (text formats also with "
    f"{' '.join(COMPRESSION_ENDINGS)}), or source.format should say what the files are"
)


def listing_hash(files: Iterable[SourceFile]) -> str:
    """SHA-256 (hex) over path, size and version of each file, in order."""
    digest = hashlib.sha256()
    for file in files:
        for part in (file.path, str(file.size_bytes), file.version):
            data = part.encode(errors="surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def locate(path: str) -> tuple[Storage, str]:
    """The storage of a file and the file's path in it, from its URL."""
    directory, _, name = path.rpartition("/")
    if not directory or directory.endswith(":/"):
        directory += "/"
    return open_storage(directory), name


def open_file(path: str) -> BinaryIO:
    """Open an input file by its URL: binary, seekable.

    Raises:
        StorageError: it cannot be opened, or has gone.
    """
    storage, name = locate(path)
    return storage.open_input(name)


def _list(url: str) -> tuple[Storage, bool, list[tuple[FileInfo, str]]]:
    """The storage, whether the URL is one file, and the files with their relative paths."""
    root, rest = split_pattern(url)
    storage = open_storage(root)
    if not rest:
        return storage, False, [(info, info.path) for info in storage.list_files()]
    is_glob = any(character in rest for character in "*?[")
    if is_glob:
        infos = storage.glob(rest.rstrip("/"))
        if not infos or format_of(rest) is None:
            # The pattern may match directories too, which hold what is meant.
            infos += storage.glob(f"{rest.rstrip('/')}/**")
        return storage, False, [(info, info.path) for info in infos]
    name = rest.rstrip("/")
    single = storage.info_or_none(name) if name == rest else None
    if single is not None:
        return storage, True, [(single, name)]
    below = len(name) + 1
    return storage, False, [(info, info.path[below:]) for info in storage.list_files(name)]


def _source_file(path: str, info: FileInfo, file_format: Format) -> SourceFile:
    compression = compression_of(path)
    if compression is not None and file_format in ("parquet", "arrow"):
        raise SourceError(
            f"{redact_url(path)}: a {file_format} file is compressed inside, not as a whole; "
            f"unpack it"
        )
    return SourceFile(
        path=path,
        size_bytes=info.size_bytes,
        version=info.version,
        format=file_format,
        compression=compression,
    )


def _is_hidden(path: str) -> bool:
    *directories, name = path.split("/")
    return name.startswith(("_", ".")) or any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in directories
    )


def relative_path(path: str, source: SourceConfig) -> str:
    """A file's path below the configured directory or glob that found it, from its URL.

    Of several, the longest path counts, so the shortest result.
    """
    results = []
    for url in source.paths:
        root, rest = split_pattern(url)
        is_glob = any(character in rest for character in "*?[")
        storage = open_storage(root)
        below = "" if is_glob or not rest else rest.rstrip("/")
        prefix = storage.url_of(below) if below else storage.url
        if path == prefix:
            results.append(path.rsplit("/", 1)[-1])
        elif path.startswith(f"{prefix.rstrip('/')}/"):
            results.append(path[len(prefix.rstrip("/")) + 1 :])
    return min(results, key=len, default=path)
