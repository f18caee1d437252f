"""Build and load the C code, the fused cell and what trains it. Knows compilers and C types only.

The code is three small files of plain C. They are compiled for this processor when they are first
needed, which takes about a second, and kept in a cache; so an installed package needs no compiler,
and one that is there is used. Calls release Python's lock.

Environment: `ELMO_COMPILER` names the compiler (default: `cc`, then `gcc`, then `clang`; empty for
none), `ELMO_KERNEL_CACHE` the cache's folder (default `~/.cache/elmo-nightly/kernels`). Where that
cannot be used, the code is compiled for one process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

COMPILER_VARIABLE = "ELMO_COMPILER"
CACHE_VARIABLE = "ELMO_KERNEL_CACHE"
_FOLDER = Path(__file__).parent
_SOURCES = tuple(_FOLDER / name for name in ("cell.c", "softmax.c", "training.c"))
_HEADERS = (_FOLDER / "numbers.h",)
# Not -ffast-math: a library made with it flushes small numbers to zero in all of the process that
# loads it. These let loops become vector instructions and change nothing outside.
_FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
)
_TARGETS = ("-march=native", "-mcpu=native", None)
_COMPILE_TIMEOUT_S = 120


class Step(ctypes.Structure):
    """`struct step` of cell.c: one time step of one direction; see there for every field."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("product", ctypes.c_void_p),
        ("product_scale", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("cell", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("output_scale", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("clip", ctypes.c_float),
    )


class TrainingStep(ctypes.Structure):
    """`struct training_step` of training.c: one time step and its gradient."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("product", ctypes.c_void_p),
        ("gates", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("cell", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("grad_output", ctypes.c_void_p),
        ("grad_cell", ctypes.c_void_p),
        ("grad_gates", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
        ("clip_before", ctypes.c_float),
        ("clip", ctypes.c_float),
    )


class Convolution(ctypes.Structure):
    """`struct convolution` of training.c: the gradient of the filters of one width."""

    _fields_ = (
        ("words", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("filters", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("chars", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("place", ctypes.c_void_p),
        ("grad_weight", ctypes.c_void_p),
        ("grad_table", ctypes.c_void_p),
    )


class SoftmaxRows(ctypes.Structure):
    """`struct softmax` of softmax.c: the pointwise part of some predictions."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("words", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("column", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("share", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("grad_target", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class NativeCode:
    """The loaded library, or None with the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def load() -> NativeCode:
    """Compile and load the C code; once a process."""
    compiler = _compiler()
    if compiler is None:
        return NativeCode(None, "no C compiler was found")
    try:
        return _build(compiler)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return NativeCode(None, f"{compiler} could not build the fused cell: {error}")


def _build(compiler: str) -> NativeCode:
    try:
        folder = _cache_folder()
    except (OSError, RuntimeError) as error:
        # No home, or none to write to. What is loaded may be removed.
        with tempfile.TemporaryDirectory(prefix="elmo-kernels-") as private:
            path = Path(private) / "cell.so"
            _compile(compiler, path)
            library = _declare(ctypes.CDLL(str(path)))
        return NativeCode(library, f"built by {compiler} for this process alone: {error}")
    source = b"".join(file.read_bytes() for file in (*_SOURCES, *_HEADERS))
    version = hashlib.sha256(source + _machine(compiler).encode()).hexdigest()
    path = folder / f"cell-{version[:32]}.so"
    if not path.exists():
        _compile(compiler, path)
    return NativeCode(_declare(ctypes.CDLL(str(path))), f"built by {compiler}")


def _compiler() -> str | None:
    named = os.environ.get(COMPILER_VARIABLE)
    if named is not None:
        return shutil.which(named) if named else None
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _cache_folder() -> Path:
    """A folder that only this user can write to: code is loaded from it."""
    named = os.environ.get(CACHE_VARIABLE)
    folder = Path(named) if named else Path.home() / ".cache" / "elmo-nightly" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} must belong to this user and be writable by no other")
    return folder


def _machine(compiler: str) -> str:
    """What the compiled code depends on besides its source: a cache may be shared by machines."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        kinds = ("model name", "flags", "Features", "CPU part")
        cpu += "".join(sorted({line for line in lines if line.startswith(kinds)}))
    return "\n".join((cpu, compiler, *_FLAGS))


def _compile(compiler: str, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        for target in _TARGETS:
            flags = [*_FLAGS, *([target] if target else [])]
            command = [compiler, *flags, "-o", temporary, *map(str, _SOURCES), "-lm"]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
            )
            if done.returncode == 0:
                os.replace(temporary, path)
                return
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")
    finally:
        Path(temporary).unlink(missing_ok=True)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name in ("float32", "bfloat16", "int8"):
        function = getattr(library, f"elmo_cell_{name}")
        function.argtypes = [ctypes.POINTER(Step)]
        function.restype = None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.elmo_quantise.argtypes = [size, size, pointer, pointer, pointer]
    library.elmo_quantise.restype = None
    for name in ("float32", "bfloat16"):
        for pass_ in ("forward", "backward"):
            function = getattr(library, f"elmo_training_{pass_}_{name}")
            function.argtypes = [ctypes.POINTER(TrainingStep)]
            function.restype = None
        function = getattr(library, f"elmo_softmax_{name}")
        function.argtypes = [ctypes.POINTER(SoftmaxRows)]
        function.restype = None
        function = getattr(library, f"elmo_max_windows_{name}")
        function.argtypes = [size, size, size, pointer, size, pointer, pointer]
        function.restype = None
    library.elmo_convolution_gradient.argtypes = [ctypes.POINTER(Convolution)]
    library.elmo_convolution_gradient.restype = None
    return library
