"""Training steps against the records of the original program, and what a step promises."""

from dataclasses import replace
from itertools import islice

import h5py
import numpy as np
import pytest
import torch

from elmo_model.errors import ElmoError
from elmo_model.lm_batches import Corpus, WordTable, packed_batches
from elmo_model.losses import NegativeSample, log_expected_count
from elmo_model.options import CharCnnOptions, ElmoOptions, LstmOptions, TrainingOptions
from elmo_model.perplexity import perplexity
from elmo_model.training import (
    TrainState,
    clip_gradients,
    distinct_parameters,
    train_step,
)
from elmo_model.vocabulary import MARKS, Vocabulary, count_words
from elmo_model.weight_table import datasets

VARIANTS = [
    "A_char_relu_fullsoftmax",
    "B_char_tanh_clips_active",
    "C_token_share_embedding",
    "D_char_sampled_softmax",
    "E_token_sampled_softmax",
    "F_unidirectional_token",
]

# Both sides compute in float32, whose rounding is 6e-8 of values up to 4; five steps amplify it.
# Measured: 1e-6 losses, 3e-7 norms, 5e-7 gradients, 4e-6 states, 4e-7 weights, 5e-6 accumulators.
LOSS_TOLERANCE = 2e-6
NORM_RELATIVE_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 2e-6
STATE_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 2e-6
ACCUMULATOR_TOLERANCE = 1e-5
# The record of an expected count is float32.
COUNT_TOLERANCE = 2e-7


@pytest.fixture(scope="module")
def text(shared):
    folder = shared / "golden/bilm-tf-train"
    sentences = [line.split(" ") for line in (folder / "data.txt").read_text().split("\n")]
    return Vocabulary.read(folder / "vocab.txt"), sentences


@pytest.fixture(params=VARIANTS)
def variant(shared, request):
    return shared / "golden/tf-training" / request.param


def read_datasets(group):
    found = {}
    group.visititems(
        lambda name, item: (
            found.update({name: torch.from_numpy(np.asarray(item))})
            if isinstance(item, h5py.Dataset)
            else None
        )
    )
    return found


def parameter_of(state, name):
    """The parameter that the original calls `name`."""
    if name.startswith("softmax/"):
        return {"softmax/W": state.softmax.weight, "softmax/b": state.softmax.bias}[name]
    (ours,) = [row.parameter for row in datasets(state.model.options) if name in row.names]
    return state.model.get_parameter(ours)


def state_with_weights(path, options):
    state = TrainState.create(options)
    with h5py.File(path) as file, torch.no_grad():
        weights = read_datasets(file)
        for name, value in weights.items():
            parameter_of(state, name).copy_(value)
    assert len(weights) == len(distinct_parameters(state.model, state.softmax))
    return state


def text_batches(text, options, batch_size=2, unroll_steps=10):
    vocabulary, sentences = text
    char_cnn = options.char_cnn
    table = WordTable(vocabulary, char_cnn.max_characters_per_token if char_cnn else None)
    sequences = Corpus.of(sentences, table).sequences()
    return packed_batches(sequences, table, batch_size, unroll_steps, options.bidirectional)


def recorded_negatives(step):
    """The recorded ids, and the number of draws that explains their expected counts."""
    if "sampled" not in step:
        return None
    negatives = []
    for direction in sorted(step["sampled"]):
        record = read_datasets(step[f"sampled/{direction}"])
        ids, counts = record["ids"].long(), record["sampled_expected_count"].double()
        errors = {
            draws: float((log_expected_count(ids, 32, len(ids), draws).exp() - counts).abs().max())
            for draws in range(len(ids), 500)
        }
        num_draws = min(errors, key=errors.__getitem__)
        assert errors[num_draws] < COUNT_TOLERANCE
        negatives.append(NegativeSample(ids, num_draws))
    return negatives


def assert_near(found, expected, tolerance):
    torch.testing.assert_close(found.detach().to(expected.dtype), expected, atol=tolerance, rtol=0)


def test_five_steps_equal_the_originals(variant, text):
    options = ElmoOptions.read(variant / "options.json")
    state = state_with_weights(variant / "init.hdf5", options)
    with h5py.File(variant / "steps.hdf5") as steps:
        for number, batch in enumerate(text_batches(text, options)):
            step = steps[f"step_{number}"]
            result = train_step(state, batch, recorded_negatives(step))
            losses = torch.from_numpy(step["individual_losses"][()])
            assert_near(result.losses_S, losses, LOSS_TOLERANCE)
            assert result.loss == pytest.approx(step["total_loss"][()], abs=LOSS_TOLERANCE)
            norm = float(step["grad_global_norm_preclip"][()])
            assert float(result.gradient_norm) == pytest.approx(norm, rel=NORM_RELATIVE_TOLERANCE)
            assert_state_is(state.carried, step["final_state"])
    assert state.step == 5
    with h5py.File(variant / "after5.hdf5") as file:
        for name, expected in read_datasets(file).items():
            if name.startswith("adagrad/"):
                parameter = parameter_of(state, name.removeprefix("adagrad/"))
                accumulator = state.optimizer.state[parameter]["sum"]
                assert_near(accumulator, expected, ACCUMULATOR_TOLERANCE)
            else:
                assert_near(parameter_of(state, name), expected, WEIGHT_TOLERANCE)


