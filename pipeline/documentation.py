"""Find the docstrings of the standard library and the installed packages. Imports none of them.

Files are found by `sysconfig` and parsed by `ast`, so nothing of a package is executed. Left out
are tests, vendored copies of other packages, and what a package calls private (a leading
underscore), unless a private module exports it by `__all__`.
"""

from __future__ import annotations

import ast
import gc
import multiprocessing
import os
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pipeline.errors import SourceError
from pipeline.prose import docstring_to_prose

STANDARD_LIBRARY = "stdlib"
"""The `package` of everything that comes with Python itself."""

MAX_SOURCE_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20
_PUBLIC_METHODS = frozenset({"__init__", "__call__"})
_TEST_DIRECTORIES = frozenset({"benchmarks", "test", "testing", "tests"})
_VENDORED_DIRECTORIES = frozenset(
    {"_vendor", "extern", "third_party", "thirdparty", "thirdparty_files", "typeshed", "vendor"}
)
# Programs that come with Python, and data: no documentation of a library.
_STANDARD_PROGRAMS = frozenset({"ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo"})


@dataclass(frozen=True)
class SourceFile:
    """A Python file: the module's dotted name and the package it belongs to."""

    path: Path
    module: str
    package: str
    size_bytes: int


@dataclass(frozen=True, order=True)
class DocEntry:
    """The prose of one docstring; `kind` is module, class, function or method."""

    package: str
    id: str
    kind: str
    text: str


def find_source_files(packages: Collection[str] | None = None) -> list[SourceFile]:
    """List the Python files of this environment, sorted by module and path.

    Args:
        packages: top-level packages to take, `stdlib` for the standard library; None for all.

    Raises:
        SourceError: one of `packages` is not installed.
    """
    places = sysconfig.get_paths()
    roots = {Path(places["stdlib"]): True}
    roots |= {Path(places[name]): False for name in ("purelib", "platlib")}
    files = [
        file
        for root, is_standard in roots.items()
        for file in _files_below(root, is_standard=is_standard)
        if packages is None or file.package in packages
    ]
    missing = set(packages or ()) - {file.package for file in files}
    if missing:
        raise SourceError(
            f"packages: no Python source of {', '.join(sorted(missing))} in {sys.prefix}; expected "
            f"top-level package names such as numpy, or {STANDARD_LIBRARY}"
        )
    return sorted(files, key=lambda file: (file.module, str(file.path)))


def read_entries(
    files: Sequence[SourceFile], num_processes: int = 1
) -> Iterator[tuple[int, list[DocEntry]]]:
    """Parse files and clean their docstrings, in the given order.

    Args:
        files: what to parse; a file that is not valid Python has no entries.
        num_processes: 1 works in this process.

    Yields: how many of `files` are done, and the entries of those that were not yielded before.
    """
    chunks: list[list[SourceFile]] = [[]]
    size_bytes = 0
    for file in files:
        chunks[-1].append(file)
        size_bytes += file.size_bytes
        if size_bytes >= _CHUNK_BYTES:
            chunks.append([])
            size_bytes = 0
    done = 0
    if num_processes == 1:
        for chunk in chunks:
            done += len(chunk)
            yield done, _read_chunk(chunk)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        for chunk, entries in zip(chunks, pool.map(_read_chunk, chunks), strict=True):
            done += len(chunk)
            yield done, entries


def unique_entries(entries: Sequence[DocEntry]) -> list[DocEntry]:
    """Keep one entry per id and one per text of a package, sorted by package and id.

    Of one id (overloads, a property and its setter) the longest text stays; of one text (aliases,
    inherited descriptions) the shortest id. Equal lengths go by alphabet.
    """
    by_id: dict[str, DocEntry] = {}
    for entry in sorted(entries, key=lambda e: (e.id, -len(e.text), e)):
        by_id.setdefault(entry.id, entry)
    by_text: dict[tuple[str, str], DocEntry] = {}
    for entry in sorted(by_id.values(), key=lambda e: (len(e.id), e.id)):
        by_text.setdefault((entry.package, entry.text), entry)
    return sorted(by_text.values())


def read_module(source: bytes, module: str, package: str) -> list[DocEntry]:
    """Return the entries of one module's source code, in its order; none if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    exported = _exported_names(tree) if _is_private_module(module) else None
    itself: list[_Definition] = [] if exported is not None else [(module, "module", tree)]
    entries = []
    for name, kind, node in [*itself, *_definitions(tree, module, exported)]:
        docstring = ast.get_docstring(node, clean=False)
        text = docstring_to_prose(docstring) if docstring else ""
        if text:
            entries.append(DocEntry(package, name, kind, text))
    return entries


_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Definition: TypeAlias = tuple[str, str, _Documented]


def _definitions(
    node: ast.AST, prefix: str, only: frozenset[str] | None = None
) -> list[_Definition]:
    """List public classes, functions and methods below `node`, in any branch of `if` and `try`."""
    found: list[_Definition] = []
    in_class = isinstance(node, ast.ClassDef)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            public = not child.name.startswith("_") or (in_class and child.name in _PUBLIC_METHODS)
            if not public or (only is not None and child.name not in only):
                continue
            name = f"{prefix}.{child.name}"
            if isinstance(child, ast.ClassDef):
                found.append((name, "class", child))
                found += _definitions(child, name)
            else:
                found.append((name, "method" if in_class else "function", child))
        elif isinstance(child, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            branch = _definitions(child, prefix, only)
            found += [(n, "method" if in_class and k == "function" else k, c) for n, k, c in branch]
    return found


def _exported_names(tree: ast.Module) -> frozenset[str]:
    """Collect the strings that a module assigns or adds to `__all__`."""
    names: set[str] = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            constants = (part for part in ast.walk(node) if isinstance(part, ast.Constant))
            names |= {part.value for part in constants if isinstance(part.value, str)}
    return frozenset(names)


def _is_private_module(module: str) -> bool:
    return any(part.startswith("_") for part in module.split("."))


def _read_chunk(files: Sequence[SourceFile]) -> list[DocEntry]:
    # Syntax trees have no cycles; looking for some among so many nodes costs a fifth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _read_files(files)
    finally:
        if collects:
            gc.enable()


def _read_files(files: Sequence[SourceFile]) -> list[DocEntry]:
    entries = []
    for file in files:
        try:
            source = file.path.read_bytes()
        except OSError:
            continue
        documented = b'"""' in source or b"'''" in source
        if documented and (b"__all__" in source or not _is_private_module(file.module)):
            entries += read_module(source, file.module, file.package)
    return entries


def _files_below(root: Path, *, is_standard: bool) -> Iterator[SourceFile]:
    skipped = _TEST_DIRECTORIES | _VENDORED_DIRECTORIES
    skipped |= _STANDARD_PROGRAMS if is_standard else frozenset()
    for place, names, files in os.walk(root):
        directory = Path(place)
        names[:] = sorted(n for n in names if n.isidentifier() and n not in skipped)
        for name in files:
            stem, _, suffix = name.rpartition(".")
            if suffix not in ("py", "pyi") or not stem.isidentifier() or _is_test(stem):
                continue
            parts = [*directory.relative_to(root).parts, *([] if stem == "__init__" else [stem])]
            if not parts or stem == "__main__":
                continue
            path = directory / name
            size_bytes = path.stat().st_size
            if size_bytes <= MAX_SOURCE_BYTES:
                package = STANDARD_LIBRARY if is_standard else parts[0]
                yield SourceFile(path, ".".join(parts), package, size_bytes)


def _is_test(stem: str) -> bool:
    return stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
