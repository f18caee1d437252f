"""The configuration of `jobs.perplexity` as one frozen tree. Knows no files or torch.

`source` and `text` are those of `jobs.embed`: the text is read and tokenised as for embedding.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config import Section, SourceConfig, TextConfig
from pipeline.language_model_config import LanguageModelConfig


class MeasuredModelConfig(LanguageModelConfig):
    """Which language model is measured, and where it runs."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "tf32", "bfloat16", "float16", "int8"] = Field(
        "float32",
        description="arithmetic of the biLM, as for embedding; the softmax is in float32 always",
    )


class EvaluationConfig(Section):
    """How the text is read."""

    state: Literal["carried", "zero"] = Field(
        "carried",
        description="carried: the LSTM state runs on from sentence to sentence, as in training and "
        "in the original's evaluation; zero: each sentence starts from zero, as in embedding",
    )
    batch_size: int | None = Field(
        None,
        gt=0,
        description="carried only: rows of text that are read side by side; original 256. Each "
        "drops what is left of its sentence when the text ends. Null takes a row for every 2,000 "
        "predictions of the text, at most 256, which drops about 1 %",
    )
    unroll_steps: int | None = Field(
        None,
        gt=0,
        description="carried only: null fills the rows as the original does, a step at a time, and "
        "is the fastest. A number fills them by so many steps, as training does, and drops up to "
        "as many of each row more",
    )
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="reading ends with the sentence that reaches so many tokens; null reads all",
    )

    @model_validator(mode="after")
    def _rows_are_carried(self) -> EvaluationConfig:
        for key in ("batch_size", "unroll_steps"):
            if self.state == "zero" and getattr(self, key) is not None:
                raise ValueError(
                    f"evaluation.{key} goes with evaluation.state = carried; from a zero state "
                    "every sentence is a row of its own and nothing is dropped"
                )
        return self


class PerplexityConfig(Section):
    """The whole configuration of `jobs.perplexity`."""

    source: SourceConfig
    text: TextConfig = TextConfig()
    model: MeasuredModelConfig
    evaluation: EvaluationConfig = EvaluationConfig()
