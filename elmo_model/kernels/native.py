"""Build and load the C code of the fused cell. Knows the compiler and the C types, no model.

The code is one small file of plain C. It is compiled for this processor when it is first needed,
which takes under a second, and kept in a cache; so an installed package needs no compiler, and one
that is there is used. Calls release Python's lock.

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
_SOURCE = Path(__file__).with_name("cell.c")
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
    version = hashlib.sha256(_SOURCE.read_bytes() + _machine(compiler).encode()).hexdigest()
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
            command = [compiler, *flags, "-o", temporary, str(_SOURCE), "-lm"]
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
    return library
