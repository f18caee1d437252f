"""A vocabulary's vectors are made once on a machine and change nothing."""

import multiprocessing
import os
import time

import pytest
import torch

from elmo_model import Encoder
from elmo_model.word_table import shared_word_table
from tests.elmo_model.random_models import write_model

WORDS = ["the", "cat", "sat", "über", "a-word-longer-than-twenty-bytes", "日本語"]
SENTENCES = [["the", "dog", "sat"], ["日本語"], ["</S>", "cat"], [], ["unheard", "words"]]
SHAPE = "like the released models"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_have_the_same_bits_with_and_without_the_table(dtype, tmp_path):
    files = write_model(tmp_path, SHAPE)
    expected = Encoder.from_files(**files, dtype=dtype).encode(SENTENCES).layers
    for _ in range(2):
        encoder = Encoder.from_files(**files, dtype=dtype)
        encoder.precompute(WORDS, tmp_path / "tables")
        assert torch.equal(encoder.encode(SENTENCES).layers, expected)
        # Both marks, and what the table lacks.
        assert encoder.num_words_made == len({"<S>", "</S>", "dog", "unheard", "words"})
    assert len(list((tmp_path / "tables").glob("*.safetensors"))) == 1


def test_another_model_or_arithmetic_has_a_table_of_its_own(tmp_path):
    tables = tmp_path / "tables"
    for number, (shape, dtype) in enumerate(
        [(SHAPE, "float32"), (SHAPE, "bfloat16"), ("tanh", "float32")]
    ):
        (tmp_path / str(number)).mkdir()
        files = write_model(tmp_path / str(number), shape)
        Encoder.from_files(**files, dtype=dtype).precompute(WORDS, tables)
        assert len(list(tables.glob("*.safetensors"))) == number + 1


def test_what_other_code_made_is_not_used(tmp_path, monkeypatch):
    encoder = Encoder.from_files(**write_model(tmp_path, SHAPE))
    encoder.precompute(WORDS, tmp_path / "tables")
    monkeypatch.setattr("elmo_model.encoder.source_sha256", lambda: "of a later version")
    encoder.precompute(WORDS, tmp_path / "tables")
    assert len(list((tmp_path / "tables").glob("*.safetensors"))) == 2


def test_a_model_with_word_input_needs_none(tmp_path):
    encoder = Encoder.from_files(**write_model(tmp_path, "word input"))
    encoder.precompute(WORDS, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def numbers(words):
    return torch.tensor([[float(len(word)), 1.0] for word in words])


def make_slowly(folder, barrier, calls):
    def make(words):
        calls.put(len(words))
        time.sleep(0.5)
        return numbers(words)

    barrier.wait()
    table = shared_word_table(folder, WORDS, 2, "test", make)
    assert table.vectors_UP[table.row("über")].tolist() == [4.0, 1.0]


def test_processes_that_come_at_once_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, calls = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=make_slowly, args=(tmp_path, barrier, calls)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert calls.get(timeout=5) == len(WORDS)
    assert calls.empty()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_a_damaged_table_is_made_anew(content, tmp_path):
    shared_word_table(tmp_path, WORDS, 2, "test", numbers)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] if content is None else content)
    table = shared_word_table(tmp_path, WORDS, 2, "test", numbers)
    assert torch.equal(table.vectors_UP, numbers(WORDS))
    assert path.read_bytes() == whole


def test_tables_that_nobody_used_for_long_are_removed(tmp_path):
    shared_word_table(tmp_path, WORDS, 2, "old", numbers)
    (old,) = tmp_path.glob("*.safetensors")
    shared_word_table(tmp_path, WORDS, 2, "used", numbers)
    os.utime(old, (0, time.time() - 40 * 24 * 3600))
    shared_word_table(tmp_path, WORDS, 2, "new", numbers)
    assert not old.exists()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_no_words_make_an_empty_table(tmp_path):
    table = shared_word_table(tmp_path, [], 2, "test", numbers)
    assert len(table) == 0
    assert table.row("the") is None
