"""What was rejected once, tried again: which files to read, and what became of each row.

A rejected row has no vector, so once the data, the configuration or the model is mended, a run over
the files that held such rows brings them in; nothing else of the corpus has to be read. Knows how
to compare two runs' rejected rows; the run itself is `pipeline.run`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import EmbedConfig
from pipeline.errors import ConfigError
from pipeline.excerpt import bounded
from pipeline.records import REJECTED_SCHEMA
from pipeline.rejected import HARMLESS_CODES
from pipeline.snapshot.changes import CHANGE_SCHEMA, DELETE, read_feed_file
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.sources.files import find_files
from pipeline.storage import Storage

# Operations whose manifests list the rejected rows of a pass over the corpus.
_EMBEDDING = frozenset({"embed", "reembed", "replay"})
_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PLACE = ["source", "offset", "id"]


@dataclass(frozen=True)
class RejectedRun:
    """A run that rejected rows: `files` are paths in the output's storage."""

    run_id: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class ReplayPlan:
    """What there is to try again.

    Attributes:
        run: whose rejected rows.
        by_code: how many rows of each code; duplicates of equal texts, where nothing can be mended,
            are left out.
        files: URLs of the source files to read: those of the rows, and those that hold the rows for
            which duplicates among them were rejected.
        gone: source files of rejected rows that the corpus has no longer.
    """

    run: RejectedRun
    by_code: dict[str, int]
    files: frozenset[str]
    gone: frozenset[str]

    @property
    def num_rows(self) -> int:
        """Rejected rows that are tried again."""
        return sum(self.by_code.values())


@dataclass(frozen=True)
class Fates:
    """What became of the rejected rows of an earlier run."""

    embedded: int = 0
    still_rejected: int = 0
    gone: int = 0

    def describe(self) -> str:
        """One line for the summary."""
        total = self.embedded + self.still_rejected + self.gone
        return (
            f"of {total:,} rejected rows, {self.embedded:,} are embedded now, "
            f"{self.still_rejected:,} are still rejected, {self.gone:,} are no longer in the source"
        )


def rejected_run(store: SnapshotStore, run_id: str | None = None) -> RejectedRun:
    """The rejected rows of a run, or of the last one that read the corpus and committed.

    Args:
        store: the output's snapshots.
        run_id: names a run, which need not have committed; None takes the latest.

    Raises:
        ConfigError: there is no snapshot to add to, or nothing is known of such a run.
        StorageError: the store failed.
    """
    numbers = store.numbers()
    if not numbers:
        raise ConfigError(
            f"{store.url}: there is no snapshot that rejected rows could be added to: run elmo "
            "embed first"
        )
    if run_id is not None:
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigError(f"--run {bounded(run_id, 100)!r}: not the id of a run")
        paths = [info.path for info in store.storage.list_files(f"_rejected/{run_id}")]
        if not paths:
            known = sorted({i.path.split("/")[1] for i in store.storage.list_files("_rejected")})
            raise ConfigError(
                f"{store.url}/_rejected: there are no rejected rows of a run {run_id!r}; found: "
                f"{', '.join(known[-5:]) or 'none of any run'}"
            )
        return RejectedRun(run_id, tuple(paths))
    for number in reversed(numbers):
        snapshot = store.load(number)
        if snapshot.operation in _EMBEDDING:
            return RejectedRun(snapshot.run_id, snapshot.rejected_files)
    return RejectedRun("", ())


def plan_replay(storage: Storage, run: RejectedRun, config: EmbedConfig) -> ReplayPlan:
    """Find the source files to read again.

    Memory grows with the number of source files, not with that of rejected rows.

    Raises:
        SourceError: the corpus is not there.
        StorageError: the store failed, or a file of rejected rows is missing.
    """
    by_code: dict[str, int] = {}
    sources: set[str] = set()
    kept: dict[str, set[str]] = {}
    for rows in _read_rejected(storage, run.files):
        for item in pc.value_counts(rows["code"]).to_pylist():
            by_code[item["values"]] = by_code.get(item["values"], 0) + item["counts"]
        sources.update(rows["source"].unique().to_pylist())
        pairs = rows.filter(rows["kept_source"].is_valid()).select(["source", "kept_source"])
        for pair in pairs.group_by(["source", "kept_source"]).aggregate([]).to_pylist():
            kept.setdefault(pair["source"], set()).add(pair["kept_source"])
    wanted = set(sources)
    waiting = list(sources)
    # Read without the row that is kept, a duplicate would look like a change of it.
    while waiting:
        more = kept.get(waiting.pop(), set()) - wanted
        wanted |= more
        waiting += more
    listed = {file.path for file in find_files(config.source).files} if sources else set()
    return ReplayPlan(run, by_code, frozenset(wanted & listed), frozenset(sources - listed))


