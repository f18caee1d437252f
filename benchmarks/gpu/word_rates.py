"""Context-free vectors a second: words in large groups, and as the readable module makes them."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device_time import Setting, rates, seconds, spread
from elmo_model.bilm import BiLM
from elmo_model.char_cnn import CharCnn
from elmo_model.characters import CharacterEncoder
from elmo_model.kernels.char_gpu import GpuCharCnn


def measure(setting: Setting, bilm: BiLM) -> dict[str, Any]:
    """Words a second in float32, by number of new words, with and without TF32."""
    model = deepcopy(bilm.token_embedding)
    assert isinstance(model, CharCnn)
    model = model.to(setting.device)
    grouped = GpuCharCnn(model)
    spell = CharacterEncoder(model.options.max_characters_per_token)
    found: dict[str, Any] = {}
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            for num_words in (64,) if setting.is_dry else (256, 2048, 16384):
                ids = torch.from_numpy(spell.encode(_words(num_words)))
                own = partial(_readable, model, ids, setting.device)
                ways = {"in groups": partial(grouped, ids), "readable": own}
                for name, way in ways.items():
                    times = seconds(setting, way)
                    found[f"{num_words} words, {name}, {precision}"] = {
                        "per_s": rates(num_words, times),
                        "ms": spread([1000 * value for value in times]),
                    }
        finally:
            torch.set_float32_matmul_precision(before)
    return found


def _readable(model: CharCnn, ids_NC: torch.Tensor, device: torch.device) -> torch.Tensor:
    vectors: torch.Tensor = model(ids_NC.to(device))
    return vectors


def _words(count: int) -> list[str]:
    """Letters at random; lengths as those of rare English words."""
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.normal(8, 3, count).astype(int), 1, 30)
    return ["".join(map(chr, rng.integers(97, 123, length))) for length in lengths]
