"""Weight files to and from a biLM's state dict, by the one table of names in weight_table.py.

Reads released HDF5 files and safetensors, tells what is wrong with a file by dataset and shape, and
builds a biLM over what it read. Nothing here reads a pickle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from elmo_model import allennlp
from elmo_model.bilm import BiLM
from elmo_model.errors import ModelFileError
from elmo_model.files import replacing, weights_kind
from elmo_model.options import ElmoOptions
from elmo_model.weight_table import WORD_TABLE, Dataset, Shape, datasets

StateDict = dict[str, Tensor]

# Only pretraining uses the output layer; files that were exported with it are read without.
_IGNORED_PREFIX = "softmax/"
# Trained weights hardly shrink; only tables that nothing has been written to do.
MAX_EXPANSION = 20
FREE_EXPANSION_BYTES = 64 << 20
MAX_ITEMS = 10_000


def read_weights(path: str | Path, options: ElmoOptions) -> StateDict:
    """Read a weight file: released HDF5, or safetensors of ours or of AllenNLP's module.

    Its content tells the kind. Datasets below `softmax/` are left alone; float16 and float64 are
    read as float32. Tensors of safetensors files are mapped into memory.

    Returns: the state dict of `BiLM(options)`, float32.

    Raises:
        ModelFileError: names the file, the dataset, the shape found and the shape expected, for a
            dataset that is missing, not expected, of another shape or type, or not finite; also
            for a pickle.
    """
    read = _read_hdf5 if weights_kind(path) == "hdf5" else _read_safetensors
    return read(str(path), options)


def write_hdf5(path: str | Path, options: ElmoOptions, state: Mapping[str, Tensor]) -> None:
    """Write a weight file that bilm-tf and AllenNLP load; read back, it gives equal bits."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for row in datasets(options):
            file.create_dataset(row.names[0], data=_numpy(state[row.parameter]))


