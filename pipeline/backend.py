"""What a run needs of a model: ELMo, or a stand-in. Knows no torch and no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.config import EmbedConfig
from pipeline.token_window import VectorModel

ModelLoader = Callable[[], VectorModel]


@dataclass(frozen=True)
class EncoderDescription:
    """What a snapshot records of its encoder.

    `fingerprint` is the SHA-256 of `details`; `dim` counts the elements of a vector.
    """

    fingerprint: str
    details: dict[str, Any]
    dim: int
    vector_columns: tuple[str, ...]


class Backend(Protocol):
    """What embeds: ELMo, or a stand-in that measures the pipeline around it."""

    def describe(self, config: EmbedConfig) -> EncoderDescription:
        """Fingerprint and shape of the vectors, found on the driver."""
        ...

    def loader(self, config: EmbedConfig, num_threads: int) -> ModelLoader:
        """A picklable function that makes the vector model in an actor's process."""
        ...
