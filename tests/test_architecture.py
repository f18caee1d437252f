"""The rules of the house that a machine can check: who imports whom, and how long a file may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("elmo_model", "pipeline", "jobs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
MAX_LINES = 600

# The files that build a Ray graph or talk to a cluster.
RAY_MODULES = {
    "pipeline/dataset.py",
    "pipeline/plan.py",
    "pipeline/cluster.py",
    "pipeline/count_words.py",
    "pipeline/finish.py",
    "pipeline/maintenance.py",
    "pipeline/pretraining/board.py",
    "pipeline/pretraining/ray_text.py",
    "pipeline/pretraining/ray_train.py",
    "pipeline/pretraining/room.py",
    "pipeline/watch.py",
}
STORE_MODULES = {"pipeline/storage.py", "pipeline/s3_filesystem.py"}
STORE_CLIENTS = {"fsspec", "s3fs", "gcsfs", "boto3", "botocore", "aiobotocore"}
# A torch that is built for CUDA needs these; with another torch, what imports them is not imported.
BROUGHT_BY_TORCH = {"triton"}
# Lower layers must not know of these.
FORBIDDEN = {
    "elmo_model": {"pipeline", "jobs", "ray", "pyarrow", "pydantic"} | STORE_CLIENTS,
    "pipeline": {"jobs"},
    "jobs": {"ray", "torch"} | STORE_CLIENTS,
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level package and the line of every import, also of those in functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield (node.module or "").split(".")[0], node.lineno


def lines_with(path: Path, packages: set[str]) -> list[str]:
    return [f"{name_of(path)}:{line}: {name}" for name, line in imports(path) if name in packages]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package):
    files = [path for path in MODULES if name_of(path).startswith(f"{package}/")]
    assert files
    assert [hit for path in files for hit in lines_with(path, FORBIDDEN[package])] == []


def test_only_the_modules_that_build_a_ray_graph_know_ray():
    files = [path for path in MODULES if name_of(path) not in RAY_MODULES]
    assert [hit for path in files for hit in lines_with(path, {"ray"})] == []


def test_only_storage_knows_the_clients_of_object_stores():
    files = [path for path in MODULES if name_of(path) not in STORE_MODULES]
    assert [hit for path in files for hit in lines_with(path, STORE_CLIENTS)] == []


def test_every_import_is_a_dependency_that_pyproject_names():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {name.lower() for names in lists for name in map(requirement_name, names)}
    distributions = packages_distributions()
    for path in MODULES:
        for name, line in imports(path):
            if name in sys.stdlib_module_names or name in {*PACKAGES, *BROUGHT_BY_TORCH}:
                continue
            owners = {owner.lower() for owner in distributions.get(name, ())}
            assert owners & declared, f"{name_of(path)}:{line}: {name} is not in pyproject.toml"


def requirement_name(requirement: str) -> str:
    return requirement.split(";")[0].split("[")[0].rstrip("0123456789.<>=~!, ")


@pytest.mark.parametrize("path", MODULES + TESTS + BENCHMARKS, ids=name_of)
def test_a_file_has_a_docstring_and_at_most_600_lines(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "a module says what it does and does not know"


def test_nothing_prints_but_what_a_person_runs():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_bytes())):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), (
                f"{name_of(path)}:{node.lineno}: prints; a job returns its result, the rest logs"
            )


def test_no_module_hides_another_of_the_standard_library_or_of_a_dependency():
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) - set(PACKAGES)
    top_level = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    own = {path.stem for path in MODULES + TESTS} | top_level
    assert own & taken - {"__init__", "__main__"} == set()
    junk = {"utils", "util", "common", "helpers", "misc"}
    assert own & junk == set()


def test_tests_mirror_the_packages():
    for path in TESTS:
        folder = path.relative_to(ROOT / "tests").parts[0]
        assert folder.endswith(".py") or folder in (*PACKAGES, "integration"), name_of(path)
        assert not (path.parent / "__init__.py").exists(), "a package in tests hides the real one"
