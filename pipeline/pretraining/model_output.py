"""The model directory that a training leaves, written whole to any store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elmo_model.directory import OPTIONS_NAME, save_directory
from elmo_model.softmax_file import SOFTMAX_NAME, write_softmax
from elmo_model.training import TrainState
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.whole_directory import write_whole_directory

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
    # Without options.json no reader finds a model.
    write_whole_directory(
        directory, lambda folder: _write_files(folder, state, words, record), last=OPTIONS_NAME
    )


def _write_files(
    folder: Path, state: TrainState, words: tuple[str, ...], record: dict[str, Any]
) -> None:
    save_directory(folder, state.model.options, state.model.state_dict(), words)
    write_softmax(folder / SOFTMAX_NAME, state.softmax)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD_NAME).write_text(text + "\n", "utf-8")