def assert_state_is(carried, final_state):
    """The record's order is direction, layer, (cell, output)."""
    for place in range(len(final_state)):
        direction, layer, is_output = place // 4, place // 2 % 2, place % 2
        found = carried.outputs_SLBP if is_output else carried.cells_SLBD
        expected = torch.from_numpy(final_state[f"{place:02d}"][()])
        assert_near(found[direction, layer], expected, STATE_TOLERANCE)


def test_the_first_gradient_equals_the_originals(variant, text):
    options = ElmoOptions.read(variant / "options.json")
    max_norm = options.training.all_clip_norm_val
    state = state_with_weights(variant / "init.hdf5", options)
    gradients = {}

    def keep_gradients(optimizer, args, kwargs):
        for parameter in distinct_parameters(state.model, state.softmax):
            gradients[parameter] = parameter.grad.to_dense().clone()

    state.optimizer.register_step_pre_hook(keep_gradients)
    with h5py.File(variant / "steps.hdf5") as steps:
        step = steps["step_0"]
        batch = next(text_batches(text, options))
        train_step(state, batch, recorded_negatives(step))
        # The record is from before the clip.
        scale = min(1.0, max_norm / float(step["grad_global_norm_preclip"][()]))
        expected = read_datasets(step["grad"])
    assert len(expected) == len(gradients)
    for name, gradient in expected.items():
        assert_near(gradients[parameter_of(state, name)], gradient * scale, GRADIENT_TOLERANCE)


def test_the_expected_counts_of_the_targets_equal_the_recorded_ones(shared, text):
    variant = shared / "golden/tf-training/D_char_sampled_softmax"
    options = ElmoOptions.read(variant / "options.json")
    with h5py.File(variant / "steps.hdf5") as steps:
        for number, batch in enumerate(text_batches(text, options)):
            step = steps[f"step_{number}"]
            for direction, sample in enumerate(recorded_negatives(step)):
                targets = batch.directions[direction].targets_BT.flatten()
                counts = log_expected_count(targets, 32, 8, sample.num_draws).exp()
                recorded = step[f"sampled/{direction}/true_expected_count"][()][:, 0]
                assert_near(counts, torch.from_numpy(recorded).double(), COUNT_TOLERANCE)


def small_options(vocabulary, characters=True, **training):
    keys = {
        "n_tokens_vocab": len(vocabulary),
        "n_negative_samples_batch": 8,
        "all_clip_norm_val": 10.0,
        "dropout": 0.0,
    }
    return ElmoOptions(
        lstm=LstmOptions(32, 16, 2, cell_clip=3.0, proj_clip=3.0, use_skip_connections=True),
        char_cnn=CharCnnOptions(4, ((1, 8), (2, 8), (3, 16)), 12, "relu", 1)
        if characters
        else None,
        training=TrainingOptions(**{**keys, **training}),
    )


def trained(options, text, num_steps, seed=0, optimizer="adagrad", reset_share=0.0):
    state = TrainState.create(options, seed, optimizer)
    state.reset_share = reset_share
    vocabulary, sentences = text
    char_cnn = options.char_cnn
    table = WordTable(vocabulary, char_cnn.max_characters_per_token if char_cnn else None)
    sequences = Corpus.of(sentences, table).endless_sequences(seed)
    batches = packed_batches(sequences, table, 4, 10, options.bidirectional)
    losses = [train_step(state, batch).loss for batch in islice(batches, num_steps)]
    return state, losses


def test_equal_seeds_give_equal_models(text):
    options = small_options(text[0], dropout=0.3)
    (one, losses), (other, same_losses) = (
        trained(options, text, 4, seed=7, reset_share=0.5) for _ in range(2)
    )
    assert losses == same_losses
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert trained(options, text, 4, seed=8, reset_share=0.5)[1] != losses


def test_training_leaves_the_random_numbers_of_the_caller_alone(text):
    options = small_options(text[0], dropout=0.3)
    state = TrainState.create(options)
    batch = next(text_batches(text, options, 4, 10))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_step(state, batch)
    assert torch.equal(torch.rand(3), expected)


