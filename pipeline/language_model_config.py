"""The configuration section of a language model's files, which several jobs have. Knows no files.

Unlike `model` of `jobs.embed` it names the vocabulary and the softmax also of a model that reads
characters, and nothing about vectors.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config import Section


class LanguageModelConfig(Section):
    """Which biLM, and its output layer."""

    directory: str | None = Field(
        None,
        description="model directory: options.json, weights.safetensors, vocabulary.txt, "
        "softmax.safetensors",
    )
    options_file: str | None = Field(None, description="options.json of a released model")
    weights_file: str | None = Field(
        None, description="weights of a released model: HDF5 or safetensors"
    )
    vocabulary_file: str | None = Field(
        None, description="vocabulary of a released model, a word a line"
    )
    softmax_file: str | None = Field(
        None,
        description="output layer: safetensors of `elmo pretrain`, or HDF5 with softmax/W (V, P) "
        "and softmax/b (V); null takes the one in the directory or in the weights' HDF5 file",
    )

    @model_validator(mode="after")
    def _one_model(self) -> LanguageModelConfig:
        files = (self.options_file, self.weights_file)
        if (self.directory is None) == (files == (None, None)) or (None in files) != (
            files == (None, None)
        ):
            raise ValueError(
                "give either model.directory or both model.options_file and model.weights_file"
            )
        if self.directory is not None and self.vocabulary_file is not None:
            raise ValueError(
                "model.vocabulary_file goes with model.options_file; a directory has its own "
                "vocabulary.txt. To use another, name the directory's files one by one"
            )
        return self
