"""Indexes that the tests of several modules feed, and what is in them."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import faiss
import numpy as np
import psycopg
import pyarrow as pa

from pipeline.config import OutputConfig, build
from pipeline.data_files import DataFileWriter
from pipeline.index.config import IndexConfig
from pipeline.index.kinds import open_feeder, open_index
from pipeline.index.protocol import IndexReader
from pipeline.index.update import IndexReport, plan_update, update_index
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage
from tests.pipeline.index.opensearch_double import OpenSearch, start
from tests.pipeline.snapshots import DIM, table_schema
from tests.pipeline.snapshots import snapshot as new_snapshot

# Threads that wait for one another in a loop cost more here than they save: the tables are tiny.
faiss.omp_set_num_threads(1)

# Far longer than anything takes on a busy machine; only what hangs is stopped by it.
HANGS_AFTER_SECONDS = 300
# The tests' tables are small and change as a whole: drift is normal in most of them.
ANY_QUALITY = {"max_moved_share": None, "min_recall": None}


def config_of(store: SnapshotStore, url: str, **sections: Any) -> IndexConfig:
    """A configuration; sections are given by name."""
    values = {
        "snapshot": {"path": store.url, **sections.pop("snapshot", {})},
        "index": {"path": url, **sections.pop("index", {})},
        "quality": {**ANY_QUALITY, **sections.pop("quality", {})},
        **sections,
    }
    return build(IndexConfig, values, "test")


@functools.cache
def postgres_url() -> str:
    """A database of a PostgreSQL server with pgvector, which ends with this process."""
    with warnings.catch_warnings():
        # Of a machine without a directory for what runs, which is not needed here.
        warnings.simplefilter("ignore")
        import pgserver

    # A socket's path has at most 107 characters.
    directory = tempfile.mkdtemp(prefix="pg", dir="/tmp")
    atexit.register(_end_server, Path(pgserver.__file__).parent, directory)
    # It waits ten seconds for the server and then leaves it to itself: on a busy machine too short.
    with suppress(subprocess.TimeoutExpired):
        pgserver.get_server(directory)
    url = f"postgresql:///postgres?user=postgres&host={quote(directory)}"
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return url


def _end_server(package: Path, directory: str) -> None:
    """Stop the server, where it runs, and remove its directory."""
    subprocess.run(
        [package / "pginstall/bin/pg_ctl", "-D", directory, "-m", "immediate", "stop"],
        user=os.stat(directory).st_uid,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def opensearch() -> tuple[str, OpenSearch]:
    """URL and state of a server that answers as OpenSearch, which ends with this process."""
    url, state, end = start()
    atexit.register(end)
    return url, state


def new_url(kind: str) -> str:
    """Where an index of this kind, which is not there yet, can be kept."""
    if kind == "opensearch":
        return f"{opensearch()[0]}#t_{uuid.uuid4().hex[:16]}"
    if kind == "pgvector":
        return f"{postgres_url()}#t_{uuid.uuid4().hex[:16]}"
    if kind == "lancedb":
        return f"{_directory()}/{uuid.uuid4().hex}"
    return f"memory://{uuid.uuid4().hex}"


@functools.cache
def _directory() -> str:
    """On disk, for as long as this process runs."""
    directory = tempfile.mkdtemp(prefix="elmo-indexes-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def feed(store: SnapshotStore, url: str, *, rebuild: bool = False, **sections: Any) -> IndexReport:
    """What `elmo index` does."""
    config = config_of(store, url, **sections)
    feeder = open_feeder(config)
    return update_index(config, feeder, plan_update(config, feeder, rebuild=rebuild))


def found(
    reader: IndexReader, query_D: Any, num_hits: int, **where: str | None
) -> dict[str, float]:
    """Ids and scores of the nearest rows."""
    hits = reader.search(np.asarray(query_D, np.float32)[None], num_hits, where)[0]
    assert len({hit.id for hit in hits}) == len(hits)
    return {hit.id: hit.score for hit in hits}


def ids_in(url: str) -> set[str]:
    """All documents that a search can find."""
    reader = open_index(url)
    ids = set(found(reader, np.ones(DIM), reader.state.num_rows + 10))
    assert len(ids) == reader.state.num_rows
    return ids


def example_in_page(section: str, language: str) -> str:
    """The one example in a language that a section of docs/INDEX.md has."""
    page = (Path(__file__).parents[3] / "docs/INDEX.md").read_text()
    (text,) = re.findall(rf"^## {section}$(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    (code,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(code)


def write_vectors(
    storage: Storage, ids: Sequence[str], vectors_ND: Any, lang: str | None = "en"
) -> DataFile:
    """A data file of these vectors."""
    schema = table_schema("float32", dim=np.shape(vectors_ND)[1])
    flat = pa.array(np.asarray(vectors_ND, np.float32).reshape(-1))
    vector = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    hashes = pa.array([uuid.uuid4().bytes for _ in ids], pa.binary(16))
    titles = pa.array([f"title of {id_}" for id_ in ids])
    batch = pa.record_batch([pa.array(ids), hashes, titles, vector], schema=schema)
    output = OutputConfig(path=storage.url)
    writer = DataFileWriter(storage, schema, output, {"lang": lang}, f"run-{uuid.uuid4().hex[:8]}")
    writer.write(batch)
    return writer.close()


def commit(store: SnapshotStore, files: Sequence[DataFile], **values: Any) -> Snapshot:
    """The next snapshot, of just these files, without a change feed."""
    dim = values.pop("dim", DIM)
    schema = table_schema("float32", partition_columns=("lang",), dim=dim)
    defaults = {
        "run_id": f"run-{uuid.uuid4().hex[:8]}",
        "schema": schema,
        "partition_columns": ("lang",),
    }
    made = new_snapshot(files, **{**defaults, **values})
    return store.commit(made.numbered(store.latest()))
