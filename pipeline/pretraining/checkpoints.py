"""Checkpoints of a training in a store: whole or not there, checked when they are read.

Each is a directory `step-<step>` of tensors (safetensors) and, written last, `checkpoint.json` with
the size and the SHA-256 of each of them. Without it, and with a file that does not agree with it,
there is no checkpoint. Knows no training: tensors by name, and a record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import CorruptFileError, MissingFileError
from pipeline.storage import Storage

log = logging.getLogger(__name__)

RECORD_NAME = "checkpoint.json"
FORMAT_VERSION = 1
MAX_RECORD_BYTES = 1 << 28


TensorsByFile = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read: its record, and its tensors by file and name."""

    step: int
    record: Mapping[str, Any]
    tensors: TensorsByFile
    url: str


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, storage: Storage, folder: str) -> None:
        """Keep them in `folder` of `storage`."""
        self._storage, self._folder = storage, folder

    def write(self, step: int, record: Mapping[str, Any], tensors: TensorsByFile) -> None:
        """Write a checkpoint; it exists once all of it is written.

        Args:
            step: names it; one of the same step is replaced.
            record: JSON values, given back as they are.
            tensors: by the name of the file (without ending), then by name.
        """
        place = self._place(step)
        # A record of the same step, from before a restart, must not describe other files.
        self._storage.delete(f"{place}/{RECORD_NAME}")
        files = {}
        for name, values in tensors.items():
            data = save({key: value.detach().cpu().contiguous() for key, value in values.items()})
            with self._storage.open_output(f"{place}/{name}.safetensors") as output:
                output.write(data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        content = {"version": FORMAT_VERSION, "step": step, "files": files, "record": record}
        self._storage.put(f"{place}/{RECORD_NAME}", json.dumps(content).encode())

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, rising; sound or not."""
        found = []
        for info in self._storage.list_files(self._folder):
            parts = info.path.removeprefix(f"{self._folder}/").split("/")
            name = parts[0].removeprefix("step-")
            if len(parts) == 2 and parts[1] == RECORD_NAME and name.isdecimal():
                found.append(int(name))
        return sorted(found)

    def latest(self) -> Checkpoint | None:
        """The newest sound checkpoint; None if there is none at all.

        What is damaged is said, and the one before it is taken.

        Raises:
            CorruptFileError: there are some, and none is sound.
        """
        damage: CorruptFileError | None = None
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except (CorruptFileError, MissingFileError) as error:
                damage = damage or CorruptFileError(str(error))
                log.warning("%s; the checkpoint before it is taken", error)
        if damage is not None:
            raise CorruptFileError(
                f"{damage}; no other checkpoint of this training can be read. Begin it anew with "
                "--overwrite, or restore the files"
            )
        return None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            CorruptFileError: it is not as it was written.
            MissingFileError: it is not there, or not all of it.
        """
        place = self._place(step)
        path = f"{place}/{RECORD_NAME}"
        url = self._storage.url_of(place)
        try:
            content = json.loads(self._storage.read_bytes(path, MAX_RECORD_BYTES))
            version, files, record = content["version"], content["files"], content["record"]
            expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{self._storage.url_of(path)}: expected the record of a checkpoint, found "
                f"{error!r}"
            ) from None
        if version != FORMAT_VERSION:
            raise CorruptFileError(
                f"{self._storage.url_of(path)}: expected a checkpoint of version {FORMAT_VERSION}, "
                f"found {version}"
            )
        tensors = dict(self._tensors(place, expected))
        return Checkpoint(step, record, tensors, url)

    def _tensors(
        self, place: str, expected: Mapping[str, tuple[int, str]]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, (size_bytes, sha256) in expected.items():
            path = f"{place}/{name}.safetensors"
            data = self._storage.read_bytes(path, size_bytes)
            if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
                raise CorruptFileError(
                    f"{self._storage.url_of(path)}: expected the {size_bytes} bytes that the "
                    f"checkpoint lists, found {len(data)} bytes of other content"
                )
            try:
                yield name, load(data)
            except SafetensorError as error:
                raise CorruptFileError(f"{self._storage.url_of(path)}: {error}") from None

    def keep(self, steps: set[int]) -> None:
        """Remove all checkpoints but those of these steps."""
        for step in self.steps():
            if step not in steps:
                # First what makes it a checkpoint: half of one is none.
                self._storage.delete(f"{self._place(step)}/{RECORD_NAME}")
        kept = {self._place(step) for step in steps}
        for info in self._storage.list_files(self._folder):
            if info.path.rsplit("/", 1)[0] not in kept:
                self._storage.delete(info.path)
        self._remove_directories(kept)

    def _remove_directories(self, kept: set[str]) -> None:
        """On a disk: what is left of removed checkpoints, and what a killed writer left."""
        if not self._storage.is_local:
            return
        folder = Path(self._storage.url_of(self._folder))
        for directory in folder.glob("step-*"):
            if f"{self._folder}/{directory.name}" not in kept:
                shutil.rmtree(directory, ignore_errors=True)
        if not kept:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _place(self, step: int) -> str:
        return f"{self._folder}/step-{step:09d}"
