"""What holds for the whole tree: no pickle, nothing evaluated, and the page on security is true."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmo_model import files, options, weights
from jobs import configuration
from pipeline import extension_types
from pipeline.snapshot import metadata, run_record
from pipeline.sources import expansion, inspection, parquet

ROOT = Path(__file__).parents[1]
PACKAGES = ("elmo_model", "pipeline", "jobs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGE = (ROOT / "docs/SECURITY.md").read_text()

# What turns bytes into objects or text into code.
FORBIDDEN_IMPORTS = {
    *("pickle", "_pickle", "cPickle", "pickle5", "cloudpickle", "dill", "marshal", "shelve"),
    *("joblib", "jsonpickle", "code", "codeop", "runpy", "xmlrpc", "dbm"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader"),
    *("yaml.FullLoader", "yaml.Loader", "np.load", "numpy.load", "np.fromfile", "os.system"),
    *("os.popen", "ray.cloudpickle.loads", "pa.deserialize", "pa.PyExtensionType"),
    *("pandas.read_pickle", "pd.read_pickle"),
}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "weights_only", "shell"}
# Modules that start programs: of this project's own, with fixed arguments.
# Embedding again in a process of its own, and the C compiler for one file of this package.
STARTS_PROGRAMS = {"pipeline/child_process.py", "elmo_model/kernels/native.py"}
# A worker hands the model's loader to its own child over a pipe of the two; answers are JSON and
# Arrow, since the child is what hostile documents could reach.
PICKLES_TO_ITS_CHILD = {"pipeline/isolation.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression, as it is written."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "", *reversed(parts)])


def dotted_or_none(node: ast.AST) -> str | None:
    return dotted(node) if isinstance(node, ast.Attribute) else None


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or "", *names]
            for name in modules:
                if FORBIDDEN_IMPORTS & set(name.split(".")):
                    yield f"{line}: imports {name}"
        elif isinstance(node, ast.Attribute | ast.Name) and dotted(node) in FORBIDDEN_CALLS:
            yield f"{line}: uses {dotted(node)}"
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_ARGUMENTS:
            yield f"{node.value.lineno}: passes {node.arg}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path):
    found = [item.partition(": ")[2] for item in offences(ast.parse(path.read_bytes()))]
    allowed = ["imports pickle"] if name_of(path) in PICKLES_TO_ITS_CHILD else []
    assert found == allowed


def test_a_worker_unpickles_nothing_that_its_child_says():
    """One `loads`, in what runs in the child, of what its parent wrote."""
    (path,) = (ROOT / name for name in PICKLES_TO_ITS_CHILD)
    tree = ast.parse(path.read_bytes())
    loads = [node for node in ast.walk(tree) if dotted_or_none(node) == "pickle.loads"]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    homes = [f.name for f in functions if any(load in ast.walk(f) for load in loads)]
    assert len(loads) == 1
    assert homes == ["serve"]


@pytest.mark.parametrize(
    "program",
    [
        "import pickle",
        "def f():\n    from ray import cloudpickle",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "yaml.load(text, yaml.Loader)",
        "np.load(p, allow_pickle=True)",
        "f(shell=True)",
    ],
)
def test_the_rule_finds_what_it_forbids(program):
    assert list(offences(ast.parse(program)))


def test_only_two_modules_start_programs():
    for path in MODULES:
        found = re.search(r"\bsubprocess\b|\bos\.exec|\bos\.spawn|\bos\.fork\b", path.read_text())
        assert not found or name_of(path) in STARTS_PROGRAMS, f"{name_of(path)}: {found}"


LIMITS = {
    "manifest": (metadata.MAX_MANIFEST_BYTES >> 20, "MiB"),
    "run record": (run_record.MAX_RECORD_BYTES >> 20, "MiB"),
    "options.json": (options.MAX_OPTIONS_BYTES >> 20, "MiB"),
    "vocabulary": (files.MAX_VOCABULARY_BYTES >> 20, "MiB"),
    "configuration file": (configuration.MAX_CONFIG_BYTES >> 20, "MiB"),
    "values of a configuration": (configuration.MAX_CONFIG_VALUES, ""),
    "columns of a file": (inspection.MAX_COLUMNS, ""),
    "row groups of a Parquet file": (parquet.MAX_FOOTER_ELEMENTS, ""),
    "one value of an input file": (expansion.MAX_VALUE_BYTES >> 20, "MiB"),
}


@pytest.mark.parametrize("what", LIMITS)
def test_the_page_has_the_limits_of_the_code(what):
    number, unit = LIMITS[what]
    assert re.search(rf"^\| [^|]*{re.escape(what)}[^|]* \| {number:,} ?{unit}", PAGE, re.M), what


def test_the_page_says_how_far_bytes_may_expand():
    free, factor = expansion.FREE_EXPANSION_BYTES >> 20, expansion.MAX_EXPANSION
    assert f"{free} MiB and {factor} times" in PAGE
    free, factor = weights.FREE_EXPANSION_BYTES >> 20, weights.MAX_EXPANSION
    assert f"{free} MiB and {factor} times" in PAGE


def test_the_page_lists_the_extension_types():
    for name in extension_types.LET_PASS_TYPES:
        assert f"`{name}`" in PAGE, name
    assert extension_types.UNPICKLING_VARIABLE in PAGE


def test_the_lock_is_exact_and_ci_checks_what_is_installed():
    lines = (ROOT / "requirements.lock").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.]*", line) for line in lines)
    for line in lines:
        name, version = line.split("==")
        found = importlib.metadata.version(name)
        assert found.split("+")[0] == version, f"{name}: {found} is installed, the lock says {line}"
    ci = (ROOT / ".ci/run").read_text()
    assert "-m pip check" in ci
    assert "pip-audit" in PAGE
