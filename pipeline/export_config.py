"""The configuration of `jobs.export` as one frozen tree. Knows no files or torch."""

from __future__ import annotations

from pydantic import Field

from pipeline.config import Section
from pipeline.language_model_config import LanguageModelConfig


class ExportOutputConfig(Section):
    """What is written, and where."""

    path: str = Field(description="directory to write, a local path or a URL; made if missing")
    softmax: bool = Field(
        False,
        description="also the output layer: softmax.hdf5 with softmax/W and softmax/b, rows in the "
        "order of the vocabulary",
    )
    token_embeddings: bool = Field(
        False,
        description="also the context-free vector of every word of the vocabulary, in its order: "
        "token_embeddings.hdf5, as dump_token_embeddings of the original writes it",
    )


class ExportConfig(Section):
    """The whole configuration of `jobs.export`."""

    model: LanguageModelConfig
    output: ExportOutputConfig
