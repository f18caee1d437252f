"""A LanceDB index in a directory of a store, fed and searched. Knows no snapshot's files.

The directory holds versions (versions.py); each names a table of LanceDB and the version of that
table that it pins. A build makes a new table. A delta adds versions to the table of the published
one, which readers do not look at before a record pins them. It begins by making the pinned version
the newest again: that undoes what a killed feeder left, and takes the table from any other feeder
at work, whose next change LanceDB refuses.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    CorruptFileError,
    PipelineError,
    RebuildNeededError,
    UnknownOutcomeError,
)
from pipeline.hits import Hit
from pipeline.index.config import LancedbSection
from pipeline.index.protocol import Feed, IndexState, check_base
from pipeline.index.versions import DATA, ORPHAN_HOURS, IndexVersions, Version
from pipeline.storage import Storage

KIND = "lancedb"
# Who has opened a version that was followed by another one reads on for this long at least.
MIN_STAY_S = 3600
TAG_PREFIX = "elmo-"
# Of a table's directory, which LanceDB knows without it.
SUFFIX = ".lance"
# What the stored index depends on; other settings matter to a search or to the next decision.
_BUILT_WITH = ("type", "dtype", "num_lists", "code_bytes", "num_links", "build_depth")


class LancedbReader:
    """One version of an index, on disk."""

    def __init__(self, state: IndexState, rows: Any) -> None:
        """Search `rows`, a LanceRows."""
        self.state = state
        self._rows = rows

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `protocol.IndexReader.search`.

        Raises:
            MissingFileError: the version was replaced long ago, and has been removed.
        """
        hits: list[list[Hit]] = self._rows.search(queries_QD, num_hits, where)
        return hits


class LancedbDraft:
    """The next version of an index: written, and named by no record yet."""

    def __init__(self, feeder: LancedbFeeder, feed: Feed, base: Version | None, path: str) -> None:
        """Feed the table at `path`, a new one or that of `base`."""
        self._feeder = feeder
        self._base = base
        self._path = path
        if base is None or feed.is_full:
            details: Mapping[str, Any] = {}
            self._rows = feeder.create_rows(feed, path)
        else:
            details = base.details
            self._rows = feeder.open_rows(path, int(details["table_version"]))
        self._trained_rows = int(details.get("trained_rows", 0))
        self._loose_rows = int(details.get("loose_rows", 0))
        self._written_at = int(details.get("written_at", time.time()))
        self.may_be_published = False
        is_begun = feed.is_full
        for step in feed.steps():
            if not is_begun:
                self._rows.continue_here()
                is_begun = True
            self._loose_rows += self._rows.remove(step.gone_ids)
            self._loose_rows += self._rows.add(step.rows())
        if feed.is_full:
            self._loose_rows = 0
        self.state = replace(feed.state, num_rows=self._rows.num_rows)
        if is_begun:
            self._written_at = int(time.time())
            self._tend()

    def _tend(self) -> None:
        """Keep the lists and the parts of the table in shape."""
        from pipeline.index.lance_table import MIN_INDEXED_ROWS

        section, num_rows = self._feeder.section, self.state.num_rows
        if self._loose_rows > section.max_loose_share * num_rows:
            self._rows.compact(self._feeder.keep_only_published(self._rows, self._path))
            self._loose_rows = 0
        has_grown = num_rows > section.max_growth * self._trained_rows
        if section.type != "flat" and num_rows >= MIN_INDEXED_ROWS and has_grown:
            self._rows.make_index()
            self._trained_rows = num_rows

    def reader(self) -> LancedbReader:
        """Searches what would be published, and nothing that is written later."""
        return LancedbReader(self.state, self._feeder.open_rows(self._path, self._rows.version))

    def publish(self) -> None:
        """Write the record that makes this version the index.

        Raises:
            CommitConflictError: another feeder was faster.
            CommitUnknownError: the store gave no clear answer; nothing is removed.
            StorageError: the store failed.
        """
        version = Version(
            number=self._base.number + 1 if self._base else 1,
            state=self.state,
            files={},
            details={
                "lancedb": self._feeder.section.model_dump(mode="json"),
                "table_version": self._rows.version,
                "trained_rows": self._trained_rows,
                "loose_rows": self._loose_rows,
                "written_at": self._written_at,
            },
            directories=(self._path,),
        )
        self.may_be_published = True
        try:
            self._feeder.versions.publish(version, self._feeder.keep_versions)
        except UnknownOutcomeError as error:
            raise CommitUnknownError(str(error)) from error
        except CommitConflictError:
            self.may_be_published = False
            raise
        # The next feeder sets what is missing: it must not fail what is published.
        with suppress(PipelineError):
            self._feeder.keep_only_published(self._rows, self._path)


