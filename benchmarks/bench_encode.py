"""How many tokens a second the encoder embeds, and which share of the machine's rate that is.

Whole: tokenised sentences to one mixed vector a token, through the vector model of the jobs at its
default batches, with an empty and with a filled word cache; against the plain program of
reference_encoder.py, which gets one batch of 64 sentences a round, as they come (`plain`) or of
like length, the median one's (`plain_sorted`). LSTMs: both stacks over one packed batch; against
torch's own LSTM, which cannot clip. Roofline: the products that the batch needs, each at the best
rate of its shape in the same round. Weights are random (random_elmo.py).
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import machine
from gemm_rates import GemmRates
from lstm_part import LstmPart
from random_elmo import SIZES, options_of, random_model, statistics
from reference_encoder import ROWS_PER_BATCH, PlainEncoder
from sample_text import LENGTHS, news_sentences, window_of

from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder, LayerChoice
from elmo_model.errors import DeviceError
from pipeline.batch_sizes import batch_sizes
from pipeline.config import BatchConfig, VectorConfig
from pipeline.elmo_vectors import ElmoVectors
from pipeline.token_window import TokenWindow

ARITHMETICS = ("float32", "bfloat16", "int8")
SEED = 1


class Ours:
    """The encoder behind the vector model of the jobs, with one arithmetic."""

    def __init__(self, files: ModelFiles, arithmetic: str, max_tokens: int) -> None:
        self.encoder = Encoder(files, device="cpu", dtype=arithmetic)
        choice = LayerChoice.parse("average", num_layers=self.encoder.num_layers)
        config = VectorConfig(level="token", dtype="float32")
        self._model = ElmoVectors(self.encoder, choice, config, max_tokens)

    def forget_words(self) -> None:
        """Empty the word cache, as in a new process."""
        self.encoder._cache._rows.clear()

    def run(self, window: TokenWindow) -> int:
        """Embed a window; returns how many words went through the character encoder."""
        before = len(self.encoder._cache)
        self._model.vectors(window)
        return len(self.encoder._cache) - before

    @property
    def padding_share(self) -> float:
        """Share of the padded positions so far that were padding."""
        counts = self._model.counts
        return 1 - counts.real_tokens / counts.padded_tokens


def offered(files: ModelFiles, wanted: Sequence[str], max_tokens: int) -> dict[str, Ours]:
    """An encoder for every arithmetic that is available here."""
    found = {}
    for arithmetic in wanted:
        try:
            found[arithmetic] = Ours(files, arithmetic, max_tokens)
        except DeviceError as error:
            print(f"{arithmetic} is left out: {error}", file=sys.stderr)
    return found


class Cell:
    """All contestants on one model, number of threads and text; `round` measures each once."""

    def __init__(self, size: str, num_threads: int, sentences: list[list[str]], args) -> None:
        torch.set_num_threads(num_threads)
        self._num_threads = num_threads
        self._sentences = sentences
        self._window = window_of(sentences)
        self._files = random_model(options_of(size), self._window.words[:500], SEED)
        max_tokens = batch_sizes(BatchConfig(), num_threads, on_gpu=False).max_tokens
        self._ours = offered(self._files, args.arithmetics, max_tokens)
        self._plain = PlainEncoder(self._files.options, self._files.state)
        self._part = LstmPart(
            self._files,
            {name: ours.encoder for name, ours in self._ours.items()},
            self._window,
            max_tokens,
        )
        self._gemms = {
            (arithmetic, name): GemmRates(arithmetic, shape, num_threads)
            for arithmetic in self._ours
            for name, shape in self._part.shapes.items()
        }
        self._words_made: dict[str, int] = {}
        self.num_rounds = 0
        self._rates: dict[str, list[float]] = {}
        self._part_rates: dict[str, list[float]] = {}

    def warm_up(self) -> None:
        """Run every contestant on little text, so that nothing is built within a measurement."""
        for ours in self._ours.values():
            ours.run(window_of(self._sentences[:8]))
        next(self._plain.encode(self._sentences[:4]))
        self._part.warm_up()

    def round(self) -> None:
        """One measurement of each contestant, interleaved."""
        num_tokens = len(self._window.word_ids)
        for name, batch in self._plain_batches().items():
            seconds, _ = self._time(
                lambda batch=batch: [layers.mean(0) for layers in self._plain.encode(batch)]
            )
            self._rates.setdefault(name, []).append(sum(map(len, batch)) / seconds)
        for name, ours in self._ours.items():
            ours.forget_words()
            for cache in ("cold", "warm"):
                seconds, made = self._time(lambda ours=ours: ours.run(self._window))
                self._rates.setdefault(f"{name}_{cache}", []).append(num_tokens / seconds)
                self._words_made[cache] = made
        for name, run in self._part.contestants.items():
            seconds, _ = self._time(run)
            self._part_rates.setdefault(name, []).append(self._part.num_tokens / seconds)
        for gemm in self._gemms.values():
            gemm.measure()
        self.num_rounds += 1

    def _plain_batches(self) -> dict[str, list[list[str]]]:
        """Another batch each round as the sentences come, and always the same of like length."""
        room = max(0, len(self._sentences) - ROWS_PER_BATCH)
        first = self.num_rounds * ROWS_PER_BATCH % (room + 1)
        by_length = sorted(self._sentences, key=len)
        return {
            "plain": self._sentences[first : first + ROWS_PER_BATCH],
            "plain_sorted": by_length[room // 2 : room // 2 + ROWS_PER_BATCH],
        }

    def _time(self, run: Callable[[], Any]) -> tuple[float, Any]:
        # A kernel's own threads may have changed what torch starts from.
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        result = run()
        return time.perf_counter() - started, result

    def result(self) -> dict[str, Any]:
        """What was measured, as plain JSON types."""
        num_tokens = len(self._window.word_ids)
        some = next(iter(self._ours.values()))
        return {
            "sentences": len(self._sentences),
            "tokens": num_tokens,
            "distinct_words": len(self._window.words),
            "rounds": self.num_rounds,
            "padding_share": round(some.padding_share, 4),
            "word_cache_hit_rate": {
                cache: round(1 - made / num_tokens, 4) for cache, made in self._words_made.items()
            },
            "tokens_per_s": _spreads(self._rates),
            "over_plain": _ratios(self._rates, "plain"),
            "over_plain_sorted": _ratios(self._rates, "plain_sorted"),
            "lstm_part": self._part_result(),
            "kernels": {
                name: f"{ours.encoder.kernel.name}: {ours.encoder.kernel.reason}"
                for name, ours in self._ours.items()
            },
        }

    def _part_result(self) -> dict[str, Any]:
        rooflines = {}
        for arithmetic in self._ours:
            names = list(self._part.shapes)
            rates = [self._gemms[arithmetic, name].best_of_rounds() for name in names]
            rooflines[arithmetic] = [
                self._part.num_tokens
                / sum(
                    self._part.gflop[name] / rate for name, rate in zip(names, round_, strict=True)
                )
                for round_ in zip(*rates, strict=True)
            ]
        rooflines = {name: rates for name, rates in rooflines.items() if rates}
        shares = {
            name: [ours / limit for ours, limit in zip(self._part_rates[name], limits, strict=True)]
            for name, limits in rooflines.items()
        }
        return {
            "tokens": self._part.num_tokens,
            "rows": self._part.num_rows,
            "gflop": {name: round(value, 2) for name, value in self._part.gflop.items()},
            "gemm_shapes": self._part.shapes,
            "gemm_gflop_per_s": {
                f"{arithmetic} {name}": _spreads(gemm.rounds)
                for (arithmetic, name), gemm in self._gemms.items()
            },
            "tokens_per_s": _spreads(self._part_rates),
            "over_torch_float32": _ratios(self._part_rates, "torch_float32"),
            "over_torch_bfloat16": _ratios(self._part_rates, "torch_bfloat16"),
            "roofline_tokens_per_s": _spreads(rooflines),
            "share_of_roofline": _spreads(shares),
        }

    def activations(self) -> dict[str, Any]:
        """How the random weights' activations look on one sentence."""
        encoder = next(iter(self._ours.values())).encoder
        layers = encoder.encode([max(self._sentences, key=len)]).layers[:, 0].float()
        width = self._files.options.lstm.projection_dim
        halves = layers[..., :width]
        return statistics(self._files, list(halves[1:]), halves[0])


