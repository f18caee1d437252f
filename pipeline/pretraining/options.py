"""The options.json of the model that a configuration describes, and the dropout that it names."""

from __future__ import annotations

from elmo_model.dropout import Dropout
from elmo_model.options import CharCnnOptions, ElmoOptions, LstmOptions, TrainingOptions
from pipeline.pretraining.config import PretrainConfig


def make_options(config: PretrainConfig, vocabulary_size: int) -> ElmoOptions:
    """The options of a new model with so many words."""
    shape = config.architecture
    char_cnn = CharCnnOptions(
        embedding_dim=shape.char_embedding_dim,
        filters=shape.filters,
        max_characters_per_token=shape.max_characters,
        activation=shape.activation,
        n_highway=shape.num_highway,
    )
    return ElmoOptions(
        lstm=LstmOptions(
            dim=shape.dim,
            projection_dim=shape.projection_dim,
            n_layers=shape.num_layers,
            cell_clip=shape.cell_clip,
            proj_clip=shape.proj_clip,
            use_skip_connections=shape.skip_connections,
        ),
        char_cnn=char_cnn if shape.token_input == "characters" else None,
        bidirectional=shape.bidirectional,
        training=training_options(config, vocabulary_size),
    )


def training_options(config: PretrainConfig, vocabulary_size: int) -> TrainingOptions:
    """How a model with so many words is trained, whatever its shape."""
    training = config.training
    num_negatives = training.num_negative_samples
    is_sampled = num_negatives is not None and 2 * num_negatives < vocabulary_size
    return TrainingOptions(
        dropout=config.architecture.dropout,
        all_clip_norm_val=training.clip_norm,
        n_tokens_vocab=vocabulary_size,
        n_negative_samples_batch=num_negatives if is_sampled else None,
        sample_softmax=is_sampled,
        share_embedding_softmax=config.architecture.tied_softmax,
        batch_size=training.batch_size,
        unroll_steps=training.unroll_steps,
        learning_rate=training.initial_learning_rate,
    )


def dropout_of(config: PretrainConfig) -> Dropout:
    """The dropout to train with; of it, options.json knows the rate only."""
    shape = config.architecture
    return Dropout(shape.dropout, shape.dropout_kind, shape.weight_drop, shape.word_dropout)
