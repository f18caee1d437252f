"""A snapshot directory that lives through nights, crashes and maintenance; all of it is checked.

Runs are in this process, on the Ray that it has joined. The oracle is `history.py`, the reader
`invariants.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.accounting import Accounting
from pipeline.backend import Backend
from pipeline.config import EmbedConfig, build
from pipeline.run import PreparedRun, RunReport, execute, prepare, run_to_commit
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.compact import compact
from pipeline.snapshot.expire import expire
from pipeline.snapshot.garbage import collect_garbage
from pipeline.snapshot.rollback import rollback
from pipeline.storage import open_storage
from tests.integration.history import Difference, Documents, History, Night, difference
from tests.integration.invariants import (
    Archive,
    Manifest,
    ViolationError,
    check_feed,
    check_rows,
    read_manifest,
    read_rows,
)
from tests.integration.stand_in import WordBackend

DOCUMENTS_PER_TASK = 8
SMALL_FILE_BYTES = 1 << 20


class Crash(Exception):
    """The end of a run in the middle; no error of the program's."""


def values(corpus: Path, url: str, level: str = "document", **output: Any) -> dict[str, Any]:
    """The configuration of a run over a corpus of `history.History`."""
    return {
        "source": {
            "path": str(corpus),
            "id_column": "id",
            "partition_columns": ["lang"],
            "carry_columns": ["title", "text"],
        },
        "model": {"directory": "none"},
        "vectors": {"level": level},
        "output": {"path": url, **output},
        "run": {
            "num_actors": 2,
            "documents_per_task": DOCUMENTS_PER_TASK,
            "max_rejected_share": 1.0,
            "max_deleted_share": 1.0,
        },
    }