def _spreads(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {name: machine.spread(values) for name, values in rates.items()}


def _ratios(rates: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Ratios within each round to the reference's rate of that round."""
    return _spreads(
        {
            name: (np.array(values) / np.array(rates[reference])).tolist()
            for name, values in rates.items()
            if name != reference
        }
    )


def measure(size: str, num_threads: int, kind: str, args, seconds: float) -> dict[str, Any]:
    """Rounds of one cell until its seconds are used up; one at least."""
    started = time.perf_counter()
    sentences = news_sentences(Path(args.news), kind, args.sentences)
    cell = Cell(size, num_threads, sentences, args)
    cell.warm_up()
    longest = 0.0
    while not cell.num_rounds or time.perf_counter() - started + longest < seconds:
        begun = time.perf_counter()
        cell.round()
        longest = max(longest, time.perf_counter() - begun)
    about = {"model": size, "threads": num_threads, "text": kind}
    return {**about, **cell.result(), "activations": cell.activations()}


def main() -> None:
    """Measure and print."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--news", required=True, help="bbc.jsonl.xz of the reference corpora")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--texts", nargs="+", choices=LENGTHS, default=["mixed"])
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=ARITHMETICS)
    parser.add_argument("--sentences", type=int, default=256, help="sentences of each text")
    parser.add_argument("--seconds", type=float, default=540, help="for all cells together")
    parser.add_argument("--result")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.describe(), "seed": SEED, "cells": []}
    cells = [(s, n, kind) for s in args.sizes for n in args.threads for kind in args.texts]
    started = time.perf_counter()
    for number, (size, num_threads, kind) in enumerate(cells):
        left = args.seconds - (time.perf_counter() - started)
        seconds = left / (len(cells) - number)
        result["cells"].append(measure(size, num_threads, kind, args, seconds))
        gc.collect()
    machine.save(args.result, result)


if __name__ == "__main__":
    main()
