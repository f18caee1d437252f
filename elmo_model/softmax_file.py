"""The output layer of a pretrained biLM as a file beside the model's own.

`softmax.safetensors` of a model directory holds `weight` (V, P) and `bias` (V), float32, rows in
the order of the vocabulary; an HDF5 file holds the same as `softmax/W` and `softmax/b`, as the
original's checkpoints name them. A model that shares its word table with the softmax may leave the
weight out. Embedding reads neither; perplexity and further training do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from elmo_model.errors import ModelFileError
from elmo_model.files import replacing, weights_kind
from elmo_model.losses import Softmax
from elmo_model.weights import read_datasets

SOFTMAX_NAME = "softmax.safetensors"
HDF5_WEIGHT, HDF5_BIAS = "softmax/W", "softmax/b"


@dataclass(frozen=True)
class SoftmaxWeights:
    """The tensors of an output layer, float32: `weight_VP` and `bias_V`."""

    weight_VP: Tensor
    bias_V: Tensor


def write_softmax(path: str | Path, softmax: Softmax) -> None:
    """Write the safetensors file; read back, it gives equal bits."""
    tensors = {
        name: value.detach().cpu().float().contiguous()
        for name, value in softmax.state_dict().items()
    }
    with replacing(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(tensors))


def write_softmax_hdf5(path: str | Path, softmax: SoftmaxWeights) -> None:
    """Write `softmax/W` and `softmax/b` to an HDF5 file of their own."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(HDF5_WEIGHT, data=softmax.weight_VP.detach().cpu().float().numpy())
        file.create_dataset(HDF5_BIAS, data=softmax.bias_V.detach().cpu().float().numpy())


def read_softmax(path: str | Path, vocabulary_size: int, width: int) -> Softmax:
    """Read the file of a model with this vocabulary size and projection width.

    Raises:
        ModelFileError: no such file, damaged, or of another shape.
    """
    found = read_softmax_weights(path, vocabulary_size, width)
    softmax = Softmax(vocabulary_size, width)
    softmax.load_state_dict({"weight": found.weight_VP, "bias": found.bias_V})
    return softmax


def holds_softmax(path: str | Path) -> bool:
    """Whether a weight file is HDF5 with an output layer in it, as checkpoints are exported.

    Raises:
        ModelFileError: as `weights.read_weights`, for a file that is no weight file.
    """
    return weights_kind(path) == "hdf5" and bool(read_datasets(path, [HDF5_BIAS]))


def read_softmax_weights(
    path: str | Path, vocabulary_size: int | None, width: int, shared_VP: Tensor | None = None
) -> SoftmaxWeights:
    """Read the output layer of a model; the file's content tells its kind.

    Args:
        path: safetensors of ours, or HDF5 with `softmax/W` and `softmax/b` among other datasets.
        vocabulary_size: V; None where it is not known and only the bias can tell.
        width: P.
        shared_VP: the word table of a model with `share_embedding_softmax`; a weight in the file
            must be equal to it.

    Raises:
        ModelFileError: no such file, damaged, without an output layer, of another shape, or not
            the shared table.
    """
    is_hdf5 = weights_kind(path) == "hdf5"
    names = (HDF5_WEIGHT, HDF5_BIAS) if is_hdf5 else ("weight", "bias")
    tensors = read_datasets(path, names) if is_hdf5 else _read_safetensors(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if vocabulary_size is None:
        vocabulary_size = next(iter(shapes.get(names[1], ())), 0)
    expected = {names[0]: (vocabulary_size, width), names[1]: (vocabulary_size,)}
    if shared_VP is not None and names[0] not in shapes:
        del expected[names[0]]
    if shapes != expected:
        raise ModelFileError(
            f"{path}: holds {shapes or 'no softmax'}, the model's options and vocabulary ask for "
            f"{expected}: the files are from different models"
        )
    weight = tensors.get(names[0], shared_VP)
    assert weight is not None
    if shared_VP is not None and not torch.equal(weight, shared_VP):
        raise ModelFileError(
            f"{path}: {names[0]} is not the model's word table, which share_embedding_softmax "
            "makes its softmax: the files are from different models, or of different steps"
        )
    return SoftmaxWeights(weight, tensors[names[1]])


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"{path}: expected the softmax of a pretrained model: {error}"
        ) from None
    return {name: value.float() for name, value in tensors.items()}
