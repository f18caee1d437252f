"""Where everything is installed, a skipped test counts as failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

def test_that_passes():
    pass

def test_that_skips():
    pytest.skip("the server is missing")

@pytest.mark.gpu
def test_that_needs_a_gpu():
    pytest.skip("no GPU")

@pytest.mark.xfail
def test_of_a_known_fault():
    assert False
"""
MODULE_SKIP = "import pytest\npytest.skip('the package is missing', allow_module_level=True)\n"


def run_pytest(folder: Path, tests: str, require_all: str) -> tuple[int, str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_some.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "ELMO_REQUIRE_ALL": require_all, "PYTHONPATH": str(CONFTEST.parents[1])},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_skips_are_skips_by_default(tmp_path):
    code, out = run_pytest(tmp_path, TESTS, "0")
    assert code == 0
    assert "1 passed, 2 skipped, 1 xfailed" in out


def test_skips_fail_with_their_reason_where_all_is_required(tmp_path):
    code, out = run_pytest(tmp_path, TESTS, "1")
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in out
    assert "the server is missing" in out


def test_a_module_that_skips_itself_fails_too(tmp_path):
    code, out = run_pytest(tmp_path, MODULE_SKIP, "1")
    assert code != 0
    assert "the package is missing" in out
