"""The programs that the encoder is measured against compute the same numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_elmo import options_of, random_model
from benchmarks.reference_encoder import ROWS_PER_BATCH, PlainEncoder
from benchmarks.torch_lstm import TorchStacks
from benchmarks.train_part import StagedStep
from elmo_model.directory import ModelFiles
from elmo_model.encoder import Encoder
from elmo_model.lm_batches import Corpus, WordTable, packed_batches
from elmo_model.options import ElmoOptions, TrainingOptions
from elmo_model.packing import PackedLayout
from elmo_model.training import TrainState, train_step
from elmo_model.vocabulary import Vocabulary, count_words
from elmo_model.weights import build, read_weights
from tests.elmo_model.random_models import options_of as small_options
from tests.elmo_model.random_models import write_model

# float32 rounding in other orders of summation; random recurrences amplify it.
TOLERANCE = 2e-5

ROOT = Path(__file__).parents[1]
# Programs import their neighbours, modules of a package its modules.
IMPORT_ALL = """
import importlib, sys
sys.path[:0] = sys.argv[1:3]
for name in sys.argv[3:]:
    importlib.import_module(name)
    print(name)
"""

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


def test_a_training_step_with_a_clock_in_it_is_the_step_itself():
    words = [sentence for sentence in SENTENCES if sentence]
    vocabulary = Vocabulary.from_counts(count_words(words))
    training = TrainingOptions(
        n_tokens_vocab=len(vocabulary), n_negative_samples_batch=5, dropout=0.2, learning_rate=0.2
    )
    options = replace(
        ElmoOptions.from_dict(small_options("like the released models")), training=training
    )
    assert options.char_cnn is not None
    table = WordTable(vocabulary, options.char_cnn.max_characters_per_token)
    sequences = Corpus.of(words, table).endless_sequences(1)
    plain, staged = (TrainState.create(options, seed=2) for _ in "ab")
    step = StagedStep(staged)
    for batch in islice(packed_batches(sequences, table, 4, 5), 3):
        assert step.step(batch) == pytest.approx(train_step(plain, batch).loss, abs=TOLERANCE)
    assert set(step.seconds) == {"characters", "lstm", "softmax", "optimiser"}
    for mine, theirs in zip(staged.losses.parameters(), plain.losses.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)


def test_every_module_of_the_benchmarks_can_be_imported():
    folder = ROOT / "benchmarks"
    names = [path.stem for path in sorted(folder.glob("*.py"))]
    names += [f"benchmarks.gpu.{path.stem}" for path in sorted(folder.glob("gpu/*.py"))]
    if importlib.util.find_spec("triton") is None:
        names.remove("benchmarks.gpu.fused_step")
    command = [sys.executable, "-c", IMPORT_ALL, str(folder), str(ROOT), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == names, done.stderr


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
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / program), *some, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert "cpu" in json.loads(result.read_text())["machine"]
