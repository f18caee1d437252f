"""Sources of vectors: those of a biLM are the encoder's, and baselines know what they claim."""

import numpy as np
import pytest

from elmo_model import Encoder
from elmo_model.directory import read_files
from pipeline.evaluation.bilms import AVERAGE, LayerVectors, TrainedBilm, layer_name, untrained
from pipeline.evaluation.documents import CHINESE, WORDS, is_held_out, thinned, tokenised, window_of
from pipeline.evaluation.systems import (
    Lexical,
    RandomWords,
    Vectors,
    centered_unit,
    pair_cosines,
    with_white,
)
from tests.elmo_model.random_models import write_model

DOCUMENTS = [
    [["The", "cat", "sat", "."], ["It", "slept", "."]],
    [["A", "dog"]],
    [["the", "CAT", "sat", "on", "the", "dog", "."]],
]
# Batches of other shapes add in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder.from_files(**write_model(tmp_path_factory.mktemp("model")), device="cpu")


def test_lines_of_a_bilm_are_the_encoders_layers_and_their_average(encoder):
    model = TrainedBilm(LayerVectors.all_layers(encoder))
    lines = {line.name: line.matrix for line in model.documents(DOCUMENTS, 0)}
    assert list(lines) == [layer_name(0), layer_name(1), layer_name(2), AVERAGE]
    for number, document in enumerate(DOCUMENTS):
        tokens = [encoder.encode([sentence]).layers[:, 0] for sentence in document]
        expected_LD = np.concatenate([part.numpy() for part in tokens], axis=1).mean(axis=1)
        for layer in range(3):
            found = lines[layer_name(layer)][number]
            np.testing.assert_allclose(found, expected_LD[layer], atol=TOLERANCE)
        np.testing.assert_allclose(lines[AVERAGE][number], expected_LD.mean(0), atol=TOLERANCE)


def test_tokens_come_in_the_order_that_was_asked_for(encoder):
    model = TrainedBilm(LayerVectors.all_layers(encoder))
    positions = np.array([10, 0, 15, 7, 1])
    top = {line.name: line.matrix for line in model.tokens(DOCUMENTS, positions)}[layer_name(2)]
    sentences = [sentence for document in DOCUMENTS for sentence in document]
    flat = np.concatenate([encoder.encode([words]).layers[2, 0].numpy() for words in sentences])
    np.testing.assert_allclose(top, flat[positions], atol=TOLERANCE)


def test_an_untrained_model_has_the_shape_and_none_of_the_weights(tmp_path):
    files = read_files(**write_model(tmp_path))
    fresh = untrained(files)
    assert fresh.options == files.options
    assert {k: v.shape for k, v in fresh.state.items()} == {
        k: v.shape for k, v in files.state.items()
    }
    assert not any(
        bool((fresh.state[key] == files.state[key]).all()) for key in ("forward_stack.0.kernel",)
    )
    again = untrained(files)
    assert all(bool((fresh.state[key] == again.state[key]).all()) for key in fresh.state)


def test_random_vectors_depend_on_the_word_alone():
    first, second = RandomWords(16), RandomWords(16)
    (line,) = first.words(["cat", "dog", "cat"])
    assert line.group == "baseline"
    assert (line.matrix[0] == line.matrix[2]).all()
    assert (line.matrix[0] != line.matrix[1]).all()
    second.words(["dog"])
    assert (second.words(["cat"])[0].matrix[0] == line.matrix[0]).all()
    document = first.documents([[["cat", "dog"]]], 1)[0].matrix[0]
    np.testing.assert_allclose(document, line.matrix[:2].mean(axis=0), rtol=1e-6)


def test_counts_fold_case_and_take_words_of_the_fitted_documents_only():
    (line,) = Lexical().documents(DOCUMENTS, 2)
    assert line.matrix.shape == (3, 8)  # the cat sat . it slept a dog: not "on"
    (tokens,) = Lexical().tokens(DOCUMENTS, np.array([1, 10, 0]))
    dense = tokens.matrix.toarray()
    assert (dense[0] == dense[1]).all()
    assert (dense[0] != dense[2]).any()


def test_cosines_of_pairs_are_centred_where_vectors_are_dense():
    matrix = np.array([[1, 5], [2, 5], [3, 5], [0, 5]], np.float32)
    cosines = pair_cosines(centered_unit(matrix))
    np.testing.assert_allclose(cosines, [-1, -1], atol=1e-6)
    (sparse,) = Lexical().documents([[["a", "b"]], [["c"]], [["a", "b"]], [["a"]]], 4)
    np.testing.assert_allclose(pair_cosines(centered_unit(sparse.matrix)), [1, 0], atol=1e-6)


def test_dense_lines_are_whitened_too_by_the_rows_that_are_fitted():
    random = np.random.default_rng(3)
    turned = np.linalg.qr(random.standard_normal((4, 4)))[0]
    dense = (random.standard_normal((60, 4)) * [1, 2, 3, 1] @ turned + 5).astype(np.float32)
    lines = [Vectors("average", "model", dense), Vectors("layer 1", "layer", dense)]
    found = with_white(lines, 40)
    assert [line.name for line in found] == ["average", "average, white", "layer 1"]
    fitted = found[1].matrix[:40]
    # The floor of the variances is a hundredth of their mean, and makes the others smaller by that.
    np.testing.assert_allclose(np.cov(fitted.T, bias=True), np.eye(4), atol=0.2)
    np.testing.assert_allclose(fitted.mean(0), 0, atol=1e-5)
    assert [line.name for line in with_white(lines, 8)] == ["average", "layer 1"]
    (counted,) = Lexical().documents(DOCUMENTS, 2)
    assert with_white([counted], 2) == [counted]


def test_texts_become_sentences_of_the_projects_tokens_and_none_is_empty():
    english = tokenised(["He sat. It rained!", "", "one"], WORDS)
    assert english == [[["He", "sat", "."], ["It", "rained", "!"]], ((".",),), [["one"]]]
    (chinese,) = tokenised(["我爱北京。天气很好。"], CHINESE)
    assert [len(sentence) > 1 for sentence in chinese] == [True, True]
    window = window_of(english)
    assert [window.words[i] for i in window.word_ids[:3]] == ["He", "sat", "."]
    assert window.sentence_lengths.tolist() == [3, 3, 1, 1]
    assert window.sentences_per_document.tolist() == [2, 1, 1]


def test_a_fifth_is_held_out_and_equal_texts_stay_together():
    texts = [f"text {number % 500}" for number in range(1000)]
    held = is_held_out(texts)
    assert (held[:500] == held[500:]).all()
    assert 0.13 < held.mean() < 0.27


def test_a_sample_reaches_from_the_first_item_to_the_last():
    assert thinned(range(10), 4) == [0, 3, 6, 9]
    assert thinned(range(3), 4) == [0, 1, 2]
    assert thinned("abc", None) == ["a", "b", "c"]
