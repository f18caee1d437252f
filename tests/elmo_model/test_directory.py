"""Our model directory."""

import pytest
import torch

from elmo_model import Encoder
from elmo_model.directory import load_directory, read_files, save_directory
from elmo_model.errors import ModelFileError
from tests.elmo_model.random_models import SHAPES, VOCABULARY, write_model


def saved(tmp_path, shape, seed=0):
    files = write_model(tmp_path, shape, seed)
    model = read_files(*files.values())
    save_directory(tmp_path / "ours", model.options, model.state, model.words)
    return files


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_model_encodes_as_the_released_files_do(shape, tmp_path):
    files = saved(tmp_path, shape)
    ours, released = Encoder.from_directory(tmp_path / "ours"), Encoder.from_files(**files)
    sentences = [["the", "cat"], ["über", ".", "x"]]
    assert torch.equal(ours.encode(sentences).layers, released.encode(sentences).layers)
    assert ours.weights_sha256 == released.weights_sha256
    assert ours.options.to_json() == released.options.to_json()


def test_a_directory_holds_the_documented_files_only(tmp_path):
    saved(tmp_path, "word input")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"options.json", "weights.safetensors", "vocabulary.txt"}
    assert (tmp_path / "ours" / "vocabulary.txt").read_text("utf-8").split("\n") == [
        *VOCABULARY,
        "",
    ]


def test_saving_again_replaces_the_model_and_nothing_else(tmp_path):
    saved(tmp_path, "word input")
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    files = saved(tmp_path, "like the released models", seed=1)
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"options.json", "weights.safetensors", "notes.txt"}
    ours = Encoder.from_directory(tmp_path / "ours")
    assert ours.weights_sha256 == Encoder.from_files(**files).weights_sha256


def test_a_character_model_may_carry_pretrainings_vocabulary(tmp_path):
    files = write_model(tmp_path)
    model = read_files(*files.values())
    save_directory(tmp_path / "ours", model.options, model.state, VOCABULARY)
    assert (tmp_path / "ours" / "vocabulary.txt").exists()
    assert load_directory(tmp_path / "ours").words is None


def test_dumped_word_vectors_are_saved_as_a_word_input_model(tmp_path):
    from elmo_model.weights import write_token_embeddings

    files = write_model(tmp_path)
    encoder = Encoder.from_files(**files)
    write_token_embeddings(tmp_path / "words.hdf5", encoder.embed_words(VOCABULARY))
    (tmp_path / "vocabulary.txt").write_text("\n".join(VOCABULARY), "utf-8")
    model = read_files(
        *files.values(),
        vocabulary_file=tmp_path / "vocabulary.txt",
        token_embeddings_file=tmp_path / "words.hdf5",
    )
    save_directory(tmp_path / "ours", model.options, model.state, model.words)
    sentences = [["the", "cat", "sat", "."]]
    expected = encoder.encode(sentences).layers
    found = Encoder.from_directory(tmp_path / "ours").encode(sentences).layers
    # The same vectors; their product is made of other rows together, so its rounding may differ.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    files = saved(tmp_path, "like the released models")
    before = Encoder.from_directory(tmp_path / "ours").weights_sha256
    model = read_files(*files.values())
    monkeypatch.setattr("elmo_model.weights.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_directory(tmp_path / "ours", model.options, model.state)
    assert Encoder.from_directory(tmp_path / "ours").weights_sha256 == before
    assert len(list((tmp_path / "ours").iterdir())) == 2


@pytest.mark.parametrize("name", ["options.json", "weights.safetensors"])
def test_a_missing_file_is_named(name, tmp_path):
    saved(tmp_path, "like the released models")
    (tmp_path / "ours" / name).unlink()
    with pytest.raises(ModelFileError, match=f"ours: {name} is missing"):
        load_directory(tmp_path / "ours")


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="no such directory; expected one with options.json"):
        load_directory(tmp_path / "nowhere")


def test_a_word_input_model_without_its_vocabulary_is_neither_saved_nor_loaded(tmp_path):
    saved(tmp_path, "word input")
    model = load_directory(tmp_path / "ours")
    with pytest.raises(ModelFileError, match="give the vocabulary file"):
        save_directory(tmp_path / "other", model.options, model.state)
    assert not (tmp_path / "other").exists()
    (tmp_path / "ours" / "vocabulary.txt").unlink()
    with pytest.raises(ModelFileError, match="give the vocabulary file"):
        load_directory(tmp_path / "ours")
