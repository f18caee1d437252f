"""What a training starts from where not from random weights: an older model, or word vectors.

It becomes the checkpoint of step 0, so that every worker, and every run that goes on, reads it as
it reads any other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from elmo_model.continue_training import continue_from, read_output_layer
from elmo_model.losses import Softmax
from elmo_model.options import ElmoOptions
from elmo_model.token_embedding import TokenEmbedding
from elmo_model.training import TrainState
from elmo_model.vocabulary import Vocabulary
from elmo_model.word_vectors import read_word_vectors, set_word_vectors
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.model import load_files
from pipeline.model_files import local_copy
from pipeline.pretraining.checkpoints import Checkpoints
from pipeline.pretraining.config import PretrainConfig, StartConfig
from pipeline.pretraining.options import dropout_of, make_options, training_options

log = logging.getLogger(__name__)

# The checkpoint's file with the rows of the word table that are held fixed.
FROZEN = "frozen"
FROZEN_ROWS = "rows"


def make_start(
    config: PretrainConfig, vocabulary: Vocabulary, checkpoints: Checkpoints
) -> ElmoOptions:
    """The options to train with; weights to start from, if there are any, are written as step 0.

    Raises:
        ConfigError: nothing is at a named place, or the parts do not fit together.
        ModelFileError: a file is wrong.
        ElmoError: the training asks for what the model cannot do.
    """
    start = config.start
    if not start.has_model and start.word_vectors_file is None:
        return make_options(config, len(vocabulary))
    state = _model(config, vocabulary)
    dropout_of(config).check(state.model.options)
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": state.model.state_dict(),
        "softmax": softmax_tensors(state.softmax, state.model.options),
    }
    if start.word_vectors_file is not None:
        frozen = _set_word_vectors(start, state, vocabulary)
        if start.freeze_word_vectors:
            tensors[FROZEN] = {FROZEN_ROWS: frozen}
    checkpoints.write(0, {}, tensors)
    return state.model.options


def softmax_tensors(softmax: Softmax, options: ElmoOptions) -> dict[str, Tensor]:
    """The output layer's own tensors; its weights may be the word table, kept with the model."""
    tensors: dict[str, Tensor] = softmax.state_dict()
    if options.training.share_embedding_softmax:
        tensors.pop("weight")
    return tensors


def _model(config: PretrainConfig, vocabulary: Vocabulary) -> TrainState:
    start, training = config.start, config.training
    if not start.has_model:
        options = make_options(config, len(vocabulary))
        return TrainState.create(options, training.seed, training.optimizer)
    files = load_files(
        ModelConfig(
            directory=start.directory,
            options_file=start.options_file,
            weights_file=start.weights_file,
            vocabulary_file=start.vocabulary_file,
        )
    )
    output = None
    if start.directory is not None:
        output = read_output_layer(local_copy(start.directory), files.options)
    how = training_options(config, len(vocabulary))
    point = continue_from(files, vocabulary, how, output, training.seed)
    log.info(
        "going on from %s: of %d words, %d outputs%s are kept",
        start.directory or start.weights_file,
        len(vocabulary),
        point.num_kept_outputs,
        "" if files.options.char_cnn else f" and {point.num_kept_vectors} vectors",
    )
    return TrainState(point.model, point.softmax, torch.optim.SGD(point.model.parameters(), 0.1))


def _set_word_vectors(start: StartConfig, state: TrainState, vocabulary: Vocabulary) -> Tensor:
    embedding = state.model.token_embedding
    if not isinstance(embedding, TokenEmbedding):
        raise ConfigError(
            "start.word_vectors_file: the model reads characters and has no word table; give a "
            "model with word input"
        )
    assert start.word_vectors_file is not None
    width = state.model.options.lstm.projection_dim
    vectors = read_word_vectors(local_copy(start.word_vectors_file), vocabulary, width)
    set_word_vectors(embedding, vectors)
    found: Tensor = torch.from_numpy(vectors.found_V)
    log.info(
        "%s has vectors of %d of %d words", start.word_vectors_file, int(found.sum()), len(found)
    )
    return found
