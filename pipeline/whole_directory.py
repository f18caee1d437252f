"""Write a directory of files that readers see whole, in the place of an older one. Knows no model.

On a disk the directory is renamed into place. An object store cannot rename: there one file,
without which readers find nothing, is removed first and written last.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.storage import Storage, open_storage

COPY_BYTES = 8 << 20


def write_whole_directory(url: str, write_files: Callable[[Path], None], last: str) -> None:
    """Write a directory; what an older one held beside is gone with it.

    Args:
        url: local, or in a store.
        write_files: writes the files into an empty local directory.
        last: name of the file without which there is nothing for a reader.

    Raises:
        StorageError: the store failed.
        OSError: the disk failed; the older directory is as it was.
    """
    storage = open_storage(url)
    if storage.is_local:
        _replace(Path(storage.url), write_files)
        return
    with tempfile.TemporaryDirectory(prefix="elmo-") as scratch:
        write_files(Path(scratch))
        _upload(Path(scratch), storage, last)


def _replace(target: Path, write_files: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
    staged = target.with_name(f".{target.name}.{suffix}.partial")
    replaced = target.with_name(f".{target.name}.{suffix}.replaced")
    try:
        staged.mkdir()
        write_files(staged)
        with suppress(FileNotFoundError):
            target.rename(replaced)
        try:
            staged.rename(target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _upload(directory: Path, storage: Storage, last: str) -> None:
    names = sorted(path.name for path in directory.iterdir())
    storage.delete(last)
    for info in storage.list_files():
        if info.path not in names:
            storage.delete(info.path)
    for name in sorted(names, key=lambda name: name == last):
        with (directory / name).open("rb") as source, storage.open_output(name) as sink:
            shutil.copyfileobj(source, sink, COPY_BYTES)
