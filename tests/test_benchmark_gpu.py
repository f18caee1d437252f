"""What is measured on a GPU runs through without one, so that a lent GPU's time is not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.device_time import Setting
from benchmarks.gpu.run import Run
from elmo_model.kernels.gpu_pointwise import TorchPointwise
from elmo_model.kernels.gpu_weights import stack_layers
from tests.elmo_model.gpu_batches import interpreted_triton, model_of

ROOT = Path(__file__).parents[1]
STEPS = {
    "tests",
    "rooflines",
    "accuracy",
    "step parts",
    "stacks",
    "words",
    "text",
    "memory",
    "memory test",
}
# float32 sums in another order.
FUSED_ATOL = 2e-6
# What a machine with a GPU may lack: nothing but the tests may need any of it.
MISSING = ("ray", "pyarrow", "pydantic", "fsspec", "pytest", "triton", "yaml")
BLOCKER = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_unless_missing(name, path=None, target=None):
    return None if name.split(".")[0] in {MISSING!r} else find(name, path, target)

PathFinder.find_spec = find_unless_missing
"""


def run_benchmark(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **variables}
    environment.setdefault("PYTHONPATH", str(ROOT))
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.run", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_every_step_runs_through_without_a_gpu(tmp_path):
    done = run_benchmark("--dry-run", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert set(result["steps"]) == STEPS
    assert '"failed"' not in json.dumps(result)
    assert result["dry_run"] is True


def test_only_the_tests_need_more_than_the_models_own_packages(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_benchmark("--dry-run", "--result", str(tmp_path / "gpu.json"), PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {name for name, step in steps.items() if "left_out" in step} == {
        "tests",
        "memory test",
        "memory",
    }


def test_a_step_that_fails_costs_no_other_result(tmp_path):
    run = Run(Setting.dry(), tmp_path / "gpu.json")
    run.step("first", lambda: {"rate": 1})
    run.step("second", lambda: 1 / 0)
    run.step("third", lambda: {"rate": 3})
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert steps["first"] == {"rate": 1}
    assert steps["second"]["failed"] == "ZeroDivisionError: division by zero"
    assert steps["third"] == {"rate": 3}


def test_nothing_is_started_when_the_time_is_up(tmp_path):
    run = Run(replace(Setting.dry(), deadline=0.0), tmp_path / "gpu.json")
    assert run.step("late", lambda: 1 / 0) == {"left_out": "no time left"}


@pytest.mark.parametrize("shape", ["like the released models", "clips active", "no clips"])
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_the_fused_candidate_computes_product_and_cell(shape, rows, tmp_path):
    fused = interpreted_triton(ROOT / "benchmarks/gpu/fused_step.py")
    layer = stack_layers(model_of(tmp_path, shape), torch.float32)[0]
    generator = torch.Generator().manual_seed(rows)
    random = partial(torch.randn, generator=generator)
    output, source = random(2, rows, layer.width), random(2, 7, 4 * layer.dim)
    index = torch.randint(0, 7, (2, rows), generator=generator)
    cell, live = random(2, rows, layer.dim), torch.tensor([max(1, rows - 2)])
    expected_cell, expected = cell.clone(), torch.empty(2, rows, layer.dim)
    gates = torch.bmm(output, layer.recurrent_SPG)
    TorchPointwise().cell(layer, gates, source, index, live, expected_cell, expected)
    found = torch.empty_like(expected)
    tile = fused.Tile(16, 16, 16, 4, 2)
    fused.fused_cell(layer, output, (source, index), live, cell, found, tile)
    torch.testing.assert_close(cell, expected_cell, rtol=0, atol=FUSED_ATOL)
    alive = slice(0, int(live))
    torch.testing.assert_close(found[:, alive], expected[:, alive], rtol=0, atol=FUSED_ATOL)
