"""A FAISS index in a directory of any store, fed and searched. Knows no snapshot's files.

The directory holds versions (versions.py); each has one file of vectors and one of rows. The index
is held in memory while it is made: a build starts from nothing, a delta from the published version,
and either is written to new files and published in one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    CorruptFileError,
    RebuildNeededError,
    UnknownOutcomeError,
)
from pipeline.hits import Hit
from pipeline.index.config import FaissSection
from pipeline.index.protocol import Feed, IndexState, check_base
from pipeline.index.versions import IndexVersions, StoredFile, Version
from pipeline.storage import Storage

KIND = "faiss"
# What the stored index depends on; other settings matter to a search or to the next decision.
_BUILT_WITH = ("type", "dtype", "num_links", "build_depth", "num_lists", "code_bytes")


class FaissReader:
    """One version of an index, in memory."""

    def __init__(self, state: IndexState, rows: Any) -> None:
        """Search `rows`, a FaissRows."""
        self.state = state
        self.rows = rows

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `protocol.IndexReader.search`."""
        hits: list[list[Hit]] = self.rows.search(queries_QD, num_hits, where)
        return hits


class FaissDraft:
    """The next version of an index; its files are written when it is published."""

    def __init__(self, feeder: FaissFeeder, feed: Feed, base: Version | None, rows: Any) -> None:
        """Publish `rows`, a FaissRows, as the successor of `base`."""
        self._feeder = feeder
        self._base = base
        self._rows = rows
        self._is_changed = feed.is_full
        self.state = feed.state
        if feed.is_full:
            self._trained_rows = feed.state.num_rows
        else:
            assert base is not None
            self._trained_rows = int(base.details["trained_rows"])
        for step in feed.steps():
            self._rows.remove(step.gone_ids)
            for batch in step.rows():
                self._rows.add(batch)
            self._is_changed = True
        self.state = replace(self.state, num_rows=self._rows.num_rows)
        if not feed.is_full:
            rows.check_growth(self._trained_rows)

    def reader(self) -> FaissReader:
        """Searches the draft."""
        return FaissReader(self.state, self._rows)

    def publish(self) -> None:
        """Write the files and make them the index.

        Raises:
            CommitConflictError: another feeder was faster; the files are removed.
            CommitUnknownError: the store gave no clear answer; nothing is removed.
            StorageError: the store failed.
        """
        from pipeline.index.faiss_rows import write_table, write_vectors

        versions = self._feeder.versions
        written: dict[str, StoredFile] = {}
        files: Mapping[str, StoredFile] = written
        if self._is_changed or self._base is None:
            for name, ending, write in (
                ("vectors", "faiss", write_vectors),
                ("rows", "parquet", write_table),
            ):
                written[name] = versions.write_file(ending, partial(write, self._rows))
        else:
            files = self._base.files
        version = Version(
            number=self._base.number + 1 if self._base else 1,
            state=self.state,
            files=files,
            details={
                "faiss": self._feeder.section.model_dump(mode="json"),
                "next_label": self._rows.next_label,
                "trained_rows": self._trained_rows,
            },
        )
        try:
            versions.publish(version, self._feeder.keep_versions)
        except UnknownOutcomeError as error:
            raise CommitUnknownError(str(error)) from error
        except CommitConflictError:
            versions.discard(file.path for file in written.values())
            raise


class FaissFeeder:
    """Feeds the index in one directory."""

    def __init__(self, storage: Storage, section: FaissSection, keep_versions: int = 2) -> None:
        """Feed the index in `storage`; nothing is read yet.

        Args:
            storage: the directory of the index.
            section: what to make.
            keep_versions: published versions that stay.
        """
        self.versions = IndexVersions(storage)
        self.section = section
        self.settings = {"kind": KIND, **{name: getattr(section, name) for name in _BUILT_WITH}}
        self.keep_versions = keep_versions
        self.url = storage.url

    def read_state(self) -> IndexState | None:
        """What the index holds, None where there is none yet."""
        version = self.versions.latest()
        return None if version is None else version.state

    @contextmanager
    def draft(self, feed: Feed) -> Iterator[FaissDraft]:
        """Make the next version in memory.

        Raises:
            CommitConflictError: the index does not hold what the feed starts from.
            RebuildNeededError: too many deleted rows in a graph, or too many for its lists.
        """
        from pipeline.index.faiss_rows import FaissRows

        if feed.is_full:
            base = self.versions.latest()
            check_base(feed, None if base is None else base.state, self.url)
            wanted = self.section.max_train_rows if self.section.type.startswith("ivf") else 0
            train_ND = feed.sample(wanted)
            rows = FaissRows.empty(
                feed.schema, self.section, train_ND, feed.state.num_rows, self.url
            )
            del train_ND
        else:
            opened = self.versions.open_latest(self._open)
            if opened is None:
                raise RebuildNeededError(f"{self.url}: the index is gone")
            base, rows = opened
            check_base(feed, base.state, self.url)
            rows.settings = self.section
        yield FaissDraft(self, feed, base, rows)

    def _open(self, version: Version) -> tuple[Version, Any]:
        return version, read_rows(self.versions, version)


def open_faiss(storage: Storage) -> FaissReader | None:
    """Open the current version of an index to search it; None where there is none.

    Raises:
        CorruptFileError: a file is not what was written.
        ConfigError: it is an index of another kind, or the extra is not installed.
        StorageError: the store failed.
    """
    versions = IndexVersions(storage)
    return versions.open_latest(
        lambda version: FaissReader(version.state, read_rows(versions, version))
    )


def read_rows(versions: IndexVersions, version: Version) -> Any:
    """The FaissRows of a version."""
    from pipeline.index.faiss_rows import FaissRows, read_vectors

    where = versions.storage.url
    if version.state.settings.get("kind") != KIND:
        raise ConfigError(
            f"{where}: an index of kind {version.state.settings.get('kind')!r} is here, expected "
            f"{KIND}"
        )
    _need(version.files, ("vectors", "rows"), where)
    with versions.open_file(version.files["vectors"]) as source:
        try:
            index = read_vectors(source)
        except RuntimeError as error:
            raise CorruptFileError(
                f"{where}: FAISS cannot read {version.files['vectors'].path}: {error}; build the "
                "index anew, with --rebuild"
            ) from error
    with versions.open_file(version.files["rows"]) as source:
        rows = pq.read_table(source)
    section = FaissSection.model_validate(version.details["faiss"])
    return FaissRows(index, rows, section, int(version.details["next_label"]), where)


def _need(files: Mapping[str, StoredFile], names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in files:
            raise CorruptFileError(
                f"{where}: the record names no file of {name}; build the index anew"
            )
