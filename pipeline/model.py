"""Load the configured encoder and name it: the fingerprint that says which vectors may be compared.

Knows the encoder and the configuration; no Ray, and files only through storage.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from elmo_model.directory import ModelFiles, load_directory, read_files
from elmo_model.encoder import Encoder, LayerChoice
from elmo_model.options import ElmoOptions
from elmo_model.weights import build, weights_sha256
from elmo_model.word_ids import read_words
from pipeline.backend import EncoderDescription, ModelLoader
from pipeline.batch_sizes import batch_sizes
from pipeline.config import EmbedConfig, ModelConfig, TextConfig, VectorConfig
from pipeline.elmo_vectors import ElmoVectors, vector_columns
from pipeline.errors import ConfigError
from pipeline.model_files import local_copy, word_tables_directory
from pipeline.snapshot.metadata import Snapshot
from pipeline.text import tokenizer_fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ElmoLoader:
    """Loads the configured encoder in a worker's process: picklable, called once there."""

    config: EmbedConfig
    num_threads: int

    def __call__(self) -> ElmoVectors:
        """Load the model and set torch's threads to what the worker was given.

        Raises:
            ModelFileError: the files are not a model, or not of one model.
            StorageError: a remote file cannot be fetched.
        """
        import torch

        torch.set_num_threads(self.num_threads)
        config = self.config
        encoder = load_encoder(config.model)
        choice = layer_choice(config.model, encoder)
        on_gpu = encoder.device.type != "cpu"
        sizes = batch_sizes(config.batch, self.num_threads, on_gpu=on_gpu)
        return ElmoVectors(encoder, choice, config.vectors, sizes.max_tokens)


class ElmoBackend:
    """The biLM of the configured model files."""

    def describe(self, config: EmbedConfig) -> EncoderDescription:
        """Read the weights, check them and name them; nothing is laid out to be run."""
        files = load_files(config.model)
        build(files.options, files.state)
        return describe(config, ModelIdentity(files.options, weights_sha256(files.state)))

    def loader(self, config: EmbedConfig, num_threads: int) -> ModelLoader:
        """Loads the same model in an actor's process."""
        return ElmoLoader(config, num_threads)


@dataclass(frozen=True)
class ModelIdentity:
    """What names a model: known without running it."""

    options: ElmoOptions
    weights_sha256: str


def load_encoder(config: ModelConfig) -> Encoder:
    """The encoder of a model directory or of a released pair of files, local or remote.

    Raises:
        ModelFileError, ConfigError, StorageError: as `load_files`.
        DeviceError: the device or its arithmetic is not available.
    """
    encoder = Encoder(
        load_files(config),
        device=config.device,
        dtype=config.dtype,
        initial_state=config.initial_state,
    )
    if config.precomputed_words_file is not None:
        words = read_words(local_copy(config.precomputed_words_file))
        try:
            encoder.precompute(words, word_tables_directory())
        except OSError as error:
            # It is only slower without: every process spells the words that it meets.
            log.warning("model.precomputed_words_file is not used: %s", error)
    return encoder


def load_files(config: ModelConfig) -> ModelFiles:
    """The files of a model directory or of a released pair of files, local or remote.

    Raises:
        ModelFileError: names the file, the dataset, what was found and expected.
        ConfigError: a file does not exist.
        StorageError: a remote file cannot be fetched.
    """
    if config.directory is not None:
        return load_directory(local_copy(config.directory))
    assert config.options_file is not None
    assert config.weights_file is not None
    words = None if config.vocabulary_file is None else local_copy(config.vocabulary_file)
    return read_files(local_copy(config.options_file), local_copy(config.weights_file), words)


def layer_choice(config: ModelConfig, encoder: Encoder | ModelIdentity) -> LayerChoice:
    """The configured layers, checked against the encoder's number of layers."""
    return LayerChoice.parse(
        config.layers,
        num_layers=encoder.options.num_layers,
        mix_weights=config.mix_weights,
        gamma=config.mix_gamma,
        num_directions=encoder.options.num_directions,
    )


def describe(config: EmbedConfig, encoder: Encoder | ModelIdentity) -> EncoderDescription:
    """Fingerprint of everything that decides a vector's value, and its readable details.

    Batch sizes, devices and threads are left out: they change no vector beyond rounding.

    Raises:
        ConfigError: the model is not the one whose weights the configuration names.
    """
    wanted = config.model.weights_sha256
    if wanted not in (None, encoder.weights_sha256):
        raise ConfigError(
            f"model.weights_sha256 asks for weights {wanted}, the model's files have "
            f"{encoder.weights_sha256}: give the model that it (or the mix) was made with, or "
            "learn the mix again with 'elmo tune-mix'"
        )
    choice = layer_choice(config.model, encoder)
    details: dict[str, Any] = {
        "weights_sha256": encoder.weights_sha256,
        "options": encoder.options.to_dict(),
        "layers": config.model.layers,
        "mix_weights": list(config.model.mix_weights) if config.model.mix_weights else None,
        "mix_gamma": config.model.mix_gamma,
        "initial_state": config.model.initial_state,
        "arithmetic": config.model.dtype,
        **_vector_details(config.text, config.vectors),
    }
    canonical = json.dumps(details, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return EncoderDescription(
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        details=details,
        dim=choice.dim(encoder),
        vector_columns=vector_columns(choice.num_outputs(encoder)),
    )


def open_model(snapshot: Snapshot, config: EmbedConfig) -> Encoder:
    """Load the encoder that a snapshot was made with, and make sure that it is that one.

    Args:
        snapshot: the snapshot to compare with.
        config: its configuration; the model may have moved.

    Raises:
        ConfigError: the model files give another fingerprint than the snapshot's.
    """
    encoder = load_encoder(config.model)
    found = describe(config, encoder).fingerprint
    if found != snapshot.fingerprint:
        raise ConfigError(
            f"snapshot {snapshot.number} was made with encoder {snapshot.fingerprint[:12]}, the "
            f"model files give {found[:12]}; use the model that embedded it, or embed the corpus "
            "anew"
        )
    return encoder


def _vector_details(text: TextConfig, vectors: VectorConfig) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer_fingerprint(text),
        "text": text.model_dump(mode="json"),
        "vectors": vectors.model_dump(mode="json"),
    }
