"""Finding docstrings without importing anything."""

from __future__ import annotations

import sys
import textwrap

import pytest

from pipeline import documentation
from pipeline.documentation import (
    STANDARD_LIBRARY,
    DocEntry,
    find_source_files,
    read_entries,
    read_module,
    unique_entries,
)
from pipeline.errors import SourceError

TEXT = "This is the documentation of it."


def ids(source: str, module: str = "pkg.mod") -> dict[str, str]:
    entries = read_module(textwrap.dedent(source).encode(), module, "pkg")
    assert all(entry.package == "pkg" and entry.text == TEXT for entry in entries)
    return {entry.id: entry.kind for entry in entries}


def test_modules_classes_functions_and_methods_are_found():
    source = f'''
        """{TEXT}"""
        class Outer:
            """{TEXT}"""
            def __init__(self):
                """{TEXT}"""
            async def run(self):
                """{TEXT}"""
            class Inner:
                """{TEXT}"""
        def function():
            """{TEXT}"""
            def nested():
                """{TEXT}"""
    '''
    assert ids(source) == {
        "pkg.mod": "module",
        "pkg.mod.Outer": "class",
        "pkg.mod.Outer.__init__": "method",
        "pkg.mod.Outer.run": "method",
        "pkg.mod.Outer.Inner": "class",
        "pkg.mod.function": "function",
    }


def test_definitions_in_branches_are_found():
    source = f'''
        import sys
        if sys.platform == "linux":
            def one():
                """{TEXT}"""
        else:
            def two():
                """{TEXT}"""
        try:
            import fast
        except ImportError:
            def three():
                """{TEXT}"""
    '''
    assert set(ids(source)) == {"pkg.mod.one", "pkg.mod.two", "pkg.mod.three"}


def test_private_names_are_skipped():
    source = f'''
        def _private():
            """{TEXT}"""
        class Public:
            def _private(self):
                """{TEXT}"""
            def __len__(self):
                """{TEXT}"""
        class _Private:
            def public(self):
                """{TEXT}"""
    '''
    assert ids(source) == {}


def test_a_private_module_has_only_what_it_exports():
    source = f'''
        """{TEXT}"""
        __all__ = ["exported"]
        __all__ += ["Also"]
        def exported():
            """{TEXT}"""
        def inner():
            """{TEXT}"""
        class Also:
            """{TEXT}"""
            def method(self):
                """{TEXT}"""
    '''
    assert set(ids(source, "pkg._core.mod")) == {
        "pkg._core.mod.exported",
        "pkg._core.mod.Also",
        "pkg._core.mod.Also.method",
    }


@pytest.mark.parametrize("source", [b"def broken(:\n", b"\x00", b"\xff\xfe", b"print 'python 2'"])
def test_what_is_not_python_has_no_entries(source):
    assert read_module(source, "pkg.mod", "pkg") == []


def test_one_entry_per_id_and_one_per_text_of_a_package():
    entries = [
        DocEntry("a", "a.f", "function", "short"),
        DocEntry("a", "a.f", "function", "the longest"),
        DocEntry("a", "a.sub.alias", "function", "the longest"),
        DocEntry("b", "b.f", "function", "the longest"),
    ]
    expected = [entries[1], entries[3]]
    assert unique_entries(entries) == expected
    assert unique_entries(entries[::-1]) == expected


def test_the_standard_library_and_installed_packages_are_found_without_tests_and_copies():
    files = find_source_files()
    modules = {file.module for file in files}
    packages = {file.package for file in files}
    assert {STANDARD_LIBRARY, "numpy", "pytest"} <= packages
    assert {"json.decoder", "numpy.lib", "os"} <= modules
    assert {file.package for file in files if file.module == "os"} == {STANDARD_LIBRARY}
    folders = {part for module in modules for part in module.split(".")[:-1]}
    assert not folders & {"tests", "_vendor", "typeshed", "idlelib"}


def test_nothing_is_imported():
    files = [file for file in find_source_files(["jinja2"]) if file.module == "jinja2.nodes"]
    sys.modules.pop("jinja2.nodes", None)
    entries = [entry for _, batch in read_entries(files) for entry in batch]
    assert entries
    assert "jinja2.nodes" not in sys.modules


def test_processes_change_nothing(monkeypatch):
    monkeypatch.setattr(documentation, "_CHUNK_BYTES", 1 << 15)
    files = find_source_files(["click"])
    alone = list(read_entries(files))
    together = list(read_entries(files, num_processes=2))
    assert alone == together
    assert alone[-1][0] == len(files)
    assert len(alone) > 2


def test_an_unknown_package_is_an_error_that_names_it():
    with pytest.raises(SourceError, match="no Python source of no_such_package"):
        find_source_files(["numpy", "no_such_package"])
