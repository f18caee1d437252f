"""Which device and arithmetic a model runs with."""

import numpy as np
import pytest
import torch

from elmo_model import Encoder
from elmo_model.devices import free_caches, is_out_of_memory, select_device, select_dtype
from elmo_model.errors import DeviceError
from tests.elmo_model.random_models import write_model

SENTENCES = [["the", "cat", "sat"], ["über", "🙂"]]
# Relative rounding of 8 and 11 bits, amplified by random recurrent weights.
TOLERANCES = {"bfloat16": 0.2, "float16": 0.03}


def test_auto_is_cuda_where_there_is_one():
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cpu:0", "mps", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda or cuda:N, found"):
        select_device(name)


def test_a_cuda_device_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match="cuda:99 is not there, .* use auto or cpu"):
        select_device("cuda:99")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(
        DeviceError, match="expected float32, bfloat16, float16, tf32, int8, float64, found 'int4'"
    ):
        select_dtype("int4", torch.device("cpu"))


def test_arithmetic_of_gpus_is_refused_on_a_cpu():
    with pytest.raises(DeviceError, match="tf32 is arithmetic of GPUs, not of cpu; use float32"):
        select_dtype("tf32", torch.device("cpu"))


def test_arithmetic_that_the_device_lacks_is_explained(monkeypatch):
    def lacking(*_):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(torch, "addmm", lacking)
    with pytest.raises(DeviceError, match="cannot multiply float16 matrices on cpu .*use float32"):
        select_dtype("float16", torch.device("cpu"))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_16_bit_arithmetic_stays_near_float32(dtype, tmp_path):
    files = write_model(tmp_path)
    exact = Encoder.from_files(**files, device="cpu").encode(SENTENCES)
    rough = Encoder.from_files(**files, device="cpu", dtype=dtype).encode(SENTENCES)
    assert rough.layers.dtype == getattr(torch, dtype)
    assert rough.state.cells_SLBD.dtype == torch.float32
    difference = (rough.layers.float() - exact.layers).abs().max()
    assert 0 < difference < TOLERANCES[dtype]


@pytest.mark.gpu
def test_a_gpu_gives_the_values_of_the_cpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    files = write_model(tmp_path)
    expected = Encoder.from_files(**files, device="cpu").encode(SENTENCES)
    found = Encoder.from_files(**files, device="cuda", initial_state="zero").encode(SENTENCES)
    assert found.layers.device.type == found.mask.device.type == "cuda"
    torch.testing.assert_close(found.layers.cpu(), expected.layers, rtol=0, atol=1e-5)


def test_the_allocators_own_errors_are_recognised():
    free_caches()
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.int8)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


def test_an_error_of_another_kind_is_no_lack_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))
