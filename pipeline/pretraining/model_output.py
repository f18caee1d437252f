"""The model directory that a training leaves, written to any store.

Locally it appears whole, in the place of an older model. In an object store, which cannot rename,
options.json is written last and removed first: without it, no reader finds a model.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from elmo_model.directory import OPTIONS_NAME, save_directory
from elmo_model.softmax_file import SOFTMAX_NAME, write_softmax
from elmo_model.training import TrainState
from pipeline.errors import ConfigError
from pipeline.storage import Storage, open_storage

RECORD_NAME = "training.json"


def check_output(directory: str, *, overwrite: bool) -> None:
    """Make sure that a model may be written to `directory`.

    Raises:
        ConfigError: something is there that must not be replaced.
        StorageError: the store failed.
    """
    storage = open_storage(directory)
    if storage.is_local and Path(storage.url).exists() and not Path(storage.url).is_dir():
        raise ConfigError(f"output.directory: {directory} is a file, expected a directory")
    names = {info.path for info in storage.list_files()}
    if names and RECORD_NAME not in names:
        raise ConfigError(
            f"output.directory: {directory} holds files that are no pretrained model, such as "
            f"{min(names)}; choose another"
        )
    if names and not overwrite:
        raise ConfigError(
            f"output.directory: {directory} holds a model already; give --overwrite to replace it, "
            "or choose another"
        )


def write_model(
    directory: str, state: TrainState, words: tuple[str, ...], record: dict[str, Any]
) -> None:
    """Write options.json (for prediction), weights, vocabulary, softmax and training.json.

    Args:
        directory: local, or in a store; an older model is replaced.
        state: holds the model and its softmax.
        words: the vocabulary.
        record: content of training.json.
    """
    storage = open_storage(directory)
    if storage.is_local:
        _write_local(Path(storage.url), state, words, record)
    else:
        _write_remote(storage, state, words, record)


def _write_local(
    target: Path, state: TrainState, words: tuple[str, ...], record: dict[str, Any]
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
    staged = target.with_name(f".{target.name}.{suffix}.partial")
    replaced = target.with_name(f".{target.name}.{suffix}.replaced")
    try:
        _write_files(staged, state, words, record)
        if target.exists():
            target.rename(replaced)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write_remote(
    storage: Storage, state: TrainState, words: tuple[str, ...], record: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "model"
        _write_files(staged, state, words, record)
        storage.delete(OPTIONS_NAME)
        names = sorted(path.name for path in staged.iterdir())
        for name in sorted(names, key=lambda name: name == OPTIONS_NAME):
            with (staged / name).open("rb") as file, storage.open_output(name) as output:
                shutil.copyfileobj(file, output, 1 << 24)
        for info in storage.list_files():
            if info.path not in names:
                storage.delete(info.path)


def _write_files(
    folder: Path, state: TrainState, words: tuple[str, ...], record: dict[str, Any]
) -> None:
    save_directory(folder, state.model.options, state.model.state_dict(), words)
    write_softmax(folder / SOFTMAX_NAME, state.softmax)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD_NAME).write_text(text + "\n", "utf-8")
