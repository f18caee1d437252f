"""Which share of the bare encoder's rate the whole job reaches on the same text.

Each layout is a number of actors and of threads in each. Bare: as many processes and threads, the
same tokenised text in windows through the same vector model; no Ray, no files. Job: `prepare` and
`execute` of `jobs.embed`: discovery, plan pass, reading, tokenising, embedding, writing and
committing, model load included. Roofline: the bare encoder is the limit; its own efficiency is
measured by bench_encode.py. Beside them: seconds from the start of the embed pass to the first data
file, the share of that pass in which actors encode, and the memory of an actor, with what it shares
counted in parts (PSS).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
from random_elmo import SIZES, options_of, random_model

from elmo_model.directory import save_directory
from pipeline.config import EmbedConfig, build
from pipeline.model import ElmoLoader
from pipeline.run import execute, prepare

# The words whose vectors get the scale that is wanted.
SCALED_WORDS = ["the", "market", "said", "film", "government", "2004", "players", ","]


def write_model(folder: Path, size: str, seed: int) -> None:
    """A model of a released size with random weights."""
    options = options_of(size)
    save_directory(folder, options, random_model(options, SCALED_WORDS, seed).state)


def write_corpus(source: Path, folder: Path, num_documents: int, copies: int = 1) -> None:
    """The first documents of the news corpus, in several files, each `copies` times."""
    with lzma.open(source, "rt", encoding="utf-8") as file:
        lines = [line for _, line in zip(range(num_documents), file, strict=False)] * copies
    for number in range(8):
        rows = []
        for place, line in enumerate(lines[number::8]):
            text = json.loads(line)["text"]
            rows.append(json.dumps({"id": f"{number}-{place}", "text": text}))
        (folder / f"{number}.jsonl").write_text("\n".join(rows) + "\n")


@dataclass(frozen=True)
class Layout:
    """How the cores are shared out."""

    actors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.actors} x {self.threads}"


def config_of(scratch: Path, output: str, dtype: str, layout: Layout) -> EmbedConfig:
    """The job's configuration."""
    values = {
        "source": {"path": str(scratch / "corpus"), "id_column": "id"},
        "model": {"directory": str(scratch / "model"), "dtype": dtype},
        "output": {"path": str(scratch / output)},
        "run": {"num_actors": layout.actors, "cpus_per_actor": layout.threads},
    }
    return build(EmbedConfig, values, "benchmark")


def _encode(config: EmbedConfig, part: int, layout: Layout, barrier, results) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.batch_sizes import batch_sizes
    from pipeline.bucketing import windows
    from pipeline.embed import token_window
    from pipeline.sources.discover import discover
    from pipeline.sources.read import read_documents
    from pipeline.text import tokenise

    tables = []
    for split in discover(config.source).splits:
        for batch in read_documents(split, config.source, config.text):
            tables.append(tokenise(batch.documents, config.text))
    table = pa.concat_tables(tables)
    table = table.take(np.arange(part, table.num_rows, layout.actors))
    model = ElmoLoader(config, layout.threads)()
    counts = pc.list_value_length(table["tokens"]).to_numpy().astype(np.int64)
    barrier.wait()
    started = time.monotonic()
    sizes = batch_sizes(config.batch, layout.threads, on_gpu=False)
    for window in windows(counts, sizes.window_tokens):
        model.vectors(token_window(table.slice(window.start, window.stop - window.start)))
    results.put((int(counts.sum()), time.monotonic() - started))


def run_bare(config: EmbedConfig, layout: Layout) -> float:
    """Tokens per second of the encoders alone, all processes together."""
    processes = layout.actors
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_encode, args=(config, part, layout, barrier, results))
        for part in range(processes)
    ]
    for worker in workers:
        worker.start()
    measured = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(tokens for tokens, _ in measured) / max(seconds for _, seconds in measured)


