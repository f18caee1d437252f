"""Small models, batches and both ways to do the pointwise parts, to test the GPU kernel with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from elmo_model.bilm import BiLM
from elmo_model.directory import ModelFiles, read_files
from elmo_model.kernels import gpu_weights
from elmo_model.kernels.gpu_pointwise import Pointwise, TorchPointwise
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from elmo_model.weights import build
from tests.elmo_model.random_models import write_model

NUM_WORDS = 9
KERNELS = "elmo_model.kernels.gpu_triton"


def model_of(directory: Path, shape: str = "like the released models") -> BiLM:
    """One of `random_models.SHAPES`, float32, on the CPU."""
    files = read_files_of(directory, shape)
    return build(files.options, files.state).requires_grad_(False).eval()


def read_files_of(directory: Path, shape: str = "like the released models") -> ModelFiles:
    """The files of one of `random_models.SHAPES`."""
    paths = write_model(directory, shape)
    return read_files(
        paths["options_file"], paths["weights_file"], paths.get("vocabulary_file"), None
    )


def batch_of(bilm: BiLM, lengths: list[int], *, warm: bool = True, seed: int = 0):
    """The arguments of `StackKernel.run` with random words and, if warm, random states."""
    generator = torch.Generator().manual_seed(seed)
    layout = PackedLayout.of(np.array(lengths, np.int64))
    state = bilm.zero_state(len(lengths))
    width = state.outputs_SLBP.shape[3]
    table_UP = torch.randn(NUM_WORDS, width, generator=generator)
    shape = (bilm.options.num_directions, layout.row_N.size)
    index_SN = torch.randint(0, NUM_WORDS, shape, generator=generator)
    if warm:
        state = BiLMState(
            torch.randn(state.cells_SLBD.shape, generator=generator),
            torch.randn(state.outputs_SLBP.shape, generator=generator),
        )
    return table_UP, index_SN, layout, state


def on(device: str, batch):
    """A batch on a device."""
    table_UP, index_SN, layout, state = batch
    moved = BiLMState(state.cells_SLBD.to(device), state.outputs_SLBP.to(device))
    return table_UP.to(device), index_SN.to(device), layout, moved


def assert_same(found, expected, atol: float) -> None:
    """Compare what two kernels return for one batch, wherever they ran."""
    (found_L, found_state), (expected_L, expected_state) = found, expected
    assert len(found_L) == len(expected_L)
    pairs = [
        *zip(found_L, expected_L, strict=True),
        (found_state.cells_SLBD, expected_state.cells_SLBD),
        (found_state.outputs_SLBP, expected_state.outputs_SLBP),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=0, atol=atol)


def worst_cosine(found_L, expected_L) -> float:
    """The lowest cosine between the vectors of any layer, direction and position."""
    pairs = zip(found_L, expected_L, strict=True)
    return min(
        torch.cosine_similarity(one.cpu().double(), other.cpu().double(), dim=-1).min().item()
        for one, other in pairs
    )


def interpreted_triton(path: Path | None = None) -> ModuleType:
    """The module of the Triton kernels, loaded once more for Triton's interpreter on the CPU.

    What the package imports stays compiled, so that tests on a GPU can run in the same process.
    Another module with kernels may be named by its file.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    path = path or Path(gpu_weights.__file__).with_name("gpu_triton.py")
    spec = importlib.util.spec_from_file_location(f"interpreted_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        # What it imports of the kernels must be interpreted, too.
        patch.delitem(sys.modules, KERNELS, raising=False)
        patch.delattr(KERNELS, raising=False)
        spec.loader.exec_module(module)
        sys.modules.pop(KERNELS, None)  # where it was imported before, that comes back
    return module


def pointwise_of(name: str) -> Pointwise:
    """`torch` or `triton`; skips the test where Triton is missing."""
    return TorchPointwise() if name == "torch" else interpreted_triton().TritonPointwise()
