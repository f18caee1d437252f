"""Write a model as the files of the original programs: options.json, HDF5 weights, vocabulary.

The directory holds one whole model or none (whole_directory.py). Knows no jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from elmo_model.directory import OPTIONS_NAME
from elmo_model.encoder import Encoder
from elmo_model.options import ElmoOptions
from elmo_model.softmax_file import SoftmaxWeights, write_softmax_hdf5
from elmo_model.weight_table import WORD_TABLE
from elmo_model.weights import write_hdf5, write_token_embeddings
from elmo_model.word_ids import read_words
from pipeline.errors import ConfigError
from pipeline.export_config import ExportConfig
from pipeline.language_model_files import LanguageModelFiles
from pipeline.storage import open_storage
from pipeline.whole_directory import write_whole_directory

WEIGHTS_NAME = "weights.hdf5"
# The name that programs which take a directory look for.
VOCABULARY_NAME = "vocab.txt"
SOFTMAX_NAME = "softmax.hdf5"
TOKEN_EMBEDDINGS_NAME = "token_embeddings.hdf5"
ALL_NAMES = (OPTIONS_NAME, WEIGHTS_NAME, VOCABULARY_NAME, SOFTMAX_NAME, TOKEN_EMBEDDINGS_NAME)

_WORDS_AT_ONCE = 8192


@dataclass(frozen=True)
class ExportedModel:
    """What an export holds; None is not written.

    `words` is the vocabulary, `token_embeddings_VP` the context-free vectors of its words.
    """

    options: ElmoOptions
    state: Mapping[str, Tensor]
    words: tuple[str, ...] | None
    softmax: SoftmaxWeights | None
    token_embeddings_VP: Tensor | None

    @property
    def names(self) -> tuple[str, ...]:
        """The files that it is written to."""
        parts = {
            VOCABULARY_NAME: self.words,
            SOFTMAX_NAME: self.softmax,
            TOKEN_EMBEDDINGS_NAME: self.token_embeddings_VP,
        }
        return tuple(name for name in ALL_NAMES if name not in parts or parts[name] is not None)


def read_model(config: ExportConfig) -> ExportedModel:
    """Read what the configuration asks for, and check that it fits together.

    Raises:
        ModelFileError: a file is missing, wrong, or not of this model.
        VocabularyError: the vocabulary cannot be read.
        ConfigError: a configured file does not exist.
        StorageError: a remote file cannot be fetched.
    """
    files = LanguageModelFiles(config.model)
    bilm = files.bilm
    words = bilm.words
    if config.output.token_embeddings:
        files.need_vocabulary("to list the words whose vectors are written")
    if words is None and files.vocabulary_path is not None:
        words = read_words(files.vocabulary_path)
    softmax = None
    if config.output.softmax:
        softmax = files.read_softmax(None if words is None else len(words))
    vectors = None
    if config.output.token_embeddings:
        assert words is not None
        vectors = _word_vectors(files, words)
    return ExportedModel(bilm.options, bilm.state, words, softmax, vectors)


def check_output(url: str, *, overwrite: bool) -> None:
    """Make sure that a model may be written to `url`.

    Raises:
        ConfigError: something is there and `overwrite` is not given, or what is there is not an
            export, which is never replaced.
        StorageError: the store failed.
    """
    storage = open_storage(url)
    if storage.is_local and Path(storage.url).is_file():
        raise ConfigError(f"output.path: {storage.url} is a file, expected a directory")
    present = [info.path for info in storage.list_files()]
    others = [path for path in present if path not in ALL_NAMES]
    if others:
        raise ConfigError(
            f"output.path: {storage.url} holds files that are no part of an export, such as "
            f"{others[0]}; nothing is replaced: choose another directory"
        )
    if present and not overwrite:
        raise ConfigError(
            f"output.path: {storage.url} holds an exported model already; give --overwrite to "
            "replace it, or choose another directory"
        )


def write_model(model: ExportedModel, url: str, *, overwrite: bool = False) -> dict[str, int]:
    """Write a model to a directory of the original's files.

    Returns: the files that were written, with their sizes in bytes.

    Raises:
        ConfigError: see `check_output`.
        StorageError: the store failed.
    """
    check_output(url, overwrite=overwrite)
    # Whoever finds options.json finds all the rest.
    write_whole_directory(url, partial(_write_files, model), last=OPTIONS_NAME)
    storage = open_storage(url)
    return {name: storage.size_bytes(name) for name in model.names}


def _word_vectors(files: LanguageModelFiles, words: tuple[str, ...]) -> Tensor:
    """Context-free vectors (V, P) of words: those of the table, or spelled."""
    if files.bilm.options.char_cnn is None:
        return files.bilm.state[WORD_TABLE]
    encoder = Encoder(files.bilm)
    parts = [
        encoder.embed_words(words[start : start + _WORDS_AT_ONCE]).cpu()
        for start in range(0, len(words), _WORDS_AT_ONCE)
    ]
    return torch.cat(parts)


def _write_files(model: ExportedModel, directory: Path) -> None:
    write_hdf5(directory / WEIGHTS_NAME, model.options, model.state)
    if model.words is not None:
        text = "".join(f"{word}\n" for word in model.words)
        (directory / VOCABULARY_NAME).write_bytes(text.encode())
    if model.softmax is not None:
        write_softmax_hdf5(directory / SOFTMAX_NAME, model.softmax)
    if model.token_embeddings_VP is not None:
        write_token_embeddings(directory / TOKEN_EMBEDDINGS_NAME, model.token_embeddings_VP)
    (directory / OPTIONS_NAME).write_text(model.options.to_json(prediction=True), "utf-8")