def test_going_on_from_a_copied_state_equals_not_having_stopped(text):
    options = small_options(text[0], dropout=0.3)
    batches = list(text_batches(text, options, 2, 10))
    whole = TrainState.create(options, seed=3)
    stopped = TrainState.create(options, seed=3)
    for batch in batches[:2]:
        train_step(whole, batch)
        train_step(stopped, batch)
    resumed = TrainState.create(options, seed=3)
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.softmax.load_state_dict(stopped.softmax.state_dict())
    resumed.optimizer.load_state_dict(stopped.optimizer.state_dict())
    resumed.carried, resumed.step = stopped.carried, stopped.step
    resumed.batch = stopped.batch
    losses = [(train_step(whole, b).loss, train_step(resumed, b).loss) for b in batches[2:]]
    assert all(one == other for one, other in losses)


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
@pytest.mark.parametrize("characters", [True, False])
def test_every_parameter_learns(text, optimizer, characters):
    options = small_options(text[0], characters, learning_rate=0.01)
    state = TrainState.create(options, optimizer=optimizer)
    before = [p.detach().clone() for p in distinct_parameters(state.model, state.softmax)]
    for batch in text_batches(text, options):
        train_step(state, batch)
    after = distinct_parameters(state.model, state.softmax)
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)


def test_thirty_sentences_are_learnt_by_heart(shared):
    words = (shared / "golden/bilm-tf-train/data.txt").read_text().split()
    # Every word but the first of a sentence follows from the one before: a loss near zero exists.
    sentences = [[f"{word}{k}" for word in words[k * 4 : k * 4 + 4]] for k in range(30)]
    vocabulary = Vocabulary.from_counts(count_words(sentences))
    options = small_options(vocabulary, sample_softmax=False, learning_rate=0.01)
    state, _ = trained(options, (vocabulary, sentences), 200, optimizer="adamw")
    table = WordTable(vocabulary, 12)
    batches = packed_batches(Corpus.of(sentences, table).sequences(), table, 2, 10)
    result = perplexity(state.model, state.softmax, batches)
    # Only the first word of a sentence is a guess among 30: 30 ** (1 / 5) = 2.
    assert result.forward < 4
    assert result.backward < 4


def test_dropout_changes_the_loss_and_none_does_not(text):
    plain, dropped = small_options(text[0]), small_options(text[0], dropout=0.5)
    assert trained(plain, text, 1)[1] == trained(replace(plain), text, 1)[1]
    assert trained(plain, text, 1)[1] != trained(dropped, text, 1)[1]


def test_rows_that_are_reset_start_from_zero(text):
    options = small_options(text[0])
    state, _ = trained(options, text, 2, reset_share=1.0)
    batch = list(text_batches(text, options, 4, 10))[0]
    fresh = TrainState.create(options)
    fresh.model.load_state_dict(state.model.state_dict())
    fresh.softmax.load_state_dict(state.softmax.state_dict())
    fresh.step, fresh.batch = state.step, state.batch
    assert train_step(state, batch).loss == train_step(fresh, batch).loss


def test_the_clip_scales_all_gradients_together_and_returns_the_norm_before():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip_gradients(parameters, 10.0)) == 5.0
    assert parameters[0].grad.tolist() == [3.0, 0.0]
    assert float(clip_gradients(parameters, 2.5)) == 5.0
    assert parameters[0].grad.tolist() == [1.5, 0.0]
    assert parameters[1].grad.tolist() == [2.0]
    assert float(clip_gradients(parameters, None)) == 2.5


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_no_weight(text):
    options = small_options(text[0])
    state = TrainState.create(options)
    with torch.no_grad():
        state.softmax.bias[:] = float("inf")
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    with pytest.raises(ElmoError, match="step 0: .* training diverged, lower the learning rate"):
        train_step(state, next(text_batches(text, options, 4, 10)))
    assert state.step == 0
    for old, new in zip(before, state.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_options_without_what_training_needs_are_refused(text):
    vocabulary = Vocabulary([*MARKS, "the"])
    with pytest.raises(ElmoError, match="n_tokens_vocab is missing"):
        TrainState.create(small_options(vocabulary, n_tokens_vocab=None))
    options = small_options(text[0], n_negative_samples_batch=None)
    with pytest.raises(ElmoError, match="n_negative_samples_batch is missing"):
        train_step(TrainState.create(options), next(text_batches(text, options, 4, 10)))
    sharing = small_options(vocabulary, share_embedding_softmax=True)
    with pytest.raises(ElmoError, match="no word table to share"):
        TrainState.create(sharing)
