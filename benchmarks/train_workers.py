"""What a second worker of Ray Train brings on one machine, and where its time goes.

Each contestant trains the same model with one thread a worker, and a round runs all of them:

- `one`: one worker of Ray Train, all rows of a batch;
- `two`: two workers, which share the rows of every batch and average their gradients;
- `apart`: two processes side by side, each with the half of the rows that a worker has, which share
  nothing. So this is `two` without averaging: what is missing of it is averaging, with its wait for
  the later worker; what it misses of twice `one` is what halves of a batch cost more than a whole.

Tokens a second are those of the training's own metrics, first step left out; the wait for text is
what the first worker records. Processor seconds are those of the workers' processes between two
looks, about a second apart: `tokens_per_cpu_s` is a rate for one processor. On a busy machine it is
the only figure that says something, and it says nothing of the time for which workers wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import lzma
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
from random_elmo import SIZES, options_of

from pipeline.cluster import connect
from pipeline.config import build
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.metrics import METRICS_NAME
from pipeline.pretraining.ray_train import train_on_ray
from pipeline.pretraining.run import TrainingTask, prepare, train_here

SEED = 1
BATCH_SIZE, UNROLL_STEPS = 128, 20
CONTESTANTS = ("one", "two", "apart")
# Steps that are not counted: the first one makes what later ones find ready.
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class Outcome:
    """One training of one contestant: seconds of each step counted, and what its worker spent.

    `cpu_tokens` are those that were learnt from during `cpu_seconds`.
    """

    step_seconds: list[float]
    waited_share: float
    cpu_tokens: int
    cpu_seconds: float


def write_text(path: Path, folder: Path, num_lines: int) -> Path:
    """The first lines of a text of WikiText that are no headings, a line a document."""
    target = folder / "text.txt"
    with lzma.open(path, "rt", encoding="utf-8") as source, target.open("w") as file:
        lines = (line.strip() for line in source)
        wanted = (line for line in lines if line and not line.startswith("="))
        for line, _ in zip(wanted, range(num_lines), strict=False):
            file.write(line + "\n")
    return target


def config_of(
    text: Path, folder: Path, args: argparse.Namespace, rows: int, workers: int
) -> PretrainConfig:
    """A training of the original's kind: Adagrad, dropout, sampled softmax."""
    options = options_of(args.size)
    assert options.char_cnn is not None
    tree = {
        "source": {"path": str(text)},
        "vocabulary": {"max_size": args.words, "min_count": 1},
        "architecture": {
            "projection_dim": options.lstm.projection_dim,
            "dim": options.lstm.dim,
            "num_layers": options.lstm.n_layers,
            "filters": options.char_cnn.filters,
            "num_highway": options.char_cnn.n_highway,
            "dropout": 0.1,
        },
        "training": {
            "max_seconds": None,
            "max_steps": args.steps + WARM_UP_STEPS,
            "batch_size": rows,
            "unroll_steps": UNROLL_STEPS,
            "optimizer": "adagrad",
            "dtype": args.dtype,
            "num_negative_samples": args.negatives,
            "num_evaluations": 1,
            "max_held_out_tokens": 2000,
            "seed": SEED,
        },
        "run": {"num_workers": workers, "num_threads": 1},
        "output": {"directory": str(folder / "model")},
    }
    return build(PretrainConfig, tree, "the benchmark")


def on_ray(task: TrainingTask) -> Outcome:
    """Train with Ray Train, and look at what the workers' processes spend."""
    looks: list[tuple[int, float]] = []

    def look(steps: int, seconds: float, tokens: int, note: str) -> None:
        # The first look at a step: what the last one shows again is after the training.
        if steps >= WARM_UP_STEPS and (not looks or tokens > looks[-1][0]):
            looks.append((tokens, _workers_cpu_seconds()))

    end = train_on_ray(task, look)
    tokens, spent = (looks[-1][at] - looks[0][at] for at in (0, 1)) if looks else (0, 0.0)
    share = end.waited_seconds / end.train_seconds
    return Outcome(_step_seconds(task), share, int(tokens), spent)


