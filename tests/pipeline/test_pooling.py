"""Pooling takes real tokens only and follows sentence and document borders."""

import numpy as np
import pytest
import torch

from pipeline import pooling

# float32 sums of at most 30 values of size 1.
TOLERANCE = 1e-6


@pytest.fixture
def batch():
    torch.manual_seed(0)
    lengths = torch.tensor([4, 1, 3, 2])
    mask_BT = torch.arange(4) < lengths[:, None]
    mixed_KBTD = torch.randn(2, 4, 4, 5)
    mixed_KBTD[:, ~mask_BT] = 77.0
    return mixed_KBTD, mask_BT, lengths


def _reduce(batch, how):
    """The tokens of a batch in an order of their own, as a kernel leaves them."""
    mixed_KBTD, mask_BT, lengths = batch
    order = torch.randperm(int(lengths.sum()))
    row_M, time_M = (places[order].numpy() for places in torch.nonzero(mask_BT, as_tuple=True))
    tokens_MKP = mixed_KBTD[:, row_M, time_M].transpose(0, 1)
    return pooling.reduce_tokens(tokens_MKP, row_M, time_M, len(lengths), how)


def _plain(tokens_ND, how):
    if how == "first":
        return tokens_ND[0]
    return tokens_ND.max(axis=0) if how == "max" else tokens_ND.mean(axis=0)


@pytest.mark.parametrize("how", ["mean", "max", "first"])
def test_sentences_pool_their_real_tokens(batch, how):
    mixed_KBTD, mask_BT, lengths = batch
    partial = _reduce(batch, how)
    found = pooling.finish_sentences(partial, lengths, how)
    for row, length in enumerate(lengths.tolist()):
        for layer in range(2):
            expected = _plain(mixed_KBTD[layer, row, :length].numpy(), how)
            np.testing.assert_allclose(found[row, layer].numpy(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("how", ["mean", "max", "first"])
def test_documents_pool_the_tokens_of_all_their_sentences(batch, how):
    mixed_KBTD, mask_BT, lengths = batch
    partial = _reduce(batch, how)
    found = pooling.finish_documents(partial, lengths, torch.tensor([1, 2, 1]), how)
    for number, rows in enumerate(([0], [1, 2], [3])):
        tokens = np.concatenate([mixed_KBTD[1, r, : lengths[r]].numpy() for r in rows])
        np.testing.assert_allclose(found[number, 1].numpy(), _plain(tokens, how), atol=TOLERANCE)


def test_normalized_vectors_have_length_one_and_zero_stays_zero():
    vectors = pooling.normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(vectors, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
