"""How many documents a second pass through the pipeline when the model costs nothing.

Ours: the whole `jobs.embed` run (plan pass, embed pass, commit) with a model that returns constant
vectors, to Parquet and to Arrow IPC. Reference: the script one would write by hand with Ray Data
(read_parquet, map_batches, write_parquet), which has no diff, no rejected rows, no checksums and no
commit. Roofline: plain pyarrow writing the same vectors, one process a core, no Ray at all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
import machine

from pipeline.backend import EncoderDescription
from pipeline.config import EmbedConfig, build
from pipeline.run import execute, prepare
from pipeline.token_window import BatchCounts

DIM = 1024


class ConstantModel:
    """Vectors of ones at no cost."""

    dim = DIM
    vector_columns = ("vector",)

    def __init__(self) -> None:
        self.counts = BatchCounts()

    def vectors(self, window):
        """One vector of ones a document."""
        return np.ones((len(window.sentences_per_document), 1, DIM), np.float16)


class ConstantBackend:
    """Stands in for ELMo."""

    def describe(self, config):
        """A fingerprint that no ELMo has."""
        return EncoderDescription("constant", {}, DIM, ("vector",))

    def loader(self, config, num_threads):
        """The model itself is its loader's result."""
        return ConstantModel


def write_corpus(folder: Path, num_documents: int, num_files: int) -> None:
    """Short documents of 12 words over a vocabulary of 5,000."""
    rng = random.Random(1)
    words = [f"word{number}" for number in range(5000)]
    for number in range(num_files):
        count = num_documents // num_files
        table = pa.table(
            {
                "id": [f"doc-{number}-{row:07d}" for row in range(count)],
                "text": [" ".join(rng.choices(words, k=12)) for _ in range(count)],
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=25_000)


def run_ours(corpus: Path, output: Path, file_format: str, actors: int) -> dict[str, float]:
    """Seconds of the two passes of a whole run."""
    values = {
        "source": {"path": str(corpus), "id_column": "id"},
        "model": {"directory": "none"},
        "output": {"path": str(output), "format": file_format},
        "run": {"num_actors": actors, "documents_per_task": 25_000},
    }
    started = time.monotonic()
    prepared = prepare(build(EmbedConfig, values, "benchmark"), backend=ConstantBackend())
    planned = time.monotonic()
    report = execute(prepared)
    assert report.snapshot is not None
    return {"plan_s": planned - started, "embed_s": time.monotonic() - planned}


def run_scale(scratch: Path, num_documents: int, actors: int) -> dict[str, float]:
    """Seconds of a run over so many documents, in files of at most 50,000."""
    corpus = scratch / "corpus"
    corpus.mkdir(parents=True)
    write_corpus(corpus, num_documents, max(1, num_documents // 50_000))
    seconds = run_ours(corpus, scratch / "out", "parquet", actors)
    shutil.rmtree(scratch)
    return {**seconds, "documents_per_s": num_documents / sum(seconds.values())}


class HandWritten:
    """The UDF of a hand-written script."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Append a column of ones."""
        flat = pa.array(np.ones(batch.num_rows * DIM, np.float16))
        vectors = pa.FixedSizeListArray.from_arrays(flat, DIM)
        return pa.table({"id": batch["id"], "vector": vectors})


def run_hand_written(corpus: Path, output: Path, actors: int) -> float:
    """Seconds of the hand-written script."""
    import ray

    started = time.monotonic()
    dataset = ray.data.read_parquet(str(corpus)).repartition(target_num_rows_per_block=25_000)
    dataset = dataset.map_batches(
        HandWritten,
        batch_size=4096,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=0.5,
    )
    dataset.write_parquet(str(output), compression="none", use_dictionary=False)
    return time.monotonic() - started


def _write_plain(arguments: tuple[str, str, int]) -> None:
    path, file_format, num_rows = arguments
    vector = pa.list_(pa.field("item", pa.float16(), nullable=False), DIM)
    schema = pa.schema([pa.field("vector", vector, nullable=False)])
    if file_format == "parquet":
        writer = pq.ParquetWriter(
            path, schema, compression="none", use_dictionary=False, write_statistics=False
        )
    else:
        writer = pa.ipc.new_file(path, schema)
    for first in range(0, num_rows, 4096):
        flat = pa.array(np.ones(min(4096, num_rows - first) * DIM, np.float16))
        array = pa.FixedSizeListArray.from_arrays(flat, type=vector)
        writer.write_batch(pa.record_batch([array], schema=schema))
    writer.close()


def run_roofline(output: Path, file_format: str, num_documents: int, cores: int) -> float:
    """Seconds in which one process a core writes the same vectors with pyarrow."""
    output.mkdir()
    jobs = [(str(output / str(n)), file_format, num_documents // cores) for n in range(cores)]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        started = time.monotonic()
        pool.map(_write_plain, jobs)
        return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--scale", type=int, nargs="*", default=[], help="numbers of documents, one run for each"
    )
    parser.add_argument("--result")
    arguments = parser.parse_args()
    result = {"machine": machine.describe(), "documents": arguments.documents, "dim": DIM}
    cores = len(os.sched_getaffinity(0))
    scratch = Path(tempfile.mkdtemp(prefix="bench"))
    corpus = scratch / "corpus"
    corpus.mkdir()
    write_corpus(corpus, arguments.documents, 16)
    rates: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        rates.setdefault(name, []).append(arguments.documents / seconds)
        shutil.rmtree(scratch / "out", ignore_errors=True)

    for file_format in ("parquet", "arrow"):
        for _ in range(arguments.repeats):
            out = scratch / "out"
            note(
                f"roofline_{file_format}",
                run_roofline(out, file_format, arguments.documents, cores),
            )
    # The first run starts Ray and its workers; it is not counted.
    run_ours(corpus, scratch / "out", "arrow", cores)
    shutil.rmtree(scratch / "out")
    for _ in range(arguments.repeats):
        for file_format in ("parquet", "arrow"):
            seconds = run_ours(corpus, scratch / "out", file_format, cores)
            rates.setdefault(f"ours_{file_format}_plan_pass", []).append(
                arguments.documents / seconds["plan_s"]
            )
            rates.setdefault(f"ours_{file_format}_embed_pass", []).append(
                arguments.documents / seconds["embed_s"]
            )
            note(f"ours_{file_format}_whole_run", sum(seconds.values()))
        note("hand_written_parquet", run_hand_written(corpus, scratch / "out", cores))
    result["documents_per_s"] = {name: machine.spread(values) for name, values in rates.items()}
    result["seconds_by_documents"] = {
        count: run_scale(scratch / f"scale-{count}", count, cores) for count in arguments.scale
    }
    shutil.rmtree(scratch)
    machine.save(arguments.result, result)


if __name__ == "__main__":
    main()
