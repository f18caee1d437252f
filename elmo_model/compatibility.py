"""What the original programs cannot take of a model. Knows options and words only.

Source: AllenNLP's `_ElmoBiLm` and `ElmoLstm` and bilm-tf's inference, by what they read of
options.json and of the weight file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elmo_model.characters import DEFAULT_MAX_CHARACTERS, SENTENCE_BEGIN, SENTENCE_END
from elmo_model.options import CharCnnOptions, ElmoOptions
from elmo_model.vocabulary import UNKNOWN

# bilm-tf knows the names of so many layers.
_MAX_LAYERS = 8


def limits(options: ElmoOptions, words: Sequence[str] | None) -> list[str]:
    """What AllenNLP or bilm-tf will refuse or get wrong, a sentence each; empty if nothing.

    Args:
        options: the model's options.
        words: its vocabulary, if it is exported with one.
    """
    found = [*_of_lstm(options)]
    if options.char_cnn is None:
        found.append(
            "AllenNLP does not read word input (no char_cnn); bilm-tf does, with "
            "use_character_inputs=False and the word vectors as a file of their own "
            "(output.token_embeddings)"
        )
    else:
        found += _of_characters(options.char_cnn, options.lstm.projection_dim)
    if words is not None:
        found += _of_words(words, is_word_input=options.char_cnn is None)
    return found


def _of_lstm(options: ElmoOptions) -> Iterator[str]:
    lstm = options.lstm
    if not options.bidirectional:
        yield "AllenNLP and bilm-tf's inference need two directions, the model has one"
    if not lstm.use_skip_connections:
        yield "AllenNLP refuses models without skip connections (lstm.use_skip_connections)"
    if not lstm.has_projection:
        yield (
            f"AllenNLP needs LSTMs with a projection, here lstm.dim and lstm.projection_dim are "
            f"both {lstm.dim}"
        )
    if lstm.n_layers > _MAX_LAYERS:
        yield f"bilm-tf reads at most {_MAX_LAYERS} LSTM layers, the model has {lstm.n_layers}"


def _of_characters(char_cnn: CharCnnOptions, width: int) -> Iterator[str]:
    num_filters = char_cnn.num_filters
    if num_filters == width:
        yield (
            f"AllenNLP needs a projection after the convolutions, here the filters are as many as "
            f"lstm.projection_dim ({width})"
        )
    if num_filters < width:
        yield (
            f"bilm-tf needs at least as many filters as lstm.projection_dim ({width}), the model "
            f"has {num_filters}"
        )
    if char_cnn.max_characters_per_token != DEFAULT_MAX_CHARACTERS:
        yield (
            f"AllenNLP's indexers and batch_to_ids spell words in {DEFAULT_MAX_CHARACTERS} "
            f"characters, the model reads {char_cnn.max_characters_per_token}; spell them otherwise"
        )


def _of_words(words: Sequence[str], *, is_word_input: bool) -> Iterator[str]:
    present = set(words)
    missing = [mark for mark in (SENTENCE_BEGIN, SENTENCE_END) if mark not in present]
    if missing:
        yield (
            f"the vocabulary lacks {', '.join(missing)}: bilm-tf would silently take its last "
            "word instead"
        )
    if is_word_input and UNKNOWN not in present:
        yield (
            f"the vocabulary lacks {UNKNOWN}: bilm-tf would read words that are not listed as "
            "padding"
        )
