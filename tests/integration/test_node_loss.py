"""A node of a cluster vanishes in the middle of a run, and another one joins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The four actors had a call in hand each and one that waited; all of it on the lost node is redone.
MAX_REDONE = 4 * 2 * 8


@pytest.mark.timeout(900)
def test_a_lost_node_costs_time_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.node_loss", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    # The program compares each snapshot with the oracle, and fails if one is not right.
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["embed"].get("snapshot") == 1, result
    assert result["embed"]["redone"] <= MAX_REDONE
    for number, outcome in enumerate(result["plan"], 1):
        if "error" in outcome:
            assert outcome["error"] == "ClusterError", outcome
            assert "run it again" in outcome["message"]
            outcome = outcome["again"]
        assert outcome["snapshot"] == number