def _workers_cpu_seconds() -> float:
    """Of the workers that this program's Ray has started; others may train on this machine, too."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            # What stands before the last parenthesis is a name.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                ticks = int(fields[11]) + int(fields[12])
                seconds[int(entry.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return sum(spent for worker, spent in seconds.items() if _is_below(worker, parents))


def _is_below(process: int, parents: dict[int, int]) -> bool:
    while process and process != os.getpid():
        process = parents.get(process, 0)
    return process != 0


def alone(task: TrainingTask) -> Outcome:
    """Train in this process."""
    looks: list[tuple[int, float]] = []

    def look(steps: int, seconds: float, tokens: int, note: str) -> None:
        if steps >= WARM_UP_STEPS:
            looks.append((tokens, time.process_time()))

    end = train_here(task, look)
    # The last look is after the last measurement.
    (first, begun), (last, done) = looks[0], looks[-2]
    share = end.waited_seconds / end.train_seconds
    return Outcome(_step_seconds(task), share, last - first, done - begun)


def _step_seconds(task: TrainingTask) -> list[float]:
    lines = (Path(task.work) / METRICS_NAME).read_text().splitlines()
    steps = [values for line in lines if "losses" in (values := json.loads(line))]
    times = [values["train_seconds"] for values in steps]
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def run_round(text: Path, args: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Every contestant once, each in directories of its own."""
    found: dict[str, list[Outcome]] = {}
    for name in CONTESTANTS:
        with tempfile.TemporaryDirectory() as folder:
            if name == "apart":
                tasks = [
                    _task(text, Path(folder) / str(number), args, BATCH_SIZE // 2, 0)
                    for number in range(2)
                ]
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(2, mp_context=context) as pool:
                    found[name] = list(pool.map(alone, tasks))
            else:
                workers = 1 if name == "one" else 2
                found[name] = [on_ray(_task(text, Path(folder), args, BATCH_SIZE, workers))]
    return found


def _task(
    text: Path, folder: Path, args: argparse.Namespace, rows: int, workers: int
) -> TrainingTask:
    folder.mkdir(exist_ok=True)
    return prepare(config_of(text, folder, args, rows, workers)).task


def results(rounds: list[dict[str, list[Outcome]]]) -> dict[str, Any]:
    """Rates, ratios within each round, and shares of a step of two workers."""
    tokens = BATCH_SIZE * UNROLL_STEPS
    rates: dict[str, list[float]] = {}
    cpu_rates: dict[str, list[float]] = {}
    for found in rounds:
        for name, outcomes in found.items():
            # Of `apart`, the two learn from half of the tokens each.
            rate = sum(
                tokens / len(outcomes) / statistics.median(one.step_seconds) for one in outcomes
            )
            rates.setdefault(name, []).append(rate)
            spent = sum(one.cpu_seconds for one in outcomes)
            if spent:
                learnt = sum(one.cpu_tokens for one in outcomes)
                cpu_rates.setdefault(name, []).append(learnt / spent)
    one, two, apart = (rates[name] for name in CONTESTANTS)
    waited = [found["two"][0].waited_share for found in rounds]
    averaging = [1 - mine / without for mine, without in zip(two, apart, strict=True)]
    spread = machine.spread
    return {
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "tokens_per_cpu_s": {name: spread(values) for name, values in cpu_rates.items()},
        "two_over_one": spread([mine / other for mine, other in zip(two, one, strict=True)]),
        "apart_over_one": spread([mine / other for mine, other in zip(apart, one, strict=True)]),
        "share_of_two": {
            "averaging": spread(averaging),
            "waiting for text": spread(waited),
            "computing": spread(
                [1 - share - text for share, text in zip(averaging, waited, strict=True)]
            ),
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="train.txt.xz of WikiText-2")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lines", type=int, default=4000, help="of the text")
    parser.add_argument("--words", type=int, default=33_280, help="most words of the vocabulary")
    parser.add_argument("--negatives", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=10, help="counted steps of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "seed": SEED,
        "model": args.size,
        "dtype": args.dtype,
        "batch": [BATCH_SIZE, UNROLL_STEPS],
        "negatives": args.negatives,
        "steps": args.steps,
        "rounds": args.rounds,
    }
    connect()
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(Path(args.text), Path(folder), args.lines)
        rounds = [run_round(text, args) for _ in range(args.rounds)]
    result["load_after"] = round(os.getloadavg()[0], 2)
    machine.save(args.result, {**result, **results(rounds)})


if __name__ == "__main__":
    main()
