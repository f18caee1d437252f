"""The GPU's kernel gives the reference's numbers: here on the CPU, its Triton parts interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elmo_model.encoder import Encoder
from elmo_model.kernels import gpu
from elmo_model.kernels.char_gpu import GpuCharCnn
from elmo_model.kernels.gpu import GpuKernel, build_gpu_kernel
from elmo_model.kernels.gpu_buffers import cut_steps
from elmo_model.kernels.gpu_pointwise import TorchPointwise
from elmo_model.kernels.gpu_weights import stack_layers
from elmo_model.kernels.reference import ReferenceKernel
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from elmo_model.weights import build
from elmo_model.word_cache import WordCache
from tests.elmo_model.gpu_batches import (
    assert_same,
    batch_of,
    interpreted_triton,
    model_of,
    on,
    pointwise_of,
    read_files_of,
    worst_cosine,
)
from tests.elmo_model.random_models import SHAPES

# Another order of the same float32 sums, seven steps deep.
ATOL = 5e-6
# A GPU's exponentials are a few units less exact in the last place.
GPU_ATOL = 2e-5
# 11 and 8 bits of precision; random recurrent weights amplify what a trained model would not.
MIN_COSINE = {torch.float16: 0.9999, torch.bfloat16: 0.998}
MIXED = [3, 2, 0, 7, 5]
BATCHES = {
    "rows of different lengths, one of them empty": MIXED,
    "empty sentences": [2, 2, 2],
    "one row": [7],
    "one short row": [2],
    "more rows than a tile": [4, 2, 3, 4, 4, 2, 5, 3, 3],
    "rows without positions": [0, 0],
    "no rows": [],
}
POINTWISE = ["torch", "triton"]
CUDA = torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def kernel_of(bilm, pointwise, dtype=torch.float32):
    return GpuKernel(stack_layers(bilm, dtype), pointwise_of(pointwise))


def reference(bilm, batch):
    return ReferenceKernel(bilm, "test").run(*batch)


@pytest.mark.parametrize("pointwise", POINTWISE)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model_gives_the_references_layers_and_states(shape, pointwise, tmp_path):
    bilm = model_of(tmp_path, shape)
    batch = batch_of(bilm, MIXED)
    assert_same(kernel_of(bilm, pointwise).run(*batch), reference(bilm, batch), ATOL)


@pytest.mark.parametrize("pointwise", POINTWISE)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "zero"])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_every_kind_of_batch_gives_the_references_layers_and_states(
    lengths, warm, pointwise, tmp_path
):
    bilm = model_of(tmp_path)
    batch = batch_of(bilm, lengths, warm=warm)
    assert_same(kernel_of(bilm, pointwise).run(*batch), reference(bilm, batch), ATOL)


@pytest.mark.parametrize("pointwise", POINTWISE)
@pytest.mark.parametrize("dtype", MIN_COSINE, ids=str)
def test_16_bit_arithmetic_keeps_the_direction_of_every_vector(dtype, pointwise, tmp_path):
    bilm = model_of(tmp_path)
    batch = batch_of(bilm, MIXED)
    layers, state = kernel_of(bilm, pointwise, dtype).run(*batch)
    assert {layer.dtype for layer in (*layers, state.outputs_SLBP)} == {dtype}
    assert state.cells_SLBD.dtype == torch.float32
    assert worst_cosine(layers, reference(bilm, batch)[0]) > MIN_COSINE[dtype]


def test_columns_beyond_one_tile_are_worked_on(tmp_path, monkeypatch):
    bilm = model_of(tmp_path)
    batch = batch_of(bilm, [3, 2])
    triton = interpreted_triton()
    monkeypatch.setattr(triton, "_BLOCK_COLUMNS", 8)
    kernel = GpuKernel(stack_layers(bilm, torch.float32), triton.TritonPointwise())
    assert_same(kernel.run(*batch), reference(bilm, batch), ATOL)


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_what_is_not_a_number_stays_so_in_its_row_and_spoils_no_other(pointwise, tmp_path):
    bilm = model_of(tmp_path)
    table_UP, index_SN, layout, state = batch_of(bilm, [3, 4])
    clean, _ = reference(bilm, (table_UP, index_SN, layout, state))
    table_UP = torch.cat([table_UP, torch.full_like(table_UP[:1], torch.nan)])
    rows_N = torch.from_numpy(layout.row_N)
    index_SN[:, rows_N == 0] = len(table_UP) - 1
    layers, _ = kernel_of(bilm, pointwise).run(table_UP, index_SN, layout, state)
    for found, expected in zip(layers, clean, strict=True):
        assert found[:, rows_N == 0].isnan().all()
        torch.testing.assert_close(
            found[:, rows_N == 1], expected[:, rows_N == 1], rtol=0, atol=ATOL
        )


@pytest.mark.parametrize("shape", ["three layers", "three layers without skip connections"])
@pytest.mark.parametrize("limit", ["_MAX_TABLE_BYTES", "_BLOCK_BYTES"])
def test_little_room_for_gates_changes_nothing(limit, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, limit, 1)
    bilm = model_of(tmp_path, shape)
    batch = batch_of(bilm, MIXED)
    assert_same(kernel_of(bilm, "torch").run(*batch), reference(bilm, batch), ATOL)


def test_a_batch_may_go_on_where_the_last_one_ended(tmp_path):
    bilm = model_of(tmp_path)
    kernel = kernel_of(bilm, "torch")
    table_UP, index_SN, layout, state = batch_of(bilm, [6, 6])
    whole, final = kernel.run(table_UP, index_SN, layout, state)
    parts, half = [], PackedLayout.of(np.array([3, 3]))
    for steps in (slice(0, 6), slice(6, 12)):
        layers, state = kernel.run(table_UP, index_SN[:, steps], half, state)
        parts.append(layers)
    joined = [torch.cat(pair, 1) for pair in zip(*parts, strict=True)]
    assert_same((joined, state), (whole, final), ATOL)


def test_the_state_that_is_given_is_left_as_it_was(tmp_path):
    bilm = model_of(tmp_path)
    table_UP, index_SN, layout, state = batch_of(bilm, MIXED)
    before = BiLMState(state.cells_SLBD.clone(), state.outputs_SLBP.clone())
    kernel_of(bilm, "torch").run(table_UP, index_SN, layout, state)
    assert torch.equal(before.cells_SLBD, state.cells_SLBD)
    assert torch.equal(before.outputs_SLBP, state.outputs_SLBP)


def test_what_comes_out_can_be_trained_on(tmp_path):
    bilm = model_of(tmp_path)
    layers, _ = kernel_of(bilm, "torch").run(*batch_of(bilm, MIXED))
    assert not layers[0].is_inference()
    assert not layers[0].requires_grad


def test_torchs_own_settings_are_left_as_they_were(tmp_path):
    bilm = model_of(tmp_path)
    before = torch.get_float32_matmul_precision()
    kernel = GpuKernel(stack_layers(bilm, torch.float32), TorchPointwise(), tf32=before != "high")
    kernel.run(*batch_of(bilm, MIXED))
    assert torch.get_float32_matmul_precision() == before


def test_steps_are_cut_into_blocks_of_at_least_one():
    assert cut_steps([5, 5, 4, 1, 1], 6) == [range(1), range(1, 2), range(2, 5)]
    assert cut_steps([5, 5], 1) == [range(1), range(1, 2)]
    assert cut_steps([3, 3], 100) == [range(2)]
    assert cut_steps([], 6) == []


def test_a_kernel_says_what_it_is_and_why(tmp_path):
    kernel = build_gpu_kernel(model_of(tmp_path), torch.float32)
    assert (kernel.name, kernel.reason) == ("gpu", "not on CUDA")


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_an_encoder_gives_the_same_layers_with_this_kernel(pointwise, tmp_path):
    sentences = [["the", "cat", "sat"], [], ["über", "🙂"], ["a"] * 9]
    files = read_files_of(tmp_path)
    encoder = Encoder(files, device="cpu")
    expected = encoder.encode(sentences)
    bilm = build(files.options, files.state).requires_grad_(False)
    encoder.kernel = kernel_of(bilm, pointwise)
    encoder._embed_ids = GpuCharCnn(bilm.token_embedding)
    encoder._cache = WordCache(encoder._embed, 100)
    found = encoder.encode(sentences)
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.state.cells_SLBD, expected.state.cells_SLBD, rtol=0, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_gives_the_references_numbers(shape, tmp_path):
    bilm = model_of(tmp_path, shape)
    batch = batch_of(bilm, MIXED)
    expected = reference(bilm, batch)
    kernel = build_gpu_kernel(bilm, torch.float32, CUDA)
    for _ in range(3):  # without a recording, while it is made, and from it
        assert_same(kernel.run(*on("cuda", batch)), expected, GPU_ATOL)
    assert kernel.reason == "CUDA with Triton"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_a_gpu_runs_every_kind_of_batch(lengths, tmp_path):
    bilm = model_of(tmp_path)
    batch = batch_of(bilm, lengths)
    expected = reference(bilm, batch)
    kernel = build_gpu_kernel(bilm, torch.float32, CUDA)
    for _ in range(3):
        assert_same(kernel.run(*on("cuda", batch)), expected, GPU_ATOL)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", MIN_COSINE, ids=str)
def test_a_gpu_keeps_the_direction_of_every_vector_in_16_bits(dtype, tmp_path):
    bilm = model_of(tmp_path)
    batch = batch_of(bilm, MIXED)
    expected, _ = reference(bilm, batch)
    layers, _ = build_gpu_kernel(bilm, dtype, CUDA).run(*on("cuda", batch))
    assert worst_cosine(layers, expected) > MIN_COSINE[dtype]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "recorded"])
def test_the_host_does_not_wait_for_the_gpu(graphs, tmp_path):
    bilm = model_of(tmp_path)
    kernel = build_gpu_kernel(bilm, torch.float16, CUDA, graphs=graphs)
    batch = on("cuda", batch_of(bilm, MIXED))
    for _ in range(3):
        kernel.run(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel.run(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
