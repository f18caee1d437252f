"""The output layer of a pretrained biLM as a file beside the model directory's own.

`softmax.safetensors` holds `weight` (V, P) and `bias` (V), float32, rows in the order of
vocabulary.txt. Embedding does not read it; perplexity and further training do.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from elmo_model.errors import ModelFileError
from elmo_model.files import replacing
from elmo_model.losses import Softmax

SOFTMAX_NAME = "softmax.safetensors"


def write_softmax(path: str | Path, softmax: Softmax) -> None:
    """Write the file; read back, it gives equal bits."""
    tensors = {
        name: value.detach().cpu().float().contiguous()
        for name, value in softmax.state_dict().items()
    }
    with replacing(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(tensors))


def read_softmax(path: str | Path, vocabulary_size: int, width: int) -> Softmax:
    """Read the file of a model with this vocabulary size and projection width.

    Raises:
        ModelFileError: no such file, damaged, or of another shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"{path}: expected the softmax of a pretrained model: {error}"
        ) from None
    expected = {"weight": (vocabulary_size, width), "bias": (vocabulary_size,)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != expected:
        raise ModelFileError(
            f"{path}: holds {found}, the model's options and vocabulary ask for {expected}: "
            "the files are from different models"
        )
    softmax = Softmax(vocabulary_size, width)
    softmax.load_state_dict(tensors)
    return softmax
