"""Text to mixed vectors through the encoder as it is, and how long the GPU works meanwhile."""

from __future__ import annotations

import lzma
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device_time import Setting, spread
from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder, LayerChoice

ROOT = Path(__file__).parents[2]
_TEXT = "data/wikitext-2/valid.txt.xz"
_MAX_WORDS = 60
_MIN_S = 45.0


def measure(setting: Setting, files: ModelFiles) -> dict[str, Any]:
    """Words a second by arithmetic and size of batch, with words not yet and already known."""
    sentences, origin = _sentences(2000 if setting.is_dry else 150_000)
    words = [word for sentence in sentences for word in sentence]
    found: dict[str, Any] = {
        "text": origin,
        "sentences": len(sentences),
        "words": len(words),
        "distinct_words": len(set(words)),
    }
    sizes = (1024,) if setting.is_dry else (16_384, 65_536)
    for name in ("float32",) if setting.is_dry else ("float16", "bfloat16", "float32"):
        for max_positions in sizes:
            if setting.remaining_s() < _MIN_S:
                return {**found, "stopped": f"before {name}: no time left"}
            key = f"{name}, batches of {max_positions} positions"
            found[key] = _rates(setting, files, name, sentences, max_positions)
    return found


def _rates(
    setting: Setting,
    files: ModelFiles,
    dtype: str,
    sentences: list[list[str]],
    max_positions: int,
) -> dict[str, Any]:
    encoder = Encoder(files, device=setting.device.type, dtype=dtype)
    choice = LayerChoice.parse("average", num_layers=encoder.num_layers)
    num_words = sum(map(len, sentences))
    kernel = getattr(encoder, "kernel", None)
    found: dict[str, Any] = {
        "kernel": getattr(kernel, "name", "the model's own modules"),
        "why": getattr(kernel, "reason", None),
    }
    found["s_first_pass"] = round(_pass(setting, encoder, choice, sentences, max_positions), 3)
    passes = [
        _pass(setting, encoder, choice, sentences, max_positions)
        for _ in range(1 if setting.is_dry else 3)
    ]
    found["words_per_s_first_pass"] = float(f"{num_words / found['s_first_pass']:.4g}")
    found["words_per_s"] = spread([num_words / value for value in passes])
    found["busy_share"] = _busy_share(setting, encoder, choice, sentences, max_positions)
    found["waits"] = _waits(setting, encoder, choice, sentences, max_positions)
    return found


def _pass(
    setting: Setting,
    encoder: Encoder,
    choice: LayerChoice,
    sentences: list[list[str]],
    max_positions: int,
) -> float:
    """Seconds until the mixed vectors of all sentences are made, on the device."""
    begun = time.perf_counter()
    for batch in _batches(sentences, max_positions):
        choice.apply(encoder_layers(encoder, batch))
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def encoder_layers(encoder: Encoder, batch: list[list[str]]) -> torch.Tensor:
    """All layers of a batch in one go, however large it is."""
    number: dict[str, int] = {}
    ids = [[number.setdefault(word, len(number)) for word in sentence] for sentence in batch]
    lengths_B = np.array([len(row) for row in ids])
    ids_BT = np.full((len(ids), int(lengths_B.max())), -1, np.int32)
    for row, values in enumerate(ids):
        ids_BT[row, : len(values)] = values
    return encoder.encode_word_ids(list(number), ids_BT, lengths_B).layers


def _batches(sentences: list[list[str]], max_positions: int) -> Iterator[list[list[str]]]:
    """Sentences of like length together, longest first, marks counted."""
    ordered = sorted(sentences, key=len, reverse=True)
    start = 0
    while start < len(ordered):
        stop = start + max(1, max_positions // (len(ordered[start]) + 2))
        yield ordered[start:stop]
        start = stop


def _busy_share(
    setting: Setting,
    encoder: Encoder,
    choice: LayerChoice,
    sentences: list[list[str]],
    max_positions: int,
) -> dict[str, Any] | None:
    """Time in kernels and copies over the time of a pass, both seen by the profiler."""
    if setting.device.type != "cuda":
        return None
    some = sentences[: len(sentences) // 4]
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        wall_s = _pass(setting, encoder, choice, some, max_positions)
    totals = {event.key: event.self_device_time_total / 1e6 for event in profile.key_averages()}
    longest = sorted(totals.items(), key=lambda item: -item[1])[:12]
    return {
        "share": round(sum(totals.values()) / wall_s, 3),
        "wall_s": round(wall_s, 3),
        "longest_s": {name[:80]: round(value, 4) for name, value in longest},
    }


def _waits(
    setting: Setting,
    encoder: Encoder,
    choice: LayerChoice,
    sentences: list[list[str]],
    max_positions: int,
) -> dict[str, int] | None:
    """How often the host waits for the GPU in a batch's way, by the line that makes it wait."""
    if setting.device.type != "cuda":
        return None
    batches = list(_batches(sentences, max_positions))[:4]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in batches:
                choice.apply(encoder_layers(encoder, batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(found.filename).name}:{found.lineno}" for found in caught)
    return dict(lines.most_common(12))


def _sentences(max_words: int) -> tuple[list[list[str]], str]:
    """Prose where it lies beside the checkout or in it, else words drawn by Zipf's law."""
    for folder in (ROOT.parent / "shared", ROOT / "shared"):
        if (folder / _TEXT).is_file():
            with lzma.open(folder / _TEXT, "rt", encoding="utf-8") as lines:
                words = [word for line in lines for word in line.split()]
            return _cut(words[:max_words]), f"shared/{_TEXT}"
    rng = np.random.default_rng(1)
    ranks = np.minimum(rng.zipf(1.3, max_words), 60_000)
    return _cut([f"w{rank:x}" if rank % 40 else "." for rank in ranks]), "Zipf, seed 1"


def _cut(words: list[str]) -> list[list[str]]:
    """Sentences end at a full stop, or where they get too long."""
    sentences: list[list[str]] = [[]]
    for word in words:
        sentences[-1].append(word)
        if word == "." or len(sentences[-1]) == _MAX_WORDS:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]
