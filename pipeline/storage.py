"""Files in object stores and on disk: list, read, write, put-if-absent. Knows no snapshots.

The only module that imports fsspec, and s3fs by way of `s3_filesystem`. A `Storage` is a directory
of a store, given by URL; all its paths are relative to it and cannot leave it. Listings are never
cached, so a file is seen as soon as it is committed. Errors of all stores come out as those of
`pipeline.errors`, with the object's URL and without credentials. What fails in passing is tried
again within the limits of `storage_retry`; a read never ends before the object does.

Guarantees of the writing calls, which the snapshot protocol rests on:
    put_if_absent   the whole content or nothing, and only one of several concurrent calls succeeds;
    put             the whole content or nothing, replacing what was there;
    open_output     the file appears whole when it is closed, and never when it is aborted.
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

import pyarrow.fs as pafs

from pipeline.errors import (
    AlreadyExistsError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    StorageError,
    UnknownOutcomeError,
    UnsafeStoreError,
)
from pipeline.storage_arrow import ReadingHandler
from pipeline.storage_errors import error_code, reporting
from pipeline.storage_retry import ENVIRONMENT_PREFIX, RetryPolicy
from pipeline.storage_urls import (
    GLOB_CHARACTERS,
    MAX_PATH_BYTES,
    MAX_SEGMENT_BYTES,
    SCHEME,
    check_path,
    has_credentials,
    redact_url,
    split_pattern,
)
from pipeline.stored_files import (
    BufferedOutput,
    LocalOutput,
    OutputFile,
    RemoteInput,
    Reporter,
    UploadOutput,
    durable_temporary,
    link,
    sync_directory,
    walk,
)

__all__ = [
    "FileInfo",
    "OutputFile",
    "Storage",
    "open_storage",
    "probe",
    "redact_url",
    "split_pattern",
]

UPLOAD_PART_BYTES = 16 << 20
PROBE_WRITERS = 8

_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_memory_lock = threading.Lock()
_filesystems: dict[tuple[Any, ...], Any] = {}
_filesystems_lock = threading.Lock()


@dataclass(frozen=True)
class FileInfo:
    """One stored file.

    `path` is relative to the storage, `modified_at` in whole seconds since 1970. `version` differs
    between two contents of the path: the ETag of an object, the modification time in nanoseconds of
    a local file.
    """

    path: str
    size_bytes: int
    version: str
    modified_at: int


def open_storage(url: str, options: Mapping[str, Any] | None = None) -> Storage:
    """Open a directory of a store; nothing is read or created yet.

    Args:
        url: s3://bucket/path, gs://bucket/path, file:///path, memory://path (of this process
            alone), another fsspec URL, or a plain path (`~` is the home directory, a relative one
            is made absolute).
        options: further arguments of the fsspec file system, for example `endpoint_url`. Without
            them the client takes credentials and endpoint from the environment, as its SDK does.

    Raises:
        ConfigError: no such protocol, its package is not installed, credentials in the URL, or a
            bucket is missing from it.
    """
    if not url or "\0" in url:
        raise ConfigError(f"storage: {url!r} is not a URL or a path")
    match = SCHEME.match(url)
    if match is None or match[1] == "file":
        path = url[match.end() :] if match else url
        return Storage("file", os.path.abspath(os.path.expanduser(path)), options)
    scheme = _ALIASES.get(match[1].lower(), match[1].lower())
    root = url[match.end() :].strip("/")
    if has_credentials(url):
        raise ConfigError(
            f"{redact_url(url)}: credentials do not belong in a URL; give them by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role)"
        )
    if not root and scheme != "memory":
        raise ConfigError(f"{url}: the name of the bucket is missing")
    check_path(root, url)
    return Storage(scheme, root, options)


class Storage:
    """A directory of an object store or a disk, made by `open_storage`; safe to share and pickle.

    Every method raises ConfigError (no credentials, access denied, no such bucket, a path that
    would leave the storage), StorageError (the store failed in all attempts) and, where
    a file is asked for that is not there, MissingFileError.
    """

    def __init__(self, scheme: str, root: str, options: Mapping[str, Any] | None = None) -> None:
        self._scheme = scheme
        self._root = root
        self._options = dict(options or {})
        # The client is made here, so that an unknown protocol is an error before any work.
        self._filesystem: Any = None
        if not self.is_local:
            self._filesystem = _open_filesystem(scheme, self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self._scheme, self._root, self._options))

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def url(self) -> str:
        """The storage's own URL without a slash at the end; for local disk its absolute path."""
        return self._root if self.is_local else f"{self._scheme}://{self._root}"

    @property
    def is_local(self) -> bool:
        """Whether the files are on disk, at the path that `url_of` gives."""
        return self._scheme == "file"

    def url_of(self, path: str) -> str:
        """The URL of a file; for local disk its absolute path."""
        self._check(path)
        return self._where(path)

    def list_files(self, prefix: str = "") -> list[FileInfo]:
        """All files in the directory `prefix` and below, sorted by path; none if it is missing."""
        return self._list(prefix.rstrip("/"), None)

    def list_partial_files(self) -> list[FileInfo]:
        """Hidden files of writers that are at work, or were killed; none in object stores."""
        if not self.is_local:
            return []
        with self._reporting("list", ""):
            walked = walk(self._root, "", None, partial=True)
            found = [_local_info(path, status) for path, status in walked]
        return sorted(found, key=lambda info: info.path)

    def glob(self, pattern: str) -> list[FileInfo]:
        """The files whose path matches, sorted: `*`, `?`, `[...]` in a name, `**` across them."""
        from fsspec.utils import glob_translate

        self._check(pattern)
        magic = GLOB_CHARACTERS.search(pattern)
        if magic is None:
            info = self.info_or_none(pattern)
            return [info] if info else []
        fixed = pattern[: max(pattern.rfind("/", 0, magic.start()), 0)]
        depth = None if "**" in pattern else pattern.count("/") - fixed.count("/") + (not fixed)
        matches = re.compile(glob_translate(pattern)).match
        return [info for info in self._list(fixed, depth) if matches(info.path)]

    def info(self, path: str) -> FileInfo:
        """Size and version of one file; a directory is not a file."""
        self._check_file(path)
        with self._reporting("look at", path):
            if self.is_local:
                status = os.stat(self._full(path))
                if os.path.isfile(self._full(path)):
                    return _local_info(path, status)
            else:
                entry = self._filesystem.info(self._full(path))
                if entry["type"] == "file":
                    return _remote_info(path, entry)
        raise MissingFileError(f"{self._where(path)}: this is a directory, not a file")

    def info_or_none(self, path: str) -> FileInfo | None:
        """As `info`, but None where there is no such file."""
        try:
            return self.info(path)
        except MissingFileError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is a file (not a directory) at `path`."""
        return self.info_or_none(path) is not None

    def size_bytes(self, path: str) -> int:
        """Size of one file."""
        return self.info(path).size_bytes

    def open_input(self, path: str) -> BinaryIO:
        """Open a file to read: binary, seekable, buffered. Not to be shared between threads."""
        self._check_file(path)
        with self._reporting("open", path):
            if self.is_local:
                return open(self._full(path), "rb")
            if self._scheme == "memory":
                # The store hands out its one object per file, position included: copy.
                return io.BytesIO(self._filesystem.cat_file(self._full(path)))
            fetch, size_bytes = self._ranges(path)
        source = RemoteInput(fetch, size_bytes, self._reporter(path))
        return io.BufferedReader(source, buffer_size=1 << 20)

    def read_bytes(self, path: str, max_bytes: int) -> bytes:
        """The whole content of a small file.

        Raises:
            CorruptFileError: it is larger than `max_bytes`, so it is not what was written.
        """
        with self.open_input(path) as file, self._reporting("read", path):
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CorruptFileError(
                f"{redact_url(self._where(path))}: larger than the allowed {max_bytes} bytes, so "
                "it is not what was written here; restore it"
            )
        return data

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, which has them; in a store with one request.

        Raises:
            CorruptFileError: the file ends earlier.
        """
        self._check_file(path)
        full = self._full(path)
        with self._reporting("read", path):
            if self._scheme == "s3":
                data: bytes = self._filesystem.read_range(full, start, end, "")
            elif self.is_local:
                with open(full, "rb") as file:
                    file.seek(start)
                    data = file.read(end - start)
            else:
                data = self._filesystem.cat_file(full, start=start, end=end)
        if len(data) != end - start:
            raise CorruptFileError(
                f"{redact_url(self._where(path))}: expected bytes {start} to {end}, found "
                f"{len(data)} bytes there, so it is not what was written here; restore it"
            )
        return data

    def put_if_absent(self, path: str, data: bytes) -> None:
        """Create a file with this content, unless there is one.

        A file that holds exactly this content counts as created by this call: a request whose
        answer was lost is sent again and then meets what it wrote. Whoever must know that no other
        call was first writes content of its own, such as the name of its run.

        Raises:
            AlreadyExistsError: there is one with other content.
            UnknownOutcomeError: the store gave no clear answer; look before acting.
            UnsafeStoreError: the local file system cannot do this.
        """
        self._check_file(path)
        try:
            self._create(path, self._full(path), data)
        except (AlreadyExistsError, UnknownOutcomeError):
            if not self._holds(path, data):
                raise

    def _create(self, path: str, full: str, data: bytes) -> None:
        if self.is_local:
            with self._reporting("create", path), durable_temporary(full, data) as temporary:
                link(temporary, full)
            with self._reporting("create", path, unknown_outcome=True):
                sync_directory(os.path.dirname(full))
            return
        with self._reporting("create", path, unknown_outcome=True):
            if self._scheme == "memory":
                with _memory_lock:
                    if self._filesystem.isfile(full):
                        raise FileExistsError(full)
                    self._filesystem.pipe_file(full, data)
                return
            # One request and never a multipart upload: some servers ignore the condition there.
            options = {"chunksize": max(len(data), 1)} if self._scheme == "s3" else {}
            self._filesystem.pipe_file(full, data, mode="create", **options)

    def _holds(self, path: str, data: bytes) -> bool:
        """Whether a file has just this content.

        Raises:
            UnknownOutcomeError: that cannot be found out.
        """
        try:
            if self.size_bytes(path) != len(data):
                return False
            return self.read_bytes(path, len(data)) == data
        except MissingFileError:
            return False
        except (StorageError, ConfigError) as error:
            raise UnknownOutcomeError(
                f"{self._where(path)}: it is not known whether this call created the file: {error}"
            ) from error

    def put(self, path: str, data: bytes) -> None:
        """Write a small file, replacing what is there.

        Raises:
            UnknownOutcomeError: the store gave no clear answer.
        """
        self._check_file(path)
        full = self._full(path)
        if self.is_local:
            with self._reporting("write", path), durable_temporary(full, data) as temporary:
                os.replace(temporary, full)
                sync_directory(os.path.dirname(full))
            return
        with self._reporting("write", path, unknown_outcome=True):
            self._filesystem.pipe_file(full, data)

    @contextmanager
    def open_output(self, path: str) -> Iterator[OutputFile]:
        """Write a large file in a `with` block: it appears at the end, never after an exception."""
        output = self.create_output(path)
        try:
            yield output
        except BaseException:
            output.abort()
            raise
        output.close()

    def create_output(self, path: str) -> OutputFile:
        """Start a large file that the caller will `close` or `abort`.

        Memory holds at most one part of an upload. A process that dies leaves a hidden `.partial`
        file (disk) or an incomplete multipart upload (S3), never a file of this name.
        """
        self._check_file(path)
        with self._reporting("write", path):
            if self.is_local:
                return LocalOutput(self._full(path), self._reporter(path))
            if self._scheme == "memory":
                return BufferedOutput(partial(self.put, path))
            raw = self._filesystem.open(self._full(path), "wb", block_size=UPLOAD_PART_BYTES)
        return UploadOutput(raw, partial(self._stored_bytes, path), self._reporter(path))

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._check_file(path)
        try:
            with self._reporting("delete", path):
                if self.is_local:
                    os.unlink(self._full(path))
                else:
                    self._filesystem.rm_file(self._full(path))
        except MissingFileError:
            return

    def as_arrow_filesystem(self) -> pafs.FileSystem:
        """The same directory for pyarrow, with the same credentials and relative paths."""
        if self.is_local:
            return pafs.SubTreeFileSystem(self._root, pafs.LocalFileSystem())
        handler = ReadingHandler(self._filesystem, self._open_full, self._reporting_full)
        return pafs.SubTreeFileSystem(self._full(""), pafs.PyFileSystem(handler))

    def object_store_options(self) -> dict[str, str]:
        """What the Rust crate object_store, as in LanceDB, needs beside the URL to open this store.

        Raises:
            ConfigError: it cannot open such a store.
        """
        if self._scheme == "s3":
            with self._reporting("open", ""):
                options: dict[str, str] = self._filesystem.object_store_options()
            return options
        if self._scheme not in ("file", "gs"):
            raise ConfigError(
                f"{self.url}: LanceDB opens local directories, s3:// and gs://, found "
                f"{self._scheme}://; give another index.path, or take another index.kind"
            )
        return {}

    def _open_full(self, full: str) -> BinaryIO:
        return self.open_input(self._relative(full))

    def _reporting_full(self, full: str) -> AbstractContextManager[None]:
        return self._reporting("look at", self._relative(full))

    def _relative(self, full: str) -> str:
        return full.strip("/").removeprefix(self._full("").strip("/")).strip("/")

    def _ranges(self, path: str) -> tuple[Callable[[int, int], bytes], int]:
        """What reads bytes [start, end) of an object, and the object's size."""
        full = self._full(path)
        if self._scheme == "s3":
            entry = self._filesystem.info(full)
            if entry["type"] != "file":
                raise IsADirectoryError(errno.EISDIR, "this is a directory, not a file", full)
            read_range = self._filesystem.read_range
            return lambda a, b: read_range(full, a, b, entry["ETag"]), int(entry["size"])
        raw = self._filesystem.open(full, "rb")

        def fetch(start: int, end: int) -> bytes:
            raw.seek(start)
            data: bytes = raw.read(end - start)
            return data

        return fetch, int(raw.size)

    def _list(self, prefix: str, max_depth: int | None) -> list[FileInfo]:
        self._check(prefix)
        with self._reporting("list", prefix):
            if self.is_local:
                walked = walk(self._root, prefix, max_depth)
                found = [_local_info(path, status) for path, status in walked]
            else:
                found = list(self._remote_infos(self._remote_entries(prefix, max_depth), prefix))
        return sorted(found, key=lambda info: info.path)

    def _remote_entries(self, prefix: str, max_depth: int | None) -> Iterable[Mapping[str, Any]]:
        full = self._full(prefix)
        if max_depth != 1:
            # Deeper levels are filtered by the caller: one flat listing beats many small ones.
            entries: Mapping[str, Any] = self._filesystem.find(full, detail=True)
            return entries.values()
        try:
            listed: list[Mapping[str, Any]] = self._filesystem.ls(full, detail=True)
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise
            return []
        return listed

    def _remote_infos(
        self, entries: Iterable[Mapping[str, Any]], prefix: str
    ) -> Iterator[FileInfo]:
        directory = f"{self._full(prefix).strip('/')}/".lstrip("/")
        root = f"{self._full('').strip('/')}/".lstrip("/")
        for entry in entries:
            name = entry["name"].lstrip("/")
            # A key that ends in a slash marks a directory, and a file listed as if it were a
            # directory comes back as itself.
            if entry["type"] == "file" and name.startswith(directory) and not name.endswith("/"):
                yield _remote_info(name[len(root) :], entry)

    def _stored_bytes(self, path: str) -> int | None:
        info = self.info_or_none(path)
        return info.size_bytes if info else None

    def _full(self, path: str) -> str:
        root = f"/{self._root}" if self._scheme == "memory" else self._root
        return f"{root.rstrip('/')}/{path}" if path else root

    def _where(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def _check(self, path: str) -> None:
        check_path(path, self._where(path))
        longest = max((len(segment.encode()) for segment in path.split("/")), default=0)
        length = len(self._root.encode()) + 1 + len(path.encode())
        if longest > MAX_SEGMENT_BYTES if self.is_local else length > MAX_PATH_BYTES:
            shown = redact_url(self._where(path)[:300])
            raise ConfigError(
                f"{shown}...: too long a path; a name on disk has at most {MAX_SEGMENT_BYTES} "
                f"bytes, an object's key {MAX_PATH_BYTES}"
            )

    def _check_file(self, path: str) -> None:
        if not path:
            raise ConfigError(f"{self.url}: a file inside is needed, not the storage itself")
        self._check(path)

    def _reporting(
        self, action: str, path: str, *, unknown_outcome: bool = False
    ) -> AbstractContextManager[None]:
        return reporting(action, self._where(path), unknown_outcome=unknown_outcome)

    def _reporter(self, path: str) -> Reporter:
        return partial(reporting, url=self._where(path))


def probe(storage: Storage) -> None:
    """Make sure that the store honours put-if-absent; leaves nothing behind.

    Several creates of one key are raced, then one more follows: exactly one may win, and its
    content must stay.

    Raises:
        UnsafeStoreError: commits to this store could overwrite each other.
    """
    path = f"_probe-{uuid.uuid4().hex}"

    def create(index: int) -> bool:
        try:
            storage.put_if_absent(path, b"writer %d" % index)
        except AlreadyExistsError:
            return False
        return True

    try:
        with ThreadPoolExecutor(PROBE_WRITERS) as pool:
            winners = [i for i, won in enumerate(pool.map(create, range(PROBE_WRITERS))) if won]
        late = create(PROBE_WRITERS)
        content = storage.read_bytes(path, 100)
    finally:
        storage.delete(path)
    if late or len(winners) != 1 or content != b"writer %d" % winners[0]:
        found = f"{len(winners)} of {PROBE_WRITERS} concurrent creates of one key succeeded"
        raise UnsafeStoreError(
            f"{storage.url}: the store does not honour put-if-absent (PUT with If-None-Match: *): "
            f"{found}{', and one more after them' if late else ''}, where exactly one may. Two "
            "runs could commit the same snapshot and one would be lost, so nothing is written. "
            "Known to work: AWS S3, Google Cloud Storage, Ceph RGW without bucket versioning, "
            "disks with hard links. Use one of these, or a newer version of this store"
        )


def _open_filesystem(scheme: str, options: Mapping[str, Any]) -> Any:
    # Clients read the environment once, when they are made: another environment, another client.
    prefixes = ("AWS_", ENVIRONMENT_PREFIX)
    environment = tuple(sorted(kv for kv in os.environ.items() if kv[0].startswith(prefixes)))
    key = (os.getpid(), scheme, repr(sorted(options.items())), environment)
    with _filesystems_lock:
        if key not in _filesystems:
            _filesystems[key] = _make_filesystem(scheme, options)
        return _filesystems[key]


def _make_filesystem(scheme: str, options: Mapping[str, Any]) -> Any:
    import fsspec

    # Nobody may see a listing that is older than the last commit.
    given = {"use_listings_cache": False, **options}
    policy = RetryPolicy.from_environment()
    try:
        if scheme == "s3":
            from pipeline.s3_filesystem import RetryingS3FileSystem

            return RetryingS3FileSystem(policy=policy, skip_instance_cache=True, **given)
        return fsspec.filesystem(scheme, skip_instance_cache=scheme != "memory", **given)
    except ImportError as error:
        extra = "; install the extra: pip install 'elmo-nightly[gcs]'" if scheme == "gs" else ""
        raise ConfigError(f"{scheme}://: {error}{extra}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{scheme}://: {redact_url(str(error))}; known are s3://, gs://, file://, memory:// "
            "and plain paths"
        ) from None


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, str(status.st_mtime_ns), int(status.st_mtime))


def _remote_info(path: str, entry: Mapping[str, Any]) -> FileInfo:
    modified = next(
        (entry[key] for key in ("LastModified", "updated", "created", "mtime") if entry.get(key)),
        0.0,
    )
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    version = str(entry.get("ETag") or entry.get("etag") or modified).strip('"')
    return FileInfo(path, int(entry["size"]), version, int(modified))
