"""What the original programs will not take is said; what they take is not."""

import pytest

from elmo_model.compatibility import limits
from elmo_model.options import ElmoOptions
from tests.elmo_model.random_models import SHAPES, VOCABULARY, options_of


def limits_of(shape, words=None):
    raw = options_of(shape)
    if "char_cnn" in raw:
        raw["char_cnn"]["max_characters_per_token"] = 50
    return limits(ElmoOptions.from_dict(raw), words)


@pytest.mark.parametrize(
    "shape",
    [
        "like the released models",
        "one layer",
        "three layers",
        "no highway",
        "tanh",
        "clips active",
        "no clips",
    ],
)
def test_models_that_both_programs_read_have_no_limits(shape):
    assert limits_of(shape, VOCABULARY) == []


@pytest.mark.parametrize(
    ("shape", "start"),
    [
        ("no projection in the LSTM", "AllenNLP needs LSTMs with a projection"),
        ("three layers without skip connections", "AllenNLP refuses models without skip"),
        ("no projection of the CNN", "AllenNLP needs a projection after the convolutions"),
        ("more projection than filters", "bilm-tf needs at least as many filters"),
        ("one direction", "AllenNLP and bilm-tf's inference need two directions"),
        ("word input", "AllenNLP does not read word input"),
    ],
)
def test_what_a_program_refuses_is_said(shape, start):
    assert shape in SHAPES
    (found,) = limits_of(shape, VOCABULARY)
    assert found.startswith(start)


def test_words_of_another_length_are_said():
    (found,) = limits(ElmoOptions.from_dict(options_of("like the released models")), None)
    assert "50 characters, the model reads 20" in found


def test_a_vocabulary_without_marks_is_said():
    assert "lacks </S>" in limits_of("tanh", ["<S>", "word"])[0]
    assert "lacks <UNK>" in limits_of("word input", ["<S>", "</S>"])[1]
    assert limits_of("tanh", ["<S>", "</S>"]) == []
