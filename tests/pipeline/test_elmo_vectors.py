"""The encoder where memory is short: the real allocators' errors, and the vectors all the same."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from elmo_model.encoder import Encoder, LayerChoice
from pipeline.config import VectorConfig
from pipeline.elmo_vectors import ElmoVectors
from tests.elmo_model.random_models import write_model
from tests.pipeline.limited_memory import sentences_of, window_of

# Other batches round differently; the values themselves are about 1.
ATOL = 1e-5
MAX_TOKENS = 40_000
LIMIT_MIB = 10


def embed_elsewhere(shared, level, output, limit_mib):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.pipeline.limited_memory",
            str(shared / "golden/bilm-tf/options.json"),
            str(shared / "golden/bilm-tf/lm_weights.hdf5"),
            str(shared / "data/bbc-news/bbc.jsonl.xz"),
            level,
            str(output),
            str(limit_mib),
            str(MAX_TOKENS),
        ],
        # oneDNN, below the CPU's kernel, dies where it lacks a megabyte of its own.
        env={**os.environ, "ELMO_KERNEL": "reference"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return json.loads(done.stdout), np.load(output)


@pytest.mark.shared
@pytest.mark.parametrize("level", ["document", "token"])
def test_a_process_with_little_memory_gives_the_same_vectors(shared, tmp_path, level):
    free, expected = embed_elsewhere(shared, level, tmp_path / "free.npy", 0)
    little, found = embed_elsewhere(shared, level, tmp_path / "little.npy", LIMIT_MIB)
    assert free == {"splits": [0, 0], "safe_tokens": None}
    assert little["splits"][0] >= 1
    # Each split is one halving of the budget: nothing was found out twice.
    assert little["splits"][1] <= math.ceil(math.log2(MAX_TOKENS / little["safe_tokens"]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_with_little_memory_gives_the_same_vectors(tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path), device="cuda")
    choice = LayerChoice.parse("average", num_layers=encoder.num_layers)
    config = VectorConfig(level="document", dtype="float32")
    words = ["the", "cat", "sat", "on", "a", "mat"]
    window = window_of([(words * 20)[: 40 + number % 80] for number in range(8000)])
    expected = ElmoVectors(encoder, choice, config, 1 << 14).vectors(window)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + (64 << 20)) / total)
    try:
        model = ElmoVectors(encoder, choice, config, 1 << 20)
        found = model.vectors(window)
        splits = model.counts.num_oom_splits
        model.vectors(window)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert splits >= 1
    assert model.counts.num_oom_splits <= math.ceil(math.log2((1 << 20) / model.counts.safe_tokens))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


@pytest.mark.shared
def test_the_corpus_of_these_tests_has_sentences_of_many_lengths(shared):
    lengths = {len(sentence) for sentence in sentences_of(shared / "data/bbc-news/bbc.jsonl.xz")}
    assert len(lengths) > 30


@pytest.mark.shared
@pytest.mark.compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("level", ["document", "sentence", "token"])
@pytest.mark.parametrize("pooled", ["mean", "max", "first"])
def test_on_the_cpu_batches_and_neighbours_change_no_bit(shared, tmp_path, level, pooled, dtype):
    encoder = Encoder.from_files(**write_model(tmp_path), device="cpu", dtype=dtype)
    choice = LayerChoice.parse("average", num_layers=encoder.num_layers)
    config = VectorConfig(level=level, pooling=pooled, dtype="float16")
    sentences = sentences_of(shared / "data/bbc-news/bbc.jsonl.xz")[:80]
    large = ElmoVectors(encoder, choice, config, 1 << 14).vectors(window_of(sentences))
    small = ElmoVectors(encoder, choice, config, 200).vectors(window_of(sentences))
    assert np.array_equal(large, small)
    few = ElmoVectors(encoder, choice, config, 1 << 14).vectors(window_of(sentences[:4]))
    assert np.array_equal(large[: len(few)], few)


@pytest.mark.parametrize("level", ["document", "sentence", "token"])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_a_window_gives_the_same_vectors_while_others_are_in_flight(tmp_path, level, device):
    encoder = Encoder.from_files(**write_model(tmp_path), device=device)
    choice = LayerChoice.parse("average", num_layers=encoder.num_layers)
    model = ElmoVectors(encoder, choice, VectorConfig(level=level), 256)
    words = ["the", "cat", "sat", "on", "a", "mat"]
    windows = [
        window_of([(words[first:] * 20)[: 3 + number] for number in range(40)])
        for first in range(4)
    ]
    alone = [model.vectors(window) for window in windows]
    # Token vectors of a batch may wait, too; more than one only on a GPU.
    model.windows_ahead = 1
    finishes = [model.start(window) for window in windows]
    for found, expected in zip([finish() for finish in finishes], alone, strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.shared
def test_the_work_done_on_padding_is_counted_and_small(shared, tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path), device="cpu")
    choice = LayerChoice.parse("average", num_layers=encoder.num_layers)
    model = ElmoVectors(encoder, choice, VectorConfig(level="document"), 8192)
    sentences = sentences_of(shared / "data/bbc-news/bbc.jsonl.xz")
    model.vectors(window_of(sentences))
    assert model.counts.real_tokens == sum(len(sentence) + 2 for sentence in sentences)
    padding = model.counts.padded_tokens - model.counts.real_tokens
    assert 0 <= padding < 0.02 * model.counts.real_tokens
    words = {word for sentence in sentences for word in sentence}
    assert model.counts.made_words == len(words) + len(["<S>", "</S>"])
    model.vectors(window_of(sentences))
    assert model.counts.made_words == len(words) + 2
