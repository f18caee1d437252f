"""Requests to OpenSearch, written into a directory of any store. Sends nothing.

A published version (versions.py) is the requests that make an index of the state before: one file
lists them, a line each, and names the files that are their bodies. Another program sends them.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    RebuildNeededError,
    UnknownOutcomeError,
)
from pipeline.index.config import OpenSearchSection
from pipeline.index.opensearch_index import settings_of
from pipeline.index.opensearch_requests import (
    KIND,
    Request,
    Target,
    check_name,
    draft_requests,
    removal_request,
    turn_request,
)
from pipeline.index.opensearch_server import DEFAULT_NAME
from pipeline.index.protocol import Feed, IndexState, check_base
from pipeline.index.versions import HashingOutput, IndexVersions, StoredFile, Version
from pipeline.storage import open_storage
from pipeline.storage_urls import SCHEME

REQUESTS = "requests"
# Of a request without a body.
NO_BODY = "/dev/null"


class RequestsDraft:
    """The next version of a directory of requests; its files are written, and no record yet."""

    def __init__(self, feeder: RequestsFeeder, feed: Feed, base: Version | None) -> None:
        """Write the requests of the successor of `base`."""
        self._feeder = feeder
        self._base = base
        self._files: dict[str, StoredFile] = {}
        self._lines: list[str] = []
        self._is_kept = False
        self.state = feed.state
        self._target = feeder.target(feed, base)
        try:
            for request in draft_requests(feed, self._target, feeder.section):
                self._write(request)
            self._write(turn_request(self._target))
            for index in self._target.gone:
                self._write(removal_request(index))
            listed = "".join(self._lines).encode()
            self._files[REQUESTS] = self._stored("tsv", listed)
        except BaseException:
            self.close()
            raise

    def reader(self) -> None:
        """Nothing can search requests."""

    def publish(self) -> None:
        """Make this the newest version.

        Raises:
            CommitConflictError: another feeder was faster; the files are removed.
            CommitUnknownError: the store gave no clear answer; nothing is removed.
        """
        target = self._target
        version = Version(
            number=self._base.number + 1 if self._base else 1,
            state=self.state,
            files=self._files,
            details={
                "name": target.name,
                "index": target.index,
                "base": target.base,
                "before": list(target.before),
            },
        )
        self._is_kept = True
        try:
            self._feeder.versions.publish(version, self._feeder.keep_versions)
        except UnknownOutcomeError as error:
            raise CommitUnknownError(str(error)) from error
        except CommitConflictError:
            self._is_kept = False
            raise

    def close(self) -> None:
        """Remove the files, unless they are or may be published."""
        if not self._is_kept:
            self._feeder.versions.discard(file.path for file in self._files.values())

    def _write(self, request: Request) -> None:
        path, other = NO_BODY, "Accept: application/json"
        if request.body:
            data, ending = request.body, "ndjson" if request.is_bulk else "json"
            if request.is_bulk and self._feeder.section.compress:
                data, ending = gzip.compress(data, mtime=0), "gz"
                other = "Content-Encoding: gzip"
            stored = self._stored(ending, data)
            self._files[f"{len(self._lines) + 1:06d}"] = stored
            path = stored.path
        header = f"Content-Type: {request.content_type}"
        values = (request.method, request.path, header, other, path)
        self._lines.append("\t".join(values) + "\n")

    def _stored(self, ending: str, data: bytes) -> StoredFile:
        def write(output: HashingOutput) -> None:
            output.write(data)

        return self._feeder.versions.write_file(ending, write)


class RequestsFeeder:
    """Writes the requests that feed an index of one name into one directory."""

    def __init__(self, url: str, section: OpenSearchSection, keep_versions: int = 2) -> None:
        """Write into the directory at `url`; nothing is read yet.

        Args:
            url: of the directory, with the index's name after '#'.
            section: what to make.
            keep_versions: versions that stay, and indexes that the requests leave.

        Raises:
            ConfigError: the name cannot be one.
        """
        directory, _, name = url.partition("#")
        self.name = name or DEFAULT_NAME
        check_name(self.name)
        if not directory or SCHEME.fullmatch(directory):
            raise ConfigError("index.path: expected a directory before '#', found none")
        self.versions = IndexVersions(open_storage(directory))
        self.url = url
        self.section = section
        self.settings = settings_of(section)
        self.keep_versions = keep_versions

    def read_state(self) -> IndexState | None:
        """What an index holds that all requests were sent to; None before the first version."""
        version = self.versions.latest()
        return None if version is None else version.state

    @contextmanager
    def draft(self, feed: Feed) -> Iterator[RequestsDraft]:
        """Write the requests of the next version.

        Raises:
            CommitConflictError: the newest version does not hold what the feed starts from.
            RebuildNeededError: the versions so far are of an index of another name.
        """
        base = self.versions.latest()
        check_base(feed, None if base is None else base.state, self.url)
        draft = RequestsDraft(self, feed, base)
        try:
            yield draft
        finally:
            draft.close()

    def target(self, feed: Feed, base: Version | None) -> Target:
        """Where the requests after the version `base` go.

        Raises:
            RebuildNeededError: the versions so far are of an index of another name.
        """
        details = {} if base is None or base.state.settings.get("kind") != KIND else base.details
        is_same = details.get("name") == self.name
        if not is_same and not feed.is_full:
            raise RebuildNeededError(
                f"{self.url}: the requests so far are for the index {details.get('name')!r}"
            )
        index = str(details["index"]) if is_same else None
        before = [str(name) for name in details.get("before", ())] if is_same else []
        target = Target.after(self.name, index, before, self.keep_versions)
        # All rows come: it does not matter what the alias stands for.
        return replace(target, base=None) if feed.is_full else target
