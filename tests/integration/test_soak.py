"""A short soak: the program behind `make soak`, a round of each kind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Four kinds of trouble on disk and five on S3, in turn; a round may be two nights of one place.
NUM_ROUNDS = 9


@pytest.mark.s3
@pytest.mark.timeout(600)
def test_some_rounds_of_all_kinds_of_trouble_leave_both_snapshots_as_they_must_be(tmp_path):
    result = tmp_path / "soak.json"
    command = [sys.executable, "-m", "tests.soak", "--rounds", str(NUM_ROUNDS), "--seed", "7"]
    done = subprocess.run(
        [*command, "--result", str(result)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(result.read_text())
    assert summary["violation"] is None
    assert summary["rounds"] == NUM_ROUNDS
    kinds = {fault.split()[0].rstrip(":") for fault in summary["faults"]}
    assert {"driver", "actor", "concurrent", "store"} <= kinds
