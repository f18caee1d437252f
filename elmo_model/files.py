"""Read and replace local model files without surprises. Knows bytes and names, no weights.

Files are written beside their target and renamed, so that no reader sees half of one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from elmo_model.errors import ModelFileError

MAX_VOCABULARY_BYTES = 256 << 20

Kind = Literal["hdf5", "safetensors"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_PICKLE_ENDINGS = (".th", ".pt", ".pth", ".pkl", ".pickle", ".bin")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def weights_kind(path: str | Path) -> Kind:
    """Tell by its first bytes which of the two kinds of weight file this is.

    Raises:
        ModelFileError: no such file, a pickle, or neither HDF5 nor safetensors.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith(_HDF5_MAGIC):
        return "hdf5"
    # A safetensors file is the header's size in 8 bytes, then the header, which is JSON.
    is_safetensors = head[8:9] == b"{"
    # A header of 640 bytes begins like a pickle; no pickle has four zeros there.
    is_pickle = head.startswith(_PICKLE_MAGIC) and not (is_safetensors and head[4:8] == bytes(4))
    if is_pickle or str(path).lower().endswith(_PICKLE_ENDINGS):
        raise ModelFileError(
            f"{path}: is a pickle, which may run any program when it is opened, so it is not read. "
            "If you trust it, convert it once where torch is installed: "
            "state = torch.load(PATH, map_location='cpu', weights_only=True); "
            "safetensors.torch.save_file(state, 'weights.safetensors')"
        )
    if is_safetensors:
        return "safetensors"
    what = "is empty" if not head else f"starts with {head[:16]!r}"
    if head.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page, probably an error message of the server it was fetched from"
    raise ModelFileError(f"{path}: expected HDF5 or safetensors weights, but the file {what}")


def read_vocabulary(path: str | Path) -> bytes:
    """The bytes of a vocabulary file.

    Raises:
        ModelFileError: more than MAX_VOCABULARY_BYTES.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_VOCABULARY_BYTES + 1)
    if len(content) > MAX_VOCABULARY_BYTES:
        raise ModelFileError(
            f"{path}: larger than {MAX_VOCABULARY_BYTES} bytes, a vocabulary of a million words "
            "has about 10 million; was another file given?"
        )
    return content


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place.

    On an error the temporary file is removed and `path` stays as it was.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
