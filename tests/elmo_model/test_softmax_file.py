"""The output layer as a file."""

import pytest
import torch

from elmo_model.errors import ModelFileError
from elmo_model.losses import Softmax
from elmo_model.softmax_file import read_softmax, write_softmax


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
