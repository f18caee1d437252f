"""The encoder: what a sentence's vectors depend on, and what they do not."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import elmo_model.encoder as encoder_module
from elmo_model import Encoder
from elmo_model.warm_start import WARM_START_TEXT
from tests.elmo_model.random_models import SHAPES, write_model

# Matrix products of other heights round differently; random recurrences amplify it.
BATCH_TOLERANCE = 1e-5

WORD = st.one_of(
    st.text(st.characters(), max_size=8),
    st.sampled_from(["the", "", "<S>", "</S>", "🙂", "x" * 60, "\ud800", "a\x00b", "é" * 30]),
)
TOKENS = st.lists(WORD, max_size=12)
SENTENCES = st.lists(TOKENS, max_size=8)
SOME = [["the", "cat", "sat"], [], ["über"], ["a", "b", "c", "d", "e", "f", "g"], ["🙂", "."]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(files):
    return Encoder.from_files(**files)


@pytest.fixture(scope="module")
def warm(files):
    return Encoder.from_files(**files, initial_state="warm")


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCH_TOLERANCE)


@settings(max_examples=60)
@given(sentences=SENTENCES, data=st.data())
def test_a_sentence_does_not_depend_on_its_batch_mates_order_or_padding(encoder, sentences, data):
    order = data.draw(st.permutations(range(len(sentences))))
    whole = encoder.encode(sentences).layers
    shuffled = encoder.encode([sentences[row] for row in order]).layers
    for place, row in enumerate(order):
        alone = encoder.encode([sentences[row]]).layers[:, 0]
        length = len(sentences[row])
        assert_same(whole[:, row, :length], alone)
        assert_same(shuffled[:, place, :length], alone)


@settings(max_examples=30)
@given(sentences=SENTENCES)
def test_a_warm_start_does_not_change_that(warm, sentences):
    whole = warm.encode(sentences).layers
    for row, sentence in enumerate(sentences):
        assert_same(whole[:, row, : len(sentence)], warm.encode([sentence]).layers[:, 0])


@settings(max_examples=40)
@given(sentences=SENTENCES)
def test_mask_and_zeros_follow_the_lengths(encoder, sentences):
    activations = encoder.encode(sentences)
    longest = max(map(len, sentences), default=0)
    assert activations.layers.shape == (3, len(sentences), longest, 12)
    assert activations.mask.dtype == torch.bool
    assert activations.mask.sum(dim=1).tolist() == [len(sentence) for sentence in sentences]
    assert not activations.layers[:, ~activations.mask].any()
    assert torch.isfinite(activations.layers).all()
    assert activations.state.num_rows == len(sentences)


@settings(max_examples=30)
@given(stream=st.lists(st.lists(TOKENS, min_size=3, max_size=3), max_size=4))
def test_a_carried_state_equals_processing_row_by_row(encoder, stream):
    together, apart = None, [None] * 3
    for batch in stream:
        activations = encoder.encode(batch, together)
        together = activations.state
        for row, sentence in enumerate(batch):
            alone = encoder.encode([sentence], apart[row])
            apart[row] = alone.state
            assert_same(activations.layers[:, row, : len(sentence)], alone.layers[:, 0])
            assert_same(together.cells_SLBD[:, :, row], alone.state.cells_SLBD[:, :, 0])
            assert_same(together.outputs_SLBP[:, :, row], alone.state.outputs_SLBP[:, :, 0])


def test_an_explicit_zero_state_is_the_default(encoder):
    explicit = encoder.encode(SOME, encoder.encode(SOME).state.first_rows(0).first_rows(5))
    assert torch.equal(explicit.layers, encoder.encode(SOME).layers)


def test_calls_leave_no_trace(encoder, files):
    first = encoder.encode(SOME).layers
    encoder.encode([["other", "words"]] * 3)
    assert torch.equal(encoder.encode(SOME).layers, first)
    assert_same(Encoder.from_files(**files).encode(SOME).layers, first)


@pytest.mark.parametrize("shape", SHAPES)
def test_word_ids_give_what_sentences_give(shape, tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path, shape))
    words = ["unused", *dict.fromkeys(word for sentence in SOME for word in sentence)]
    lengths = np.array([len(sentence) for sentence in SOME])
    ids = np.full((len(SOME), 9), -1, np.int32)
    for row, sentence in enumerate(SOME):
        ids[row, : len(sentence)] = [words.index(word) for word in sentence]

    by_id = encoder.encode_word_ids(words, ids, lengths)
    by_word = encoder.encode(SOME)

    assert by_id.layers.shape == (encoder.num_layers, 5, 9, encoder.dim)
    assert_same(by_id.layers[:, :, :7], by_word.layers)
    assert not by_id.layers[:, :, 7:].any()
    assert torch.equal(by_id.mask[:, :7], by_word.mask)
    assert_same(by_id.state.cells_SLBD, by_word.state.cells_SLBD)


def test_many_sentences_go_through_in_several_batches(encoder, monkeypatch):
    sentences = SOME * 7
    state = encoder.encode(SOME[::-1] * 7).state
    whole = encoder.encode(sentences, state)
    monkeypatch.setattr(encoder_module, "_MAX_BATCH_POSITIONS", 16)
    parts = encoder.encode(sentences, state)
    assert_same(parts.layers, whole.layers)
    assert torch.equal(parts.mask, whole.mask)
    assert_same(parts.state.cells_SLBD, whole.state.cells_SLBD)
    assert_same(parts.state.outputs_SLBP, whole.state.outputs_SLBP)


def test_layer_0_is_the_word_vector_in_both_halves(encoder):
    layers = encoder.encode([["the", "cat", "the"]]).layers[0, 0]
    vectors = encoder.embed_words(["the", "cat"])
    assert vectors.dtype == torch.float32
    assert torch.equal(layers[:, :6], vectors[[0, 1, 0]])
    assert torch.equal(layers[:, 6:], vectors[[0, 1, 0]])
    assert encoder.embed_words([]).shape == (0, 6)


def test_empty_input_has_empty_output(encoder):
    assert encoder.encode([]).layers.shape == (3, 0, 0, 12)
    nothing = encoder.encode([[], []])
    assert nothing.layers.shape == (3, 2, 0, 12)
    assert nothing.mask.shape == (2, 0)
    # The marks of an empty sentence are read all the same.
    assert nothing.state.cells_SLBD.any()


def test_a_warm_start_is_the_state_after_the_documented_text(encoder, warm):
    state = None
    for sentence in WARM_START_TEXT:
        state = encoder.encode([sentence.split(" ")], state).state
    expected = encoder.encode([["the", "cat"]], state)
    assert_same(warm.encode([["the", "cat"]]).layers, expected.layers)
    assert (warm.encode(SOME).layers - encoder.encode(SOME).layers).abs().max() > 0.01


def test_the_warm_start_text_is_not_changed_by_accident():
    """Vectors made with a warm start cannot be compared with those of another text."""
    assert len(WARM_START_TEXT) == 8
    assert sum(len(sentence.split(" ")) for sentence in WARM_START_TEXT) == 121
    assert all("  " not in s and s == s.strip() and s.isascii() for s in WARM_START_TEXT)


def test_vectors_can_be_the_input_of_something_that_is_trained(encoder):
    layers = encoder.encode([["the", "cat"]]).layers
    assert not layers.requires_grad
    head = torch.nn.Linear(12, 1)
    head(layers).sum().backward()
    assert head.weight.grad.any()


def test_a_string_is_not_taken_for_a_sentence(encoder):
    with pytest.raises(TypeError, match="list of tokens, got a string; split it first"):
        encoder.encode(["the cat"])


def test_a_state_of_other_rows_is_refused(encoder):
    state = encoder.encode(SOME).state
    with pytest.raises(ValueError, match="the state has 5 rows, the batch 2"):
        encoder.encode(SOME[:2], state)


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        ([[0, 2]], [2], "run from 0 to 2, there are 2 words"),
        ([[0, -1]], [2], "run from -1 to 0"),
        ([[0, 1]], [3], "do not fit"),
        ([[0, 1]], [1, 1], "do not fit"),
    ],
)
def test_word_ids_that_do_not_fit_are_refused(ids, lengths, message, encoder):
    with pytest.raises(ValueError, match=message):
        encoder.encode_word_ids(["a", "b"], np.array(ids, np.int32), np.array(lengths))


def test_an_unknown_initial_state_is_refused(files):
    with pytest.raises(ValueError, match="initial_state must be zero or warm, got 'hot'"):
        Encoder.from_files(**files, initial_state="hot")


def test_an_encoder_describes_itself(encoder, tmp_path):
    assert (encoder.num_layers, encoder.dim) == (3, 12)
    assert encoder.options.lstm.dim == 12
    assert encoder.device.type in ("cpu", "cuda")
    assert len(encoder.weights_sha256) == 64
    other = Encoder.from_files(**write_model(tmp_path, seed=1))
    assert other.weights_sha256 != encoder.weights_sha256
    single = Encoder.from_files(**write_model(tmp_path, "one direction"))
    assert single.dim == 6


def test_importing_the_package_does_not_load_torch():
    code = "import sys, elmo_model; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_public_names_are_importable():
    import elmo_model

    for name in elmo_model.__all__:
        assert getattr(elmo_model, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        elmo_model.nonsense  # noqa: B018 (the access is the test)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_prepares_the_next_batch_while_a_gpu_works(tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path), device="cuda", dtype="float16")
    words = ["the", "cat", "sat", "on", "a", "mat"]
    ids_BT = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]], np.int32)
    for _ in range(3):  # all kernels compiled, words known, the batch recorded
        encoder.encode_word_ids(words, ids_BT, np.array([6, 3]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        encoder.encode_word_ids(words, ids_BT, np.array([6, 3]))
        encoder.embed_words(["new", "words"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
