"""What a run does beside embedding, as Ray tasks: rejected rows, rewrites, metadata, change feed.

The tasks work where the tables lie in the cluster; the driver gets descriptions of files. Knows no
encoder; commits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.carry_over import copy_with_metadata
from pipeline.compare import KNOWN_SCHEMA
from pipeline.config import EmbedConfig
from pipeline.data_files import rewrite_without
from pipeline.known import read_known
from pipeline.plan import PlannedDrop, PlannedRead
from pipeline.plan_tasks import split_by_bucket
from pipeline.records import SourceSplit
from pipeline.rejected import count_by_code, write_rejected
from pipeline.selected import rows_with_vectors, selected_documents
from pipeline.snapshot.changes import ADD, CHANGE_SCHEMA, DELETE, UPDATE, write_changes
from pipeline.snapshot.metadata import DataFile
from pipeline.snapshot.run_record import RunRecord
from pipeline.storage import open_storage
from pipeline.watch import gather

MAX_GROUPS = 200
_NEW_SCHEMA = pa.schema([("id", pa.string()), ("file", pa.int32())])


@dataclass(frozen=True)
class Finish:
    """The tasks of one run. `schema` is that of its data files, without partition columns."""

    config: EmbedConfig
    run_id: str
    schema: pa.Schema

    def write_rejected(self, tables: Sequence[Any]) -> tuple[list[str], dict[str, int]]:
        """Write tables of rejected rows (refs, REJECTED_SCHEMA).

        Returns: the paths of the files, and the number of rows by code.
        """
        task = ray.remote(_write_rejected)
        refs = [task.remote(self, ref) for ref in tables]
        paths: list[str] = []
        by_code: dict[str, int] = {}
        for path, counts in self._gather(refs, "writing rejected rows"):
            if path is not None:
                paths.append(path)
            for code, count in counts.items():
                by_code[code] = by_code.get(code, 0) + count
        return paths, by_code

    def rewrite(
        self, files: Sequence[DataFile], drops: Sequence[PlannedDrop], dropped: Sequence[Any]
    ) -> dict[int, DataFile | None]:
        """Copy the touched files without the documents that leave them, a task each.

        Args:
            files: the known files.
            drops: which of them lose documents.
            dropped: refs to tables of KNOWN_SCHEMA, each by ascending `file`.

        Returns: by position in `files`, the new file, or None where nothing is left of it.
        """
        task = ray.remote(_rewrite)
        refs = [task.remote(self, files[drop.file], drop.file, *dropped) for drop in drops]
        rewritten = self._gather(refs, "rewriting files")
        return {drop.file: file for drop, file in zip(drops, rewritten, strict=True)}

    def copy_metadata(
        self, reads: Sequence[PlannedRead], files: Sequence[DataFile]
    ) -> list[DataFile]:
        """Write the documents of which only the metadata changed, with the vectors they have.

        A shuffle of metadata: a task a group of splits reads it, a task a group of files joins it
        with the vectors.
        """
        reads = [read for read in reads if read.num_metadata_only]
        if not reads:
            return []
        groups = _groups(files)
        firsts = [group[0][0] for group in groups]
        read_task = ray.remote(num_returns=len(groups))(_read_metadata)
        copy_task = ray.remote(_copy_metadata)
        parts = [read_task.remote(self, read.splits, firsts, read.selected) for read in reads]
        by_group = [
            [refs[number] if len(groups) > 1 else refs for refs in parts]
            for number in range(len(groups))
        ]
        refs = [
            copy_task.remote(self, group, *tables)
            for group, tables in zip(groups, by_group, strict=True)
        ]
        copied = self._gather(refs, "copying vectors to new metadata")
        return [file for some in copied for file in some]

    def write_changes(
        self,
        number: int,
        operations: Sequence[Any],
        known_paths: Mapping[int, str],
        new_files: Sequence[DataFile],
    ) -> tuple[tuple[str, ...], dict[str, int]]:
        """Write the change feed of the snapshot `number`, a task a bucket.

        Args:
            number: of the snapshot that is about to be committed.
            operations: a ref to a table of OPERATION_SCHEMA for each bucket.
            known_paths: where the rows of the known files are in the new snapshot.
            new_files: what this run has embedded or copied to new metadata.

        Returns: the paths of the feed's files, and the number of rows by operation.
        """
        num_buckets = len(operations)
        index_task = ray.remote(num_returns=num_buckets)(_index_new)
        feed_task = ray.remote(_write_feed)
        parts = [index_task.remote(self, group, num_buckets) for group in _groups(new_files)]
        names = ray.put((dict(known_paths), [file.path for file in new_files]))
        refs = [
            feed_task.remote(
                self,
                number,
                names,
                operations[bucket],
                *(refs[bucket] if num_buckets > 1 else refs for refs in parts),
            )
            for bucket in range(num_buckets)
        ]
        paths: list[str] = []
        totals = dict.fromkeys((ADD, UPDATE, DELETE), 0)
        for path, counts in self._gather(refs, "writing the change feed"):
            if path is not None:
                paths.append(path)
            for op, count in counts.items():
                totals[op] += count
        return tuple(paths), totals

    def _gather(self, refs: Sequence[Any], stage: str) -> list[Any]:
        return gather(refs, stage, self.config.run.no_progress_timeout_s)


def _groups(files: Sequence[DataFile]) -> list[list[tuple[int, DataFile]]]:
    numbered = list(enumerate(files))
    size = max(1, -(-len(numbered) // MAX_GROUPS))
    return [numbered[first : first + size] for first in range(0, len(numbered), size)]


def _write_rejected(finish: Finish, rows: pa.Table) -> tuple[str | None, dict[str, int]]:
    if not rows.num_rows:
        return None, {}
    storage = open_storage(finish.config.output.path)
    return write_rejected(storage, finish.run_id, rows), count_by_code(rows)


def _rewrite(finish: Finish, file: DataFile, number: int, *dropped: pa.Table) -> DataFile | None:
    parts = [pa.chunked_array([], pa.string())]
    for table in dropped:
        # All files' rows are here: the table lies in shared memory, and only a slice is looked at.
        first, last = np.searchsorted(table["file"].to_numpy(), [number, number + 1]).tolist()
        parts.append(table["id"].slice(first, last - first))
    ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
    output = finish.config.output
    storage = open_storage(output.path)
    return rewrite_without(storage, file, ids.combine_chunks(), output, finish.run_id)


def _metadata_schema(finish: Finish) -> pa.Schema:
    source = finish.config.source
    names = ["id", "content_hash", *source.carry_columns]
    fields = [finish.schema.field(name) for name in names]
    fields += [pa.field(name, pa.string()) for name in source.partition_columns]
    return pa.schema([*fields, KNOWN_SCHEMA.field("file")])


def _read_metadata(
    finish: Finish,
    splits: Sequence[SourceSplit],
    first_files: Sequence[int],
    selected: pa.Table,
) -> Any:
    schema = _metadata_schema(finish)
    tables = [schema.empty_table()]
    for split in splits:
        rows = rows_with_vectors(selected, split)
        for documents, files in selected_documents(finish.config, split, rows):
            with_file = documents.append_column("file", files)
            tables.append(with_file.select(schema.names).cast(schema))
    merged = pa.concat_tables(tables)
    merged = merged.take(pc.sort_indices(merged["file"])).combine_chunks()
    numbers = merged["file"].to_numpy()
    edges = [*np.searchsorted(numbers, first_files).tolist(), merged.num_rows]
    parts = [
        # A slice would carry all of its parent's buffers along when it is pickled.
        merged.take(pa.array(np.arange(a, b)))
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    return parts if len(parts) > 1 else parts[0]


def _copy_metadata(
    finish: Finish, group: Sequence[tuple[int, DataFile]], *tables: pa.Table
) -> list[DataFile]:
    output = finish.config.output
    storage = open_storage(output.path)
    metadata = pa.concat_tables(tables)
    written: list[DataFile] = []
    for number, file in group:
        rows = metadata.filter(pc.equal(metadata["file"], number)).drop_columns("file")
        if rows.num_rows:
            written += copy_with_metadata(storage, file, rows, finish.schema, output, finish.run_id)
    if written:
        RunRecord(storage, finish.run_id).add(written)
    return written


def _index_new(finish: Finish, group: Sequence[tuple[int, DataFile]], num_buckets: int) -> Any:
    storage = open_storage(finish.config.output.path)
    tables = [_NEW_SCHEMA.empty_table()]
    for number, file in group:
        ids = read_known(storage, file.path)["id"]
        tables.append(
            pa.table([ids, pa.repeat(pa.scalar(number, pa.int32()), len(ids))], _NEW_SCHEMA)
        )
    buckets = split_by_bucket(pa.concat_tables(tables), num_buckets)
    return buckets if num_buckets > 1 else buckets[0]


def _write_feed(
    finish: Finish,
    number: int,
    names: tuple[Mapping[int, str], Sequence[str]],
    operations: pa.Table,
    *new: pa.Table,
) -> tuple[str | None, dict[str, int]]:
    known_paths, new_paths = names
    changes = feed(
        operations, pa.concat_tables([_NEW_SCHEMA.empty_table(), *new]), known_paths, new_paths
    )
    if not changes.num_rows:
        return None, {}
    counted = pc.value_counts(changes["op"].combine_chunks())
    counts = {item["values"].as_py(): item["counts"].as_py() for item in counted}
    storage = open_storage(finish.config.output.path)
    return write_changes(storage, number, finish.run_id, changes), counts


def feed(
    operations: pa.Table, new: pa.Table, known_paths: Mapping[int, str], new_paths: Sequence[str]
) -> pa.Table:
    """The change feed of one bucket, from what was planned and what was written.

    A document that was to be updated and is in no new file was rejected by the model: its old rows
    have left the snapshot, so the feed says `delete`.

    Args:
        operations: OPERATION_SCHEMA.
        new: `id` and `file`, the number in `new_paths`, of the documents that were written.
        known_paths: path in the new snapshot, by the number of a known file.
        new_paths: paths of the new files.

    Returns: CHANGE_SCHEMA.
    """
    resumed = operations.filter(operations["file"].is_valid())
    planned = operations.filter(operations["file"].is_null())
    updates = planned.filter(pc.equal(planned["op"], UPDATE))["id"]
    deletes = planned.filter(pc.equal(planned["op"], DELETE))["id"]
    is_update = pc.is_in(new["id"], value_set=updates.combine_chunks()).to_numpy()
    written = pc.is_in(updates, value_set=new["id"].combine_chunks())
    rejected = updates.filter(pc.invert(written))
    ids = [new["id"], resumed["id"], deletes, rejected]
    ops = [
        np.where(is_update, UPDATE, ADD).tolist(),
        resumed["op"].to_pylist(),
        [DELETE] * (len(deletes) + len(rejected)),
    ]
    files = [
        pa.array(list(new_paths), pa.string()).take(new["file"].combine_chunks()),
        pa.array([known_paths[n] for n in resumed["file"].to_pylist()], pa.string()),
        pa.nulls(len(deletes) + len(rejected), pa.string()),
    ]
    return pa.table(
        [
            pa.concat_arrays([column.combine_chunks() for column in ids]),
            pa.array([op for some in ops for op in some], pa.string()),
            pa.concat_arrays(files),
        ],
        schema=CHANGE_SCHEMA,
    )
