"""The softmax losses against their definitions, written out in numpy."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from elmo_model.losses import LogUniformSampler, NegativeSample, Softmax, log_expected_count

# float32 sums of some tens of terms against float64.
FLOAT32_TOLERANCE = 1e-5
# Gradients differ by the order of summation only.
GRADIENT_TOLERANCE = 1e-6


def random_case(vocabulary_size=20, width=5, num_predictions=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    softmax = Softmax(vocabulary_size, width)
    softmax.reset_parameters(generator)
    with torch.no_grad():
        softmax.bias.normal_(generator=generator)
    hidden = torch.randn(num_predictions, width, generator=generator)
    targets = torch.randint(vocabulary_size, (num_predictions,), generator=generator)
    return softmax, hidden, targets


def all_logits(softmax, hidden):
    weight = softmax.weight.detach().double().numpy()
    return hidden.double().numpy() @ weight.T + softmax.bias.detach().double().numpy()


def log_sum_exp(values):
    return math.log(sum(math.exp(value) for value in values))


def test_the_full_loss_is_the_mean_negative_log_probability_of_the_targets():
    softmax, hidden, targets = random_case()
    logits = all_logits(softmax, hidden)
    expected = np.mean(
        [log_sum_exp(row) - row[target] for row, target in zip(logits, targets, strict=True)]
    )
    loss = softmax.full_loss(hidden, targets)
    assert float(loss.detach()) == pytest.approx(expected, abs=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("num_draws", [6, 17])
def test_the_sampled_loss_subtracts_expected_counts_and_leaves_the_target_out(num_draws):
    softmax, hidden, targets = random_case()
    targets[:4] = torch.tensor([3, 3, 0, 7])
    negatives = [0, 3, 9, 1, 14, 2]
    logits = all_logits(softmax, hidden)
    losses = []
    for row, target in zip(logits, targets.tolist(), strict=True):
        corrected = [value - math.log(count_of(k, 20, 6, num_draws)) for k, value in enumerate(row)]
        others = [corrected[k] for k in negatives if k != target]
        losses.append(log_sum_exp([corrected[target], *others]) - corrected[target])
    sample = NegativeSample(torch.tensor(negatives), num_draws)
    (loss,) = softmax.sampled_losses([hidden], [targets], [sample])
    assert float(loss.detach()) == pytest.approx(np.mean(losses), abs=FLOAT32_TOLERANCE)


def count_of(k, vocabulary_size, num_samples, num_draws):
    probability = math.log((k + 2) / (k + 1)) / math.log(vocabulary_size + 1)
    if num_draws == num_samples:
        return probability * num_samples
    return 1 - (1 - probability) ** num_draws


def test_with_all_other_words_certain_to_be_drawn_the_sampled_loss_is_the_full_one():
    softmax, hidden, _ = random_case()
    targets = torch.full((12,), 5)
    others = torch.tensor([k for k in range(20) if k != 5])
    (loss,) = softmax.sampled_losses([hidden], [targets], [NegativeSample(others, 10**6)])
    full = softmax.full_loss(hidden, targets)
    torch.testing.assert_close(loss, full, atol=FLOAT32_TOLERANCE, rtol=0)


def test_both_directions_at_once_give_what_each_gives_alone():
    softmax, hidden, targets = random_case()
    sampler = LogUniformSampler(20, 6)
    samples = [sampler.sample(), sampler.sample()]
    both = softmax.sampled_losses([hidden, -hidden], [targets, targets.flip(0)], samples)
    alone = [
        softmax.sampled_losses([hidden], [targets], samples[:1])[0],
        softmax.sampled_losses([-hidden], [targets.flip(0)], samples[1:])[0],
    ]
    torch.testing.assert_close(both, alone, atol=FLOAT32_TOLERANCE, rtol=0)


def test_a_sparse_gradient_holds_the_dense_one_and_only_touched_rows():
    softmax, hidden, targets = random_case()
    sample = NegativeSample(torch.tensor([0, 3, 9]), 4)
    softmax.sampled_losses([hidden], [targets], [sample])[0].backward()
    dense, softmax.weight.grad = softmax.weight.grad, None
    softmax.sampled_losses([hidden], [targets], [sample], sparse_gradient=True)[0].backward()
    sparse = softmax.weight.grad.coalesce()
    assert set(sparse.indices()[0].tolist()) == {0, 3, 9, *targets.tolist()}
    torch.testing.assert_close(sparse.to_dense(), dense, atol=GRADIENT_TOLERANCE, rtol=0)


def test_a_sample_has_distinct_ids_and_ends_with_the_draw_that_completed_it():
    sampler = LogUniformSampler(1000, 300, seed=5)
    drawn = np.random.default_rng(5).random(100_000)
    ids = np.floor(np.exp(drawn * math.log(1001))).astype(int) - 1
    sample = sampler.sample()
    assert sample.ids_S.tolist() == list(dict.fromkeys(ids[: sample.num_draws].tolist()))
    assert len(sample.ids_S) == 300
    assert len(set(ids[: sample.num_draws - 1].tolist())) == 299


def test_nearly_all_ids_can_be_drawn():
    sample = LogUniformSampler(50, 49).sample()
    assert len(set(sample.ids_S.tolist())) == 49
    assert sample.ids_S.max() < 50


def test_the_first_draw_follows_the_log_uniform_distribution():
    num_trials = 2000
    first = [int(LogUniformSampler(30, 2, seed=k).sample().ids_S[0]) for k in range(num_trials)]
    frequencies = np.bincount(first, minlength=30) / num_trials
    expected = np.exp(log_expected_count(torch.arange(30), 30, 1, 1).numpy())
    assert expected.sum() == pytest.approx(1)
    # Four standard deviations of the largest frequency.
    assert np.abs(frequencies - expected).max() < 4 * math.sqrt(0.25 / num_trials)


def test_expected_counts_of_a_large_sample_add_up_to_it():
    sample = LogUniformSampler(5000, 1000, seed=2).sample()
    counts = log_expected_count(torch.arange(5000), 5000, 1000, sample.num_draws).exp()
    # The reference takes the number of draws as if it were fixed, which is right to a few per cent.
    assert float(counts.sum()) == pytest.approx(1000, rel=0.05)


def test_equal_seeds_draw_equal_negatives():
    one, other = (LogUniformSampler(500, 50, seed=(3, 4)).sample() for _ in range(2))
    assert one.num_draws == other.num_draws
    assert one.ids_S.tolist() == other.ids_S.tolist()
    assert LogUniformSampler(500, 50, seed=(3, 5)).sample().ids_S.tolist() != one.ids_S.tolist()


@pytest.mark.parametrize("num_samples", [0, 10, 11])
def test_more_negatives_than_other_words_are_refused(num_samples):
    with pytest.raises(ValueError, match="cannot be drawn from 10 words"):
        LogUniformSampler(10, num_samples)


def test_a_shared_weight_is_not_drawn_anew():
    weight = torch.nn.Parameter(torch.ones(4, 2))
    softmax = Softmax(4, 2, weight)
    softmax.reset_parameters()
    assert softmax.weight is weight
    assert torch.equal(weight.detach(), torch.ones(4, 2))


def test_new_weights_have_the_originals_spread():
    softmax = Softmax(4000, 64)
    # 256,000 draws: the deviation of the standard deviation is below 0.2 %.
    assert float(softmax.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.01)
    assert not softmax.bias.detach().any()


PEAK_SCRIPT = """
import re
import torch
from elmo_model.losses import Softmax

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

torch.set_num_threads(2)
softmax = Softmax(200_000, 8)
hidden = torch.randn(1024, 8, requires_grad=True)
targets = torch.zeros(1024, dtype=torch.int64)
softmax.full_losses([hidden[:64]], [targets[:64]])[0].backward()
before = peak_mb()
softmax.full_losses([hidden], [targets])[0].backward()
print(peak_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to ask")
def test_a_process_never_holds_all_logits():
    command = [sys.executable, "-c", PEAK_SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # All logits are 781 MB, those of a chunk of 128 predictions 98.
    assert int(done.stdout) < 300
