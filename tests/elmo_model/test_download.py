"""Vectors come back from the device as they are, and the host goes on meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elmo_model.download import Download

VALUES = torch.tensor([[0.5, -1.0], [2.0, 65504.0]], dtype=torch.float16)


def test_on_the_cpu_nothing_is_copied():
    assert np.shares_memory(Download(VALUES).result(), VALUES.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_goes_on_while_a_gpu_works():
    values = VALUES.cuda()
    large = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        large = large @ large
    computed = torch.cuda.Event()
    computed.record()
    download = Download(values)
    assert not computed.query()
    assert np.array_equal(download.result(), VALUES.numpy())
