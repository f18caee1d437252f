"""A recorded batch gives the numbers of any other. Without a GPU, recording is a stand-in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elmo_model.kernels import gpu_graphs
from elmo_model.kernels.gpu import GpuKernel, build_gpu_kernel
from elmo_model.kernels.gpu_graphs import GraphRunner, bucket_of
from elmo_model.kernels.gpu_weights import stack_layers
from elmo_model.kernels.reference import ReferenceKernel
from elmo_model.packing import PackedLayout
from tests.elmo_model.gpu_batches import assert_same, batch_of, model_of, on, pointwise_of
from tests.elmo_model.random_models import SHAPES

# Another order of the same float32 sums, eight steps deep.
ATOL = 5e-6
POINTWISE = ["torch", "triton"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Recorder:
    """Runs a function once, as a recording does, and counts how often it is repeated."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function):
        function()
        self.recorded += 1

        def replay():
            self.replayed += 1
            function()

        return replay


def recording_kernel(bilm, pointwise="torch", record=None):
    kernel = GpuKernel(stack_layers(bilm, torch.float32), pointwise_of(pointwise))
    recorder = record or Recorder()
    kernel.use_graphs(GraphRunner(kernel.run_rectangle, recorder))
    return kernel, recorder


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_a_recording_serves_batches_of_other_lengths_and_states(pointwise, tmp_path):
    bilm = model_of(tmp_path)
    kernel, recorder = recording_kernel(bilm, pointwise)
    for seed, lengths in enumerate(
        [[3, 2, 5], [2, 4], [5, 0, 3, 2], [1], [8, 2, 2, 2, 2, 2, 2, 2]]
    ):
        batch = batch_of(bilm, lengths, seed=seed)
        assert_same(kernel.run(*batch), ReferenceKernel(bilm, "test").run(*batch), ATOL)
    assert (recorder.recorded, recorder.replayed) == (1, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model_can_be_recorded(shape, tmp_path):
    bilm = model_of(tmp_path, shape)
    kernel, recorder = recording_kernel(bilm)
    for lengths in ([3, 2], [3, 2, 0, 7, 5]):
        batch = batch_of(bilm, lengths)
        assert_same(kernel.run(*batch), ReferenceKernel(bilm, "test").run(*batch), ATOL)
    assert recorder.replayed == 1


def test_results_outlive_the_next_batch(tmp_path):
    bilm = model_of(tmp_path)
    kernel, _ = recording_kernel(bilm)
    batches = [batch_of(bilm, [3, 4], seed=seed) for seed in range(3)]
    results = [kernel.run(*batch) for batch in batches]
    for batch, found in zip(batches, results, strict=True):
        assert_same(found, ReferenceKernel(bilm, "test").run(*batch), ATOL)


def test_a_recording_that_fails_is_said_and_the_batch_runs_without(tmp_path):
    def fail(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    bilm = model_of(tmp_path)
    kernel, _ = recording_kernel(bilm, record=fail)
    batch = batch_of(bilm, [3, 4])
    for _ in range(3):
        assert_same(kernel.run(*batch), ReferenceKernel(bilm, "test").run(*batch), ATOL)
    assert "nothing is recorded, since it failed: operation not permitted" in kernel.reason


def test_the_recording_unused_for_longest_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_graphs, "_MAX_RECORDINGS", 2)
    bilm = model_of(tmp_path)
    kernel, recorder = recording_kernel(bilm)
    for lengths in ([3], [3], [9], [9], [3], [17], [17], [3], [9]):
        kernel.run(*batch_of(bilm, lengths))
    assert recorder.recorded == 4  # [9] had to go when [17] came, and was made again


def test_recordings_are_dropped_where_a_batch_does_not_fit_into_memory(tmp_path, monkeypatch):
    bilm = model_of(tmp_path)
    kernel, recorder = recording_kernel(bilm)
    small = batch_of(bilm, [3, 4])
    for _ in range(2):
        kernel.run(*small)

    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr(kernel, "_run_packed", too_large)
        with pytest.raises(torch.OutOfMemoryError):
            kernel.run(*batch_of(bilm, [2] * 600))
    assert len(kernel._graphs) == 0
    for _ in range(3):
        assert_same(kernel.run(*small), ReferenceKernel(bilm, "test").run(*small), ATOL)
    assert recorder.recorded == 2


def test_rows_and_steps_are_rounded_up():
    assert bucket_of(5, 7) == (8, 8)
    assert bucket_of(8, 8) == (8, 8)
    assert bucket_of(300, 40) == (384, 40)
    assert bucket_of(1100, 9) == (1536, 16)


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ([], False),
        ([30], True),
        ([20] * 500, True),
        ([2] * 513, False),
        ([40] * 512, False),
        ([64] + [3] * 127, False),
    ],
    ids=["nothing", "one row", "many rows", "more rows", "many positions", "mostly padding"],
)
def test_only_batches_that_gain_are_recorded(lengths, wanted):
    runner = GraphRunner(lambda rectangle: None, Recorder())
    assert runner.wants(PackedLayout.of(np.array(lengths, np.int64))) is wanted


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_cuda_graph_gives_what_it_was_recorded_from(dtype, tmp_path):
    bilm = model_of(tmp_path)
    kernel = build_gpu_kernel(bilm, dtype, torch.device("cuda"))
    plain = build_gpu_kernel(bilm, dtype, torch.device("cuda"), graphs=False)
    # Products of other numbers of rows may sum in another order, and round otherwise at the end.
    atol = {torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    for seed, lengths in enumerate(
        [[3, 2, 5], [2, 4], [5, 0, 3, 2], [1], [8, 2, 2, 2, 2, 2, 2, 2]]
    ):
        batch = on("cuda", batch_of(bilm, lengths, seed=seed))
        assert_same(kernel.run(*batch), plain.run(*batch), atol)
    assert "failed" not in kernel.reason
    assert len(kernel._graphs) == 1
