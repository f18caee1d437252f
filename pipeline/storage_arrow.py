"""A storage as pyarrow reads it. Knows no stores: it is handed what opens a file.

pyarrow's own handler of fsspec file systems takes a body that was cut short for the end of the
file; here files are opened by `Storage.open_input`, which does not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs


class ReadingHandler(pafs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """Lists by fsspec, opens by a function; errors are those of `pipeline.errors`."""

    def __init__(
        self,
        filesystem: Any,
        open_input: Callable[[str], BinaryIO],
        reporting: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """Make a handler for `pyarrow.fs.PyFileSystem`.

        Args:
            filesystem: of fsspec, to list with.
            open_input: opens a path as the file system names it.
            reporting: translates what is raised while such a path is looked at.
        """
        super().__init__(filesystem)
        self._open_input = open_input
        self._reporting = reporting

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """What lies at the paths."""
        with self._reporting(paths[0] if paths else ""):
            found: list[pafs.FileInfo] = super().get_file_info(paths)
        return found

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """What lies in a directory."""
        with self._reporting(selector.base_dir):
            found: list[pafs.FileInfo] = super().get_file_info_selector(selector)
        return found

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """A file to be read in order."""
        return pa.PythonFile(self._open_input(path), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file to be read at any place."""
        return self.open_input_stream(path)
