"""Check a snapshot's change feed against the rows of it and of its parent. Changes nothing.

Reads ids and content hashes of the files that only one of the two names; memory holds one bucket
of ids, more wait on the local disk. Knows no vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import (
    ConfigError,
    CorruptFileError,
    MissingChangesError,
    MissingFileError,
)
from pipeline.snapshot.buckets import MAX_ROWS_IN_MEMORY, Buckets
from pipeline.snapshot.changes import (
    CHANGE_SCHEMA,
    MOVE_SCHEMA,
    operations,
    read_feed_file,
    same_vectors,
)
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.documents import DocumentPairs, document_pairs
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import Storage
from pipeline.verify_sample import Problem

MAX_EXAMPLES = 5
_MOVE = "move"


@dataclass(frozen=True)
class FeedCheck:
    """What was found; `missing` says why the feed could not be checked, None where it was."""

    problems: tuple[Problem, ...] = ()
    missing: str | None = None


def check_feed(
    storage: Storage, snapshot: Snapshot, *, max_rows: int = MAX_ROWS_IN_MEMORY
) -> FeedCheck:
    """Check that `changes`, `rewritten` and `moved` say exactly how the parent became this.

    Args:
        storage: the snapshot directory.
        snapshot: the one to check.
        max_rows: documents in memory at once, about.

    Raises:
        StorageError: the store failed, so nothing is known.
    """
    if snapshot.changes is None:
        return FeedCheck(missing="it recorded none")
    parent: Snapshot | None = None
    if snapshot.parent is not None:
        try:
            parent = SnapshotStore(storage).load(snapshot.parent)
        except (ConfigError, CorruptFileError) as error:
            return FeedCheck(missing=f"the snapshot before it cannot be read: {error}")
    problems = list(_check_rewritten(parent, snapshot))
    try:
        with document_pairs(storage, parent, snapshot, max_rows=max_rows) as pairs:
            return FeedCheck((*problems, *_check_rows(storage, parent, snapshot, pairs)))
    except (MissingFileError, CorruptFileError) as error:
        # A file of this snapshot is reported where files are checked.
        return FeedCheck(tuple(problems), f"a file of it or of the one before: {error}")


def _check_rewritten(parent: Snapshot | None, snapshot: Snapshot) -> Iterator[Problem]:
    before = {file.path for file in parent.files} if parent else set()
    after = {file.path for file in snapshot.files}
    for old, new in snapshot.rewritten.items():
        if old not in before or old in after:
            state = "still listed" if old in before else "none of the snapshot before"
            yield Problem("rewritten", old, f"said to be rewritten, but it is {state}")
        if new not in after:
            yield Problem("rewritten", old, f"leads to {new}, which is not in this snapshot")


def _check_rows(
    storage: Storage, parent: Snapshot | None, snapshot: Snapshot, pairs: DocumentPairs
) -> list[Problem]:
    findings = _Findings()
    with Buckets(CHANGE_SCHEMA, pairs.num_buckets) as feed:
        try:
            for path in snapshot.changes or ():
                for rows in read_feed_file(storage, path, CHANGE_SCHEMA):
                    feed.add(rows)
            for path in snapshot.moved:
                for rows in read_feed_file(storage, path, MOVE_SCHEMA):
                    op = pa.repeat(_MOVE, rows.num_rows)
                    feed.add(pa.table([rows["id"], op, rows["file"]], schema=CHANGE_SCHEMA))
        except (MissingChangesError, CorruptFileError, ConfigError) as error:
            return [Problem("changes", None, str(error))]
        check = _BucketCheck(parent, snapshot, findings)
        for found, said in zip(pairs, feed, strict=True):
            check(found, said)
    return findings.problems()


@dataclass
class _Findings:
    """Counts documents by what is wrong with them, and keeps the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, ids: pa.ChunkedArray | pa.Array) -> None:
        """Count documents."""
        if len(ids):
            self.counts[what] = self.counts.get(what, 0) + len(ids)
            few = self.examples.setdefault(what, [])
            few += ids.slice(0, MAX_EXAMPLES - len(few)).to_pylist()

    def problems(self) -> list[Problem]:
        """One problem for each kind."""
        return [
            Problem(
                "changes",
                None,
                f"{count} documents {what}: {', '.join(map(repr, self.examples[what]))}"
                + (", ..." if count > MAX_EXAMPLES else ""),
            )
            for what, count in self.counts.items()
        ]


class _BucketCheck:
    """Compares what the feed says with what the rows say, one bucket of ids at a time."""

    def __init__(self, parent: Snapshot | None, snapshot: Snapshot, findings: _Findings) -> None:
        self._findings = findings
        self._same_vectors = parent is None or same_vectors(parent, snapshot)
        self._paths = pa.array([file.path for file in snapshot.files], pa.string())
        position = {file.path: index for index, file in enumerate(snapshot.files)}
        old_files = parent.files if parent is not None else ()
        self._leads_to = _leads_to([f.path for f in old_files], snapshot.rewritten, position)

    def __call__(self, pairs: pa.Table, said: pa.Table) -> None:
        """Check PAIR_SCHEMA against rows of the feed, moves among them."""
        expected, same = operations(pairs, self._same_vectors)
        is_move = pc.equal(said["op"], _MOVE)
        words, moves = said.filter(pc.invert(is_move)), said.filter(is_move)
        self._check_words(pairs, pa.chunked_array(expected), words)
        old, new = (pc.fill_null(pairs[name], -1).to_numpy() for name in ("old_file", "new_file"))
        astray = same & (np.append(self._leads_to, -1)[old] != new)
        moved = pc.index_in(pairs["id"], value_set=moves["id"].combine_chunks())
        right = pc.equal(moves["file"].take(moved), self._paths.take(pairs["new_file"]))
        lost = pc.and_(pa.array(astray), pc.invert(pc.fill_null(right, False)))
        self._findings.add(
            "are unchanged and neither 'rewritten' nor 'moved' leads to their file",
            pairs["id"].filter(lost),
        )

    def _check_words(self, pairs: pa.Table, expected: pa.ChunkedArray, words: pa.Table) -> None:
        add = self._findings.add
        differs = pairs["id"].filter(expected.is_valid())
        add(
            "differ and are not in the feed",
            differs.filter(pc.invert(pc.is_in(differs, words["id"].combine_chunks()))),
        )
        counted = pc.value_counts(words["id"].combine_chunks())
        twice = pc.greater(counted.field("counts"), 1)
        add("stand twice in the feed", counted.field("values").filter(twice))
        position = pc.index_in(words["id"], value_set=pairs["id"].combine_chunks())
        is_right = pc.fill_null(pc.equal(expected.take(position), words["op"]), False)
        add("have another operation in the feed", words["id"].filter(pc.invert(is_right)))
        place = self._paths.take(pairs["new_file"].take(position))
        same_place = pc.if_else(
            place.is_valid(), pc.equal(place, words["file"]), words["file"].is_null()
        )
        wrong = pc.and_(is_right, pc.invert(pc.fill_null(same_place, False)))
        add("lie in another file than the feed says", words["id"].filter(wrong))


def _leads_to(
    old_paths: list[str], rewritten: Mapping[str, str], position: Mapping[str, int]
) -> NDArray[np.int64]:
    """By number of the parent's files: the number of the file that it leads to, or -2."""
    return np.array([position.get(rewritten.get(path, ""), -2) for path in old_paths], np.int64)
