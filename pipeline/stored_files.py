"""File objects and disk operations that `pipeline.storage` is made of. Knows no URLs or fsspec.

On disk a file is written under a hidden name beside its final one, made durable, and then given
its name in one step (`link` where nothing may be there, `replace` otherwise).
"""

from __future__ import annotations

import errno
import io
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeAlias

from pipeline.errors import StorageError, UnsafeStoreError
from pipeline.storage_errors import ShortAnswerError

READ_AHEAD_BYTES = 8 << 20
# After a jump, as readers of Parquet make them, little may be wanted of what follows.
JUMP_BYTES = 256 << 10
PARTIAL_SUFFIX = ".partial"
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")
_WRITE_BUFFER_BYTES = 1 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})

# Called with a verb ("read"), translates the errors of its block.
Reporter: TypeAlias = Callable[[str], AbstractContextManager[None]]


class OutputFile(ABC):
    """A file being written; it exists for others only after `close`, and never after `abort`."""

    _finished = False

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._finished

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes; returns their number.

        Raises:
            StorageError: the store failed; the file must be aborted.
        """
        if self._finished:
            raise ValueError("write to a finished file")
        self._write(data)
        return len(data)

    def close(self) -> None:
        """Make the file durable and visible; nothing happens the second time or after `abort`.

        Raises:
            StorageError: the store failed; the file is aborted.
        """
        if not self._finished:
            self._finished = True
            self._close()

    def abort(self) -> None:
        """Throw away what was written; nothing happens after `close` or the second time."""
        if not self._finished:
            self._finished = True
            self._abort()

    def __del__(self) -> None:
        # A writer that an error left behind must not complete its upload when it is collected.
        self.abort()

    @abstractmethod
    def _write(self, data: bytes | memoryview) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _abort(self) -> None: ...


class LocalOutput(OutputFile):
    """A file on disk."""

    def __init__(self, path: str, reporter: Reporter) -> None:
        self._finished = True  # Until there is something to abort.
        self._path = path
        self._reporter = reporter
        self._partial = partial_path(path)
        make_directory(os.path.dirname(path))
        self._file = open(self._partial, "xb", buffering=_WRITE_BUFFER_BYTES)  # noqa: SIM115
        self._finished = False

    def _write(self, data: bytes | memoryview) -> None:
        with self._reporter("write"):
            self._file.write(data)

    def _close(self) -> None:
        try:
            with self._reporter("write"), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except BaseException:
            self._remove()
            raise
        with self._reporter("write"):
            os.replace(self._partial, self._path)
            sync_directory(os.path.dirname(self._path))

    def _abort(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._remove()

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._partial)


class BufferedOutput(OutputFile):
    """A file that is kept in memory and put as a whole: for stores that live in memory."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._buffer = io.BytesIO()

    def _write(self, data: bytes | memoryview) -> None:
        self._buffer.write(data)

    def _close(self) -> None:
        self._put(self._buffer.getvalue())

    def _abort(self) -> None:
        self._buffer = io.BytesIO()


class UploadOutput(OutputFile):
    """An object that is uploaded in parts while it is written."""

    def __init__(
        self, upload: Any, stored_bytes: Callable[[], int | None], reporter: Reporter
    ) -> None:
        """Upload to an object that nobody else writes.

        Args:
            upload: an open fsspec file with `write`, `close` and `discard`.
            stored_bytes: the size of the object as the store has it, None if it is not there.
            reporter: translates errors.
        """
        self._upload = upload
        self._stored_bytes = stored_bytes
        self._reporter = reporter
        self._num_bytes = 0

    def _write(self, data: bytes | memoryview) -> None:
        with self._reporter("write"):
            self._upload.write(data)
        self._num_bytes += len(data)

    def _close(self) -> None:
        try:
            with self._reporter("write"):
                self._upload.close()
        except BaseException as error:
            if isinstance(error, StorageError) and self._arrived():
                return
            self._abort()
            raise

    def _arrived(self) -> bool:
        # The answer to the last request may be lost: asked again, the store knows of no upload.
        with suppress(StorageError):
            return self._stored_bytes() == self._num_bytes
        return False

    def _abort(self) -> None:
        # Left open, the upload would complete itself when it is collected as garbage.
        self._upload.closed = True
        with suppress(OSError), self._reporter("abort"):
            self._upload.discard()


class RemoteInput(io.RawIOBase):
    """An object that is read by ranges, ahead where it is read in order.

    Its end is where its size says, never where an answer stops: one that is short is an error.
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], size_bytes: int, reporter: Reporter
    ) -> None:
        """Read an object of `size_bytes` by `fetch(start, end)`."""
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._reporter = reporter
        self._position = 0
        self._block = b""
        self._block_start = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move, as files do."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Where the next read starts, in bytes."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Read into `buffer`; returns the number of bytes, 0 only at the end."""
        num_bytes = min(len(buffer), self._size_bytes - self._position)
        if num_bytes <= 0:
            return 0
        skipped = self._position - self._block_start
        if not 0 <= skipped < len(self._block):
            self._load(num_bytes)
            skipped = 0
        data = memoryview(self._block)[skipped : skipped + num_bytes]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Forget what was read ahead."""
        self._block = b""
        super().close()

    def _load(self, num_bytes: int) -> None:
        in_order = self._position == self._block_start + len(self._block)
        length = max(num_bytes, READ_AHEAD_BYTES if in_order else JUMP_BYTES)
        end = min(self._position + length, self._size_bytes)
        with self._reporter("read"):
            block = self._fetch(self._position, end)
            if len(block) != end - self._position:
                raise ShortAnswerError(
                    f"the store sent {len(block)} of the {end - self._position} bytes from byte "
                    f"{self._position}"
                )
        self._block, self._block_start = block, self._position


def walk(
    root: str, prefix: str, max_depth: int | None, *, partial: bool = False
) -> Iterator[tuple[str, os.stat_result]]:
    """Files below `root`/`prefix` with their status, relative to `root`, links followed.

    Files that vanish meanwhile are left out. Those that are still being written, or whose writer
    was killed, come with `partial` and then alone. `max_depth` 1 is the directory alone.
    """
    start = os.path.join(root, prefix) if prefix else root
    seen: set[tuple[int, int]] = set()
    pending = [(start, prefix, 1)]
    while pending:
        directory, name, depth = pending.pop()
        try:
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir():
                if max_depth is None or depth < max_depth:
                    pending.append((entry.path, path, depth + 1))
            elif entry.is_file() and bool(_PARTIAL.fullmatch(entry.name)) is partial:
                with suppress(FileNotFoundError):
                    yield path, entry.stat()


def partial_path(path: str) -> str:
    """A name beside `path` that no reader takes for a file of the store: hidden, and unique."""
    return os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


@contextmanager
def durable_temporary(path: str, data: bytes) -> Iterator[str]:
    """Write `data` durably under a hidden name beside `path`; the name is gone after the block."""
    temporary = partial_path(path)
    make_directory(os.path.dirname(path))
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def link(existing: str, path: str) -> None:
    """Give a file a second name, which must be free.

    Raises:
        FileExistsError: the name is taken.
        UnsafeStoreError: the file system has no hard links.
    """
    try:
        os.link(existing, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise UnsafeStoreError(
                f"{os.path.dirname(path)}: this file system has no hard links "
                f"({error.strerror}), so a commit cannot be exclusive here; use another disk"
            ) from error
        raise


def make_directory(path: str) -> None:
    """Create a directory and its parents durably; nothing happens when it is there."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    with suppress(FileExistsError):
        os.mkdir(path)
        sync_directory(parent)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems keep directories durable and refuse the call.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
