"""The GPU's character encoder gives the vectors of the readable one; here on the CPU."""

from __future__ import annotations

import pytest
import torch

from elmo_model.char_cnn import CharCnn
from elmo_model.characters import CharacterEncoder
from elmo_model.kernels import char_gpu
from elmo_model.kernels.char_gpu import GpuCharCnn
from tests.elmo_model.gpu_batches import model_of
from tests.elmo_model.random_models import SHAPES

# Another grouping of words may sum in another order.
ATOL = 2e-6
WORDS = ["a", "", "the", "über", "<S>", "</S>", "日本語", "x" * 40, "sat", "a" * 7, "b" * 18, "🙂"]
SPELLED = [shape for shape, changes in SHAPES.items() if changes.get("char_cnn", {}) is not None]


def ids_of(model, words=WORDS):
    return torch.from_numpy(CharacterEncoder(model.options.max_characters_per_token).encode(words))


def embedding_of(directory, shape="like the released models") -> CharCnn:
    embedding = model_of(directory, shape).token_embedding
    assert isinstance(embedding, CharCnn)
    return embedding


@pytest.mark.parametrize("shape", SPELLED)
def test_every_kind_of_model_gives_the_vectors_of_the_readable_one(shape, tmp_path):
    model = embedding_of(tmp_path, shape)
    ids = ids_of(model)
    torch.testing.assert_close(GpuCharCnn(model)(ids), model(ids), rtol=0, atol=ATOL)


@pytest.mark.parametrize("words", [[], ["one"], ["same", "size"], WORDS[::-1]], ids=len)
def test_words_may_be_any_number_in_any_order(words, tmp_path):
    model = embedding_of(tmp_path)
    ids = ids_of(model, words)
    torch.testing.assert_close(GpuCharCnn(model)(ids), model(ids), rtol=0, atol=ATOL)


def test_little_room_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(char_gpu, "_GROUP_BYTES", 1)
    model = embedding_of(tmp_path)
    ids = ids_of(model)
    torch.testing.assert_close(GpuCharCnn(model)(ids), model(ids), rtol=0, atol=ATOL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_and_is_not_waited_for(tmp_path):
    model = embedding_of(tmp_path)
    ids = ids_of(model)
    expected = model(ids)
    encode = GpuCharCnn(model.cuda())
    torch.testing.assert_close(encode(ids).cpu(), expected, rtol=0, atol=ATOL)
    torch.cuda.set_sync_debug_mode("error")
    try:
        encode(ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
