"""Text that nobody expects, in every arithmetic: the vectors are right, and a sentence's own."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

from elmo_model import Encoder
from tests.elmo_model.random_models import CHAR_CNN, LSTM, weights_of, write_hdf5
from tests.elmo_model.reference import Reference

# Wide enough that products are cut into blocks, and no multiple of what a vector unit holds.
OPTIONS = {
    "lstm": {**LSTM, "dim": 136, "projection_dim": 36},
    "char_cnn": {**CHAR_CNN, "max_characters_per_token": 50},
}
# The weights for narrow models would saturate every gate of a wider one.
SCALE = {"W_0": 0.35, "W_P_0": 0.25}
# Largest difference from float64, where the largest value is about 4.5. float32: the order of sums.
# The others: each product's factors are rounded to 8 bits (bfloat16), 11 bits (float16), or 127
# steps for the largest of a row (int8), and the recurrence carries that on.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.1, "float16": 0.02, "int8": 0.3}

EMOJI = [["🙂", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️"], ["🙂"] * 30, ["a🙂b", "🙂" * 20]]
LONG_WORDS = [["x" * 60, "é" * 60, "日" * 60], ["y" * 47, "y" * 48, "y" * 49, "z" * 60]]
ONE_WORD = [[word] for word in ("a", "the", ".", "🙂", "x" * 60, "", "<S>", "</S>", "\ud800")]
VERY_LONG = [[f"word{number * number % 97}" for number in range(2000)]]
TEXTS = {
    "sentences of one word": ONE_WORD,
    "a sentence of 2,000 words": VERY_LONG,
    "emoji": EMOJI,
    "words of 60 letters": LONG_WORDS,
    "one word 10,000 times": [["again"] * 10_000],
    "no sentences": [],
    "sentences without words": [[], []],
    "a mixture": [*ONE_WORD, [], *VERY_LONG, *EMOJI, [], *LONG_WORDS, ["the"] * 40, *ONE_WORD],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "options.json").write_text(json.dumps(OPTIONS))
    write_hdf5(folder / "weights.hdf5", scaled_weights())
    return {
        "options_file": folder / "options.json",
        "weights_file": folder / "weights.hdf5",
        "device": "cpu",
    }


@pytest.fixture(scope="module", params=TOLERANCE)
def encoder(files, request):
    return Encoder.from_files(**files, dtype=request.param)


@pytest.fixture
def tolerance(request):
    return TOLERANCE[request.node.callspec.params["encoder"]]


@functools.cache
def scaled_weights():
    return {
        name: value * SCALE.get(name.rpartition("/")[2], 1.0)
        for name, value in weights_of(OPTIONS).items()
    }


@functools.cache
def expected_layers(sentence: tuple[str, ...]) -> np.ndarray:
    reference = Reference(OPTIONS, scaled_weights())
    reference.word = functools.cache(reference.word)
    return reference.layers(list(sentence))[0]


@pytest.mark.parametrize("text", TEXTS)
def test_vectors_of_odd_text_agree_with_the_reference(text, encoder, tolerance):
    sentences = TEXTS[text]
    activations = encoder.encode(sentences)
    assert activations.mask.sum(dim=1).tolist() == [len(sentence) for sentence in sentences]
    for row, sentence in enumerate(sentences):
        found = activations.layers[:, row, : len(sentence)].double().numpy()
        expected = expected_layers(tuple(sentence))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        assert not activations.layers[:, row, len(sentence) :].any()


def test_a_sentence_has_the_same_vectors_alone_and_among_odd_mates(encoder, tolerance):
    sentences = TEXTS["a mixture"]
    together = encoder.encode(sentences).layers
    for row, sentence in enumerate(sentences):
        alone = encoder.encode([sentence]).layers[:, 0]
        among = together[:, row, : len(sentence)]
        if "cell in C" in encoder.kernel.reason:
            assert torch.equal(alone, among)
        else:
            torch.testing.assert_close(alone, among, rtol=0, atol=tolerance)
