"""Weight files: read, written, and refused with a reason."""

import hashlib

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from elmo_model import Encoder
from elmo_model.bilm import BiLM
from elmo_model.errors import ModelFileError
from elmo_model.files import weights_kind
from elmo_model.options import ElmoOptions
from elmo_model.weight_table import datasets
from elmo_model.weights import (
    build,
    read_token_embeddings,
    read_weights,
    weights_sha256,
    write_hdf5,
    write_safetensors,
    write_token_embeddings,
)
from tests.elmo_model.random_models import SHAPES, as_dumped, options_of, weights_of
from tests.elmo_model.random_models import write_hdf5 as h5


def read(path, options):
    return read_weights(path, ElmoOptions.from_dict(options))


def content(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


@pytest.fixture
def options():
    return options_of("like the released models")


@pytest.fixture
def weights(options):
    return weights_of(options)


@pytest.mark.parametrize("shape", SHAPES)
def test_hdf5_to_safetensors_to_hdf5_is_bit_equal(shape, tmp_path):
    raw = options_of(shape)
    options = ElmoOptions.from_dict(raw)
    weights = weights_of(raw)
    h5(tmp_path / "in.hdf5", as_dumped(raw, weights))

    state = read_weights(tmp_path / "in.hdf5", options)
    write_safetensors(tmp_path / "ours.safetensors", state)
    again = read_weights(tmp_path / "ours.safetensors", options)
    write_hdf5(tmp_path / "out.hdf5", options, again)

    # One layer is written as the original's reader wants it, which its own writer does not do.
    expected = as_dumped(raw, weights) if not options.bidirectional else weights
    if shape == "one direction, one layer":
        expected = {
            name.replace("rnn/LSTMCell", "rnn/MultiRNNCell/Cell0/LSTMCell"): value
            for name, value in expected.items()
        }
    found = content(tmp_path / "out.hdf5")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == value.tobytes()
    assert weights_sha256(state) == weights_sha256(again)


def test_the_table_names_every_parameter_with_its_shape():
    for shape in SHAPES:
        options = ElmoOptions.from_dict(options_of(shape))
        parameters = dict(BiLM(options, num_words=8).named_parameters())
        rows = {row.parameter: row.shape for row in datasets(options)}
        assert set(rows) == set(parameters)
        for name, parameter in parameters.items():
            if name != "token_embedding.embedding":
                assert rows[name] == tuple(parameter.shape)


def test_the_hash_is_over_sorted_names_and_raw_bytes(options, weights, tmp_path):
    h5(tmp_path / "w.hdf5", weights)
    state = read(tmp_path / "w.hdf5", options)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0" + state[name].numpy().tobytes())
    assert weights_sha256(state) == digest.hexdigest()
    assert weights_sha256(dict(reversed(state.items()))) == digest.hexdigest()
    state["forward_stack.0.bias"][0] += 1
    assert weights_sha256(state) != digest.hexdigest()


def test_the_published_weights_survive_the_way_through_our_format(shared, tmp_path):
    folder = shared / "golden" / "bilm-tf"
    options = ElmoOptions.read(folder / "options.json")
    state = read_weights(folder / "lm_weights.hdf5", options)
    write_safetensors(tmp_path / "weights.safetensors", state)
    write_hdf5(
        tmp_path / "out.hdf5", options, read_weights(tmp_path / "weights.safetensors", options)
    )
    expected = content(folder / "lm_weights.hdf5")
    found = content(tmp_path / "out.hdf5")
    assert set(found) == set(expected)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("n_characters", [261, 262])
def test_either_number_of_characters_in_the_options_reads_261_rows(n_characters, options, tmp_path):
    options["char_cnn"]["n_characters"] = n_characters
    h5(tmp_path / "w.hdf5", weights_of(options))
    assert read(tmp_path / "w.hdf5", options)["token_embedding.char_embed"].shape == (261, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_types_are_read_as_float32(dtype, options, weights, tmp_path):
    h5(tmp_path / "w.hdf5", {name: value.astype(dtype) for name, value in weights.items()})
    state = read(tmp_path / "w.hdf5", options)
    assert all(value.dtype == torch.float32 for value in state.values())


def test_the_output_layer_of_a_training_checkpoint_is_left_alone(options, weights, tmp_path):
    weights["softmax/W"] = np.zeros((9, 6), np.float32)
    weights["softmax/b"] = np.zeros(9, np.float32)
    h5(tmp_path / "w.hdf5", weights)
    assert len(read(tmp_path / "w.hdf5", options)) == len(weights) - 2


def spoil_missing(weights, _):
    del weights["CNN_high_1/W_carry"]


def spoil_extra(weights, _):
    weights["CNN_high_2/W_carry"] = np.zeros((17, 17), np.float32)


def spoil_shape(weights, _):
    weights["CNN/W_cnn_2"] = np.zeros((1, 3, 4, 9), np.float32)


def spoil_rank(weights, _):
    weights["char_embed"] = np.zeros((262, 4), np.float32)


def spoil_type(weights, _):
    weights["CNN/b_cnn_0"] = np.zeros(4, np.int64)


def spoil_values(weights, _):
    weights["CNN/b_cnn_0"][1:3] = np.nan, np.inf


def spoil_direction(_, options):
    options["bidirectional"] = False


def spoil_input(_, options):
    del options["char_cnn"]


SPOILT = [
    (spoil_missing, "/CNN_high_1/W_carry is missing, options.json asks for it with shape (17, 17)"),
    (spoil_missing, "(1 of 29 datasets are missing)"),
    (spoil_extra, "/CNN_high_2/W_carry not expected"),
    (
        spoil_shape,
        "/CNN/W_cnn_2 has shape (1, 3, 4, 9), options.json asks for (1, 3, 4, 5): "
        "the two files are from different models",
    ),
    (spoil_rank, "/char_embed has shape (262, 4), options.json asks for (261, 4)"),
    (spoil_type, "/CNN/b_cnn_0 holds int64, expected float32"),
    (spoil_values, "/CNN/b_cnn_0 holds 2 values that are not finite, of 4"),
    (spoil_direction, "set bidirectional to true in options.json"),
    (spoil_input, "/embedding is missing, options.json asks for it with shape (any, 6)"),
    (spoil_input, "options.json lacks char_cnn"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_wrong_weights_are_named_by_file_dataset_and_shapes(
    spoil, message, options, weights, tmp_path
):
    spoil(weights, options)
    h5(tmp_path / "w.hdf5", weights)
    with pytest.raises(ModelFileError) as raised:
        read(tmp_path / "w.hdf5", options)
    assert str(raised.value).startswith(f"{tmp_path / 'w.hdf5'}: ")
    assert message in str(raised.value)


def test_weights_of_one_direction_do_not_pass_for_two(tmp_path):
    raw = options_of("one direction")
    h5(tmp_path / "w.hdf5", as_dumped(raw, weights_of(raw)))
    del raw["bidirectional"]
    with pytest.raises(ModelFileError, match="set bidirectional to false in options.json"):
        read(tmp_path / "w.hdf5", raw)


def test_word_vectors_do_not_pass_for_characters(tmp_path):
    raw = options_of("word input")
    h5(tmp_path / "w.hdf5", weights_of(raw))
    with pytest.raises(ModelFileError, match="remove char_cnn from options.json"):
        read(tmp_path / "w.hdf5", options_of("like the released models"))


def test_a_number_of_words_that_contradicts_the_options_is_refused(tmp_path):
    raw = options_of("word input")
    h5(tmp_path / "w.hdf5", weights_of(raw))
    raw["n_tokens_vocab"] = 9
    with pytest.raises(ModelFileError, match=r"/embedding has shape \(8, 6\), .* \(9, 6\)"):
        read(tmp_path / "w.hdf5", raw)


def test_wrong_safetensors_are_named_too(options, weights, tmp_path):
    h5(tmp_path / "w.hdf5", weights)
    state = read(tmp_path / "w.hdf5", options)
    state["forward_stack.1.projection"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelFileError, match=r"/forward_stack.1.projection has shape \(2, 2\)"):
        read(tmp_path / "w.safetensors", options)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("w.th", b"PK\x03\x04 a zip", "is a pickle, which may run any program .*save_file"),
        ("w.hdf5", b"\x80\x02}q\x00", "is a pickle"),
        ("w.pkl", b"anything", "is a pickle"),
        ("w.hdf5", b"", "the file is empty"),
        ("w.hdf5", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("w.hdf5", b"<!DOCTYPE html><html>", "is a web page"),
        ("w.hdf5", b"hello", "expected HDF5 or safetensors weights, but the file starts with"),
        ("w.hdf5", b"\x89HDF\r\n\x1a\n" + bytes(50), "damaged HDF5"),
        ("w.safetensors", b"\x08\0\0\0\0\0\0\0{broken}", "damaged safetensors"),
    ],
)
def test_a_file_of_another_kind_is_refused(name, head, message, options, tmp_path):
    (tmp_path / name).write_bytes(head)
    with pytest.raises(ModelFileError, match=message):
        read(tmp_path / name, options)


@pytest.mark.parametrize("header_bytes", [640, 896, 1152, 1408, 640 + (1 << 16)])
def test_a_header_whose_size_begins_like_a_pickle_is_still_read(header_bytes, options, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip().ljust(header_bytes)
    path.write_bytes(header_bytes.to_bytes(8, "little") + header + content[8 + size :])
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    assert weights_kind(path) == "safetensors"
    with pytest.raises(ModelFileError, match="is missing, options.json asks for it"):
        read(path, options)


def test_a_missing_file_is_refused(options, tmp_path):
    with pytest.raises(ModelFileError, match="w.hdf5: cannot be read: No such file"):
        read(tmp_path / "w.hdf5", options)


def test_a_truncated_file_is_refused(options, weights, tmp_path):
    h5(tmp_path / "w.hdf5", weights)
    whole = (tmp_path / "w.hdf5").read_bytes()
    (tmp_path / "w.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="damaged HDF5"):
        read(tmp_path / "w.hdf5", options)


def test_datasets_behind_links_to_other_files_are_not_followed(options, weights, tmp_path):
    h5(tmp_path / "other.hdf5", {"char_embed": weights.pop("char_embed")})
    h5(tmp_path / "w.hdf5", weights)
    with h5py.File(tmp_path / "w.hdf5", "a") as file:
        file["char_embed"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "char_embed")
    with pytest.raises(ModelFileError, match="/char_embed is missing"):
        read(tmp_path / "w.hdf5", options)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(options, weights, tmp_path):
    h5(tmp_path / "w.hdf5", weights)
    before = (tmp_path / "w.hdf5").read_bytes()
    state = read(tmp_path / "w.hdf5", options)
    del state["backward_stack.1.bias"]
    with pytest.raises(KeyError):
        write_hdf5(tmp_path / "w.hdf5", ElmoOptions.from_dict(options), state)
    assert (tmp_path / "w.hdf5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.hdf5"]


def test_a_model_is_built_over_the_tensors_that_were_read(options, weights, tmp_path):
    h5(tmp_path / "w.hdf5", weights)
    state = read(tmp_path / "w.hdf5", options)
    bilm = build(ElmoOptions.from_dict(options), state)
    for name, parameter in bilm.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr()
        assert parameter.requires_grad


def test_word_vectors_are_written_and_read(tmp_path):
    vectors = torch.randn(5, 3)
    write_token_embeddings(tmp_path / "words.hdf5", vectors)
    assert torch.equal(read_token_embeddings(tmp_path / "words.hdf5", 3), vectors)
    with pytest.raises(ModelFileError, match=r"/embedding has shape \(5, 3\), .* \(any, 4\)"):
        read_token_embeddings(tmp_path / "words.hdf5", 4)
    save_file({"embedding": vectors}, tmp_path / "words.safetensors")
    with pytest.raises(ModelFileError, match="expected HDF5 with the dataset embedding"):
        read_token_embeddings(tmp_path / "words.safetensors", 3)


def test_a_word_input_model_needs_a_vocabulary_of_its_size(tmp_path):
    raw = options_of("word input")
    (tmp_path / "options.json").write_text(ElmoOptions.from_dict(raw).to_json())
    h5(tmp_path / "w.hdf5", weights_of(raw))
    files = (tmp_path / "options.json", tmp_path / "w.hdf5")
    with pytest.raises(ModelFileError, match="word input .* of 8 words: give the vocabulary file"):
        Encoder.from_files(*files)
    (tmp_path / "vocabulary.txt").write_text("<S>\n</S>\n")
    with pytest.raises(ModelFileError, match="vocabulary has 2 words, the weights 8 vectors"):
        Encoder.from_files(*files, vocabulary_file=tmp_path / "vocabulary.txt")