def lenient(config: EmbedConfig) -> EmbedConfig:
    """The configuration without limits of rejected rows.

    The files of a replay are those with rejected rows: their share says nothing of the corpus.
    """
    run = config.run.model_copy(update={"max_rejected": None, "max_rejected_share": 1.0})
    return config.model_copy(update={"run": run})


def fates(
    storage: Storage, plan: ReplayPlan, rejected_files: Sequence[str], snapshot: Snapshot | None
) -> Fates:
    """Compare the rejected rows before and after a replay.

    A row with an id is found again by it. Rows whose id could not be read are counted by source
    file, since a mended file has other offsets: as many as are still rejected there are the same,
    and the others are embedded as far as there are documents that no known id accounts for.

    Memory is about 100 bytes a rejected row of the replay and a document that it embedded.

    Args:
        storage: the output.
        plan: what was tried.
        rejected_files: what the replay rejected.
        snapshot: what the replay committed; None if that was nothing.
    """
    after = pa.concat_tables([_EMPTY, *_read_rejected(storage, rejected_files)]).select(_PLACE)
    embedded_ids = _embedded_ids(storage, snapshot)
    gone = still = embedded = 0
    unknown: dict[str, int] = {}
    for rows in _read_rejected(storage, plan.run.files):
        is_gone = pc.is_in(rows["source"], value_set=pa.array(sorted(plan.gone), pa.string()))
        gone += int(is_gone.combine_chunks().true_count)
        rows = rows.filter(pc.invert(is_gone)).select(_PLACE)
        files = rows.filter(rows["offset"].is_null())
        bad = _num_matching(files, after.filter(after["offset"].is_null()), ["source"])
        named = rows.filter(pc.and_(rows["offset"].is_valid(), rows["id"].is_valid()))
        again = _num_matching(named, after, ["source", "id"])
        now = named.join(after.select(["source", "id"]), ["source", "id"], join_type="left anti")
        found = int(pc.sum(pc.is_in(now["id"], value_set=embedded_ids)).as_py() or 0)
        still += bad + again
        embedded += files.num_rows - bad + found
        gone += now.num_rows - found
        _count(rows.filter(pc.and_(rows["offset"].is_valid(), rows["id"].is_null())), unknown)
    without_id: dict[str, int] = {}
    _count(after.filter(pc.and_(after["offset"].is_valid(), after["id"].is_null())), without_id)
    same = sum(min(count, without_id.get(source, 0)) for source, count in unknown.items())
    rest = sum(unknown.values()) - same
    mended = min(rest, max(0, len(embedded_ids) - embedded))
    return Fates(embedded + mended, still + same, gone + rest - mended)


_EMPTY = REJECTED_SCHEMA.empty_table()


def _read_rejected(storage: Storage, paths: Iterable[str]) -> Iterator[pa.Table]:
    for path in paths:
        with storage.open_input(path) as file:
            table = pq.read_table(file)
        for field in REJECTED_SCHEMA:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        table = table.select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA)
        harmless = pa.array(sorted(HARMLESS_CODES), pa.string())
        yield table.filter(pc.invert(pc.is_in(table["code"], value_set=harmless)))


def _embedded_ids(storage: Storage, snapshot: Snapshot | None) -> pa.ChunkedArray:
    columns = []
    for path in () if snapshot is None else snapshot.changes or ():
        for table in read_feed_file(storage, path, CHANGE_SCHEMA):
            columns += table.filter(pc.not_equal(table["op"], DELETE))["id"].chunks
    return pa.chunked_array(columns, pa.string())


def _num_matching(rows: pa.Table, others: pa.Table, keys: list[str]) -> int:
    """How many of the rows have a counterpart of equal keys, none of them null."""
    return int(rows.select(keys).join(others.select(keys), keys, join_type="left semi").num_rows)


def _count(rows: pa.Table, by_source: dict[str, int]) -> None:
    for item in pc.value_counts(rows["source"]).to_pylist():
        by_source[item["values"]] = by_source.get(item["values"], 0) + item["counts"]
