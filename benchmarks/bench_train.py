"""How many tokens a second one training step learns from, and where its time goes.

A token is a prediction of the forward direction; both directions are trained. Every round trains
each contestant on the same batch: ours in float32 and bfloat16, the readable modules
(`ELMO_KERNEL=reference`), ours with torch's own LSTM in the place of the layers (it cannot clip),
and the plain program of plain_training.py. Ours is `train_step` with a clock in it, which says
where the time goes; equal seeds give it the losses of the readable modules. Roofline: the products
that the step needs, each at the best rate of its shape, measured in every fourth round.
"""

from __future__ import annotations

import argparse
import gc
import json
import lzma
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import machine
from plain_training import PlainTrainer
from random_elmo import SIZES, options_of
from train_part import StagedStep, TorchStacks
from train_products import Products

from elmo_model.kernels.selection import KERNEL_VARIABLE
from elmo_model.kernels.training import training_kernel
from elmo_model.lm_batches import Corpus, LmBatch, WordTable, packed_batches
from elmo_model.options import ElmoOptions, TrainingOptions
from elmo_model.training import TrainState, train_step
from elmo_model.vocabulary import Vocabulary, count_words

SEED = 1
BATCH_SIZE, UNROLL_STEPS = 128, 20
ROUNDS_PER_ROOFLINE = 4
ARITHMETICS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Contestants:
    """Everybody who learns from the same batches, with their times."""

    def __init__(self, options: ElmoOptions, wanted: list[str]) -> None:
        self.steps: dict[str, Callable[[LmBatch], float]] = {}
        self.staged: dict[str, StagedStep] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in wanted}
        self.cpu_seconds: dict[str, list[float]] = {name: [] for name in wanted}
        self.losses: dict[str, list[float]] = {name: [] for name in wanted}
        self.parts: dict[str, list[dict[str, float]]] = {}
        self.cpu_parts: dict[str, list[dict[str, float]]] = {}
        self.kernels: dict[str, str] = {}
        for name in wanted:
            self._add(name, options)

    def _add(self, name: str, options: ElmoOptions) -> None:
        if name == "plain":
            self.steps[name] = PlainTrainer(options, SEED).step
            return
        state = TrainState.create(options, SEED)
        if name == "readable":
            self.steps[name] = lambda batch: _readable_step(state, batch)
            return
        if name in ARITHMETICS:
            state.arithmetic = ARITHMETICS[name]
            self.kernels[name] = training_kernel(state.model)
            self.staged[name] = StagedStep(state)
            self.parts[name], self.cpu_parts[name] = [], []
        else:
            self.staged[name] = StagedStep(state, TorchStacks(state))
        self.steps[name] = self.staged[name].step

    def round(self, batch: LmBatch) -> None:
        """One step of each."""
        for name, step in self.steps.items():
            started, used = time.perf_counter(), time.process_time()
            loss = step(batch)
            self.seconds[name].append(time.perf_counter() - started)
            self.cpu_seconds[name].append(time.process_time() - used)
            self.losses[name].append(loss)
            if name in self.parts:
                self.parts[name].append(self.staged[name].seconds)
                self.cpu_parts[name].append(self.staged[name].cpu_seconds)


