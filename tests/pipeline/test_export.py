"""Exported files against the original's own, and what a failed export leaves behind."""

import h5py
import numpy as np
import pytest
import torch

from elmo_model import Encoder
from elmo_model.directory import load_directory, save_directory
from elmo_model.losses import Softmax
from elmo_model.options import ElmoOptions
from elmo_model.softmax_file import read_softmax_weights, write_softmax
from elmo_model.weights import read_token_embeddings, read_weights, weights_sha256
from elmo_model.word_ids import read_words
from pipeline import export
from pipeline.config import build
from pipeline.errors import ConfigError, StorageError
from pipeline.export import check_output, read_model, write_model
from pipeline.export_config import ExportConfig
from pipeline.storage import Storage, open_storage
from tests.elmo_model.random_models import SHAPES, VOCABULARY
from tests.elmo_model.random_models import write_model as write_random_model

VARIANTS = [
    "A_char_relu_fullsoftmax",
    "B_char_tanh_clips_active",
    "C_token_share_embedding",
    "D_char_sampled_softmax",
    "E_token_sampled_softmax",
    "F_unidirectional_token",
]
# What the original's own test allows: float32 differs this much between programs.
ATOL, RTOL = 1e-6, 1e-5


def datasets(path):
    """Name, shape, element type and bytes of every dataset."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = (item.shape, item.dtype, item[()].tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def exported(url, overwrite=False, output=(), **model):
    config = {
        "model": {key: str(value) for key, value in model.items()},
        "output": {"path": str(url), **dict(output)},
    }
    read = read_model(build(ExportConfig, config, "test"))
    return write_model(read, str(url), overwrite=overwrite)


ALL = {"softmax": True, "token_embeddings": True}


@pytest.fixture
def memory():
    storage = open_storage("memory://exported/model")
    yield storage
    for info in storage.list_files():
        storage.delete(info.path)


@pytest.fixture
def model_directory(tmp_path):
    """A model directory of ours with everything in it."""

    def make(shape="like the released models", name="model"):
        scratch = tmp_path / f"{name}-released"
        scratch.mkdir()
        released = write_random_model(scratch, shape)
        options = ElmoOptions.read(released["options_file"])
        state = read_weights(released["weights_file"], options)
        save_directory(tmp_path / name, options, state, VOCABULARY)
        softmax = Softmax(len(VOCABULARY), options.lstm.projection_dim)
        write_softmax(tmp_path / name / "softmax.safetensors", softmax)
        return tmp_path / name

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_datasets_are_those_that_the_original_dumps(variant, shared, tmp_path):
    folder = shared / "golden/tf-training" / variant
    exported(
        tmp_path / "out",
        options_file=folder / "options.json",
        weights_file=folder / "init.hdf5",
        vocabulary_file=shared / "golden/bilm-tf-train/vocab.txt",
    )
    found = datasets(tmp_path / "out/weights.hdf5")
    assert found == datasets(folder / "dump_weights_of_init.hdf5")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_softmax_keeps_its_names_and_bits(variant, shared, tmp_path):
    folder = shared / "golden/tf-training" / variant
    exported(
        tmp_path / "out",
        options_file=folder / "options.json",
        weights_file=folder / "init.hdf5",
        vocabulary_file=shared / "golden/bilm-tf-train/vocab.txt",
        output={"softmax": True},
    )
    found = datasets(tmp_path / "out/softmax.hdf5")
    initial = datasets(folder / "init.hdf5")
    # A model that shares its word table has no weight of its own.
    name = "embedding" if variant.startswith("C") else "softmax/W"
    assert found == {"softmax/W": initial[name], "softmax/b": initial["softmax/b"]}


def test_options_are_for_prediction_whatever_they_were(shared, tmp_path):
    folder = shared / "golden/tf-training/A_char_relu_fullsoftmax"
    files = {"options_file": folder / "options.json", "weights_file": folder / "init.hdf5"}
    exported(tmp_path / "out", **files)
    text = (tmp_path / "out/options.json").read_text()
    assert '"n_characters": 261' in (folder / "options.json").read_text()
    assert '"n_characters": 262' in text
    assert ElmoOptions.read(tmp_path / "out/options.json") == ElmoOptions.read(
        folder / "options.json"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_directory_of_ours_comes_back_with_equal_bits(shape, model_directory, tmp_path):
    source = model_directory(shape)
    sizes = exported(tmp_path / "out", directory=source, output=ALL)
    out = tmp_path / "out"
    assert sizes == {path.name: path.stat().st_size for path in out.iterdir()}
    files = load_directory(source)
    options = ElmoOptions.read(out / "options.json")
    assert options == files.options
    state = read_weights(out / "weights.hdf5", options)
    assert weights_sha256(state) == weights_sha256(files.state)
    assert read_words(out / "vocab.txt") == tuple(VOCABULARY)
    width = options.lstm.projection_dim
    found = read_softmax_weights(out / "softmax.hdf5", len(VOCABULARY), width)
    wanted = read_softmax_weights(source / "softmax.safetensors", len(VOCABULARY), width)
    assert torch.equal(found.weight_VP, wanted.weight_VP)
    assert torch.equal(found.bias_V, wanted.bias_V)
    vectors = read_token_embeddings(out / "token_embeddings.hdf5", width)
    assert torch.equal(vectors, Encoder(files).embed_words(VOCABULARY))


def test_the_originals_outputs_are_reproduced_from_exported_files(shared, tmp_path):
    """Released weights, through a directory of ours, to files in the released format again."""
    folder = shared / "golden/bilm-tf"
    options = ElmoOptions.read(folder / "options.json")
    words = read_words(folder / "vocab_test.txt")
    state = read_weights(folder / "lm_weights.hdf5", options)
    save_directory(tmp_path / "model", options, state, words)
    exported(tmp_path / "out", directory=tmp_path / "model", output={"token_embeddings": True})
    out = tmp_path / "out"
    assert datasets(out / "weights.hdf5") == datasets(folder / "lm_weights.hdf5")
    files = {"options_file": out / "options.json", "weights_file": out / "weights.hdf5"}
    encoder = Encoder.from_files(**files)
    inference = shared / "golden/tf-inference"
    sentences = (inference / "bilm-tf_dataset.txt").read_text("utf-8").splitlines()
    state = None
    with h5py.File(inference / "bilm-tf_dump_bilm_embeddings.hdf5") as file:
        for index, sentence in enumerate(sentences):
            activations = encoder.encode([sentence.split()], state)
            state = activations.state
            np.testing.assert_allclose(
                activations.layers[:, 0], file[str(index)][...], rtol=RTOL, atol=ATOL
            )
    found = read_token_embeddings(out / "token_embeddings.hdf5", 16)
    dumped = read_token_embeddings(inference / "bilm-tf_dump_token_embeddings.hdf5", 16)
    np.testing.assert_allclose(found, dumped, rtol=RTOL, atol=ATOL)


def test_exported_word_vectors_take_the_place_of_characters(model_directory, tmp_path):
    source = model_directory()
    exported(tmp_path / "out", directory=source, output={"token_embeddings": True})
    out = tmp_path / "out"
    by_word = Encoder.from_files(
        out / "options.json",
        out / "weights.hdf5",
        vocabulary_file=out / "vocab.txt",
        token_embeddings_file=out / "token_embeddings.hdf5",
    )
    sentence = [["the", "cat", "sat", "."]]
    wanted = Encoder.from_directory(source).encode(sentence).layers
    torch.testing.assert_close(by_word.encode(sentence).layers, wanted)


def test_a_model_in_an_object_store_is_exported_to_another_place(
    memory, model_directory, tmp_path, monkeypatch
):
    monkeypatch.setenv("ELMO_CACHE", str(tmp_path / "cache"))
    exported(memory.url, directory=model_directory(), output=ALL)
    names = [info.path for info in memory.list_files()]
    assert names == sorted(export.ALL_NAMES)
    again = tmp_path / "again"
    files = {f"{name}_file": f"{memory.url}/{file}" for name, file in FILES.items()}
    exported(again, output=ALL, **files)
    for name in names:
        assert (again / name).read_bytes() == memory.read_bytes(name, 1 << 20)


FILES = {
    "options": "options.json",
    "weights": "weights.hdf5",
    "vocabulary": "vocab.txt",
    "softmax": "softmax.hdf5",
}


@pytest.mark.parametrize("place", ["local", "memory"])
def test_an_export_is_replaced_only_when_asked_and_leaves_no_older_file(
    place, memory, model_directory, tmp_path
):
    url = str(tmp_path / "out") if place == "local" else memory.url
    exported(url, directory=model_directory(), output=ALL)
    other = model_directory("tanh", "other")
    with pytest.raises(ConfigError, match="give --overwrite"):
        exported(url, directory=other)
    exported(url, overwrite=True, directory=other)
    names = {info.path for info in open_storage(url).list_files()}
    assert names == {"options.json", "weights.hdf5", "vocab.txt"}


def test_a_directory_of_other_files_is_never_replaced(model_directory, tmp_path):
    source = model_directory()
    with pytest.raises(ConfigError, match=r"no part of an export, such as softmax\.safetensors"):
        exported(source, overwrite=True, directory=source)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, expected a directory"):
        check_output(str(tmp_path / "file"), overwrite=True)


def test_a_local_export_that_fails_leaves_the_older_one_whole(
    model_directory, tmp_path, monkeypatch
):
    source = model_directory()
    exported(tmp_path / "out", directory=source)
    before = datasets(tmp_path / "out/weights.hdf5")

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(export, "write_softmax_hdf5", fail)
    other = model_directory("tanh", "other")
    with pytest.raises(OSError, match="the disk is full"):
        exported(tmp_path / "out", overwrite=True, directory=other, output={"softmax": True})
    assert datasets(tmp_path / "out/weights.hdf5") == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_an_upload_that_fails_leaves_no_options_that_promise_a_model(
    memory, model_directory, monkeypatch
):
    exported(memory.url, directory=model_directory())
    create_output = Storage.create_output

    def fail(storage, path):
        if path == "softmax.hdf5":
            raise StorageError("the store is gone")
        return create_output(storage, path)

    monkeypatch.setattr(Storage, "create_output", fail)
    other = model_directory("tanh", "other")
    with pytest.raises(StorageError, match="the store is gone"):
        exported(memory.url, overwrite=True, directory=other, output={"softmax": True})
    assert not memory.exists("options.json")
    monkeypatch.undo()
    exported(memory.url, overwrite=True, directory=other, output={"softmax": True})
    assert memory.exists("options.json")


def test_a_model_of_words_needs_no_second_vocabulary(tmp_path):
    released = write_random_model(tmp_path, "word input")
    exported(tmp_path / "out", output={"token_embeddings": True}, **released)
    found = datasets(tmp_path / "out/token_embeddings.hdf5")["embedding"]
    assert found == datasets(tmp_path / "out/weights.hdf5")["embedding"]


def test_state_of_another_type_is_written_as_float32(tmp_path, model_directory):
    files = load_directory(model_directory())
    half = {name: value.half() for name, value in files.state.items()}
    model = export.ExportedModel(files.options, half, None, None, None)
    write_model(model, str(tmp_path / "out"))
    found = datasets(tmp_path / "out/weights.hdf5")
    assert {dtype for _, dtype, _ in found.values()} == {np.dtype(np.float32)}
