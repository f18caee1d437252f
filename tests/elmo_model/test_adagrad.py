"""The optimiser does what torch's own does, with its state."""

from copy import deepcopy

import torch

from elmo_model.adagrad import Adagrad

# One multiplication more or less in a value of size 1.
TOLERANCE = 2e-7
RATES = {"lr": 0.2, "initial_accumulator_value": 1.0, "eps": 0.0}


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((50, 7), (9,))
    ]


def give_gradients(pair, step):
    generator = torch.Generator().manual_seed(step)
    rows = torch.randperm(50, generator=generator)[:11].sort().values
    values = torch.randn(11, 7, generator=generator)
    pair[0].grad = torch.sparse_coo_tensor(
        rows[None], values, (50, 7), is_coalesced=True, check_invariants=True
    )
    pair[1].grad = torch.randn(9, generator=generator) if step != 2 else None


def run(optimizer, pair, steps):
    for step in steps:
        give_gradients(pair, step)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()


def assert_equal(mine, theirs, my_optimizer, their_optimizer):
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
        state, expected = my_optimizer.state[one], their_optimizer.state[other]
        assert state.keys() == expected.keys()
        assert float(state["step"]) == float(expected["step"])
        torch.testing.assert_close(state["sum"], expected["sum"], atol=TOLERANCE * 50, rtol=0)


def test_sparse_and_dense_steps_are_those_of_torch():
    mine, theirs = parameters(), parameters()
    ours, torchs = Adagrad(mine, **RATES), torch.optim.Adagrad(theirs, **RATES)
    run(ours, mine, range(4))
    run(torchs, theirs, range(4))
    assert_equal(mine, theirs, ours, torchs)


def test_the_state_of_torchs_own_is_gone_on_with_and_back():
    mine, theirs = parameters(), parameters()
    ours, torchs = Adagrad(mine, **RATES), torch.optim.Adagrad(theirs, **RATES)
    run(torchs, theirs, range(2))
    with torch.no_grad():
        for one, other in zip(mine, theirs, strict=True):
            one.copy_(other)
    ours.load_state_dict(deepcopy(torchs.state_dict()))
    run(ours, mine, range(2, 4))
    run(torchs, theirs, range(2, 4))
    assert_equal(mine, theirs, ours, torchs)
    torchs.load_state_dict(deepcopy(ours.state_dict()))
    run(torchs, theirs, range(4, 5))
    run(ours, mine, range(4, 5))
    assert_equal(mine, theirs, ours, torchs)


def test_a_row_without_gradient_does_not_move():
    pair = parameters()
    before = pair[0].detach().clone()
    optimizer = Adagrad(pair, **RATES)
    give_gradients(pair, 0)
    touched = pair[0].grad.indices()[0]
    optimizer.step()
    moved = (pair[0].detach() != before).any(1).nonzero().squeeze(1)
    assert moved.tolist() == touched.tolist()