class Watch:
    """Looks at a running job from outside: its first data file, and the memory of its actors.

    Seldom: the system walks all pages of an actor to count what it shares, and the actor cannot map
    or unmap memory meanwhile. Five looks a second took a tenth of four cores from the job.
    """

    memory_interval_s = 10.0

    def __init__(self, output: Path) -> None:
        self.first_file_s: float | None = None
        self.peak_bytes: dict[int, int] = {}
        self._output = output
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        next_memory_s = self.memory_interval_s
        while not self._ended.wait(0.2 if self.first_file_s is None else 1.0):
            passed_s = time.monotonic() - self._started
            if self.first_file_s is None and any(self._output.glob("data/**/*.parquet")):
                self.first_file_s = passed_s
            if passed_s >= next_memory_s:
                next_memory_s += self.memory_interval_s
                for pid, size in _actors():
                    self.peak_bytes[pid] = max(size, self.peak_bytes.get(pid, 0))


def _actors() -> Iterator[tuple[int, int]]:
    """Process and proportional memory of every embedding actor on this machine."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, StopIteration, ValueError):
            if b"EmbedWorker" in (entry / "cmdline").read_bytes():
                lines = (entry / "smaps_rollup").read_text().splitlines()
                pss = next(line for line in lines if line.startswith("Pss:"))
                yield int(entry.name), int(pss.split()[1]) << 10


def run_job(config: EmbedConfig, output: Path, layout: Layout) -> dict[str, float]:
    """One job: tokens, and rates of the whole and of the embed pass, in tokens per second."""
    started = time.monotonic()
    prepared = prepare(config)
    planned = time.monotonic()
    with Watch(output) as watch:
        report = execute(prepared)
    ended = time.monotonic()
    tokens = report.counts.tokens
    return {
        "tokens": tokens,
        "whole_job": tokens / (ended - started),
        "embed_pass": tokens / (ended - planned),
        "first_file_s": watch.first_file_s or 0.0,
        "actor_mib": max(watch.peak_bytes.values(), default=0) / 2**20,
        "encoding_share_of_actors": report.counts.encode_s / (ended - planned) / layout.actors,
        "padding_share": report.counts.padding_share,
        "words_per_token": report.counts.made_words / tokens,
    }


def measure(scratch: Path, dtype: str, layout: Layout, repeats: int) -> dict[str, Any]:
    """A layout's medians: bare encoder and job in turn."""
    bare, jobs = [], []
    for repeat in range(repeats):
        output = f"out-{layout.actors}-{layout.threads}-{repeat}"
        config = config_of(scratch, output, dtype, layout)
        bare.append(run_bare(config, layout))
        jobs.append(run_job(config, scratch / output, layout))
    return {
        "layout": str(layout),
        "bare_encoder_tokens_per_s": machine.spread(bare),
        **{name: machine.spread([job[name] for job in jobs]) for name in jobs[0]},
        **{
            f"{name}_over_bare": machine.spread(
                [job[name] / alone for job, alone in zip(jobs, bare, strict=True)]
            )
            for name in ("whole_job", "embed_pass")
        },
    }


def main() -> None:
    """Measure and print."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--news", required=True, help="bbc.jsonl.xz of the reference corpora")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=1, help="times that the documents are taken")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--layouts", nargs="+", default=[f"{cores}x1"], help="actors x threads, as in 4x1"
    )
    parser.add_argument("--result")
    arguments = parser.parse_args()
    result = {
        "machine": machine.describe(),
        "model": arguments.size,
        "arithmetic": arguments.dtype,
        "seed": 1,
    }
    scratch = Path(tempfile.mkdtemp(prefix="bench"))
    (scratch / "corpus").mkdir()
    write_model(scratch / "model", arguments.size, seed=1)
    write_corpus(Path(arguments.news), scratch / "corpus", arguments.documents, arguments.copies)
    from pipeline.cluster import connect

    connect()
    layouts = [Layout(*map(int, text.split("x"))) for text in arguments.layouts]
    result["layouts"] = [
        measure(scratch, arguments.dtype, layout, arguments.repeats) for layout in layouts
    ]
    shutil.rmtree(scratch)
    machine.save(arguments.result, result)


if __name__ == "__main__":
    main()
