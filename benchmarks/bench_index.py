"""How fast an index is fed, what a delta saves, and what each kind of FAISS index finds how fast.

The corpus is synthetic: clustered vectors (rows around random centres), float16, in a snapshot of
several Parquet files; a second snapshot changes a share of the documents. Fed: `elmo index` without
its check. Own way: a plain program that reads the same files as a whole and gives them to the
index's client in one call. Both with the same settings, in turns; wall time and processor time.
Recall@10 is against exact search by numpy.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
import machine

from pipeline.config import OutputConfig, VectorConfig, build
from pipeline.data_files import DataFileWriter, rewrite_without
from pipeline.index.config import FaissSection, IndexConfig
from pipeline.index.kinds import open_feeder, open_index
from pipeline.index.update import plan_update, update_index
from pipeline.schema import output_schema
from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import open_storage

FAISS_TYPES = ("flat", "hnsw", "ivf", "ivf_pq")
ROWS_PER_CENTRE = 100
NOISE = 0.7
NUM_FILES = 8
CHANGED_SHARE = 0.01
# Training codes on more costs minutes and finds no more in this corpus.
MAX_TRAIN_ROWS = 20_000


def clustered(num_rows: int, dim: int, seed: int) -> np.ndarray:
    """Rows around random centres, float16; centres are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((max(1, num_rows // ROWS_PER_CENTRE), dim))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, len(centres), num_rows)].astype(np.float32)
    return (rows + NOISE * random.standard_normal(rows.shape, np.float32)).astype(np.float16)


class Corpus:
    """Two snapshots: all documents, and a share of them changed."""

    def __init__(self, url: str, num_rows: int, dim: int) -> None:
        self.store = SnapshotStore(open_storage(url))
        self.dim = dim
        self.schema = output_schema(VectorConfig(), dim, ["vector"], [])
        self.vectors_ND = clustered(num_rows, dim, seed=1)
        numbers = np.arange(num_rows)
        files = [
            self._write([f"doc-{n:09d}" for n in part], self.vectors_ND[part])
            for part in np.array_split(numbers, NUM_FILES)
        ]
        self._commit(files, None, ())
        chosen = np.random.default_rng(2).choice(
            num_rows, round(CHANGED_SHARE * num_rows), replace=False
        )
        ids = [f"doc-{n:09d}" for n in np.sort(chosen)]
        self.new_file = self._write(ids, clustered(num_rows, dim, seed=3)[: len(ids)])
        output = OutputConfig(path=url)
        kept = [rewrite_without(self.store.storage, f, ids, output, "run-2") for f in files]
        changes = pa.table(
            [ids, ["update"] * len(ids), [self.new_file.path] * len(ids)], schema=CHANGE_SCHEMA
        )
        path = write_changes(self.store.storage, 2, "run-2", changes)
        self._commit([f for f in [*kept, self.new_file] if f], self.store.load(1), (path,))

    def paths(self, number: int) -> list[str]:
        """Local paths of a snapshot's files."""
        files = self.store.load(number).files
        return [self.store.storage.url_of(file.path) for file in files]

    def _write(self, ids: list[str], vectors_ND: np.ndarray) -> DataFile:
        output = OutputConfig(path=self.store.url)
        writer = DataFileWriter(self.store.storage, self.schema, output, {}, "run-1")
        type_ = self.schema.field("vector").type
        vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), type=type_)
        hashes = pa.array([uuid.uuid4().bytes for _ in ids], pa.binary(16))
        writer.write(pa.record_batch([pa.array(ids), hashes, vector], schema=self.schema))
        return writer.close()

    def _commit(
        self, files: list[DataFile], parent: Snapshot | None, changes: tuple[str, ...]
    ) -> None:
        made = Snapshot.new(
            number=1,
            parent=None,
            run_id=uuid.uuid4().hex,
            idempotency_key=uuid.uuid4().hex,
            operation="embed",
            fingerprint="f" * 64,
            schema=self.schema,
            files=tuple(files),
            counts={"documents": sum(file.num_documents for file in files)},
            changes=changes,
        )
        self.store.commit(made.numbered(parent))


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def configuration(corpus: Corpus, url: str, number: int, section: dict) -> IndexConfig:
    """An index of one of the snapshots, published without a check."""
    values = {
        "snapshot": {"path": corpus.store.url, "number": number},
        "index": {"path": url},
        "quality": {"sample": 0},
        **section,
    }
    return build(IndexConfig, values, "benchmark")


def feed(corpus: Corpus, url: str, number: int, section: dict) -> str:
    """What `elmo index` does; returns full or delta."""
    config = configuration(corpus, url, number, section)
    feeder = open_feeder(config)
    return update_index(config, feeder, plan_update(config, feeder, rebuild=False)).action


def read_whole(paths: list[str]) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids and vectors of length 1, float32, of all files at once."""
    table = pa.concat_tables([pq.read_table(path, columns=["id", "vector"]) for path in paths])
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    vectors_ND = flat.reshape(table.num_rows, -1).astype(np.float32)
    faiss.normalize_L2(vectors_ND)
    return table["id"], vectors_ND


def own_faiss(corpus: Corpus, folder: Path, section: FaissSection, number: int) -> None:
    """A plain program with FAISS: read, train, add in one call, write."""
    ids, vectors_ND = read_whole(corpus.paths(number))
    count, dim = vectors_ND.shape
    lists = max(1, min(4 * int(count**0.5), min(count, section.max_train_rows) // 40))
    spec = {
        "flat": "IDMap,SQfp16",
        "hnsw": f"IDMap,HNSW{section.num_links}_SQfp16",
        "ivf": f"IVF{lists},SQfp16",
        "ivf_pq": f"IVF{lists},PQ{dim // 4}",
    }[section.type]
    index = faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
    if section.type == "hnsw":
        faiss.downcast_index(index.index).hnsw.efConstruction = section.build_depth
    if not index.is_trained:
        index.train(
            vectors_ND[np.random.default_rng(0).permutation(count)[: section.max_train_rows]]
        )
    index.add_with_ids(vectors_ND, np.arange(count))
    faiss.write_index(index, str(folder / "own.faiss"))
    pq.write_table(pa.table({"id": ids}), folder / "own.parquet")


def measure_faiss(corpus: Corpus, folder: Path, kind: str, repeats: int) -> dict:
    """Feeding beside the own way, a delta beside a full build, recall and queries a second."""
    options = {"type": kind, "max_train_rows": MAX_TRAIN_ROWS}
    typed = FaissSection.model_validate(options)
    turns = [one_turn(corpus, folder, typed) for _ in range(repeats)]
    times = {name: [turn[name] for turn in turns] for name in turns[0]}
    result = {name: summary(values, len(corpus.vectors_ND)) for name, values in times.items()}
    result["fed_over_own_rate"] = ratio(times["own"], times["fed"])
    result["delta_over_full_time"] = ratio(times["delta"], times["full"])
    result |= answers(corpus, str(folder / "fed"))
    sizes = {path.suffix: path.stat().st_size for path in sorted((folder / "fed").glob("data/*"))}
    return {**result, "size_bytes": sizes}


def one_turn(corpus: Corpus, folder: Path, section: FaissSection) -> dict[str, dict[str, float]]:
    """Each way once, in turns; the index that was fed stays in `fed`."""
    sections = {"faiss": section.model_dump()}
    fed, fresh = folder / "fed", folder / "fresh"
    for path in (fed, fresh):
        shutil.rmtree(path, ignore_errors=True)
    actions = []
    times = {
        "fed": timed(lambda: actions.append(feed(corpus, str(fed), 1, sections))),
        "own": timed(lambda: own_faiss(corpus, folder, section, 1)),
        "delta": timed(lambda: actions.append(feed(corpus, str(fed), 2, sections))),
        "full": timed(lambda: actions.append(feed(corpus, str(fresh), 2, sections))),
    }
    assert actions == ["full", "delta", "full"]
    return times


def summary(values: list[dict[str, float]], num_rows: int) -> dict:
    """Spread of the times, and rows of the whole index a second."""
    wall = [value["wall_s"] for value in values]
    return {
        "wall_s": machine.spread(wall),
        "cpu_s": machine.spread([value["cpu_s"] for value in values]),
        "rows_per_s": round(num_rows / machine.spread(wall)["median"]),
    }


def ratio(over: list[dict[str, float]], under: list[dict[str, float]]) -> dict[str, float]:
    """Median of the ratios of what ran next to each other."""
    return {
        name: machine.spread([a[name] / b[name] for a, b in zip(over, under, strict=True)])[
            "median"
        ]
        for name in ("wall_s", "cpu_s")
    }


def answers(corpus: Corpus, url: str, num_queries: int = 200) -> dict:
    """Recall@10 against exact search, and queries a second, all at once."""
    ids, vectors_ND = read_whole(corpus.paths(2))
    queries_QD = clustered(len(vectors_ND), corpus.dim, seed=4)[:num_queries].astype(np.float32)
    faiss.normalize_L2(queries_QD)
    best_QK = np.argsort(-(queries_QD @ vectors_ND.T), axis=1)[:, :10]
    names = np.array(ids.to_pylist())
    reader = open_index(url)
    reader.search(queries_QD[:2], 10)
    seconds = timed(lambda: reader.search(queries_QD, 10))
    found = reader.search(queries_QD, 10)
    right = [
        len({hit.id for hit in hits} & set(names[best_K]))
        for hits, best_K in zip(found, best_QK, strict=True)
    ]
    return {
        "recall_at_10": round(sum(right) / (10 * num_queries), 4),
        "queries_per_s": round(num_queries / seconds["wall_s"], 1),
        "cpu_ms_per_query": round(1000 * seconds["cpu_s"] / num_queries, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--types", nargs="+", default=list(FAISS_TYPES), choices=FAISS_TYPES)
    parser.add_argument("--result", help="write the result here as well")
    arguments = parser.parse_args()
    result = {
        "machine": machine.describe(),
        "rows": arguments.rows,
        "dim": arguments.dim,
        "repeats": arguments.repeats,
        "changed_share": CHANGED_SHARE,
        "seed": 1,
        "faiss_threads": faiss.omp_get_max_threads(),
        "faiss_version": faiss.__version__,
    }
    with tempfile.TemporaryDirectory(prefix="elmo-bench-") as directory:
        folder = Path(directory)
        corpus = Corpus(str(folder / "vectors"), arguments.rows, arguments.dim)
        result["read_whole"] = timed(lambda: read_whole(corpus.paths(1)))
        for kind in arguments.types:
            result[kind] = measure_faiss(corpus, folder, kind, arguments.repeats)
            machine.save(
                arguments.result, result
            )  # What is done is kept if the rest takes too long.


if __name__ == "__main__":
    main()
