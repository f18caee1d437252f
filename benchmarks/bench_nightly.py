"""What a night costs when little has changed: time, driver memory, bytes read and written.

A corpus of short documents is embedded with a model that costs nothing; then, night after night, a
share of it is changed (anywhere, or only in the newest files) and the run is repeated. Each night
is a driver process of its own on one Ray, so that its peak memory can be told. Write amplification
is what was written over what the changed rows themselves take; beside it stands what delete vectors
would have written (the changed rows, and 4 bytes for each old one).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
import machine

WORDS = pa.array([f"word{number}" for number in range(5000)])
WORDS_PER_DOCUMENT = 8
DELETE_VECTOR_BYTES_PER_ROW = 4
# (share of the documents, where they lie)
NIGHTS = [(0.0, "nowhere"), (0.001, "anywhere"), (0.01, "anywhere"), (0.1, "anywhere")]
NIGHTS += [(0.001, "newest"), (0.01, "newest"), (0.1, "newest")]


def write_file(path: Path, first: int, version: np.ndarray) -> None:
    """Write documents from number `first` on; those that ever changed carry the night's number."""
    count = len(version)
    rng = np.random.default_rng(first)
    chosen = rng.integers(0, len(WORDS), (WORDS_PER_DOCUMENT, count))
    words = [WORDS.take(pa.array(row)) for row in chosen]
    text = pc.binary_join_element_wise(*words, " ")
    if version.any():
        night = pc.binary_join_element_wise("night", pa.array(version).cast(pa.string()), "")
        new = pc.binary_join_element_wise(text, night, " ")
        text = pc.if_else(pa.array(version > 0), new, text)
    numbers = pa.array(np.arange(first, first + count)).cast(pa.string())
    ids = pc.binary_join_element_wise("doc", pc.utf8_lpad(numbers, 10, "0"), "-")
    pq.write_table(pa.table({"id": ids, "text": text}), path, row_group_size=50_000)


class Corpus:
    """Documents in files of equal size; remembers the version of each."""

    def __init__(self, folder: Path, num_documents: int, num_files: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.per_file = num_documents // num_files
        self.num_files = num_files
        self.num_documents = self.per_file * num_files
        self.version = np.zeros(self.num_documents, np.int32)
        self._write(range(num_files))

    def change(self, share: float, where: str, night: int) -> int:
        """Change a share of the documents; returns their number."""
        count = round(share * self.num_documents)
        rng = np.random.default_rng(night)
        if where == "newest":
            chosen = np.arange(self.num_documents - count, self.num_documents)
        else:
            chosen = rng.choice(self.num_documents, count, replace=False)
        self.version[chosen] = night
        # Files that only look new make the run compare everything, as after an export.
        files = np.unique(chosen // self.per_file).tolist() if count else range(self.num_files)
        self._write(files)
        return count

    def _write(self, files) -> None:
        for number in files:
            first = number * self.per_file
            path = self.folder / f"{number:05d}.parquet"
            write_file(path, first, self.version[first : first + self.per_file])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def run_night(corpus: str, output: str, dim: int) -> None:
    """One run in this process; prints what it took as one line of JSON."""
    from pipeline.backend import EncoderDescription
    from pipeline.config import EmbedConfig, build
    from pipeline.run import execute, prepare
    from pipeline.token_window import BatchCounts

    class Model:
        vector_columns = ("vector",)

        def __init__(self) -> None:
            self.dim = dim
            self.counts = BatchCounts()

        def vectors(self, window):
            return np.ones((len(window.sentences_per_document), 1, dim), np.float16)

    class Backend:
        def describe(self, config):
            return EncoderDescription("constant", {}, dim, ("vector",))

        def loader(self, config, num_threads):
            return Model

    values = {
        "source": {"path": corpus, "id_column": "id"},
        "model": {"directory": "none"},
        "output": {"path": output},
        # The model costs nothing here, so that writing limits: a process for each core.
        "run": {"documents_per_task": 50_000, "cpus_per_actor": 1},
    }
    config = build(EmbedConfig, values, "benchmark")
    from pipeline import cluster

    cluster.connect()
    idle_mib = peak_mib()
    started = time.monotonic()
    prepared = prepare(config, backend=Backend())
    planned = time.monotonic()
    report = execute(prepared)
    ended = time.monotonic()
    assert prepared.plan is not None
    sizes = {file.path: file.size_bytes for file in prepared.parent_files}
    touched = [prepared.known_files[drop.file].path for drop in prepared.plan.drops]
    print(
        json.dumps(
            {
                "plan_s": round(planned - started, 2),
                "execute_s": round(ended - planned, 2),
                "driver_peak_mib": peak_mib(),
                "driver_before_mib": idle_mib,
                "embedded": report.counts.documents,
                "files": len(report.snapshot.files) if report.snapshot else len(sizes),
                "files_rewritten": report.num_files_rewritten,
                "bytes_written": report.bytes_written,
                "bytes_rewritten": report.bytes_rewritten,
                "bytes_read_of_known_ids": _id_bytes(Path(output), list(sizes)),
                "bytes_read_to_rewrite": sum(sizes.get(path, 0) for path in touched),
            }
        )
    )


def peak_mib() -> int:
    """The largest resident memory of this process so far.

    Not `ru_maxrss`: that outlives exec, so it would be the parent's.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def _id_bytes(output: Path, paths: list[str]) -> int:
    """Compressed bytes of the columns id and content_hash of some data files."""
    total = 0
    for path in paths:
        metadata = pq.ParquetFile(output / path).metadata
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            columns = [row_group.column(number) for number in range(row_group.num_columns)]
            total += sum(
                column.total_compressed_size
                for column in columns
                if column.path_in_schema in ("id", "content_hash")
            )
    return total


def measure(num_documents: int, dim: int, scratch: Path) -> list[dict[str, float]]:
    """All nights over one corpus."""
    import ray

    corpus = Corpus(scratch / "corpus", num_documents, max(8, num_documents // 125_000))
    output = scratch / "vectors"
    address = ray.get_runtime_context().gcs_address
    results = []
    for night, (share, where) in enumerate([(1.0, "everything new"), *NIGHTS]):
        changed = corpus.change(share, where, night) if night else corpus.num_documents
        command = [sys.executable, __file__, "--night", str(corpus.folder), str(output), str(dim)]
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": address},
        )
        found = json.loads(done.stdout.splitlines()[-1])
        row_bytes = found["bytes_written"]
        result = {
            "documents": corpus.num_documents,
            "changed": changed,
            "changed_where": where,
            **found,
            "bytes_read_of_source": corpus.size_bytes,
        }
        if night and changed:
            written = row_bytes + found["bytes_rewritten"]
            result["write_amplification"] = round(written / row_bytes, 2)
            with_vectors = row_bytes + DELETE_VECTOR_BYTES_PER_ROW * changed
            result["write_amplification_of_delete_vectors"] = round(with_vectors / row_bytes, 2)
        print(json.dumps(result), file=sys.stderr)
        results.append(result)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--result")
    parser.add_argument("--night", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.night:
        corpus, output, dim = arguments.night
        run_night(corpus, output, int(dim))
        return
    import ray

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    result = {"machine": machine.describe(), "dim": arguments.dim}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    nights: list[dict[str, float]] = []
    for num_documents in arguments.documents:
        scratch = Path(tempfile.mkdtemp(prefix="bench"))
        try:
            nights += measure(num_documents, arguments.dim, scratch)
        finally:
            shutil.rmtree(scratch)
    result["nights"] = nights
    machine.save(arguments.result, result)


if __name__ == "__main__":
    main()
