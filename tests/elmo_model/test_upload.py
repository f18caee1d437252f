"""Index tensors reach the device as they are, and the host does not wait for it."""

from __future__ import annotations

import pytest
import torch

from elmo_model.upload import upload

VALUES = torch.tensor([3, 1, 2])


def test_on_the_cpu_nothing_is_copied():
    assert upload(VALUES, torch.device("cpu")) is VALUES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_goes_on_while_a_gpu_works():
    device = torch.device("cuda")
    upload(VALUES, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = upload(VALUES, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), VALUES)