class LancedbFeeder:
    """Feeds the index in one directory."""

    def __init__(self, storage: Storage, section: LancedbSection, keep_versions: int = 2) -> None:
        """Feed the index in `storage`; nothing is read yet.

        Args:
            storage: the directory of the index.
            section: what to make.
            keep_versions: published versions that stay.

        Raises:
            ConfigError: LanceDB opens no such store.
        """
        storage.object_store_options()
        self.versions = IndexVersions(storage, MIN_STAY_S)
        self.section = section
        self.settings = {"kind": KIND, **{name: getattr(section, name) for name in _BUILT_WITH}}
        self.keep_versions = keep_versions
        self.url = storage.url

    def read_state(self) -> IndexState | None:
        """What the index holds, None where there is none yet."""
        version = self.versions.latest()
        return None if version is None else version.state

    @contextmanager
    def draft(self, feed: Feed) -> Iterator[LancedbDraft]:
        """Make the next version.

        Raises:
            CommitConflictError: the index does not hold what the feed starts from, or another
                feeder is at work on its table.
        """
        base = self.versions.latest()
        check_base(feed, None if base is None else base.state, self.url)
        if not feed.is_full:
            if base is None:
                raise RebuildNeededError(f"{self.url}: the index is gone")
            yield LancedbDraft(self, feed, base, _table_of(base, self.url))
            return
        path = f"{DATA}/{uuid.uuid4().hex}{SUFFIX}"
        draft = None
        try:
            draft = LancedbDraft(self, feed, base, path)
            yield draft
        finally:
            if draft is None or not draft.may_be_published:
                self.versions.discard([path])

    def create_rows(self, feed: Feed, path: str) -> Any:
        """LanceRows of a new table."""
        from pipeline.index.lance_table import LanceRows

        return LanceRows.create(self.versions.storage, path, feed.schema, self.section)

    def open_rows(self, path: str, table_version: int) -> Any:
        """LanceRows of a table at one of its versions."""
        from pipeline.index.lance_table import LanceRows

        return LanceRows.open(self.versions.storage, path, table_version, self.section)

    def keep_only_published(self, rows: Any, path: str) -> float:
        """Let a table's tags be those of the versions that records pin.

        Returns: seconds; all of these versions of the table are younger.
        """
        published = [self.versions.load(number) for number in self.versions.numbers()]
        here = [version for version in published if path in version.directories]
        tags = {f"{TAG_PREFIX}{v.number:08d}": int(v.details["table_version"]) for v in here}
        rows.set_tags(tags, TAG_PREFIX)
        oldest = min((int(version.details["written_at"]) for version in here), default=0)
        return time.time() - oldest + ORPHAN_HOURS * 3600


def open_lancedb(storage: Storage) -> LancedbReader | None:
    """Open the current version of an index to search it; None where there is none.

    Raises:
        CorruptFileError: its record is damaged.
        MissingFileError: its table is gone.
        ConfigError: it is an index of another kind, or the extra is not installed.
        StorageError: the store failed.
    """
    versions = IndexVersions(storage)
    return versions.open_latest(lambda version: _read(storage, version))


def _read(storage: Storage, version: Version) -> LancedbReader:
    from pipeline.index.lance_table import LanceRows

    path = _table_of(version, storage.url)
    try:
        section = LancedbSection.model_validate(version.details["lancedb"])
        table_version = int(version.details["table_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(storage.url, error) from error
    return LancedbReader(version.state, LanceRows.open(storage, path, table_version, section))


def _table_of(version: Version, url: str) -> str:
    """The table that a version pins, in the directory of the index.

    Raises:
        ConfigError: it is an index of another kind.
        CorruptFileError: the record names no table.
    """
    kind = version.state.settings.get("kind")
    if kind != KIND:
        raise ConfigError(f"{url}: an index of kind {kind!r} is here, expected {KIND}")
    if len(version.directories) != 1 or not version.directories[0].endswith(SUFFIX):
        raise _damaged(url, "it names no table")
    return version.directories[0]


def _damaged(url: str, why: object) -> CorruptFileError:
    return CorruptFileError(
        f"{url}: the record of the index is damaged ({why}); build it anew with --rebuild"
    )
