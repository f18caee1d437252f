"""Perplexity by the readable modules and torch's own cross-entropy, to compare with."""

import torch
from torch.nn import functional

from elmo_model.perplexity import LossSums
from elmo_model.training import run_directions


@torch.no_grad()
def plain_losses(softmax, hidden_NP, targets_N):
    logits_NV = functional.linear(hidden_NP.double(), softmax.weight.double())
    return functional.cross_entropy(logits_NV + softmax.bias, targets_N, reduction="none")


@torch.no_grad()
def plain_perplexity(model, softmax, batches):
    """Packed batches in their order, from a zero state."""
    sums, carried = LossSums(model.options.num_directions), None
    for batch in batches:
        hidden, carried = run_directions(model, batch, carried)
        sums.add(
            [
                plain_losses(softmax, top, text.targets_BT.flatten())
                for top, text in zip(hidden, batch.directions, strict=True)
            ]
        )
    return sums.perplexity()
