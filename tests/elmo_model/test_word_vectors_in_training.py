"""Pretrained word vectors in the table of a model that is trained: set, held fixed, let go."""

from itertools import islice

import numpy as np
import pytest
import torch

from elmo_model.errors import ElmoError
from elmo_model.lm_batches import Corpus, WordTable, packed_batches
from elmo_model.options import ElmoOptions, LstmOptions, TrainingOptions
from elmo_model.token_embedding import TokenEmbedding
from elmo_model.training import TrainState, train_step
from elmo_model.vocabulary import MARKS, Vocabulary
from elmo_model.word_vectors import WordVectors, freeze_rows, set_word_vectors

WIDTH = 6
TEXT = [line.split() for line in ["the cat sat", "a dog ran to the cat", "the dog", "cat ran"] * 4]
VOCABULARY = Vocabulary([*MARKS, "the", "cat", "dog", "ran", "a", "sat", "to", "never"])
NUM_WORDS = len(VOCABULARY)


def found_vectors(words=("the", "dog", "a", "never")):
    found = np.array([word in words for word in VOCABULARY.words])
    vectors = np.random.default_rng(0).normal(0, 1, (NUM_WORDS, WIDTH)).astype(np.float32)
    return WordVectors(vectors * found[:, None], found, NUM_WORDS)


def new_state(optimizer="adagrad", **changes):
    training = TrainingOptions(
        n_tokens_vocab=NUM_WORDS, all_clip_norm_val=10.0, dropout=0.1, **changes
    )
    options = ElmoOptions(LstmOptions(8, WIDTH, 2, use_skip_connections=True), training=training)
    return TrainState.create(options, optimizer=optimizer)


def train(state, num_steps):
    table = WordTable(VOCABULARY, None)
    sequences = Corpus.of(TEXT, table).endless_sequences(seed=0)
    for batch in islice(packed_batches(sequences, table, 4, 5), num_steps):
        train_step(state, batch)


def test_words_that_were_found_get_their_vectors_and_the_others_keep_theirs():
    embedding, vectors = TokenEmbedding(NUM_WORDS, WIDTH), found_vectors()
    embedding.reset_parameters(torch.Generator().manual_seed(0))
    before = embedding.embedding.detach().clone()
    set_word_vectors(embedding, vectors)
    for row, is_found in enumerate(vectors.found_V):
        expected = torch.from_numpy(vectors.vectors_VP[row]) if is_found else before[row]
        assert torch.equal(embedding.embedding[row], expected)
    assert embedding.embedding.requires_grad


def test_a_scale_multiplies_the_vectors_and_nothing_else():
    embedding, vectors = TokenEmbedding(NUM_WORDS, WIDTH), found_vectors()
    embedding.reset_parameters()
    before = embedding.embedding.detach().clone()
    set_word_vectors(embedding, vectors, scale=0.25)
    found = torch.from_numpy(vectors.found_V)
    assert torch.equal(
        embedding.embedding[found], torch.from_numpy(vectors.vectors_VP)[found] * 0.25
    )
    assert torch.equal(embedding.embedding[~found], before[~found])


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(ValueError, match="expected a positive number"):
        set_word_vectors(TokenEmbedding(NUM_WORDS, WIDTH), found_vectors(), scale)


def test_vectors_for_another_table_are_refused_with_both_shapes():
    with pytest.raises(ElmoError, match=r"\(11, 6\).* has \(11, 7\).*lstm\.projection_dim"):
        set_word_vectors(TokenEmbedding(NUM_WORDS, 7), found_vectors())
    with pytest.raises(ElmoError, match=r"\(11, 6\).* has \(12, 6\).*vocabulary"):
        set_word_vectors(TokenEmbedding(NUM_WORDS + 1, WIDTH), found_vectors())


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("sampling", [{"sample_softmax": False}, {"n_negative_samples_batch": 4}])
def test_frozen_rows_keep_their_bits_while_all_else_learns(optimizer, is_shared, sampling):
    state = new_state(optimizer, share_embedding_softmax=is_shared, **sampling)
    embedding, vectors = state.model.token_embedding, found_vectors()
    set_word_vectors(embedding, vectors)
    freeze_rows(embedding, vectors.found_V)
    before = embedding.embedding.detach().clone()
    bias, kernel = state.softmax.bias.detach().clone(), state.model.forward_stack[0].kernel.clone()
    train(state, 6)
    after, found = embedding.embedding.detach(), torch.from_numpy(vectors.found_V)
    assert torch.equal(after[found], before[found])
    # Every other word occurs in the text, and <UNK> and the marks where they can.
    moved = [not torch.equal(*rows) for rows in zip(after, before, strict=True)]
    learning = {"<S>", "</S>", "cat", "ran", "sat", "to"}
    assert learning <= {word for word, row in zip(VOCABULARY.words, moved, strict=True) if row}
    assert not torch.equal(state.softmax.bias, bias)
    assert not torch.equal(state.model.forward_stack[0].kernel, kernel)
    assert (state.softmax.weight is embedding.embedding) == is_shared


def test_without_freezing_the_vectors_learn():
    state, vectors = new_state(sample_softmax=False), found_vectors()
    set_word_vectors(state.model.token_embedding, vectors)
    train(state, 2)
    row = VOCABULARY.id_of("the")
    learned = state.model.token_embedding.embedding[row].detach().numpy()
    assert not np.array_equal(learned, vectors.vectors_VP[row])


def test_frozen_rows_that_are_let_go_learn_again():
    state, vectors = new_state(sample_softmax=False), found_vectors()
    embedding, row = state.model.token_embedding, VOCABULARY.id_of("the")
    handle = freeze_rows(embedding, vectors.found_V)
    before = embedding.embedding[row].detach().clone()
    train(state, 2)
    assert torch.equal(embedding.embedding[row], before)
    handle.remove()
    train(state, 2)
    assert not torch.equal(embedding.embedding[row], before)


def test_frozen_rows_do_not_count_in_the_norm_that_clips():
    state, vectors = new_state(sample_softmax=False), found_vectors()
    embedding = state.model.token_embedding
    freeze_rows(embedding, vectors.found_V)
    train(state, 1)
    frozen = torch.from_numpy(vectors.found_V)
    assert not embedding.embedding.grad[frozen].any()
    assert embedding.embedding.grad[~frozen].any()


def test_a_mask_that_does_not_fit_the_table_is_refused():
    embedding = TokenEmbedding(NUM_WORDS, WIDTH)
    for mask in (np.zeros(3, bool), np.zeros(NUM_WORDS), np.zeros((NUM_WORDS, 1), bool)):
        with pytest.raises(ElmoError, match="expected 11 booleans"):
            freeze_rows(embedding, mask)


def test_a_later_change_of_the_mask_changes_nothing():
    state, vectors = new_state(sample_softmax=False), found_vectors()
    embedding, row = state.model.token_embedding, VOCABULARY.id_of("the")
    mask = vectors.found_V.copy()
    freeze_rows(embedding, mask)
    mask[:] = False
    before = embedding.embedding[row].detach().clone()
    train(state, 1)
    assert torch.equal(embedding.embedding[row], before)
