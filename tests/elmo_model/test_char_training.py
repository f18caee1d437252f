"""The character encoder of training gives the readable one's vectors and gradients."""

import pytest
import torch

from elmo_model.char_cnn import CharCnn
from elmo_model.characters import CharacterEncoder
from elmo_model.kernels import native
from elmo_model.kernels.char_training import can_train, embed_words
from elmo_model.options import CharCnnOptions

# Errors in units of the largest value. float32: the order of sums. bfloat16: 8 bits of each factor,
# and another window may have the largest score; measured: 0.06.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.15}
WORDS = [
    "the",
    "cat",
    "",
    "a",
    "über",
    "<S>",
    "</S>",
    "aaaa",
    "x" * 70,
    "日本語",
    "word-of-20-letters-",
]

pytestmark = pytest.mark.compiler


def encoder(activation="relu", num_highways=2, dim=16, seed=0):
    filters = ((1, 4), (2, 8), (3, 24), (7, 33))
    options = CharCnnOptions(dim, filters, 50, activation, num_highways)
    model = CharCnn(options, 12)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for bias in model.conv_biases:
            bias.normal_(std=0.1, generator=generator)
    return model


def characters(num_words):
    words = [f"{WORDS[k % len(WORDS)]}{k // len(WORDS) or ''}" for k in range(num_words)]
    return torch.from_numpy(CharacterEncoder(50, shifted=False).encode(words)).long()


def gradients(vectors, model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(vectors.shape, generator=generator)
    return torch.autograd.grad(vectors, list(model.parameters()), weights)


def deviation(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("num_highways", [0, 2])
@pytest.mark.parametrize("dim", [4, 16])
@pytest.mark.parametrize("num_words", [1, 11, 150])
def test_vectors_and_gradients_are_the_readable_ones(num_words, dim, num_highways, activation):
    model, chars = encoder(activation, num_highways, dim), characters(num_words)
    assert can_train(model)
    found, expected = embed_words(model, chars), model(chars, shifted=False)
    assert deviation(found, expected) < TOLERANCE[torch.float32]
    for mine, theirs in zip(gradients(found, model), gradients(expected, model), strict=True):
        assert deviation(mine, theirs) < TOLERANCE[torch.float32]


def test_bfloat16_products_are_near_float32():
    model, chars = encoder(), characters(150)
    with torch.autocast("cpu", torch.bfloat16):
        found = embed_words(model, chars)
    expected = model(chars, shifted=False)
    assert found.dtype == torch.float32
    assert deviation(found, expected) < TOLERANCE[torch.bfloat16]
    for mine, theirs in zip(gradients(found, model), gradients(expected, model), strict=True):
        error = (mine - theirs).norm() / theirs.norm()
        assert float(error) < TOLERANCE[torch.bfloat16]


def test_threads_change_nothing_but_rounding():
    model, chars = encoder(), characters(150)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        vectors = embed_words(model, chars)
        results.append([vectors, *gradients(vectors, model)])
    torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert deviation(one, other) < TOLERANCE[torch.float32]


def test_a_score_that_is_no_number_is_not_hidden():
    model, chars = encoder(), characters(11)
    with torch.no_grad():
        model.char_embed[chars[1, 2]] = float("nan")
    vectors = embed_words(model, chars)
    assert vectors[1].isnan().any()


def test_without_compiler_the_readable_encoder_is_run(monkeypatch):
    nothing = native.NativeCode(None, "the test says so")
    monkeypatch.setattr("elmo_model.kernels.char_training.load", lambda: nothing)
    assert not can_train(encoder())
    assert not can_train(encoder().double())
