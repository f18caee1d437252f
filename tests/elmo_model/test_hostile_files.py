"""Model files made to fill the memory, or to reach other files, are refused before they can."""

from __future__ import annotations

import json
import struct

import h5py
import numpy as np
import pytest

from elmo_model.errors import ModelFileError, OptionsError, VocabularyError
from elmo_model.files import MAX_VOCABULARY_BYTES
from elmo_model.options import MAX_CHARACTERS, MAX_LAYERS, MAX_SIZE, ElmoOptions
from elmo_model.vocabulary import MAX_WORD_CHARACTERS, Vocabulary
from elmo_model.weight_table import datasets
from elmo_model.weights import FREE_EXPANSION_BYTES, MAX_ITEMS, read_weights
from elmo_model.word_ids import read_words
from tests.elmo_model.random_models import options_of


def word_options(dim=32):
    lstm = {"dim": dim, "projection_dim": 16, "n_layers": 1}
    return ElmoOptions.from_dict({"lstm": lstm, "bidirectional": True, "n_tokens_vocab": 10})


def write_weights(path, options, add):
    """An HDF5 file in which `add(file, name, shape)` makes every dataset."""
    with h5py.File(path, "w") as file:
        for row in datasets(options):
            add(file, row.names[0], row.shape)
    return path


def test_datasets_that_declare_gigabytes_in_a_small_file_are_refused(tmp_path):
    options = word_options(MAX_SIZE)

    def add(file, name, shape):
        file.create_dataset(name, shape, "f4", chunks=True, compression="gzip")

    path = write_weights(tmp_path / "w.h5", options, add)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelFileError, match=r"w\.h5: .* declares \d+ bytes in a file of"):
        read_weights(path, options)


def test_ordinary_weights_that_shrink_well_are_read(tmp_path):
    options = word_options(1024)

    def add(file, name, shape):
        file.create_dataset(name, data=np.zeros(shape, "f4"), compression="gzip")

    path = write_weights(tmp_path / "w.h5", options, add)
    state = read_weights(path, options)
    assert 0 < sum(value.nbytes for value in state.values()) < FREE_EXPANSION_BYTES


def other_files(tmp_path, options, kind):
    """Adds datasets whose values lie in another file."""
    raw, other = tmp_path / "raw", tmp_path / "other.h5"
    raw.write_bytes(bytes(1 << 20))
    write_weights(other, options, lambda f, name, shape: f.create_dataset(name, shape, "f4"))

    def add(file, name, shape):
        if kind == "external storage":
            file.create_dataset(name, shape, "f4", external=[(raw, 0, h5py.h5f.UNLIMITED)])
        elif kind == "external link":
            file[name] = h5py.ExternalLink(other, f"/{name}")
        elif kind == "soft link":
            file[name] = h5py.SoftLink("/etc/passwd")
        elif kind == "references":
            file.create_dataset(name, shape, h5py.ref_dtype)
        elif kind == "objects":
            file.create_dataset(name, shape, h5py.vlen_dtype(np.float32))
        else:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(other, f"/{name}", shape)
            file.create_virtual_dataset(name, layout)

    return add


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external storage", "in other files"),
        ("virtual dataset", "in other files"),
        ("external link", "is missing"),
        ("soft link", "is missing"),
        ("references", "holds object, expected float32"),
        ("objects", "holds object, expected float32"),
    ],
)
def test_values_that_are_elsewhere_or_no_numbers_are_refused(tmp_path, kind, message):
    options = word_options()
    path = write_weights(tmp_path / "w.h5", options, other_files(tmp_path, options, kind))
    with pytest.raises(ModelFileError, match=message):
        read_weights(path, options)


def test_a_file_with_groups_without_end_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for number in range(MAX_ITEMS + 1):
            file.create_group(str(number))
    with pytest.raises(ModelFileError, match="more than 10000 groups"):
        read_weights(tmp_path / "w.h5", word_options())


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 60) + b"{" + b" " * 100,
        struct.pack("<Q", 1_200_000) + b'{"a":' * 240_000,
        b"whole",
    ],
)
def test_safetensors_with_an_absurd_header_are_refused(tmp_path, header):
    if header == b"whole":
        tensor = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
        text = json.dumps({"x": tensor}).encode()
        header = struct.pack("<Q", len(text)) + text
    (tmp_path / "w.safetensors").write_bytes(header)
    with pytest.raises(ModelFileError, match=r"w\.safetensors: damaged safetensors"):
        read_weights(tmp_path / "w.safetensors", word_options())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("lstm", "n_layers", MAX_LAYERS + 1),
        ("lstm", "n_layers", 10**18),
        ("lstm", "dim", MAX_SIZE + 1),
        ("char_cnn", "n_highway", 10**9),
        ("char_cnn", "max_characters_per_token", MAX_CHARACTERS + 1),
        ("char_cnn", "filters", [[1, 10**12]]),
    ],
)
def test_options_beyond_any_model_are_refused_at_once(section, key, value):
    values = options_of("like the released models")
    values[section][key] = value
    with pytest.raises(OptionsError, match=key):
        ElmoOptions.from_dict(values, "options.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "{} " * 500_000])
def test_options_that_are_no_object_of_a_sane_size_are_refused(tmp_path, text):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(OptionsError, match="options.json"):
        ElmoOptions.read(tmp_path / "options.json")


def test_a_vocabulary_of_gigabytes_is_refused_without_being_read(tmp_path):
    path = tmp_path / "vocabulary.txt"
    with path.open("wb") as file:
        file.truncate(100 << 30)  # a sparse file
    for read, error in ((Vocabulary.read, ModelFileError), (read_words, VocabularyError)):
        with pytest.raises(error, match=f"larger than {MAX_VOCABULARY_BYTES} bytes"):
            read(path)


def test_a_word_without_end_is_refused_and_not_shown_whole(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("<S>\n</S>\n<UNK>\n" + "a" * (MAX_WORD_CHARACTERS + 1) + "\n")
    with pytest.raises(ModelFileError, match="word 3.* is longer than 65536 characters") as caught:
        Vocabulary.read(path)
    assert len(str(caught.value)) < 500
