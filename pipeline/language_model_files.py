"""Bring the files of a configured language model together: biLM, vocabulary and output layer.

Knows the configuration and where files lie; what is in them is the model's business.
"""

from __future__ import annotations

from pathlib import Path

from elmo_model.directory import (
    OPTIONS_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    ModelFiles,
    load_directory,
    read_files,
)
from elmo_model.errors import ModelFileError
from elmo_model.softmax_file import (
    HDF5_BIAS,
    HDF5_WEIGHT,
    SOFTMAX_NAME,
    SoftmaxWeights,
    holds_softmax,
    read_softmax_weights,
)
from elmo_model.weight_table import WORD_TABLE
from pipeline.language_model_config import LanguageModelConfig
from pipeline.model_files import local_copy


class LanguageModelFiles:
    """The files of one language model on this machine; the biLM is read at once."""

    def __init__(self, config: LanguageModelConfig) -> None:
        """Fetch what is remote, and read options and weights.

        Raises:
            ModelFileError: names the file, the dataset, what was found and expected.
            ConfigError: a file does not exist.
            StorageError: a remote file cannot be fetched.
        """
        self._config = config
        self._directory = None if config.directory is None else local_copy(config.directory)
        self._vocabulary = self._path_of(config.vocabulary_file, VOCABULARY_NAME)
        self._softmax = self._path_of(config.softmax_file, SOFTMAX_NAME)
        if self._directory is not None:
            self.bilm: ModelFiles = load_directory(self._directory)
            return
        assert config.options_file is not None
        assert config.weights_file is not None
        weights = local_copy(config.weights_file)
        self.bilm = read_files(local_copy(config.options_file), weights, self._vocabulary)
        if self._softmax is None and holds_softmax(weights):
            self._softmax = weights

    @property
    def has_softmax(self) -> bool:
        """Whether there is an output layer beside the biLM or in its weight file."""
        return self._softmax is not None

    @property
    def vocabulary_path(self) -> Path | None:
        """The vocabulary file, if there is one; its words are not read yet."""
        return self._vocabulary

    def need_vocabulary(self, purpose: str) -> Path:
        """The vocabulary file.

        Args:
            purpose: what needs it, for the message: "to predict words".

        Raises:
            ModelFileError: there is none.
        """
        if self._vocabulary is not None:
            return self._vocabulary
        if self._directory is not None:
            raise ModelFileError(
                f"{self._directory}: {VOCABULARY_NAME} is missing, which is needed {purpose}. Name "
                f"the files one by one instead: model.options_file ({OPTIONS_NAME}), "
                f"model.weights_file ({WEIGHTS_NAME}) and model.vocabulary_file, a word a line"
            )
        raise ModelFileError(
            f"model.vocabulary_file is not given, which is needed {purpose}: the words that the "
            "model was trained with, a word a line"
        )

    def read_softmax(self, vocabulary_size: int | None) -> SoftmaxWeights:
        """Read the output layer.

        Args:
            vocabulary_size: V, or None where it is not known.

        Raises:
            ModelFileError: there is none, or it is not of this model and vocabulary.
        """
        options = self.bilm.options
        if self._softmax is None:
            raise ModelFileError(self._no_softmax())
        shared = options.training.share_embedding_softmax
        return read_softmax_weights(
            self._softmax,
            vocabulary_size,
            options.lstm.projection_dim,
            self.bilm.state[WORD_TABLE] if shared else None,
        )

    def _path_of(self, configured: str | None, name: str) -> Path | None:
        """A configured file, or the one of that name in the directory if there is one."""
        if configured is not None:
            return local_copy(configured)
        if self._directory is None or not (self._directory / name).is_file():
            return None
        return self._directory / name

    def _no_softmax(self) -> str:
        hdf5 = f"HDF5 with {HDF5_WEIGHT} (V, P) and {HDF5_BIAS} (V)"
        if self._directory is not None:
            return (
                f"{self._directory}: {SOFTMAX_NAME} is missing, the output layer that turns the "
                "model's layers into probabilities of words. `elmo pretrain` writes it; if it was "
                f"left behind, copy it here, or name it by model.softmax_file, also as {hdf5}"
            )
        return (
            f"{self._config.weights_file}: holds no softmax, the output layer that turns the "
            "model's layers into probabilities of words, and model.softmax_file names none. "
            f"Released weights come without; give {hdf5}, which are the variables lm/softmax/W and "
            "lm/softmax/b of the checkpoint that the weights were dumped from"
        )
