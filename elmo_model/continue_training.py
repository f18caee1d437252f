"""Start pretraining from the weights of another model, with a vocabulary of one's own.

All that does not depend on the vocabulary is kept bit for bit: the LSTMs, and the character CNN of
a character model. What has a row for each word (the word table of a token model, the softmax) gets
the rows of the words that both vocabularies have; the others are random, as in a new model.
Released models come without their softmax, so all of theirs is random. Knows no text and no
optimiser.

Axes: V words of the new vocabulary, P projection width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.directory import VOCABULARY_NAME, ModelFiles
from elmo_model.errors import ElmoError, ModelFileError
from elmo_model.losses import Softmax
from elmo_model.options import ElmoOptions, TrainingOptions
from elmo_model.softmax_file import SOFTMAX_NAME, read_softmax
from elmo_model.token_embedding import TokenEmbedding
from elmo_model.training import new_softmax
from elmo_model.vocabulary import Vocabulary
from elmo_model.weight_table import WORD_TABLE
from elmo_model.weights import build
from elmo_model.word_ids import read_words


@dataclass(frozen=True)
class OutputLayer:
    """The softmax of a trained model, and the words of its rows."""

    softmax: Softmax
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.words) != self.softmax.vocabulary_size:
            raise ModelFileError(
                f"the softmax has {self.softmax.vocabulary_size} rows, its vocabulary "
                f"{len(self.words)} words: the two are from different models"
            )


@dataclass(frozen=True)
class StartingPoint:
    """A model and its output layer, ready for `TrainState` and an optimiser.

    `model.options` is what to train and to save with. `num_kept_vectors` counts the words of the
    new vocabulary whose row of the word table is the old one's (0 with character input), and
    `num_kept_outputs` those whose row of the softmax is (0 without an old softmax).
    """

    model: BiLM
    softmax: Softmax
    num_kept_vectors: int
    num_kept_outputs: int


def read_output_layer(path: str | Path, options: ElmoOptions) -> OutputLayer | None:
    """Read the softmax of a model directory and its vocabulary; None if it has no softmax.

    Args:
        path: the directory, as pretraining writes it.
        options: the model's.

    Raises:
        ModelFileError: the softmax is damaged, or does not fit the vocabulary or the options.
        VocabularyError: the vocabulary cannot be read.
    """
    softmax_path = Path(path) / SOFTMAX_NAME
    if not softmax_path.exists():
        return None
    words = read_words(Path(path) / VOCABULARY_NAME)
    return OutputLayer(read_softmax(softmax_path, len(words), options.lstm.projection_dim), words)


def continue_from(
    files: ModelFiles,
    vocabulary: Vocabulary,
    training: TrainingOptions | None = None,
    output: OutputLayer | None = None,
    seed: int = 0,
) -> StartingPoint:
    """Make a model that goes on from the weights of `files` with another vocabulary.

    The weights are copied: training changes neither `files` nor what they are mapped from.

    Args:
        files: the old model, released or our own.
        vocabulary: the words to predict, and to read in a token model.
        training: how to train; None takes what the old options say, which for released models is
            nothing. `n_tokens_vocab` is set to the size of the vocabulary in either case.
        output: the old softmax; None draws all of the new one. Where the new model shares its
            weights with the word table, only the bias is taken from it.
        seed: of the random rows; equal seeds give equal weights.

    Raises:
        ElmoError: the training options lack something, or ask for what the model cannot do.
        ModelFileError: the old softmax is of another model.
    """
    training = training or files.options.training
    options = replace(files.options, training=replace(training, n_tokens_vocab=len(vocabulary)))
    _check_training(options)
    if output is not None:
        _check_output(files, output)
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in files.state.items() if name != WORD_TABLE}
    num_kept_vectors = 0
    if options.char_cnn is None:
        table_VP, num_kept_vectors = _word_table(files, vocabulary, options, generator)
        state[WORD_TABLE] = table_VP
    model = build(options, state)
    softmax = new_softmax(model, len(vocabulary))
    softmax.reset_parameters(generator)
    num_kept_outputs = 0
    if output is not None:
        new_rows, old_rows = _shared_rows(vocabulary, output.words)
        with torch.no_grad():
            softmax.bias[new_rows] = output.softmax.bias[old_rows]
            if not options.training.share_embedding_softmax:
                softmax.weight[new_rows] = output.softmax.weight[old_rows]
        num_kept_outputs = len(new_rows)
    return StartingPoint(model, softmax, num_kept_vectors, num_kept_outputs)


def _word_table(
    files: ModelFiles, vocabulary: Vocabulary, options: ElmoOptions, generator: torch.Generator
) -> tuple[Tensor, int]:
    """The new model's table (V, P), and how many of its rows are the old one's."""
    old_VP = files.state[WORD_TABLE]
    assert files.words is not None
    embedding = TokenEmbedding(
        len(vocabulary), old_VP.shape[1], is_output=options.training.share_embedding_softmax
    )
    embedding.reset_parameters(generator)
    new_rows, old_rows = _shared_rows(vocabulary, files.words)
    table_VP = embedding.embedding.detach()
    table_VP[new_rows] = old_VP[old_rows]
    return table_VP, len(new_rows)


def _shared_rows(vocabulary: Vocabulary, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows in the new vocabulary and in the old one of the words that both have.

    Of two equal words of an old table the later counts, as in `word_ids`.
    """
    old_rows = {word: row for row, word in enumerate(words)}
    pairs: NDArray[np.int64] = np.array(
        [(row, old_rows[word]) for row, word in enumerate(vocabulary.words) if word in old_rows],
        np.int64,
    ).reshape(-1, 2)
    return torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 1].copy())


def _check_training(options: ElmoOptions) -> None:
    training = options.training
    num_words = training.n_tokens_vocab
    assert num_words is not None
    if training.share_embedding_softmax and options.char_cnn is not None:
        raise ElmoError(
            "training options: share_embedding_softmax needs word input; the model that is "
            "continued reads characters, set it to false"
        )
    if not training.sample_softmax:
        return
    num_samples = training.n_negative_samples_batch
    if num_samples is None:
        raise ElmoError(
            "training options: n_negative_samples_batch is missing (options of released models say "
            "nothing about training); set it, or sample_softmax to false"
        )
    if num_samples >= num_words:
        raise ElmoError(
            f"training options: n_negative_samples_batch is {num_samples}, the vocabulary has "
            f"{num_words} words; take fewer, or set sample_softmax to false"
        )


def _check_output(files: ModelFiles, output: OutputLayer) -> None:
    weight = output.softmax.weight
    width = files.options.lstm.projection_dim
    if weight.shape[1] != width:
        raise ModelFileError(
            f"the softmax has rows of {weight.shape[1]} numbers, the model's lstm.projection_dim "
            f"is {width}: the two are from different models"
        )
    is_shared = files.options.training.share_embedding_softmax and files.options.char_cnn is None
    if is_shared and not torch.equal(weight.detach(), files.state[WORD_TABLE]):
        raise ModelFileError(
            "the old model shares its word table with the softmax, but the softmax that was given "
            "holds other numbers: the two are from different models"
        )
