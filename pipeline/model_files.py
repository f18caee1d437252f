"""Bring model files to this machine once: a remote model is copied to a node-local cache.

Local paths are used as they are, so weights can be mapped into memory. Knows no model format.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.storage import Storage, open_storage, split_pattern

CACHE_VARIABLE = "ELMO_CACHE"
COPY_BYTES = 8 << 20


def local_copy(url: str) -> Path:
    """A local path with the content of `url`, a file or a directory.

    A remote file or directory is downloaded below `$ELMO_CACHE` (default
    `~/.cache/elmo-nightly/models`), under a name made of its URL and the versions of its files, so
    a changed model is fetched again and an unchanged one is not. Several processes of a node may
    ask at once: the copy appears whole.

    Raises:
        ConfigError: nothing is there.
        StorageError: the store failed.
    """
    parent, name = split_pattern(url.rstrip("/"))
    storage = open_storage(parent)
    if storage.is_local:
        path = Path(open_storage(url.rstrip("/")).url.removeprefix("file://"))
        if not path.exists():
            raise ConfigError(
                f"{path}: there is no such model file or directory on this machine; on a cluster "
                "give a URL that all nodes can read (s3://...), or a path on a shared disk"
            )
        return path
    files = {info.path: info for info in storage.list_files(name)}
    single = storage.info_or_none(name) if not files else None
    if single is not None:
        files = {name: single}
    if not files:
        raise ConfigError(f"{storage.url_of(name)}: there is no such model file or directory")
    versions = "\n".join(f"{path} {info.version}" for path, info in sorted(files.items()))
    digest = hashlib.sha256(f"{storage.url_of(name)}\n{versions}".encode()).hexdigest()[:32]
    target = _cache_directory() / digest
    if not target.exists():
        _download(storage, sorted(files), target)
    return target / name


def word_tables_directory() -> Path:
    """Where a machine's processes share the vectors of words."""
    return _cache_directory().parent / "words"


def _cache_directory() -> Path:
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured) if configured else Path.home() / ".cache" / "elmo-nightly" / "models"


def _download(storage: Storage, paths: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        for path in paths:
            copy = scratch / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            with storage.open_input(path) as source, copy.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_BYTES)
        try:
            scratch.rename(target)
        except OSError:
            # Another process of this node was faster; its copy has the same content.
            if not target.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
