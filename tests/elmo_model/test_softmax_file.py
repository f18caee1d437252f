"""The output layer as a file."""

import h5py
import numpy as np
import pytest
import torch

from elmo_model.errors import ModelFileError
from elmo_model.losses import Softmax
from elmo_model.softmax_file import (
    SoftmaxWeights,
    holds_softmax,
    read_softmax,
    read_softmax_weights,
    write_softmax,
    write_softmax_hdf5,
)


def test_a_written_softmax_reads_back_bit_for_bit(tmp_path):
    softmax = Softmax(20, 5)
    with torch.no_grad():
        softmax.bias.normal_()
    write_softmax(tmp_path / "softmax.safetensors", softmax)
    found = read_softmax(tmp_path / "softmax.safetensors", 20, 5)
    assert torch.equal(found.weight, softmax.weight)
    assert torch.equal(found.bias, softmax.bias)


def test_the_softmax_of_another_model_is_refused(tmp_path):
    path = tmp_path / "softmax.safetensors"
    write_softmax(path, Softmax(20, 5))
    with pytest.raises(ModelFileError, match=r"\(20, 5\).*\(21, 5\).*different models"):
        read_softmax(path, 21, 5)


def test_a_missing_or_damaged_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "softmax.safetensors"
    with pytest.raises(ModelFileError, match=r"softmax\.safetensors"):
        read_softmax(path, 20, 5)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelFileError, match=r"softmax\.safetensors"):
        read_softmax(path, 20, 5)


def hdf5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name.replace("__", "/")] = value
    return path


@pytest.fixture
def weights():
    return SoftmaxWeights(torch.randn(20, 5), torch.randn(20))


def test_hdf5_and_safetensors_hold_the_same_bits(weights, tmp_path):
    write_softmax_hdf5(tmp_path / "softmax.hdf5", weights)
    softmax = Softmax(20, 5)
    softmax.load_state_dict({"weight": weights.weight_VP, "bias": weights.bias_V})
    write_softmax(tmp_path / "softmax.safetensors", softmax)
    for name in ("softmax.hdf5", "softmax.safetensors"):
        for size in (20, None):
            found = read_softmax_weights(tmp_path / name, size, 5)
            assert torch.equal(found.weight_VP, weights.weight_VP)
            assert torch.equal(found.bias_V, weights.bias_V)


def test_the_softmax_among_other_weights_of_a_checkpoint_is_found(shared):
    folder = shared / "golden/tf-training/A_char_relu_fullsoftmax"
    assert holds_softmax(folder / "init.hdf5")
    assert not holds_softmax(folder / "dump_weights_of_init.hdf5")
    found = read_softmax_weights(folder / "init.hdf5", 32, 8)
    with h5py.File(folder / "init.hdf5") as file:
        assert found.weight_VP.numpy().tobytes() == file["softmax/W"][()].tobytes()


def test_a_shared_table_stands_in_for_a_weight_that_is_left_out(weights, tmp_path):
    table = weights.weight_VP
    path = hdf5(tmp_path / "bias.hdf5", softmax__b=weights.bias_V.numpy())
    assert read_softmax_weights(path, 20, 5, table).weight_VP is table
    with pytest.raises(ModelFileError, match="ask for"):
        read_softmax_weights(path, 20, 5)
    path = hdf5(tmp_path / "both.hdf5", softmax__W=table.numpy(), softmax__b=weights.bias_V.numpy())
    assert torch.equal(read_softmax_weights(path, 20, 5, table).weight_VP, table)
    with pytest.raises(ModelFileError, match="is not the model's word table"):
        read_softmax_weights(path, 20, 5, table + 1)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"other": np.zeros(3, np.float32)}, "holds no softmax"),
        ({"softmax__b": np.zeros(20, np.float32)}, r"softmax/W': \(20, 5\)"),
        (
            {"softmax__W": np.zeros((5, 20), np.float32), "softmax__b": np.zeros(20, np.float32)},
            r"\(5, 20\).*\(20, 5\)",
        ),
        (
            {"softmax__W": np.full((20, 5), np.nan, "f4"), "softmax__b": np.zeros(20, "f4")},
            "100 values that are not finite",
        ),
        (
            {"softmax__W": np.zeros((20, 5), int), "softmax__b": np.zeros(20, "f4")},
            "holds int64, expected float32",
        ),
    ],
)
def test_hdf5_that_is_no_softmax_of_this_model_says_why(datasets, message, tmp_path):
    path = hdf5(tmp_path / "softmax.hdf5", **datasets)
    with pytest.raises(ModelFileError, match=message):
        read_softmax_weights(path, 20, 5)
