"""What a processor of this machine does in a second with the bytes and products of an index.

Rates are those of processor time, since others use the machine as well. All files lie in the
system's cache when they are read, for us as for the plain programs. Knows no index's code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from index_corpus import NUM_QUERIES

PIECE_BYTES = 4 << 20
ARRAY_BYTES = 256 << 20
# Rows, elements, lists: one round of comparing rows with an IVF index's lists.
GEMM_SHAPE = (4096, 1024, 512)
# Rounds of k-means that FAISS makes for the lists of an IVF index.
IVF_ROUNDS = 10
NUM_ROUNDS = 5


def measure_limits(paths: Sequence[str], folder: Path) -> dict[str, float]:
    """Bytes, and floating-point operations of float32 products, a processor second; the best.

    Args:
        paths: data files that an index is fed from.
        folder: where a file can be written.
    """
    source = np.ones(ARRAY_BYTES // 8, np.int64)
    target = np.zeros_like(source)
    rows, dim, lists = GEMM_SHAPE
    random = np.random.default_rng(0)
    rows_ND = random.standard_normal((rows, dim), np.float32)
    lists_DL = random.standard_normal((dim, lists), np.float32)
    target_path = folder / "written"
    read_bytes = sum(Path(path).stat().st_size for path in paths)
    rates: dict[str, list[float]] = {}
    for _ in range(NUM_ROUNDS):
        for name, amount, work in (
            ("read_bytes", read_bytes, lambda: _read(paths)),
            ("copied_bytes", ARRAY_BYTES, lambda: np.copyto(target, source)),
            ("scanned_bytes", ARRAY_BYTES, lambda: source.max()),
            ("written_and_synced_bytes", ARRAY_BYTES, lambda: _write(target_path, source)),
            ("product_flop", 2 * rows * dim * lists, lambda: rows_ND @ lists_DL),
        ):
            rates.setdefault(name, []).append(amount / _seconds(work))
    target_path.unlink()
    return {f"{name}_per_cpu_s": round(max(values)) for name, values in rates.items()}


def shares(
    kind: str, result: dict, limits: dict[str, float], shape: tuple[int, int, int]
) -> dict[str, float]:
    """Which part of the measured processor time the machine needs for the least of the same work.

    Args:
        kind: its name.
        result: what was measured of it.
        limits: by `measure_limits`.
        shape: rows, elements, and rows that lists are trained on.
    """
    num_rows, dim, num_train_rows = shape
    fed_s = result["fed"]["cpu_s"]["median"]
    stored_bytes = 2 * num_rows * dim
    moving_s = stored_bytes / limits["read_bytes_per_cpu_s"]
    moving_s += stored_bytes / limits["written_and_synced_bytes_per_cpu_s"]
    found = {"feeding: reading and writing": moving_s / fed_s}
    if kind == "faiss-ivf":
        num_train_rows = min(num_rows, num_train_rows)
        lists = max(1, min(4 * int(num_rows**0.5), num_train_rows // 40))
        flop = 2 * (IVF_ROUNDS * num_train_rows + num_rows) * lists * dim
        found["feeding: products"] = flop / limits["product_flop_per_cpu_s"] / fed_s
    if kind == "faiss-flat":
        searched = result["search"]["one thread"]
        scan_ms = 1000 * stored_bytes / limits["scanned_bytes_per_cpu_s"]
        product_ms = 1000 * 2 * num_rows * dim / limits["product_flop_per_cpu_s"]
        found["one query: scanning its table"] = scan_ms / searched["one_at_a_time_cpu_ms"]
        at_once_ms = searched[f"{NUM_QUERIES}_at_once_cpu_ms"]
        found[f"{NUM_QUERIES} queries: products"] = product_ms / at_once_ms
    return {name: round(value, 3) for name, value in found.items()}


def _read(paths: Sequence[str]) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _write(path: Path, source: np.ndarray) -> None:
    with open(path, "wb", buffering=0) as file:
        for first in range(0, source.nbytes, PIECE_BYTES):
            file.write(source.view(np.uint8)[first : first + PIECE_BYTES])
        os.fsync(file.fileno())


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
