"""Say which device and arithmetic a model runs with, or why it cannot. Knows no model."""

from __future__ import annotations

import gc
import re

import torch

from elmo_model.errors import DeviceError

# How the allocators below torch say it where torch has no error of its own for it.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't|not enough)|(CUDA|HIP|XPU|MPS)[a-z ]* out of memory|"
    r"\w+_STATUS_ALLOC_FAILED|std::bad_alloc|cudaErrorMemoryAllocation|"
    r"could not create a (memory object|primitive)|unable to mmap|Cannot allocate memory"
)

# float64 is for judging the others, int8 means quantised weights, and tf32 float32 whose products
# round what they multiply to 11 bits.
TF32 = "tf32"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    TF32: torch.float32,
    "int8": torch.int8,
    "float64": torch.float64,
}


def select_device(name: str) -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is CUDA where there is one.

    Raises:
        DeviceError: an unknown name, or a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device: {name} is not there, torch {torch.__version__} sees {count} CUDA "
                "devices; use auto or cpu, or a torch built for this machine's CUDA"
            )
    return device


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch type of one of `DTYPES`, if matrices of it can be multiplied.

    A CPU without bfloat16 instructions emulates it, which is right but slow. Whether int8 is
    available is known where its kernel is made.

    Raises:
        DeviceError: an unknown name, or arithmetic that torch lacks on this device.
    """
    if name not in DTYPES:
        raise DeviceError(f"dtype: expected {', '.join(DTYPES)}, found {name!r}")
    dtype = DTYPES[name]
    if dtype == torch.int8:
        return dtype
    if name == TF32 and device.type != "cuda":
        raise DeviceError(f"dtype: tf32 is arithmetic of GPUs, not of {device}; use float32")
    probe = torch.ones(4, 4, dtype=dtype, device=device)
    try:
        torch.addmm(probe, probe, probe)
    except RuntimeError as error:
        raise DeviceError(
            f"dtype: torch {torch.__version__} cannot multiply {name} matrices on {device} "
            f"({error}); use float32"
        ) from error
    return dtype


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on a GPU or in the machine.

    torch raises a class of its own for its GPU allocator, and a plain RuntimeError for that of the
    CPU and for those of the libraries below it.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def free_caches() -> None:
    """Give back what torch keeps of freed GPU memory. Costs time: for when memory was short."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
