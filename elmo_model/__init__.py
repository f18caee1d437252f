"""ELMo's bidirectional language model in torch. Knows no Ray, Arrow or object storage.

    from elmo_model import Encoder
    encoder = Encoder.from_files("options.json", "weights.hdf5")
    layers = encoder.encode([["An", "example", "."]]).layers        # (3, 1, 3, 1024)

Names are imported when they are first used, so that `import elmo_model` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elmo_model.elmo import Elmo, batch_to_ids
    from elmo_model.encoder import Encoder, LayerActivations, LayerChoice
    from elmo_model.errors import ElmoError, ModelFileError
    from elmo_model.options import ElmoOptions
    from elmo_model.scalar_mix import ScalarMix
    from elmo_model.state import BiLMState

__all__ = [
    "BiLMState",
    "Elmo",
    "ElmoError",
    "ElmoOptions",
    "Encoder",
    "LayerActivations",
    "LayerChoice",
    "ModelFileError",
    "ScalarMix",
    "batch_to_ids",
]

_HOMES = {
    "BiLMState": "state",
    "Elmo": "elmo",
    "ElmoError": "errors",
    "ElmoOptions": "options",
    "Encoder": "encoder",
    "LayerActivations": "encoder",
    "LayerChoice": "layer_choice",
    "ModelFileError": "errors",
    "ScalarMix": "scalar_mix",
    "batch_to_ids": "elmo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
