"""The chunked losses and their gradients are those of the plain softmax."""

import pytest
import torch
from torch.nn import functional

from elmo_model import cross_entropy
from elmo_model.cross_entropy import full_losses, sampled_loss
from elmo_model.losses import EXCLUDED_LOGIT

# Only the order of sums differs; bfloat16 rounds what is multiplied to 8 bits.
TOLERANCE = {torch.float64: 1e-12, torch.bfloat16: 2e-2}
NUM_PREDICTIONS, WIDTH, NUM_WORDS = 150, 6, 40


@pytest.fixture(params=[10**7, 1], ids=["one chunk", "many chunks"], autouse=True)
def chunks(request, monkeypatch):
    """Chunks of all rows, and of a few."""
    monkeypatch.setattr(cross_entropy, "MAX_CHUNK_BYTES", request.param)
    monkeypatch.setattr(cross_entropy, "_MIN_CHUNK_ROWS", 32)


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def full_case(dtype=torch.float64):
    weight, bias = random(NUM_WORDS, WIDTH, dtype=dtype), random(NUM_WORDS, seed=1, dtype=dtype)
    hidden = [random(NUM_PREDICTIONS, WIDTH, seed=seed, dtype=dtype) for seed in (2, 3)]
    generator = torch.Generator().manual_seed(4)
    targets = [torch.randint(NUM_WORDS, (NUM_PREDICTIONS,), generator=generator) for _ in "ab"]
    return weight, bias, hidden, targets


def plain_losses(weight, bias, hidden, targets):
    return torch.stack(
        [
            functional.cross_entropy(functional.linear(top, weight, bias), ids)
            for top, ids in zip(hidden, targets, strict=True)
        ]
    )


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, -3.0], [1.0, 0.0]])
def test_full_losses_and_gradients_are_those_of_the_plain_softmax(shares):
    weight, bias, hidden, targets = full_case()
    found = full_losses(weight, bias, hidden, targets)
    expected = plain_losses(weight, bias, hidden, targets)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[torch.float64], rtol=0)
    shares = torch.tensor(shares).double()
    leaves = [weight, bias, *hidden]
    mine = torch.autograd.grad(found, leaves, shares, retain_graph=True)
    again = torch.autograd.grad(found, leaves, shares)
    theirs = torch.autograd.grad(expected, leaves, shares)
    torch.testing.assert_close(mine, theirs, atol=TOLERANCE[torch.float64], rtol=0)
    torch.testing.assert_close(again, theirs, atol=TOLERANCE[torch.float64], rtol=0)


def test_huge_logits_neither_overflow_nor_vanish():
    weight, bias, hidden, targets = full_case()
    hidden = [(top.detach() * 1e4).requires_grad_() for top in hidden]
    found = full_losses(weight, bias, hidden, targets)
    expected = plain_losses(weight, bias, hidden, targets)
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(losses.sum(), hidden) for losses in (found, expected))
    torch.testing.assert_close(mine, theirs)


def sampled_case(dtype=torch.float64):
    column = torch.arange(NUM_PREDICTIONS) % (NUM_WORDS + 5)
    column[column >= NUM_WORDS] = -1
    column[::3] = -1
    return (
        random(NUM_PREDICTIONS, WIDTH, dtype=dtype),
        random(NUM_WORDS, WIDTH, seed=1, dtype=dtype),
        random(NUM_WORDS, seed=2, dtype=dtype),
        random(NUM_PREDICTIONS, seed=3, dtype=dtype),
        column,
    )


def plain_sampled_loss(hidden, negative, offset, target_logit, column):
    logits = torch.cat([target_logit[:, None], functional.linear(hidden, negative, offset)], 1)
    rows = torch.nonzero(column >= 0).squeeze(1)
    logits[rows, column[rows] + 1] = EXCLUDED_LOGIT
    return functional.cross_entropy(logits, torch.zeros_like(column))


def test_the_sampled_loss_and_its_gradients_are_those_of_the_plain_softmax():
    *leaves, column = sampled_case()
    found, expected = sampled_loss(*leaves, column), plain_sampled_loss(*leaves, column)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[torch.float64], rtol=0)
    mine, theirs = (torch.autograd.grad(3 * loss, leaves) for loss in (found, expected))
    torch.testing.assert_close(mine, theirs, atol=TOLERANCE[torch.float64], rtol=0)


def test_bfloat16_products_are_near_float64():
    cases = [
        (full_losses, plain_losses, full_case),
        (sampled_loss, plain_sampled_loss, sampled_case),
    ]
    for fast, plain, make in cases:
        given, exact = make(torch.float32), make()
        leaves, exact_leaves = leaves_of(given), leaves_of(exact)
        with torch.autocast("cpu", torch.bfloat16):
            found = fast(*given)
        expected = plain(*exact)
        assert_near(found, expected)
        mine = torch.autograd.grad(found.sum(), leaves)
        theirs = torch.autograd.grad(expected.sum(), exact_leaves)
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == torch.float32
            assert_near(one, other)


def leaves_of(given):
    flat = [leaf for part in given for leaf in (part if isinstance(part, list) else [part])]
    return [leaf for leaf in flat if leaf.requires_grad]


def assert_near(found, expected):
    error = (found.detach().double() - expected.detach()).norm() / expected.detach().norm()
    assert float(error) < TOLERANCE[torch.bfloat16]
