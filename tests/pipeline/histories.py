"""Histories of snapshots made with the real writers: what a nightly run does, without a model.

A document is a content and a partition; every change of either gives it new rows. Files are copied
without what leaves them, as a run does it, and each snapshot has its change feed.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import OutputConfig
from pipeline.data_files import DataFileWriter, rewrite_without
from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage
from tests.pipeline.snapshots import FINGERPRINT, rows, snapshot, table_schema

PARTITIONS = ("en", "de")


class Place(NamedTuple):
    """What a snapshot holds of a document, and where."""

    content_hash: bytes
    file: str


class Document(NamedTuple):
    """What a night wants a document to be."""

    text: str
    partition: str = "en"


def places(storage: Storage, made: Snapshot | None) -> dict[str, Place]:
    """Where every document is, read from the files themselves with plain pyarrow."""
    found: dict[str, Place] = {}
    for file in made.files if made else ():
        with storage.open_input(file.path) as source:
            table = pq.read_table(source, columns=["id", "content_hash"])
        for id_, content_hash in zip(*(column.to_pylist() for column in table), strict=True):
            assert id_ not in found, f"{id_} is there twice"
            found[id_] = Place(content_hash, file.path)
    return found


def difference(
    storage: Storage, old: Snapshot | None, new: Snapshot
) -> dict[str, tuple[str, str | None]]:
    """What differs, by the rows of both: id -> operation and the file in `new`."""
    before, after = places(storage, old), places(storage, new)
    same = old is not None and old.fingerprint == new.fingerprint
    found: dict[str, tuple[str, str | None]] = {}
    for id_ in before.keys() | after.keys():
        if id_ not in after:
            found[id_] = ("delete", None)
        elif id_ not in before:
            found[id_] = ("add", after[id_].file)
        elif not same or before[id_].content_hash != after[id_].content_hash:
            found[id_] = ("update", after[id_].file)
    return found


class Night:
    """One run: what it puts and deletes; files hold up to `documents_per_file` documents."""

    def __init__(
        self,
        puts: Mapping[str, Document] | None = None,
        deletes: Collection[str] = (),
        *,
        copies: Collection[int] = (),
        fingerprint: str | None = None,
        documents_per_file: int = 3,
    ) -> None:
        """Plan a night.

        Args:
            puts: new and changed documents.
            deletes: ids; those that are not there are no error.
            copies: numbers of files that are written again although nothing leaves them.
            fingerprint: of another encoder: everything is written anew. None keeps the parent's.
            documents_per_file: new files hold no more.
        """
        self.puts = dict(puts or {})
        self.deletes = set(deletes) - self.puts.keys()
        self.copies = copies
        self.fingerprint = fingerprint
        self.documents_per_file = documents_per_file

    def build(self, store: SnapshotStore, parent: Snapshot | None) -> Snapshot:
        """Write the files and the feed of the next snapshot; commit nothing."""
        storage, run_id = store.storage, f"night-{uuid.uuid4().hex[:8]}"
        before = places(storage, parent)
        fingerprint = self.fingerprint or (parent.fingerprint if parent else FINGERPRINT)
        puts = dict(self.puts)
        if parent is not None and fingerprint != parent.fingerprint:
            texts = self._texts(storage, parent)
            puts = {**{i: d for i, d in texts.items() if i not in self.deletes}, **puts}
        leaving = puts.keys() | self.deletes
        kept: list[DataFile] = []
        rewritten: dict[str, str] = {}
        for index, file in enumerate(parent.files if parent else ()):
            ids = [id_ for id_, place in before.items() if place.file == file.path]
            drop = [id_ for id_ in ids if id_ in leaving]
            new: DataFile | None = file
            if drop:
                new = rewrite_without(storage, file, drop, OutputConfig(path="."), run_id)
            elif index in self.copies:
                new = _copy(storage, file, run_id)
            if new is not None:
                kept.append(new)
                if new.path != file.path:
                    rewritten[file.path] = new.path
        written, holder = self._write(storage, puts, run_id)
        feed = [
            {"id": id_, "op": "update" if id_ in before else "add", "file": file}
            for id_, file in holder.items()
        ]
        deleted = [id_ for id_ in self.deletes if id_ in before]
        feed += [{"id": id_, "op": "delete", "file": None} for id_ in deleted]
        number = parent.number + 1 if parent else 1
        table = pa.Table.from_pylist(feed, schema=CHANGE_SCHEMA)
        half = len(feed) // 2
        changes = [write_changes(storage, number, run_id, table.slice(0, half))] if half else []
        if table.num_rows > half:
            changes.append(write_changes(storage, number, run_id, table.slice(half)))
        made = snapshot(
            [*kept, *written],
            run_id=run_id,
            idempotency_key=f"key of {run_id}",
            fingerprint=fingerprint,
            schema=table_schema(partition_columns=("lang",)),
            partition_columns=("lang",),
            changes=tuple(changes),
            rewritten=rewritten,
        )
        return made.numbered(parent)

    def commit(self, store: SnapshotStore) -> Snapshot:
        """Build and commit, again after each lost race."""
        committed = store.commit_next(lambda parent: self.build(store, parent))
        assert committed is not None
        return committed

    def _write(
        self, storage: Storage, puts: Mapping[str, Document], run_id: str
    ) -> tuple[list[DataFile], dict[str, str]]:
        files: list[DataFile] = []
        holder: dict[str, str] = {}
        for partition in PARTITIONS:
            chosen = [id_ for id_, document in puts.items() if document.partition == partition]
            for first in range(0, len(chosen), self.documents_per_file):
                ids = chosen[first : first + self.documents_per_file]
                output = OutputConfig(path=".")
                with DataFileWriter(
                    storage, table_schema(), output, {"lang": partition}, run_id
                ) as writer:
                    for id_ in ids:
                        writer.write(rows([id_], text=f"{puts[id_].text}/{partition}"))
                    files.append(writer.close())
                holder |= dict.fromkeys(ids, files[-1].path)
        return files, holder

    def _texts(self, storage: Storage, parent: Snapshot) -> dict[str, Document]:
        """What a run with another encoder reads from the corpus: here, any text will do."""
        return {
            id_: Document(f"text of {id_}", dict(_file(parent, place.file).partition)["lang"] or "")
            for id_, place in places(storage, parent).items()
        }


def _file(made: Snapshot, path: str) -> DataFile:
    return next(file for file in made.files if file.path == path)


def _copy(storage: Storage, file: DataFile, run_id: str) -> DataFile:
    """The same bytes under another name."""
    path = f"{file.path.rpartition('/')[0]}/{run_id}-{uuid.uuid4().hex}.parquet"
    storage.put(path, storage.read_bytes(file.path, 1 << 30))
    return replace(file, path=path)