def write_safetensors(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write our own weight file: float32, under the names of `BiLM`'s state dict."""
    tensors = {name: torch.from_numpy(_numpy(value)) for name, value in state.items()}
    with replacing(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(tensors))


def read_token_embeddings(path: str | Path, width: int) -> Tensor:
    """Read context-free vectors as bilm-tf's `dump_token_embeddings` writes them.

    Args:
        path: HDF5 file with the one dataset `embedding` (V, P), a row for each vocabulary line.
        width: the model's P.

    Returns: (V, P) float32.

    Raises:
        ModelFileError: as `read_weights`.
    """
    if weights_kind(path) != "hdf5":
        raise ModelFileError(f"{path}: expected HDF5 with the dataset embedding")
    row = Dataset(WORD_TABLE, ("embedding",), (None, width))
    with _open_hdf5(str(path)) as file:
        return _collect(str(path), [row], _sources_of(str(path), file))[WORD_TABLE]


def read_datasets(path: str | Path, names: Sequence[str]) -> StateDict:
    """Those of the named datasets that an HDF5 file holds, float32; others are left alone.

    Raises:
        ModelFileError: the file or a dataset is damaged, holds no numbers of floating point, or
            some that are not finite.
    """
    where = str(path)
    with _open_hdf5(where) as file:
        sources = _sources_of(where, file)
        found = [name for name in names if name in sources]
        return {name: _finite(where, name, sources[name].load()) for name in found}


def write_token_embeddings(path: str | Path, vectors_VP: Tensor) -> None:
    """Write context-free vectors (V, P) as bilm-tf's `dump_token_embeddings` does."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("embedding", data=_numpy(vectors_VP))


def build(options: ElmoOptions, state: Mapping[str, Tensor]) -> BiLM:
    """A biLM over the given tensors, which it shares; no random weights are drawn first."""
    num_words = state[WORD_TABLE].shape[0] if WORD_TABLE in state else None
    with torch.device("meta"):
        bilm = BiLM(options, num_words)
    bilm.load_state_dict(dict(state), assign=True)
    return bilm


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a state dict: by sorted name, the name, a zero byte, the float32 bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0")
        digest.update(_numpy(state[name]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Source:
    """A dataset of an opened file: its shape, and how to read it."""

    shape: Shape
    load: Callable[[], Tensor]


def _read_hdf5(where: str, options: ElmoOptions) -> StateDict:
    with _open_hdf5(where) as file:
        return _collect(where, datasets(options), _sources_of(where, file))


@contextmanager
def _open_hdf5(where: str) -> Iterator[h5py.File]:
    try:
        with h5py.File(where, "r") as file:
            yield file
    except OSError as error:
        raise ModelFileError(
            f"{where}: damaged HDF5 ({error}); copy or fetch the file again"
        ) from error


def _sources_of(where: str, file: h5py.File) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    num_items = 0

    def visit(name: str, item: object) -> bool | None:
        nonlocal num_items
        num_items += 1
        if isinstance(item, h5py.Dataset):
            sources[name] = _Source(tuple(item.shape or ()), partial(_load_hdf5, where, name, item))
        return True if num_items > MAX_ITEMS else None

    # Unlike iteration by key, this follows no link that leads to other files.
    if file.visititems(visit):
        raise ModelFileError(f"{where}: more than {MAX_ITEMS} groups and datasets, so no biLM")
    return sources


def _load_hdf5(where: str, name: str, item: h5py.Dataset) -> Tensor:
    if item.dtype.kind != "f":
        raise ModelFileError(f"{where}: /{name} holds {item.dtype}, expected float32")
    if item.external or item.is_virtual:
        raise ModelFileError(
            f"{where}: /{name} keeps its values in other files, which are not read; copy them into "
            "one file with h5repack"
        )
    stored_bytes = os.path.getsize(where)
    if item.nbytes > FREE_EXPANSION_BYTES + MAX_EXPANSION * stored_bytes:
        raise ModelFileError(
            f"{where}: /{name} declares {item.nbytes} bytes in a file of {stored_bytes}: weights "
            "do not shrink like that, so the file is damaged or made to fill the memory"
        )
    return torch.from_numpy(np.asarray(item[...], np.float32))


def _read_safetensors(where: str, options: ElmoOptions) -> StateDict:
    try:
        with safe_open(where, framework="pt") as file:
            names = list(file.keys())
            if allennlp.is_state_dict(names):
                tensors = {name: file.get_tensor(name) for name in names}
                found = allennlp.convert(where, tensors, options)
                sources = {
                    name: _Source(tuple(value.shape), partial(_identity, value))
                    for name, value in found.items()
                }
            else:
                sources = {
                    name: _Source(
                        tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name)
                    )
                    for name in names
                }
            rows = [replace(row, names=(row.parameter,)) for row in datasets(options)]
            return _collect(where, rows, sources)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"{where}: damaged safetensors ({error}); copy or fetch the file again"
        ) from error


def _identity(value: Tensor) -> Tensor:
    return value


def _collect(where: str, rows: Sequence[Dataset], sources: Mapping[str, _Source]) -> StateDict:
    """Match the table with a file's datasets, check both ways, and only then read."""
    chosen = {row.parameter: name for row in rows for name in row.names if name in sources}
    missing = [row for row in rows if row.parameter not in chosen]
    left = set(sources) - set(chosen.values())
    extra = sorted(name for name in left if not name.startswith(_IGNORED_PREFIX))
    if missing:
        raise ModelFileError(
            f"{where}: /{missing[0].names[0]} is missing, options.json asks for it with shape "
            f"{_shape_text(missing[0].shape)} ({len(missing)} of {len(rows)} datasets are missing"
            f"{', ' + _listed(extra) + ' not expected' if extra else ''}): {_advice(extra)}"
        )
    for row in rows:
        found = sources[chosen[row.parameter]].shape
        fits = len(found) == len(row.shape) and all(
            wanted in (None, size) for size, wanted in zip(found, row.shape, strict=True)
        )
        if not fits:
            raise ModelFileError(
                f"{where}: /{chosen[row.parameter]} has shape {found}, options.json asks for "
                f"{_shape_text(row.shape)}: the two files are from different models"
            )
    if extra:
        raise ModelFileError(
            f"{where}: {_listed(extra)} not expected, options.json does not ask for it: "
            f"{_advice(extra)}"
        )
    return {
        parameter: _finite(where, name, sources[name].load()) for parameter, name in chosen.items()
    }


def _finite(where: str, name: str, value: Tensor) -> Tensor:
    value = value.float()
    # A finite sum has finite terms, and costs no tensor of the same size; it may still overflow.
    if not torch.isfinite(value.sum()):
        count = int((~torch.isfinite(value)).sum())
        if count:
            raise ModelFileError(
                f"{where}: /{name} holds {count} values that are not finite, of {value.numel()}: "
                "the file is damaged or its training diverged"
            )
    return value


def _advice(extra: Sequence[str]) -> str:
    if any(name.startswith("rnn/") for name in extra):
        return "the weights are of one direction; set bidirectional to false in options.json"
    if any(name.startswith("RNN_1/") for name in extra):
        return "the weights are of two directions; set bidirectional to true in options.json"
    if any(name.startswith("CNN") for name in extra):
        return "the weights are of a character model; options.json lacks char_cnn or parts of it"
    if "embedding" in extra:
        return "the weights are of a word-input model; remove char_cnn from options.json"
    return "use the options.json that belongs to this file"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"/{name}" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _shape_text(shape: tuple[int | None, ...]) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _numpy(value: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(value.detach().cpu().float().numpy())