def _readable_step(state: TrainState, batch: LmBatch) -> float:
    with _environment(KERNEL_VARIABLE, "reference"):
        return train_step(state, batch).loss


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def corpus_of(path: Path) -> tuple[Vocabulary, list[list[str]]]:
    """The lines of a text of WikiText, and the vocabulary of all its words."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        sentences = [words for line in file if (words := line.split())]
    return Vocabulary.from_counts(count_words(sentences)), sentences


def training_options(size: str, num_words: int, num_negatives: int | None) -> ElmoOptions:
    """The original's training keys; without negatives, the full softmax."""
    training = TrainingOptions(
        dropout=0.1,
        all_clip_norm_val=10.0,
        n_tokens_vocab=num_words,
        n_negative_samples_batch=num_negatives,
        sample_softmax=num_negatives is not None,
    )
    return replace(options_of(size), training=training)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds until the time is up; the first is not counted."""
    vocabulary, sentences = corpus_of(Path(args.text))
    negatives = args.negatives if args.softmax == "sampled" else None
    options = training_options(args.size, len(vocabulary), negatives)
    assert options.char_cnn is not None
    table = WordTable(vocabulary, options.char_cnn.max_characters_per_token)
    sequences = Corpus.of(sentences, table).endless_sequences(SEED)
    batches = packed_batches(sequences, table, BATCH_SIZE, UNROLL_STEPS)
    contestants = Contestants(options, args.contestants)
    warm_up, first = islice(batches, 2)
    contestants.round(warm_up)
    for recorded in (
        contestants.seconds,
        contestants.cpu_seconds,
        contestants.losses,
        contestants.parts,
        contestants.cpu_parts,
    ):
        for values in recorded.values():
            values.clear()
    num_words = len(first.words)
    products = {
        name: Products(options, name, args.threads, num_words) for name in contestants.kernels
    }
    data_seconds, words, ideal_seconds = [], [], {name: [] for name in products}
    started, longest = time.perf_counter(), 0.0
    while not data_seconds or time.perf_counter() - started + longest < args.seconds:
        begun = time.perf_counter()
        batch = next(batches)
        data_seconds.append(time.perf_counter() - begun)
        words.append(len(batch.words))
        contestants.round(batch)
        longest = max(longest, time.perf_counter() - begun)
        for name, product in products.items():
            # A round of products takes longer than one of steps.
            if len(words) % ROUNDS_PER_ROOFLINE == 1:
                product.measure()
            ideal_seconds[name].append(product.seconds(len(batch.words)))
    return {
        "model": args.size,
        "threads": args.threads,
        "softmax": args.softmax,
        "negatives": negatives,
        "vocabulary": len(vocabulary),
        "batch": [BATCH_SIZE, UNROLL_STEPS],
        "distinct_words": machine.spread(words),
        "rounds": len(words),
        **results(contestants, data_seconds, ideal_seconds),
        "gflop": {name: product.gflop() for name, product in products.items()},
        "gemm_gflop_per_s": {name: product.rates() for name, product in products.items()},
        "kernels": contestants.kernels,
    }


def results(
    contestants: Contestants, data_seconds: list[float], ideal_seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Rates, ratios within each round, and shares of a step's parts."""
    tokens = BATCH_SIZE * UNROLL_STEPS
    seconds = {name: np.array(values) for name, values in contestants.seconds.items()}
    spread = machine.spread
    found: dict[str, Any] = {
        "tokens_per_s": {name: spread((tokens / taken).tolist()) for name, taken in seconds.items()}
    }
    for reference in ("plain", "readable", "torch_lstm"):
        if reference in seconds:
            found[f"over_{reference}"] = {
                name: spread((seconds[reference] / taken).tolist())
                for name, taken in seconds.items()
                if name != reference
            }
    # On a busy machine the processor's time says more; with many threads it counts their waiting.
    cpu = {name: np.array(values) for name, values in contestants.cpu_seconds.items()}
    found["tokens_per_cpu_s"] = {
        name: spread((tokens / taken).tolist()) for name, taken in cpu.items()
    }
    if "plain" in cpu:
        found["over_plain_by_cpu_s"] = {
            name: spread((cpu["plain"] / taken).tolist())
            for name, taken in cpu.items()
            if name != "plain"
        }
    found["roofline_tokens_per_s"] = {
        name: spread([tokens / ideal for ideal in values]) for name, values in ideal_seconds.items()
    }
    found["share_of_roofline"] = {
        name: spread((np.array(values) / seconds[name]).tolist())
        for name, values in ideal_seconds.items()
    }
    found["seconds_of_parts"] = {
        name: {part: spread([parts[part] for parts in rounds]) for part in rounds[0]}
        | {"data": spread(data_seconds)}
        for name, rounds in contestants.parts.items()
    }
    found["cpu_share_of_parts"] = {
        name: {
            part: spread([parts[part] / sum(parts.values()) for parts in rounds])
            for part in rounds[0]
        }
        for name, rounds in contestants.cpu_parts.items()
    }
    found["last_loss"] = {name: round(losses[-1], 4) for name, losses in contestants.losses.items()}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="train.txt.xz of WikiText-2")
    parser.add_argument("--size", choices=SIZES, default="small")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}))
    parser.add_argument("--softmax", choices=["sampled", "full"], nargs="+", default=["sampled"])
    parser.add_argument("--negatives", type=int, default=8192)
    known = [*ARITHMETICS, "readable", "torch_lstm", "plain"]
    parser.add_argument("--contestants", nargs="+", choices=known, default=known)
    parser.add_argument("--seconds", type=float, default=200, help="for the rounds of each cell")
    parser.add_argument("--result")
    args = parser.parse_args()
    # LSTMs with projection have no fused kernel in torch's CPU build, and it says so.
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    result: dict[str, Any] = {"machine": machine.describe(), "seed": SEED, "cells": []}
    for softmax in args.softmax:
        for threads in args.threads:
            torch.set_num_threads(threads)
            chosen = {"softmax": softmax, "threads": threads}
            result["cells"].append(measure(argparse.Namespace(**{**vars(args), **chosen})))
            gc.collect()
            if args.result:  # what follows may be cut off
                Path(args.result).write_text(json.dumps(result, indent=1) + "\n")
    machine.save(args.result, result)


if __name__ == "__main__":
    main()