@dataclass
class Nights:
    """A directory and what it must hold: `states` has the documents of each snapshot by number.

    `crashed` is set while a run that never committed may have left something.
    """

    history: History
    url: str
    level: str = "document"
    output: dict[str, Any] = field(default_factory=dict)
    backend: Backend = field(default_factory=WordBackend)
    states: dict[int, Documents] = field(default_factory=lambda: {0: {}})
    latest: int = 0
    crashed: bool = False

    def __post_init__(self) -> None:
        self.values = values(self.history.folder, self.url, self.level, **self.output)
        self.archive = Archive(self.url)

    @property
    def store(self) -> SnapshotStore:
        """The snapshots, for maintenance."""
        return SnapshotStore(open_storage(self.url))

    @property
    def documents(self) -> Documents:
        """What the latest snapshot holds."""
        return self.states[self.latest]

    def prepare(self) -> PreparedRun:
        """Plan a run of the corpus as it is now."""
        return prepare(build(EmbedConfig, self.values, "test"), backend=self.backend)

    def crash(self, after_blocks: int) -> bool:
        """Start a run and leave it after some blocks; False if there were not so many."""
        blocks: list[int] = []

        def progress(*counts: int) -> None:
            blocks.append(1)
            if len(blocks) == after_blocks:
                raise Crash

        prepared = self.prepare()
        num_selected = prepared.plan.num_selected if prepared.plan else 0
        if num_selected <= after_blocks * DOCUMENTS_PER_TASK:
            return False
        self.crashed = True
        try:
            execute(prepared, progress)
        except Crash:
            return True
        raise AssertionError("the run ended before its crash")

    def run(
        self, night: Night, execute_run: Callable[[PreparedRun], RunReport] = execute
    ) -> RunReport:
        """Run the night to its end and check everything that must hold then."""
        prepared, report = run_to_commit(self.prepare, execute_run)
        expected = difference(self.documents, night.documents)
        if not prepared.is_repeat:
            self.check_accounting(report.accounting, night, expected)
        if report.snapshot is None and expected.changes:
            raise ViolationError(f"nothing was committed, but {expected.changes} changed")
        if report.snapshot is not None:
            self.expect(night.documents)
        self.crashed = False
        return report

    def expect(self, documents: Documents, expired: Iterable[int] = ()) -> Manifest:
        """Check the latest snapshot, which must be the next one, against these documents."""
        before = self.documents
        manifest = check_rows(self.url, self.level, documents)
        if manifest["number"] != self.latest + 1:
            raise ViolationError(f"{self.latest + 1} is the next, {manifest['number']} is there")
        self.latest = manifest["number"]
        self.states[self.latest] = documents
        check_feed(self.url, manifest, before, documents)
        self.archive.check(expired)
        return manifest

    def check_accounting(self, accounting: Accounting, night: Night, expected: Difference) -> None:
        """Every row went where the oracle says; what a crash has left may be used, or not."""
        found = {
            "rows_in": accounting.rows_in,
            "rejected": accounting.rejected,
            "unchanged": accounting.unchanged,
            "rows_out": accounting.rows_out,
        }
        wanted = {
            "rows_in": night.num_rows,
            "rejected": night.num_bad,
            "unchanged": len(expected.unchanged),
            "rows_out": night.num_rows,
        }
        if not self.crashed:
            found |= vars(accounting)
            wanted |= {
                "embedded": expected.num_to_embed,
                "metadata_only": len(expected.same_text),
                "resumed": 0,
            }
        if found != wanted or accounting.embedded > expected.num_to_embed:
            raise ViolationError(f"{found}, expected {wanted}, {expected.num_to_embed} to embed")

    def roll_back(self, number: int) -> None:
        """Return to an older snapshot; a new one must equal it."""
        if rollback(self.store, number).snapshot is not None:
            self.expect(self.states[number])

    def compact(self) -> None:
        """Merge files; the documents stay, and the feed says nothing."""
        if compact(self.store, below_bytes=SMALL_FILE_BYTES) is not None:
            self.expect(self.documents)

    def expire(self, keep: int) -> None:
        """Remove old snapshots; the others stay as they are."""
        expired = expire(self.store, keep=keep).expired
        for number in expired:
            del self.states[number]
        self.archive.check(expired)

    def collect_garbage(self) -> int:
        """Remove all that no snapshot names, as if it were old; returns how many files went.

        Right only when no run is at work, nor about to be resumed.
        """
        report = collect_garbage(self.store, older_than_hours=0, force=True)
        self.archive.check()
        return len(report.paths)

    def maintain(self, random_: Random) -> str:
        """One of the above at random; returns its name."""
        numbers = [number for number in self.states if number]
        action = random_.choice(("roll_back", "compact", "expire", "compact", "collect_garbage"))
        if action == "roll_back":
            self.roll_back(random_.choice(numbers))
        elif action == "expire":
            self.expire(random_.randint(3, 6))
        elif action == "compact":
            self.compact()
        else:
            self.collect_garbage()
        return action

    def check_composed_feed(self, old: int) -> None:
        """The feeds from an older snapshot to the latest are the difference of the two states."""
        tables = read_changes(self.store, old or None, self.latest)
        rows = pa.concat_tables(tables).to_pylist()
        found = {row["id"]: row["op"] for row in rows}
        wanted = difference(self.states[old], self.documents).changes
        if found != wanted or len(rows) != len(found):
            wrong = sorted(set(found.items()) ^ set(wanted.items()))
            raise ViolationError(f"feeds from {old} to {self.latest}: {wrong[:9]}")
        named = {file["path"] for file in read_manifest(self.url)["files"]}
        lost = {row["file"] for row in rows if row["file"] is not None} - named
        if lost:
            raise ViolationError(f"feeds from {old} to {self.latest} name {sorted(lost)[:3]}")

    def check_against_scratch(self, url: str) -> None:
        """One run over the corpus as it is now, into another directory, gives the same rows."""
        scratch = values(self.history.folder, url, self.level, **self.output)
        config = build(EmbedConfig, scratch, "test")
        execute(prepare(config, backend=self.backend))
        one, other = (read_rows(root, read_manifest(root)) for root in (url, self.url))
        if one != other:
            raise ViolationError("the snapshot differs from one made from scratch")
