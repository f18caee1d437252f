"""The two processes of the tests share them out, and together say what one would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).with_name("conftest.py")
ROOT = CONFTEST.parents[1]
TESTS = """
import pytest

@pytest.fixture
def ray_cluster():
    return None

def test_with_a_cluster(ray_cluster):
    pass

def test_without():
    pass

def test_that_fails():
    assert False
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.side_by_side", "-p", "no:cacheprovider", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_each_test_runs_once_and_a_failure_in_one_part_is_a_failure(tmp_path):
    code, out = run(tmp_path)
    assert code == 1
    assert "cluster | 1 passed, 2 deselected" in out.replace("=", "").replace(" |  ", " | ")
    assert "2 passed, 1 failed, 0 skipped" in out.splitlines()


def test_a_part_without_tests_is_no_failure(tmp_path):
    code, out = run(tmp_path, "-k", "with_a_cluster")
    assert code == 0
    assert "1 passed, 0 failed, 0 skipped" in out.splitlines()
    code, _ = run(tmp_path, "-k", "no_such_test")
    assert code != 0
