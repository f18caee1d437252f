"""The files of one model read together; and our model directory.

The directory holds options.json, weights.safetensors, and vocabulary.txt where there is one.
`options.json` is the released format with its `n_characters` of 262. The weights are float32 under
the names of `BiLM`'s state dict. A word-input model, or one whose context-free vectors were dumped,
has no `char_cnn` in its options and needs the vocabulary; a character model may have one, which
only pretraining reads. options.json is written last and removed first, so that a directory that
holds it holds one whole model. Knows no layers and no text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from elmo_model.errors import ModelFileError
from elmo_model.files import replacing
from elmo_model.options import ElmoOptions
from elmo_model.weight_table import WORD_TABLE
from elmo_model.weights import (
    StateDict,
    read_token_embeddings,
    read_weights,
    write_safetensors,
)
from elmo_model.word_ids import read_words

OPTIONS_NAME = "options.json"
WEIGHTS_NAME = "weights.safetensors"
VOCABULARY_NAME = "vocabulary.txt"
_EMBEDDING = "token_embedding."


@dataclass(frozen=True)
class ModelFiles:
    """Options, the state dict of `BiLM(options)`, and the words of word input, checked together.

    `words` lists the words whose vectors the table holds, row by row; None with character input.
    """

    options: ElmoOptions
    state: StateDict
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.options.char_cnn is not None:
            return
        num_rows = self.state[WORD_TABLE].shape[0]
        if self.words is None:
            raise ModelFileError(
                f"the model has word input (options without char_cnn) of {num_rows} words: "
                "give the vocabulary file that lists them"
            )
        if len(self.words) != num_rows:
            raise ModelFileError(
                f"the vocabulary has {len(self.words)} words, the weights {num_rows} vectors: "
                "the two files are from different models"
            )


def read_files(
    options_file: str | Path,
    weights_file: str | Path,
    vocabulary_file: str | Path | None = None,
    token_embeddings_file: str | Path | None = None,
) -> ModelFiles:
    """Read a model that lies in separate files.

    Args:
        options_file: options.json.
        weights_file: HDF5 or safetensors, see `weights.read_weights`.
        vocabulary_file: needed for word input and for `token_embeddings_file`.
        token_embeddings_file: dumped context-free vectors that replace the token embedding.

    Raises:
        ModelFileError: a file is wrong, or they are not of one model.
    """
    options = ElmoOptions.read(options_file)
    state = read_weights(weights_file, options)
    if token_embeddings_file is not None:
        table = read_token_embeddings(token_embeddings_file, options.lstm.projection_dim)
        options = options.with_word_input()
        state = {key: value for key, value in state.items() if not key.startswith(_EMBEDDING)}
        state[WORD_TABLE] = table
    if options.char_cnn is not None or vocabulary_file is None:
        return ModelFiles(options, state)
    return ModelFiles(options, state, read_words(vocabulary_file))


def save_directory(
    path: str | Path,
    options: ElmoOptions,
    state: Mapping[str, Tensor],
    words: Sequence[str] | None = None,
) -> None:
    """Write a model directory, replacing the model in it; other files there are left alone.

    Args:
        path: the directory, made if missing.
        options: the model's options.
        state: the state dict of `BiLM(options)`.
        words: the vocabulary in the order of its ids; needed for word input.

    Raises:
        ModelFileError: a word-input model without a vocabulary, or with another one.
    """
    ModelFiles(options, dict(state), None if words is None else tuple(words))
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    options_path, vocabulary_path = directory / OPTIONS_NAME, directory / VOCABULARY_NAME
    with ExitStack() as whole:
        whole.enter_context(replacing(options_path)).write_text(options.to_json(), "utf-8")
        if words is not None:
            text = "".join(f"{word}\n" for word in words)
            whole.enter_context(replacing(vocabulary_path)).write_bytes(text.encode())
        write_safetensors(whole.enter_context(replacing(directory / WEIGHTS_NAME)), state)
        # From here to the end of the block there is no model in the directory.
        options_path.unlink(missing_ok=True)
        if words is None:
            vocabulary_path.unlink(missing_ok=True)


def load_directory(path: str | Path) -> ModelFiles:
    """Read a model directory; its weights are mapped into memory.

    Raises:
        ModelFileError: no such directory, a file is missing, or the files do not fit together.
        VocabularyError: the vocabulary is needed and cannot be read.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ModelFileError(f"{path}: no such directory; expected one with {OPTIONS_NAME}")
    present = set(os.listdir(directory))
    for name in (OPTIONS_NAME, WEIGHTS_NAME):
        if name not in present:
            raise ModelFileError(
                f"{path}: {name} is missing; a model directory holds {OPTIONS_NAME} and "
                f"{WEIGHTS_NAME}. For released files name the options and the weights instead"
            )
    options = ElmoOptions.read(directory / OPTIONS_NAME)
    needs_words = options.char_cnn is None and VOCABULARY_NAME in present
    words = read_words(directory / VOCABULARY_NAME) if needs_words else None
    return ModelFiles(options, read_weights(directory / WEIGHTS_NAME, options), words)
