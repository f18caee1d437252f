"""The Triton kernels compile for an H100 without one: nothing is spilled, and loads are wide."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ELEMENTS = ("fp16", "bf16", "fp32")
CELL = {
    "gates_SRG": "element",
    "source_SUG": "element",
    "index_SR": "i64",
    "bias_SG": "fp32",
    "live_1": "i64",
    "cell_SRD": "fp32",
    "hidden_SRD": "element",
}
CARRY = {
    "projected_SRP": "element",
    "inputs_SRP": "element",
    "live_1": "i64",
    "output_SRP": "element",
    "packed_SRP": "element",
}
# Steps begin anywhere in these, so nothing can be said of their alignment.
UNALIGNED = {"index_SR", "live_1", "index_stride"}
# At original size a thread reads 8 elements of a row: at most 16 bytes at a time.
WIDE_LOADS = {"cell": 4 + 4 + 1, "carry": 2}


def ptx_of(kernel: str, element: str) -> str:
    """What Triton makes of a kernel for an H100, with the alignment of the original's widths."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from elmo_model.kernels import gpu_triton

    function = {"cell": gpu_triton.cell_kernel, "carry": gpu_triton.carry_kernel}[kernel]
    pointers = {"cell": CELL, "carry": CARRY}[kernel]
    names = function.arg_names
    kinds = {name: "constexpr" if name.isupper() else "i32" for name in names}
    for name, kind in pointers.items():
        kinds[name] = "*" + (element if kind == "element" else kind)
    settings = {
        "CLIP": 3.0,
        "ADDS_INPUT": True,
        "ROWS": gpu_triton._BLOCK_ROWS,
        "COLUMNS": gpu_triton._BLOCK_COLUMNS,
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if not name.isupper() and name not in UNALIGNED
    }
    constants = {name: settings[name] for name in names if name.isupper()}
    source = ASTSource(function, kinds, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", 90, 32)
    options = {"num_warps": gpu_triton._NUM_WARPS}
    return triton_compile(source, target, options)


def triton_compile(source, target, options) -> str:
    import triton

    return triton.compile(source, target=target, options=options).asm["ptx"]


def assembler() -> Path:
    """The assembler that comes with Triton; skips the test where there is none."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    path = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    if not path.is_file():
        pytest.skip("this Triton brings no assembler")
    return path


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("kernel", ["cell", "carry"])
def test_a_kernel_compiles_for_an_h100_without_spilling(kernel, element, tmp_path, monkeypatch):
    ptxas = assembler()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    ptx = ptx_of(kernel, element)
    (tmp_path / "kernel.ptx").write_text(ptx)
    done = subprocess.run(
        [ptxas, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
    wide = re.findall(r"ld\.global\S*\.v4\.b32", ptx)
    assert len(wide) >= WIDE_LOADS[kernel]
