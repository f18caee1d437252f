"""Everything that needs a GPU in one go: tests, rooflines, rates, accuracy, memory.

    python -m benchmarks.gpu.run                run from the project's root, in under 8 minutes
    python -m benchmarks.gpu.run --dry-run      tiny sizes on the CPU: does all of it run?

Needs torch, numpy, h5py and safetensors; Triton for the fast kernels, pytest for the tests, and
what `pipeline` imports for one of them. What is missing or fails is written down and costs no other
result. The result is written after every step: to --result, or to $OUT/gpu.json where OUT is set,
or to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu import (
    accuracy,
    memory_limit,
    rooflines,
    stack_rates,
    step_parts,
    text_rates,
    word_rates,
)
from benchmarks.gpu.device_time import Setting, describe_device, model_of

ROOT = Path(__file__).parents[2]
# What a step may need before the clock stops it from being started.
_LEAST_S = 20.0
_TESTS_S = 180
_TESTS = [
    "tests/elmo_model/test_kernel_gpu.py",
    "tests/elmo_model/test_kernel_gpu_graphs.py",
    "tests/elmo_model/test_kernel_gpu_compile.py",
    "tests/elmo_model/test_kernel_gpu_chars.py",
    "tests/elmo_model/test_upload.py",
    "tests/elmo_model/test_devices.py",
]
_MEMORY_TEST = ["tests/pipeline/test_elmo_vectors.py"]


class Run:
    """The result so far, and what adds to it."""

    def __init__(self, setting: Setting, path: Path) -> None:
        self.setting = setting
        self.result: dict[str, Any] = {
            "machine": machine.describe() | describe_device(setting),
            "dry_run": setting.is_dry,
            "seed": 1,
            "repeats": setting.repeats,
            "steps": {},
            "seconds": {},
        }
        self._path = path

    def step(self, name: str, function: Callable[[], Any]) -> Any:
        """Run one step if there is time; write down what it gives, or how it failed."""
        begun = time.monotonic()
        if self.setting.remaining_s() < _LEAST_S:
            found: Any = {"left_out": "no time left"}
        else:
            try:
                found = function()
            except Exception as error:
                lines = traceback.format_exc().strip().splitlines()[-12:]
                found = {"failed": f"{type(error).__name__}: {error}"[:1000], "where": lines}
        self.result["steps"][name] = found
        self.result["seconds"][name] = round(time.monotonic() - begun, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.result, indent=1) + "\n")
        state = next((word for word in ("failed", "left_out") if word in found), "done")
        print(f"{name}: {state} after {self.result['seconds'][name]} s", file=sys.stderr)
        return found


def run_tests(setting: Setting, files: list[str]) -> dict[str, Any]:
    """The tests that are marked as needing a GPU, without the fixtures of the others."""
    if importlib.util.find_spec("pytest") is None:
        return {"left_out": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q"]
    command += ["-m", "gpu", "-rfEs", *(["--collect-only"] if setting.is_dry else []), *files]
    if importlib.util.find_spec("pytest_timeout") is None:
        command += ["-o", "addopts=--import-mode=importlib"]
    limit_s = max(1.0, min(_TESTS_S, setting.remaining_s()))
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        return {"failed": f"not done after {limit_s:.0f} s", "tail": str(error.stdout)[-3000:]}
    tail = (done.stdout + done.stderr).strip().splitlines()[-60:]
    return {"exit_code": done.returncode, "summary": tail[-1] if tail else "", "tail": tail}


def result_path(given: str | None) -> Path:
    """Where the result goes."""
    if given:
        return Path(given)
    folder = os.environ.get("OUT")
    return Path(folder) / "gpu.json" if folder else ROOT / "benchmarks/results/gpu.json"


def main() -> int:
    """Run all steps; 1 if one of them failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=7.5, help="when to start nothing more")
    parser.add_argument("--result", help="the file to write")
    parser.add_argument("--only", nargs="*", help="names of steps")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print("no CUDA device is there; --dry-run needs none", file=sys.stderr)
        return 2
    setting = Setting.dry() if arguments.dry_run else Setting.full(arguments.minutes)
    if setting.is_dry:
        torch.set_num_threads(1)  # tiny sizes gain nothing from more, and lose on a busy machine
    run = Run(setting, result_path(arguments.result))
    files, bilm = model_of(setting)
    found: dict[str, Any] = {}
    steps: dict[str, Callable[[], Any]] = {
        "tests": lambda: run_tests(setting, _TESTS),
        "rooflines": lambda: rooflines.measure(setting, bilm.options.lstm),
        "accuracy": lambda: accuracy.measure(setting, files, bilm),
        "step parts": lambda: step_parts.measure(setting, bilm),
        "stacks": lambda: stack_rates.measure(setting, files, bilm, found.get("rooflines", {})),
        "words": lambda: word_rates.measure(setting, bilm),
        "text": lambda: text_rates.measure(setting, files),
        "memory": lambda: memory_limit.measure(setting, bilm),
        "memory test": lambda: run_tests(setting, _MEMORY_TEST),
    }
    for name, function in steps.items():
        if not arguments.only or name in arguments.only:
            found[name] = run.step(name, function)
    print(json.dumps(run.result["steps"], indent=1))
    return int(any("failed" in step or step.get("exit_code", 0) for step in found.values()))


if __name__ == "__main__":
    sys.exit(main())
