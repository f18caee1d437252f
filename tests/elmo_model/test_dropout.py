"""The masks of dropout: how much they drop, what they share, and what decides them."""

from dataclasses import replace

import pytest
import torch

from elmo_model.dropout import Dropout
from elmo_model.errors import ElmoError
from elmo_model.options import CharCnnOptions, ElmoOptions, LstmOptions, TrainingOptions

OPTIONS = ElmoOptions(LstmOptions(32, 16, 2), training=TrainingOptions(n_tokens_vocab=40_000))
NUM_STEPS, NUM_ROWS = 20, 50


def drawn(dropout, rows=range(NUM_ROWS), seed=(1, 2), options=OPTIONS):
    return dropout.draw(options, NUM_STEPS, rows, NUM_ROWS, seed, torch.device("cpu"))


def all_of(masks):
    found = [mask for direction in (*masks.places, *masks.kernels) for mask in direction]
    return found + ([] if masks.words_V is None else [masks.words_V])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_leaves_the_mean_as_it_was(rate):
    masks = drawn(Dropout(rate, "element", rate, rate))
    assert len(masks.places) == len(masks.kernels) == 2
    assert [mask.shape for mask in masks.places[0]] == [(NUM_STEPS, NUM_ROWS, 16)] * 3
    assert [mask.shape for mask in masks.kernels[1]] == [(16, 128)] * 2
    assert masks.words_V.shape == (40_000,)
    values = torch.cat([mask.flatten() for mask in all_of(masks)])
    # 144,192 draws: the deviation of the share is at most 0.0013.
    assert (values == 0).double().mean().item() == pytest.approx(rate, abs=0.006)
    # The rate is met to 1 / 65536.
    assert values.max().item() == pytest.approx(1 / (1 - rate), rel=2e-4)
    assert values.unique().numel() == 2


def test_no_two_masks_of_a_batch_nor_of_two_batches_are_equal():
    dropout = Dropout(0.5, "variational", 0.5, 0.5)
    masks = all_of(drawn(dropout)) + all_of(drawn(dropout, seed=(1, 3)))
    masks += all_of(drawn(dropout, seed=(2, 2)))
    begins = {tuple(mask.flatten()[:64].tolist()) for mask in masks}
    assert len(begins) == len(masks) == 3 * (6 + 4 + 1)


@pytest.mark.parametrize("kind", ["element", "variational"])
def test_equal_seeds_draw_equal_masks(kind):
    dropout = Dropout(0.5, kind, 0.5, 0.5)
    for one, other in zip(all_of(drawn(dropout)), all_of(drawn(dropout)), strict=True):
        assert torch.equal(one, other)


def test_steps_share_a_variational_mask_and_workers_have_their_rows_of_it():
    dropout = Dropout(0.5, "variational", 0.5, 0.5)
    whole, first, rest = (
        drawn(dropout, rows) for rows in (range(NUM_ROWS), range(20), range(20, NUM_ROWS))
    )
    for together, one, other in zip(whole.places[1], first.places[1], rest.places[1], strict=True):
        assert together.shape == (1, NUM_ROWS, 16)
        assert torch.equal(torch.cat([one, other], 1), together)
    assert torch.equal(whole.kernels[1][0], rest.kernels[1][0])
    assert torch.equal(whole.words_V, rest.words_V)
    assert not torch.equal(whole.places[0][0][0, 0], whole.places[0][0][0, 1])


def test_workers_draw_other_elements_for_other_rows():
    first, second = (drawn(Dropout(0.5), rows) for rows in (range(25), range(25, 50)))
    assert first.places[0][0].shape == second.places[0][0].shape == (NUM_STEPS, 25, 16)
    assert not torch.equal(first.places[0][0], second.places[0][0])


def test_words_that_are_dropped_are_read_as_zeros_wherever_they_stand():
    masks = drawn(Dropout(word_rate=0.5))
    ids_U = torch.tensor([3, 39_999, 0, 7])
    vectors = masks.words(ids_U, torch.ones(4, 16))
    assert torch.equal(vectors, masks.words_V[ids_U][:, None].expand(4, 16))


def test_dropout_of_words_without_a_word_table_is_refused():
    char_cnn = CharCnnOptions(4, ((1, 8),))
    with pytest.raises(ElmoError, match=r"dropout of words \(0.1\) needs word input"):
        drawn(Dropout(word_rate=0.1), options=replace(OPTIONS, char_cnn=char_cnn))


def test_the_callers_random_numbers_stay_as_they_were():
    before = torch.get_rng_state()
    drawn(Dropout(0.5, "element", 0.5, 0.5))
    assert torch.equal(torch.get_rng_state(), before)
