"""The file of a learned mix: a layer's weights and gamma, and of which model. Knows no layers.

JSON: `mix_weights` (raw, before the softmax, one a layer), `mix_gamma`, `weights_sha256` of the
model that they belong to, and `learned`, which says from what. `elmo tune-mix` writes it, and
`elmo embed --mix` takes it as `model.layers: mix` with these keys of `model`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError, MissingFileError
from pipeline.storage import open_storage, split_pattern

MAX_MIX_BYTES = 1 << 20


@dataclass(frozen=True)
class MixFile:
    """A mix as it is stored; `learned` is for readers and decides nothing."""

    mix_weights: tuple[float, ...]
    mix_gamma: float
    weights_sha256: str
    learned: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def write(self, url: str) -> None:
        """Write the file, whole or not at all, in the place of an older one.

        Raises:
            StorageError: the store failed.
        """
        directory, name = split_pattern(url)
        text = json.dumps(
            {
                "mix_weights": self.mix_weights,
                "mix_gamma": self.mix_gamma,
                "weights_sha256": self.weights_sha256,
                "learned": self.learned,
            },
            indent=1,
        )
        open_storage(directory).put(name, f"{text}\n".encode())

    @classmethod
    def read(cls, url: str) -> MixFile:
        """Read a file that `write` wrote.

        Raises:
            ConfigError: no such file, or not one of a mix.
            StorageError: the store failed.
        """
        directory, name = split_pattern(url)
        try:
            content = open_storage(directory).read_bytes(name, MAX_MIX_BYTES)
            values = json.loads(content)
            weights = tuple(float(value) for value in values["mix_weights"])
            mix = cls(weights, float(values["mix_gamma"]), str(values["weights_sha256"]))
        except MissingFileError:
            raise ConfigError(f"{url}: no such file; 'elmo tune-mix' writes one") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{url}: not a file of 'elmo tune-mix': {error!r}") from None
        if not weights or not all(map(math.isfinite, (*weights, mix.mix_gamma))):
            raise ConfigError(f"{url}: the weights and gamma of a mix must be finite numbers")
        return mix

    def overrides(self) -> list[str]:
        """The mix as `key=value` words of `--set`."""
        return [
            "model.layers=mix",
            f"model.mix_weights={json.dumps(self.mix_weights)}",
            f"model.mix_gamma={self.mix_gamma!r}",
            f"model.weights_sha256={json.dumps(self.weights_sha256)}",
        ]
