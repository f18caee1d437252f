"""The language model's module as pretraining uses it."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from elmo_model.bilm import BiLM
from elmo_model.dropout import Dropout
from elmo_model.lstm import LstmLayer
from elmo_model.options import ElmoOptions, LstmOptions, TrainingOptions
from elmo_model.packing import PackedLayout
from tests.elmo_model.random_models import SHAPES, options_of

TOLERANCE = 1e-5


def new_model(shape="like the released models"):
    torch.manual_seed(0)
    return BiLM(ElmoOptions.from_dict(options_of(shape)), num_words=8)


def text_of(model, rows=3, times=6, seed=0):
    width = model.options.lstm.projection_dim
    return torch.randn(rows, times, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_direction_reads_its_text_as_prediction_reads_a_sentence(shape):
    model = new_model(shape)
    text = text_of(model)
    ids = np.arange(18).reshape(3, 6)
    layers, state = model(text.flatten(0, 1), ids, np.full(3, 6))
    backward = text.flip(1) if model.options.bidirectional else None

    trained = model.language_model(text, backward)

    width = text.shape[2]
    torch.testing.assert_close(trained.forward_BTP, layers[-1, ..., :width], rtol=0, atol=TOLERANCE)
    if backward is None:
        assert trained.backward_BTP is None
    else:
        expected = layers[-1, ..., width:].flip(1)
        torch.testing.assert_close(trained.backward_BTP, expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(trained.state.cells_SLBD, state.cells_SLBD, rtol=0, atol=TOLERANCE)


def test_directions_may_read_different_texts():
    model = new_model()
    one, two = text_of(model, seed=1), text_of(model, seed=2)
    together = model.language_model(one, two)
    swapped = model.language_model(one, one)
    assert torch.equal(together.forward_BTP, swapped.forward_BTP)
    assert not torch.allclose(together.backward_BTP, swapped.backward_BTP)


def test_a_text_in_two_parts_with_carried_state_is_the_text_in_one():
    model = new_model("clips active")
    one, two = text_of(model, times=10, seed=1), text_of(model, times=10, seed=2)
    whole = model.language_model(one, two)
    first = model.language_model(one[:, :4], two[:, :4])
    second = model.language_model(one[:, 4:], two[:, 4:], first.state.detach())
    found = torch.cat([first.backward_BTP, second.backward_BTP], 1)
    torch.testing.assert_close(found, whole.backward_BTP, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        second.state.outputs_SLBP, whole.state.outputs_SLBP, rtol=0, atol=TOLERANCE
    )


def test_the_gradient_stops_at_a_detached_state():
    model = new_model()
    text = text_of(model).requires_grad_()
    first = model.language_model(text, text)
    later = model.language_model(text_of(model), text_of(model), first.state.detach())
    later.forward_BTP.sum().backward()
    assert text.grad is None
    model.language_model(text_of(model), text_of(model), first.state).forward_BTP.sum().backward()
    assert text.grad.any()


def test_dropout_hits_every_layers_input_the_recurrence_and_the_output():
    """And a residual adds what was dropped, not what was there before."""
    model = new_model("three layers")
    text = text_of(model)
    dropout = Dropout(0.25, weight_rate=0.5)
    masks = dropout.draw(model.options, 6, range(3), 3, (0, 0), torch.device("cpu"))
    output = model.language_model(text, text.flip(1), masks=masks)
    layout = PackedLayout.of(np.full(3, 6))
    values = text.transpose(0, 1).flatten(0, 1)
    for place, layer in enumerate(model.forward_stack):
        values = values * masks.places[0][place].flatten(0, 1)
        weights = layer.state_dict()
        weights["kernel"] = weights["kernel"].clone()
        weights["kernel"][6:] *= masks.kernels[0][place]
        zero = torch.zeros(3, 12), torch.zeros(3, 6)
        result, _ = functional_call(layer, weights, (values, None, layout, zero))
        values = result + values if place else result
    expected = (values * masks.places[0][3].flatten(0, 1)).view(6, 3, 6).transpose(0, 1)
    torch.testing.assert_close(output.forward_BTP, expected, rtol=0, atol=TOLERANCE)


def test_a_number_of_texts_other_than_of_directions_is_refused():
    model = new_model()
    with pytest.raises(ValueError, match="has 2 directions, got 1 texts"):
        model.language_model(text_of(model), None)


def test_a_word_input_model_needs_a_number_of_words():
    with pytest.raises(ValueError, match="needs num_words"):
        BiLM(ElmoOptions.from_dict(options_of("word input")))


def test_new_weights_are_drawn_as_the_original_draws_them():
    raw = options_of("like the released models")
    raw["char_cnn"]["filters"] = [[1, 100], [2, 200]]
    raw["lstm"] |= {"dim": 128, "projection_dim": 64}
    model = BiLM(ElmoOptions.from_dict(raw))
    model.reset_parameters(torch.Generator().manual_seed(3))
    cnn, layer = model.token_embedding, model.backward_stack[1]
    assert 0.98 < cnn.char_embed.abs().max() <= 1
    assert 0.045 < cnn.conv_weights[1].abs().max() <= 0.05
    assert not cnn.conv_biases[0].any()
    assert (cnn.highways[0].carry_bias == -2).all()
    assert not cnn.highways[0].transform_bias.any()
    assert cnn.highways[1].transform_weight.std().item() == pytest.approx(300**-0.5, rel=0.05)
    assert cnn.projection_weight.std().item() == pytest.approx(300**-0.5, rel=0.05)
    glorot = (6 / (128 + 512)) ** 0.5
    assert 0.98 * glorot < layer.kernel.abs().max() <= glorot
    assert not layer.bias.any()
    again = BiLM(ElmoOptions.from_dict(raw))
    again.reset_parameters(torch.Generator().manual_seed(3))
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("is_shared", "spread"), [(False, (2 / 2064) ** 0.5), (True, 64**-0.5)])
def test_a_word_table_starts_as_wide_as_an_output_layer_only_where_it_is_one(is_shared, spread):
    options = ElmoOptions(
        LstmOptions(64, 64),
        training=TrainingOptions(n_tokens_vocab=2000, share_embedding_softmax=is_shared),
    )
    table_VP = BiLM(options).token_embedding.embedding
    # 128,000 draws: the deviation of the standard deviation is 0.2 %.
    assert table_VP.std().item() == pytest.approx(spread, rel=0.02)


def test_tanh_convolutions_start_from_a_normal_distribution():
    raw = options_of("tanh")
    raw["char_cnn"]["filters"] = [[3, 500]]
    weight = BiLM(ElmoOptions.from_dict(raw)).token_embedding.conv_weights[0]
    assert weight.std().item() == pytest.approx((3 * 4) ** -0.5, rel=0.05)


def test_rows_of_length_zero_keep_their_state():
    model = new_model()
    table = text_of(model)[0]
    start = model.language_model(text_of(model), text_of(model)).state.detach()
    ids = np.array([[0, 1], [0, 0], [2, 3]])
    layers, state = model(table, ids, np.array([2, 0, 1]), start)
    assert torch.equal(state.cells_SLBD[:, :, 1], start.cells_SLBD[:, :, 1])
    assert torch.equal(state.outputs_SLBP[:, :, 1], start.outputs_SLBP[:, :, 1])
    assert not layers[:, 1].any()
    assert not layers[:, 2, 1].any()


def test_the_layer_works_in_blocks_without_changing_values(monkeypatch):
    model = new_model()
    layer = model.forward_stack[0]
    assert isinstance(layer, LstmLayer)
    layout = PackedLayout.of(np.array([7, 3, 5]))
    inputs = torch.randn(15, 6, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(3, 12), torch.zeros(3, 6)
    whole, _ = layer(inputs, None, layout, zero)
    by_index, _ = layer(inputs, torch.arange(15), layout, zero)
    monkeypatch.setattr("elmo_model.lstm._BLOCK_POSITIONS", 2)
    blocks, _ = layer(inputs, None, layout, zero)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(by_index, whole, rtol=0, atol=TOLERANCE)
    monkeypatch.setattr("elmo_model.lstm._MAX_TABLE_BYTES", 0)
    gathered, _ = layer(inputs.flip(0), torch.arange(14, -1, -1), layout, zero)
    torch.testing.assert_close(gathered, whole, rtol=0, atol=TOLERANCE)
