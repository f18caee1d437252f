"""How many multiplications a text takes stays within bounds: a check of speed that no noise fails.

What must be multiplied follows from the text: a word's characters once, the first layer's input
once for each distinct word of a batch, all else once for each token. A change that loses one of
these, or that works on padding, shows here as a count, on any machine.
"""

from __future__ import annotations

import json
import lzma
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elmo_model import Encoder
from elmo_model.encoder import LayerChoice
from elmo_model.kernels.workers import Workers
from pipeline.batch_sizes import MIN_WINDOW_TOKENS, TOKENS_PER_THREAD
from pipeline.bucketing import SENTENCE_MARKS, batches, windows
from pipeline.config import TextConfig, VectorConfig
from pipeline.elmo_vectors import ElmoVectors
from pipeline.embed import token_window
from pipeline.text import tokenise
from pipeline.token_window import TokenWindow
from tests.elmo_model.random_models import CHAR_CNN, LSTM, weights_of, write_hdf5

pytestmark = pytest.mark.shared

# Rows are added so that few different products are compiled: 1.2 % on one thread, 1.5 % on four.
SLACK = 1.03
# Words are spelled in groups as wide as their longest, and up to 7 columns more: 27 %.
CHARACTER_SLACK = 1.35
# Padding takes memory, but no products. At the default settings it is 6 % of this text.
MAX_PADDED_SHARE = 0.08
MAX_TOKENS = TOKENS_PER_THREAD

OPTIONS = {
    "lstm": {**LSTM, "dim": 64, "projection_dim": 16},
    "char_cnn": {**CHAR_CNN, "max_characters_per_token": 50},
}
WIDTH, DIM, LAYERS = 16, 64, 2
# torch's products, and which of their arguments is the left factor.
LEFT_FACTOR = {"mm": 0, "bmm": 0, "addmm": 1, "_linear_pointwise": 0, "qlinear_pointwise": 0}


class Products(TorchDispatchMode):
    """Counts the multiplications of every matrix product that torch is asked for in this thread."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in LEFT_FACTOR:
            self.count += result.numel() * args[LEFT_FACTOR[name]].shape[-1]
        return result


@pytest.fixture(scope="module")
def documents(shared):
    """The first tokenised documents of the news corpus."""
    with lzma.open(shared / "data" / "bbc-news" / "bbc.jsonl.xz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in islice(file, 300)]
    return tokenise(pa.table({"text": texts}), TextConfig()).combine_chunks()


@pytest.fixture(scope="module")
def window(documents):
    return token_window(documents.slice(0, 30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "options.json").write_text(json.dumps(OPTIONS))
    write_hdf5(folder / "weights.hdf5", weights_of(OPTIONS))
    return folder


@pytest.fixture(params=[("float32", 1), ("float32", 4), ("bfloat16", 1), ("int8", 1)], ids=str)
def encoder(folder, request, monkeypatch):
    """An encoder that shares out its work to a number of threads, but does it all in this one."""

    def run_all(self, calls):
        for call in calls:
            call()

    monkeypatch.setattr(Workers, "run_all", run_all)
    dtype, num_threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    files = folder / "options.json", folder / "weights.hdf5"
    encoder = Encoder.from_files(*files, device="cpu", dtype=dtype)
    torch.set_num_threads(1)
    yield encoder
    torch.set_num_threads(before)


def embed(encoder: Encoder, window: TokenWindow) -> int:
    """Embed at the default batch settings; returns the multiplications."""
    choice = LayerChoice.parse("top", num_layers=encoder.num_layers)
    model = ElmoVectors(encoder, choice, VectorConfig(), MAX_TOKENS)
    with Products() as products:
        model.vectors(window)
    return products.count


def lstm_products(window: TokenWindow) -> int:
    """What both stacks need for a window: distinct words of each batch, and tokens."""
    starts = np.cumsum(window.sentence_lengths) - window.sentence_lengths
    count = 0
    for rows in batches(window.sentence_lengths, MAX_TOKENS):
        lengths = window.sentence_lengths[rows]
        spans = zip(starts[rows], lengths, strict=True)
        words = np.unique(np.concatenate([window.word_ids[s : s + length] for s, length in spans]))
        num_words, num_positions = len(words) + SENTENCE_MARKS, int(lengths.sum() + 2 * len(rows))
        gates = (num_words + (2 * LAYERS - 1) * num_positions) * WIDTH * 4 * DIM
        count += gates + LAYERS * num_positions * DIM * WIDTH
    return 2 * count


def character_products(words: list[str]) -> int:
    """What spelling some words needs, each convolved over its own width."""
    options = OPTIONS["char_cnn"]
    filters, size = options["filters"], options["embedding"]["dim"]
    widest, total = max(width for width, _ in filters), sum(number for _, number in filters)
    count = 0
    for word in words:
        columns = min(len(word.encode()) + 2 + widest, options["max_characters_per_token"])
        for width, number in filters:
            count += (columns - width + 1) * width * size * number
        count += options["n_highway"] * 2 * total * total + total * WIDTH
    return count


def test_the_lstms_multiply_each_token_once_and_nothing_for_padding(encoder, window):
    encoder.embed_words(["<S>", "</S>", *window.words])
    needed = lstm_products(window)
    # Fewer would mean that there are products that this test does not see.
    assert needed / SLACK <= embed(encoder, window) <= needed * SLACK


def test_every_distinct_word_is_spelled_once(encoder, window):
    words = ["<S>", "</S>", *window.words]
    needed = character_products(words)
    cold = embed(encoder, window)
    spelling = cold - embed(encoder, window)
    assert needed <= spelling <= needed * CHARACTER_SLACK
    with Products() as products:
        encoder.embed_words(words * 3)
    assert products.count == 0


def test_little_memory_goes_to_padding(documents):
    lengths_of_documents = documents["sentence_lengths"].to_pylist()
    tokens = np.array([sum(lengths) for lengths in lengths_of_documents])
    real = padded = 0
    for window in windows(tokens, MIN_WINDOW_TOKENS):
        part = np.concatenate(lengths_of_documents[window])
        for rows in batches(part, MAX_TOKENS):
            real += int(part[rows].sum()) + SENTENCE_MARKS * len(rows)
            padded += (int(part[rows].max()) + SENTENCE_MARKS) * len(rows)
    assert 1 - real / padded <= MAX_PADDED_SHARE
