"""The programs that the encoder is measured against compute the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_elmo import options_of, random_model
from benchmarks.reference_encoder import ROWS_PER_BATCH, PlainEncoder
from benchmarks.torch_lstm import TorchStacks
from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder
from elmo_model.options import ElmoOptions
from elmo_model.packing import PackedLayout
from elmo_model.weights import build, read_weights
from tests.elmo_model.random_models import options_of as small_options
from tests.elmo_model.random_models import write_model

# float32 rounding in other orders of summation; random recurrences amplify it.
TOLERANCE = 2e-5

SENTENCES = [
    ["The", "cat", "sat", "on", "the", "mat", "."],
    ["one"],
    [],
    ["über", "🙂", "x" * 60, "日本語"],
    ["the"] * 30,
] * 20


def files_of(folder, shape) -> ModelFiles:
    paths = write_model(folder, shape)
    options = ElmoOptions.from_dict(small_options(shape))
    return ModelFiles(options, read_weights(paths["weights_file"], options))


@pytest.mark.parametrize(
    "shape",
    [
        "like the released models",
        "clips active",
        "no projection in the LSTM",
        "three layers without skip connections",
        "tanh",
        "no highway",
        "no projection of the CNN",
        "one direction",
    ],
)
def test_the_plain_program_computes_the_same_layers(shape, tmp_path):
    files = files_of(tmp_path, shape)
    expected = Encoder(files, device="cpu").encode(SENTENCES)
    first = 0
    for layers in PlainEncoder(files.options, files.state).encode(SENTENCES):
        assert layers.shape[1] <= ROWS_PER_BATCH
        for row in range(layers.shape[1]):
            length = len(SENTENCES[first + row])
            torch.testing.assert_close(
                layers[:, row, 1 : length + 1],
                expected.layers[:, first + row, :length],
                rtol=0,
                atol=TOLERANCE,
            )
            assert not layers[:, row, length + 2 :].any()
        first += layers.shape[1]
    assert first == len(SENTENCES)


@pytest.mark.parametrize("shape", ["no clips", "three layers"])
def test_torchs_lstm_computes_the_same_where_no_clip_is_active(shape, tmp_path):
    files = files_of(tmp_path, shape)
    # Small weights keep all values under the clips.
    state = {name: value * 0.3 for name, value in files.state.items()}
    lengths = np.array([5, 2, 9, 9, 1])
    layout = PackedLayout.of(lengths)
    words = torch.randn(7, files.options.lstm.projection_dim)
    index = torch.randint(0, 7, (2, int(lengths.sum())))
    bilm = build(files.options, state).requires_grad_(False)

    found = TorchStacks(files.options, state, torch.float32).run(words, index, layout)

    expected, final = bilm.run_stacks(words, index, layout, bilm.zero_state(len(lengths)))
    assert final.cells_SLBD.abs().max() < 3
    assert len(found) == len(expected) == files.options.lstm.n_layers
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


def test_random_weights_have_the_scale_of_trained_ones():
    options = options_of("small")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "everyone", "there", "."]
    files = random_model(options, words, seed=1)
    layers = Encoder(files, device="cpu").encode([words]).layers
    for layer in layers:
        assert 0.1 < float(layer.square().mean().sqrt()) < 0.6
    assert float(layers.abs().max()) < options.lstm.proj_clip


@pytest.mark.shared
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("bench_encode.py", ["--seconds", "0", "--threads", "1"]),
        ("accuracy.py", ["--arithmetics", "float32"]),
    ],
)
def test_the_encoders_benchmarks_run(program, arguments, shared, tmp_path):
    news = shared / "data" / "bbc-news" / "bbc.jsonl.xz"
    result = tmp_path / "result.json"
    some = ["--news", str(news), "--sizes", "small", "--sentences", "4", "--result", str(result)]
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, str(root / "benchmarks" / program), *some, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        check=True,
    )
    assert "cpu" in json.loads(result.read_text())["machine"]
