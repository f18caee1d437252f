"""The torch module that AllenNLP users know."""

import numpy as np
import pytest
import torch

from elmo_model import Elmo, Encoder, batch_to_ids
from elmo_model.errors import ModelFileError
from tests.elmo_model.random_models import write_model

TOLERANCE = 1e-5
SENTENCES = [["the", "cat", "sat"], [], ["über"], ["a", "b", "c", "d"]]
WIDTH = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def layers(files):
    """The encoder's layers of SENTENCES."""
    return Encoder.from_files(**files, device="cpu").encode(SENTENCES).layers


@pytest.fixture
def ids():
    return batch_to_ids(SENTENCES, WIDTH)


def load(files, *args, **settings):
    return Elmo.from_files(*files.values(), *args, **settings)


def assert_same(found, expected):
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=TOLERANCE)


def test_ids_have_a_row_for_each_token_and_zeros_beyond(ids):
    assert ids.shape == (4, 4, WIDTH)
    assert ids.dtype == torch.int64
    assert (ids > 0).any(dim=2).sum(dim=1).tolist() == [3, 0, 1, 4]
    assert batch_to_ids([["a"]]).shape == (1, 1, 50)


def test_a_new_module_gives_the_average_of_the_encoders_layers(files, layers, ids):
    result = load(files, dropout=0.0)(ids)
    (mixed,) = result["elmo_representations"]
    assert_same(mixed, layers.mean(0))
    assert result["mask"].dtype == torch.bool
    assert result["mask"].sum(dim=1).tolist() == [3, 0, 1, 4]


def test_several_mixes_share_one_bilm_and_learn_apart(files, layers, ids):
    elmo = load(files, 3, dropout=0.0)
    with torch.no_grad():
        elmo.scalar_mixes[1].weights_L.copy_(torch.tensor([-1e4, 1e4, -1e4]))
        elmo.scalar_mixes[2].gamma.fill_(2.0)
    mixed = elmo(ids)["elmo_representations"]
    for found, expected in zip(mixed, [layers.mean(0), layers[1], 2 * layers.mean(0)], strict=True):
        assert_same(found, expected)
    assert elmo.output_dim == elmo.get_output_dim() == 12


def test_only_the_mixes_are_trained_unless_asked(files, ids):
    elmo = load(files, 2)
    trained = {name for name, p in elmo.named_parameters() if p.requires_grad}
    assert trained == {
        f"scalar_mixes.{k}.{part}" for k in (0, 1) for part in ("weights_L", "gamma")
    }
    sum(x.square().sum() for x in elmo(ids)["elmo_representations"]).backward()
    for name, parameter in elmo.named_parameters():
        assert (parameter.grad is not None) == (name in trained)


def test_gradients_reach_every_parameter_of_the_bilm_when_asked(files, ids):
    elmo = load(files, requires_grad=True, dropout=0.0)
    elmo(ids)["elmo_representations"][0].square().sum().backward()
    for name, parameter in elmo.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_of_the_bilm_are_those_of_finite_differences(files, ids):
    elmo = load(files, requires_grad=True, dropout=0.0).double()
    weight = elmo.bilm.backward_stack[0].kernel

    def loss():
        return elmo(ids)["elmo_representations"][0].square().sum()

    loss().backward()
    for place in ((0, 0), (5, 20), (11, 47)):
        step = 1e-6
        with torch.no_grad():
            weight[place] += step
            above = loss()
            weight[place] -= 2 * step
            below = loss()
            weight[place] += step
        assert float(above - below) / (2 * step) == pytest.approx(
            float(weight.grad[place]), rel=1e-4
        )


def test_fixed_mix_parameters_are_used_and_not_trained(files, layers, ids):
    elmo = load(files, dropout=0.0, scalar_mix_parameters=[-9e10, 1, -9e10])
    assert not any(p.requires_grad for p in elmo.parameters())
    assert_same(elmo(ids)["elmo_representations"][0], layers[1])


def test_the_top_layer_alone(files, layers, ids):
    elmo = load(files, dropout=0.0, use_top_only=True)
    assert_same(elmo(ids)["elmo_representations"][0], layers[2])


def test_dropout_acts_in_training_mode_only(files, layers, ids):
    elmo = load(files, dropout=0.5)
    dropped = elmo(ids)["elmo_representations"][0]
    share = (dropped[0] == 0).float().mean()
    assert 0.2 < share < 0.8
    assert_same(elmo.eval()(ids)["elmo_representations"][0], layers.mean(0))


def test_sentence_boundaries_can_be_kept(files, layers, ids):
    result = load(files, dropout=0.0, keep_sentence_boundaries=True)(ids)
    (mixed,) = result["elmo_representations"]
    assert mixed.shape == (4, 6, 12)
    assert result["mask"].sum(dim=1).tolist() == [5, 2, 3, 6]
    assert not mixed[~result["mask"]].any()
    for row, sentence in enumerate(SENTENCES):
        stop = len(sentence) + 1
        assert_same(mixed[row, 1:stop], layers[:, row, : stop - 1].mean(0))
        assert mixed[row, 0].any()
        assert mixed[row, stop].any()


