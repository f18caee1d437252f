"""How far a process grows while it feeds an index: a program of its own, for the benchmark.

Takes a configuration as JSON and prints what was done, the growth of its resident memory up to its
peak, and the processor time. What it imports is there before. Knows one index.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]


def growth(configuration: dict) -> dict[str, float]:
    """Run this module on a configuration: MiB from the start of feeding to its peak."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; runpy.run_path"
    command = [sys.executable, "-c", f"{code}({__file__!r}, run_name='__main__')"]
    done = subprocess.run(
        command, input=json.dumps(configuration), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Feed, and print."""
    from pipeline.config import build
    from pipeline.index.config import IndexConfig
    from pipeline.index.kinds import open_feeder
    from pipeline.index.update import plan_update, update_index

    config = build(IndexConfig, json.load(sys.stdin), "benchmark")
    for module in ("pyarrow.parquet", "pipeline.index.faiss_rows"):
        import_module(module)
    feeder = open_feeder(config)
    plan = plan_update(config, feeder, rebuild=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    action = update_index(config, feeder, plan).action
    grown = _status_mib("VmHWM") - before
    print(json.dumps({"action": action, "growth_mib": round(grown)}))


def _status_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
