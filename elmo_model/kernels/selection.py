"""Say which kernel runs a model, and why. The one place where that is decided.

| where | arithmetic | kernel |
|---|---|---|
| CPU | float32, bfloat16 | `cpu`: packed products; fused cell in C, or in torch without compiler |
| CPU | int8 | `cpu`, only with a compiler and torch's int8 product |
| CUDA | float32, tf32, float16, bfloat16 | `gpu`: both directions at once, the cell in Triton |
| any | float64, and float16 on the CPU | `reference` |

`ELMO_KERNEL=reference` takes the reference wherever it can do the arithmetic, to compare with.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.errors import DeviceError
from elmo_model.kernels.char_cpu import CpuCharCnn
from elmo_model.kernels.char_gpu import GpuCharCnn
from elmo_model.kernels.cpu import CpuKernel
from elmo_model.kernels.cpu_layer import CpuLayer, StepArithmetic
from elmo_model.kernels.float_step import FloatArithmetic
from elmo_model.kernels.gpu import GpuKernel, build_gpu_kernel
from elmo_model.kernels.int8_step import Int8Arithmetic
from elmo_model.kernels.native import NativeCode, load
from elmo_model.kernels.packed_linear import can_pack, can_quantise
from elmo_model.kernels.processor import has_fast_bfloat16
from elmo_model.kernels.protocol import StackKernel
from elmo_model.kernels.reference import ReferenceKernel
from elmo_model.kernels.workers import Workers
from elmo_model.lstm import LstmLayer
from elmo_model.state import cell_dtype
from elmo_model.token_embedding import TokenEmbedding
from elmo_model.upload import upload

KERNEL_VARIABLE = "ELMO_KERNEL"


def takes_reference() -> bool:
    """Whether the environment asks for the readable modules, in prediction and in training."""
    return os.environ.get(KERNEL_VARIABLE) == "reference"


@dataclass(frozen=True)
class Kernels:
    """What runs a model: `stack` its LSTM stacks, `embed` its token embedding.

    `embed` takes int64 ids (N, C) of characters, shifted for prediction, or (N,) of words, in the
    memory of the host; its vectors are on the device.
    """

    stack: StackKernel
    embed: Callable[[Tensor], Tensor]


def select_kernels(
    bilm: BiLM,
    device: torch.device,
    dtype: torch.dtype,
    num_threads: int,
    *,
    tf32: bool = False,
) -> Kernels:
    """The fastest kernels for a model on a device.

    Args:
        bilm: the model with float32 weights on the CPU; it may be changed.
        device: where to run.
        dtype: arithmetic of the LSTMs; torch.int8 for quantised weights.
        num_threads: cores to use on the CPU.
        tf32: let a GPU's float32 products round what they multiply to 11 bits.

    Raises:
        DeviceError: int8 where it is not available.
    """
    workers = Workers(num_threads)
    stack = _select_stack(bilm, device, dtype, workers, tf32=tf32)
    embedding = bilm.token_embedding.to(device=device, dtype=cell_dtype(dtype))
    if isinstance(embedding, TokenEmbedding):
        return Kernels(stack, lambda ids_N: embedding(upload(ids_N, device), shifted=False))
    if isinstance(stack, CpuKernel):
        # A word is spelled once, so in bfloat16 this would hardly be faster, and the error of what
        # comes out three times as large; that of int8 is larger anyway.
        products = torch.bfloat16 if dtype == torch.int8 else torch.float32
        return Kernels(stack, CpuCharCnn(embedding, workers, products))
    if isinstance(stack, GpuKernel):
        return Kernels(stack, GpuCharCnn(embedding))
    return Kernels(stack, lambda chars_NC: embedding(upload(chars_NC, device), shifted=True))


def _select_stack(
    bilm: BiLM, device: torch.device, dtype: torch.dtype, workers: Workers, *, tf32: bool
) -> StackKernel:
    if dtype == torch.int8:
        return _int8_kernel(bilm, device, workers)
    forced = takes_reference()
    if not forced and device.type == "cuda" and dtype != torch.float64:
        return build_gpu_kernel(bilm, dtype, device, tf32=tf32)
    if forced or device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        reason = (
            f"{KERNEL_VARIABLE} says so"
            if forced
            else f"no faster one for {str(dtype).removeprefix('torch.')} on {device.type}"
        )
        for layer in (layer for stack in _stacks(bilm) for layer in stack):
            layer.to(device=device, dtype=dtype)
        return ReferenceKernel(bilm, reason)
    native = load()
    products = "packed products" if can_pack(dtype) else "plain products, torch packs none here"
    return _cpu_kernel(
        bilm,
        lambda layer, place: FloatArithmetic(layer, dtype, native, reads_words=place == 0),
        workers,
        f"{products}; {_cell(native)}",
        _advice(native, dtype),
    )


def _int8_kernel(bilm: BiLM, device: torch.device, workers: Workers) -> StackKernel:
    if device.type != "cpu":
        raise DeviceError(f"dtype: int8 runs on the CPU only, not on {device}; use float16")
    if not bilm.options.lstm.has_projection:
        raise DeviceError("dtype: int8 needs a model with a projection; use float32")
    native = load()
    library = native.library
    if library is None or not can_quantise():
        missing = native.reason if library is None else "torch has no int8 product here"
        raise DeviceError(f"dtype: int8 is not available: {missing}; use float32 or bfloat16")
    return _cpu_kernel(
        bilm,
        lambda layer, place: Int8Arithmetic(layer, library, reads_words=place == 0),
        workers,
        f"int8 products; {_cell(native)}",
        "",
    )


def _cpu_kernel(
    bilm: BiLM,
    arithmetic: Callable[[LstmLayer, int], StepArithmetic],
    workers: Workers,
    reason: str,
    advice: str,
) -> CpuKernel:
    return CpuKernel(
        [
            [CpuLayer(arithmetic(layer, place)) for place, layer in enumerate(stack)]
            for stack in _stacks(bilm)
        ],
        adds_input=bilm.options.lstm.use_skip_connections,
        workers=workers,
        name="cpu",
        reason=f"{reason}; {workers.num_threads} threads",
        advice=advice,
    )


def _cell(native: NativeCode) -> str:
    where = "in C" if native.library is not None else "in torch"
    return f"fused cell {where} ({native.reason})"


def _advice(native: NativeCode, dtype: torch.dtype) -> str:
    if dtype == torch.bfloat16 and not has_fast_bfloat16():
        return "this processor does not multiply bfloat16 itself: float32 is faster here"
    if native.library is None:
        return f"the cell runs in torch, which is slower than in C: {native.reason}"
    return ""


def _stacks(bilm: BiLM) -> list[list[LstmLayer]]:
    stacks = [stack for stack in (bilm.forward_stack, bilm.backward_stack) if stack is not None]
    return [[layer for layer in stack if isinstance(layer, LstmLayer)] for stack in stacks]