@pytest.mark.parametrize(("variant", "counts_marks"), [("allennlp", True), ("bilm-tf", False)])
def test_the_layer_norm_counts_marks_as_its_authors_did(variant, counts_marks, files, ids):
    elmo = load(files, dropout=0.0, do_layer_norm=variant)
    kept = load(files, dropout=0.0, keep_sentence_boundaries=True, use_top_only=True)(ids)
    top, mask = kept["elmo_representations"][0].detach(), kept["mask"].clone()
    if not counts_marks:
        mask[:, 0] = False
        for row, sentence in enumerate(SENTENCES):
            mask[row, len(sentence) + 1] = False
    values = top[mask]
    expected = (top[0, 1:4] - values.mean()) / values.std(correction=0)
    elmo = load(files, dropout=0.0, do_layer_norm=variant, use_top_only=True)
    assert_same(elmo(ids)["elmo_representations"][0][0, :3], expected)


def test_layer_norm_true_means_allennlps(files, ids):
    one, other = (load(files, dropout=0.0, do_layer_norm=norm) for norm in (True, "allennlp"))
    assert torch.equal(one(ids)["elmo_representations"][0], other(ids)["elmo_representations"][0])


def test_a_module_is_stateless_unless_asked(files, ids):
    elmo = load(files).eval()
    first = elmo(ids)["elmo_representations"][0]
    assert torch.equal(elmo(ids)["elmo_representations"][0], first)


def test_a_stateful_module_carries_rows_on_and_forgets_when_told(files):
    elmo = load(files, stateful=True, use_top_only=True).eval()
    encoder = Encoder.from_files(**files, device="cpu")
    state = None
    for batch in (SENTENCES, SENTENCES[2:], SENTENCES, SENTENCES + SENTENCES):
        start = None if state is None else state.first_rows(len(batch))
        activations = encoder.encode(batch, start)
        state = activations.state if state is None else state.updated(activations.state)
        found = elmo(batch_to_ids(batch, WIDTH))["elmo_representations"][0]
        assert_same(found, activations.layers[2])
    elmo.reset_states()
    found = elmo(batch_to_ids(SENTENCES, WIDTH))["elmo_representations"][0]
    assert_same(found, encoder.encode(SENTENCES).layers[2])


def test_a_stateful_module_can_be_trained_step_by_step(files, ids):
    elmo = load(files, stateful=True, requires_grad=True)
    for _ in range(2):
        elmo(ids)["elmo_representations"][0].sum().backward()


def test_further_leading_dimensions_are_kept(files, layers, ids):
    result = load(files, dropout=0.0)(ids.reshape(2, 2, 4, WIDTH))
    assert_same(result["elmo_representations"][0].reshape(4, 4, 12), layers.mean(0))
    assert result["mask"].shape == (2, 2, 4)


def test_the_state_dict_holds_bilm_and_mixes_and_loads_again(files, ids):
    elmo = load(files, 2, dropout=0.0)
    with torch.no_grad():
        elmo.scalar_mixes[1].gamma.fill_(3.0)
    other = load(files, 2, dropout=0.0)
    other.load_state_dict(elmo.state_dict())
    assert all(name.startswith(("bilm.", "scalar_mixes.")) for name in elmo.state_dict())
    for one, two in zip(*(m(ids)["elmo_representations"] for m in (elmo, other)), strict=True):
        assert torch.equal(one, two)


def test_empty_batches_are_allowed(files):
    elmo = load(files)
    for sentences in ([], [[]]):
        result = elmo(batch_to_ids(sentences, WIDTH))
        assert result["elmo_representations"][0].shape == (len(sentences), 0, 12)
        assert result["mask"].shape == (len(sentences), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[..., :-1], r"expected character ids \(sentences, tokens, 20\), got"),
        (lambda ids: ids[0, 0], "expected character ids"),
        (lambda ids: ids + 100, r"must be 0\.\.261, found 100\.\.361"),
        (lambda ids: ids.flip(1), "a token comes after padding"),
    ],
)
def test_ids_that_cannot_be_a_batch_are_refused(change, message, files, ids):
    with pytest.raises(ValueError, match=message):
        load(files)(change(ids))


def test_a_word_input_model_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="the model has word input: use Encoder"):
        load(dict(list(write_model(tmp_path, "word input").items())[:2]))


def test_a_model_of_one_direction_works(tmp_path, ids):
    files = write_model(tmp_path, "one direction")
    expected = Encoder.from_files(**files, device="cpu").encode(SENTENCES).layers
    assert_same(load(files, dropout=0.0)(ids)["elmo_representations"][0], expected.mean(0))
    assert np.isfinite(expected.numpy()).all()
