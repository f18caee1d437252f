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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
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
_DETAILS: Mapping[str, type] = {
    "table_version": int,
    "trained_rows": int,
    "loose_rows": int,
    "begun_at": float,
}
_BUILT_WITH = ("type", "dtype", "num_lists", "code_bytes", "num_links", "build_depth")


@dataclass(frozen=True)
class Pinned:
    """What a record says of a table of LanceDB.

    Attributes:
        path: of the table in the directory of the index.
        table_version: that readers open.
        section: what the table was made of, and how it is searched.
        trained_rows: rows that its lists were made of; 0 without lists.
        loose_rows: rows that came or went since it was made or compacted.
        begun_at: seconds since 1970; the version was written later.
    """

    path: str
    table_version: int
    section: LancedbSection
    trained_rows: int
    loose_rows: int
    begun_at: float

    def to_json(self) -> dict[str, Any]:
        """The details of a record; `of` reads them back."""
        values = {name: getattr(self, name) for name in _DETAILS}
        return {KIND: self.section.model_dump(mode="json"), **values}

    @classmethod
    def of(cls, version: Version, url: str) -> Pinned:
        """What the record of a version says.

        Raises:
            ConfigError: it is of an index of another kind.
            CorruptFileError: it does not say all of this.
        """
        kind = version.state.settings.get("kind")
        if kind != KIND:
            raise ConfigError(f"{url}: an index of kind {kind!r} is here, expected {KIND}")
        try:
            (path,) = version.directories
            section = LancedbSection.model_validate(version.details[KIND])
            values = {name: type_(version.details[name]) for name, type_ in _DETAILS.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{url}: the record of the index does not name a table and its version ({error}); "
                "build it anew with --rebuild"
            ) from error
        return cls(path, section=section, **values)


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
        """Feed a table: of a full feed a new one at `path`, else that of `base`."""
        self._feeder = feeder
        self._number = 1 if base is None else base.number + 1
        self.may_be_published = False
        if base is None or feed.is_full:
            self._rows = feeder.create_rows(feed, path)
            version = self._rows.version
            self._pinned = Pinned(path, version, feeder.section, 0, 0, time.time())
        else:
            held = Pinned.of(base, feeder.url)
            self._rows = feeder.open_rows(held)
            self._pinned = replace(held, section=feeder.section)
        self.state = replace(feed.state, num_rows=self._feed(feed))

    def _feed(self, feed: Feed) -> int:
        """Carry out the steps; returns the number of rows that are there then."""
        num_rows, pinned, is_begun = 0, self._pinned, feed.is_full
        for step in feed.steps():
            if not is_begun:
                pinned = replace(pinned, begun_at=time.time())
                self._rows.continue_here()
                is_begun = True
            num_rows += self._rows.remove(step.gone_ids)
            num_rows += self._rows.add(step.rows())
        loose_rows = 0 if feed.is_full else pinned.loose_rows + num_rows
        self._pinned = replace(pinned, loose_rows=loose_rows)
        num_rows = int(self._rows.num_rows)
        if is_begun:
            self._tend(num_rows)
        self._pinned = replace(self._pinned, table_version=self._rows.version)
        return num_rows

    def _tend(self, num_rows: int) -> None:
        """Keep the lists and the parts of the table in shape."""
        from pipeline.index.lance_table import MIN_INDEXED_ROWS

        section, pinned = self._feeder.section, self._pinned
        if pinned.loose_rows > section.max_loose_share * num_rows:
            self._rows.compact(self._feeder.keep_only_published(self._rows, pinned.path))
            pinned = replace(pinned, loose_rows=0)
        has_grown = num_rows > section.max_growth * pinned.trained_rows
        if section.type != "flat" and num_rows >= MIN_INDEXED_ROWS and has_grown:
            self._rows.make_index()
            pinned = replace(pinned, trained_rows=num_rows)
        self._pinned = pinned

    def reader(self) -> LancedbReader:
        """Searches what would be published, and nothing that is written later."""
        return LancedbReader(self.state, self._feeder.open_rows(self._pinned))

    def publish(self) -> None:
        """Write the record that makes this version the index.

        Raises:
            CommitConflictError: another feeder was faster.
            CommitUnknownError: the store gave no clear answer; nothing is removed.
            StorageError: the store failed.
        """
        details, directories = self._pinned.to_json(), (self._pinned.path,)
        version = Version(self._number, self.state, {}, details, directories)
        self.may_be_published = True
        try:
            self._feeder.versions.publish(version, self._feeder.keep_versions)
        except UnknownOutcomeError as error:
            raise CommitUnknownError(str(error)) from error
        except PipelineError:
            self.may_be_published = False
            raise
        # The next feeder sets what is missing: it must not fail what is published.
        with suppress(PipelineError):
            self._feeder.keep_only_published(self._rows, self._pinned.path)


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
        if base is None and not feed.is_full:
            raise RebuildNeededError(f"{self.url}: the index is gone")
        path = f"{DATA}/{uuid.uuid4().hex}{SUFFIX}"
        draft = None
        try:
            draft = LancedbDraft(self, feed, base, path)
            yield draft
        finally:
            if feed.is_full and (draft is None or not draft.may_be_published):
                self.versions.discard([path])

    def create_rows(self, feed: Feed, path: str) -> Any:
        """LanceRows of a new table."""
        from pipeline.index.lance_table import LanceRows

        return LanceRows.create(self.versions.storage, path, feed.schema, self.section)

    def open_rows(self, pinned: Pinned) -> Any:
        """LanceRows of a table at the version that is pinned."""
        return _open_rows(self.versions.storage, pinned)

    def keep_only_published(self, rows: Any, path: str) -> float:
        """Let a table's tags be those of the versions that records pin.

        Returns: seconds; all of these versions of the table will be younger, though it takes hours
        to look, and the clocks of feeders differ.
        """
        published = [self.versions.load(number) for number in self.versions.numbers()]
        here = {v.number: Pinned.of(v, self.url) for v in published if path in v.directories}
        tags = {f"{TAG_PREFIX}{number:08d}": p.table_version for number, p in here.items()}
        rows.set_tags(tags, TAG_PREFIX)
        oldest = min((pinned.begun_at for pinned in here.values()), default=0.0)
        return time.time() - oldest + ORPHAN_HOURS * 3600


def open_lancedb(storage: Storage) -> LancedbReader | None:
    """Open the current version of an index to search it; None where there is none.

    Raises:
        CorruptFileError: its record is damaged.
        MissingFileError: its table is gone.
        ConfigError: it is an index of another kind, or the extra is not installed.
        StorageError: the store failed.
    """

    def read(version: Version) -> LancedbReader:
        return LancedbReader(version.state, _open_rows(storage, Pinned.of(version, storage.url)))

    return IndexVersions(storage).open_latest(read)


def _open_rows(storage: Storage, pinned: Pinned) -> Any:
    from pipeline.index.lance_table import LanceRows

    return LanceRows.open(storage, pinned.path, pinned.table_version, pinned.section)
