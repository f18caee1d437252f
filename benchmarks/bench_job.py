"""Which share of the bare encoder's rate the whole job reaches on the same text.

Bare: one process a core, one thread each, the same tokenised text in windows through the same
vector model; no Ray, no files. Job: `prepare` and `execute` of `jobs.embed` with as many actors:
discovery, plan pass, reading, tokenising, embedding, writing and committing, model load included.
Roofline: the bare encoder is the limit; its own efficiency is measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import machine

from elmo_model.bilm import BiLM
from elmo_model.directory import save_directory
from elmo_model.options import ElmoOptions
from pipeline.config import EmbedConfig, build
from pipeline.model import ElmoLoader
from pipeline.run import execute, prepare

SIZES = {"small": (1024, 128, 1), "original": (4096, 512, 2)}


def write_model(folder: Path, size: str, seed: int) -> None:
    """A model of a released size with random weights."""
    dim, projection_dim, highway = SIZES[size]
    filters = [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]]
    options = ElmoOptions.from_dict(
        {
            "lstm": {
                "use_skip_connections": True,
                "projection_dim": projection_dim,
                "cell_clip": 3,
                "proj_clip": 3,
                "dim": dim,
                "n_layers": 2,
            },
            "char_cnn": {
                "activation": "relu",
                "filters": filters,
                "n_highway": highway,
                "embedding": {"dim": 16},
                "n_characters": 262,
                "max_characters_per_token": 50,
            },
        }
    )
    torch.manual_seed(seed)
    save_directory(folder, options, BiLM(options).state_dict())


def write_corpus(source: Path, folder: Path, num_documents: int) -> None:
    """The first documents of the news corpus, in several files."""
    with lzma.open(source, "rt", encoding="utf-8") as file:
        lines = [line for _, line in zip(range(num_documents), file, strict=False)]
    for number in range(8):
        rows = []
        for place, line in enumerate(lines[number::8]):
            text = json.loads(line)["text"]
            rows.append(json.dumps({"id": f"{number}-{place}", "text": text}))
        (folder / f"{number}.jsonl").write_text("\n".join(rows) + "\n")


def config_of(corpus: Path, model: Path, output: Path, actors: int) -> EmbedConfig:
    """The job's configuration."""
    values = {
        "source": {"path": str(corpus), "id_column": "id"},
        "model": {"directory": str(model)},
        "output": {"path": str(output)},
        "run": {"num_actors": actors},
    }
    return build(EmbedConfig, values, "benchmark")


def _encode(config: EmbedConfig, part: int, parts: int, barrier, results) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.bucketing import windows
    from pipeline.embed import token_window
    from pipeline.sources.discover import discover
    from pipeline.sources.read import read_documents
    from pipeline.text import tokenise

    torch.set_num_threads(1)
    tables = []
    for split in discover(config.source).splits:
        for batch in read_documents(split, config.source, config.text):
            tables.append(tokenise(batch.documents, config.text))
    table = pa.concat_tables(tables)
    table = table.take(np.arange(part, table.num_rows, parts))
    model = ElmoLoader(config, 1)()
    counts = pc.list_value_length(table["tokens"]).to_numpy().astype(np.int64)
    barrier.wait()
    started = time.monotonic()
    for window in windows(counts, config.batch.window_tokens):
        model.vectors(token_window(table.slice(window.start, window.stop - window.start)))
    results.put((int(counts.sum()), time.monotonic() - started))


def run_bare(config: EmbedConfig, processes: int) -> float:
    """Tokens per second of the encoders alone, all processes together."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_encode, args=(config, part, processes, barrier, results))
        for part in range(processes)
    ]
    for worker in workers:
        worker.start()
    measured = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(tokens for tokens, _ in measured) / max(seconds for _, seconds in measured)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--news", required=True, help="bbc.jsonl.xz of the reference corpora")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result")
    arguments = parser.parse_args()
    result = {"machine": machine.describe(), "model": arguments.size, "seed": 1}
    cores = len(os.sched_getaffinity(0))
    scratch = Path(tempfile.mkdtemp(prefix="bench"))
    (scratch / "corpus").mkdir()
    write_model(scratch / "model", arguments.size, seed=1)
    write_corpus(Path(arguments.news), scratch / "corpus", arguments.documents)
    bare, whole, embed_pass = [], [], []
    tokens = 0
    from pipeline.cluster import connect

    connect()
    for repeat in range(arguments.repeats):
        config = config_of(scratch / "corpus", scratch / "model", scratch / f"out{repeat}", cores)
        bare.append(run_bare(config, cores))
        started = time.monotonic()
        prepared = prepare(config)
        planned = time.monotonic()
        report = execute(prepared)
        tokens = report.counts.tokens
        whole.append(tokens / (time.monotonic() - started))
        embed_pass.append(tokens / (time.monotonic() - planned))
    result["processes"] = cores
    result["tokens"] = tokens
    result["tokens_per_s"] = {
        "bare_encoder": machine.spread(bare),
        "whole_job": machine.spread(whole),
        "embed_pass": machine.spread(embed_pass),
    }
    ratios = [job / alone for job, alone in zip(whole, bare, strict=True)]
    result["whole_job_over_bare"] = machine.spread(ratios)
    ratios = [job / alone for job, alone in zip(embed_pass, bare, strict=True)]
    result["embed_pass_over_bare"] = machine.spread(ratios)
    shutil.rmtree(scratch)
    machine.save(arguments.result, result)


if __name__ == "__main__":
    main()
