"""The configuration of `jobs.vocabulary` as one frozen tree. Knows no files or Ray.

`source` and `text` are those of `jobs.embed`: the words are counted that a model will meet.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from elmo_model.vocabulary import MARKS
from pipeline.config import RunConfig, Section, SourceConfig, TextConfig


class VocabularyLimits(Section):
    """Which words are kept."""

    min_count: int = Field(3, ge=1, description="rarer words are left out")
    max_size: int | None = Field(
        800_000,
        description="most words to keep, the three marks included, the most frequent first; the "
        "published vocabulary has about as many. null keeps all that min_count leaves",
    )

    @field_validator("max_size")
    @classmethod
    def _has_room(cls, max_size: int | None) -> int | None:
        if max_size is not None and max_size <= len(MARKS):
            raise ValueError(
                f"leaves no room for a word beside the marks {', '.join(MARKS)}: allow at least "
                f"{len(MARKS) + 1}"
            )
        return max_size

    @property
    def room(self) -> int | None:
        """Most words to keep beside the marks; None keeps all."""
        return None if self.max_size is None else self.max_size - len(MARKS)


class VocabularyOutputConfig(Section):
    """Where the vocabulary is kept."""

    path: str = Field(description="URL of the vocabulary file, a local path or as s3://bucket/name")
    counts: bool = Field(
        False,
        description="also write the kept words with their counts (`vocabulary.counts.tsv` beside "
        "`vocabulary.txt`) and what the job reports (`vocabulary.summary.json`)",
    )


class CountingConfig(Section):
    """Resources and limits of the counting."""

    max_held_bytes: int = Field(
        64 << 20,
        gt=0,
        le=1 << 30,
        description="counts that a reading task holds in memory before it hands them on",
    )
    num_buckets: int | None = Field(
        None,
        gt=0,
        le=10_000,
        description="parts of the words, by a hash, each of which must fit in the memory of a "
        "task; null chooses by the size of the corpus",
    )
    max_rejected_share: float = Field(
        0.01, ge=0, le=1, description="nothing is written when a larger share of rows is rejected"
    )
    max_rejected: int | None = Field(
        None, ge=0, description="nothing is written when more rows are rejected; null: any number"
    )
    no_progress_timeout_s: int = Field(
        1800, gt=0, description="a run in which nothing moves for this long fails"
    )

    @property
    def reject_limits(self) -> RunConfig:
        """The limits of rejected rows, as an embedding run has them."""
        return RunConfig(max_rejected_share=self.max_rejected_share, max_rejected=self.max_rejected)


class VocabularyConfig(Section):
    """The whole configuration of `jobs.vocabulary`."""

    source: SourceConfig
    text: TextConfig = TextConfig()
    vocabulary: VocabularyLimits = VocabularyLimits()
    output: VocabularyOutputConfig
    run: CountingConfig = CountingConfig()
