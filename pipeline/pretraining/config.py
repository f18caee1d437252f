"""The configuration of `jobs.pretrain` as one frozen tree. Knows no files, torch or Ray.

`source` and `text` are those of `jobs.embed`, so that a model is trained on the tokens that it will
embed. The defaults are those of a small model that learns on a CPU within minutes; what the
original program used stands in the descriptions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config import Section, SourceConfig, TextConfig


class ArchitectureConfig(Section):
    """The shape of the biLM, and the dropout that it is trained with."""

    token_input: Literal["characters", "words"] = Field(
        "characters",
        description="what a word is read by: its characters, as in ELMo, or its number in the "
        "vocabulary",
    )
    projection_dim: int = Field(
        64, gt=0, description="width of the LSTMs' outputs and of the word vectors; original 512"
    )
    dim: int = Field(256, gt=0, description="width of the LSTM cells; original 4096")
    num_layers: int = Field(2, gt=0, description="LSTM layers of each direction")
    filters: tuple[tuple[int, int], ...] = Field(
        ((1, 32), (2, 32), (3, 64), (4, 128)),
        min_length=1,
        description="[width in characters, number] of the convolutions; original 7 widths, 2048",
    )
    char_embedding_dim: int = Field(16, gt=0, description="width of the character vectors")
    max_characters: int = Field(
        50, ge=3, description="bytes of a word that are read, two marks included"
    )
    activation: Literal["relu", "tanh"] = Field("relu", description="after the convolutions")
    num_highway: int = Field(1, ge=0, description="highway layers; original 2")
    cell_clip: float | None = Field(3.0, gt=0, description="limit of the cells; null is off")
    proj_clip: float | None = Field(3.0, gt=0, description="limit of the outputs; null is off")
    skip_connections: bool = Field(True, description="residuals from the second layer on")
    bidirectional: bool = Field(True, description="a backward language model beside the forward")
    tied_softmax: bool = Field(
        False, description="word input: the output layer's weights are the word table"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="rate at the input of every LSTM layer and at the output; original 0.1. It "
        "only pays where the text is seen many times",
    )
    dropout_kind: Literal["element", "variational"] = Field(
        "element",
        description="what dropout is drawn for: each element at each step, as in the original, or "
        "each element of a row, the same for all steps of a batch",
    )
    weight_drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="rate of dropout of the weights by which LSTMs read their own last output",
    )
    word_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="word input: share of the vocabulary that is read as zeros throughout a batch",
    )

    @model_validator(mode="after")
    def _fits(self) -> ArchitectureConfig:
        if self.tied_softmax and self.token_input != "words":
            raise ValueError(
                "architecture.tied_softmax needs architecture.token_input: words; a model that "
                "reads characters has no word table"
            )
        if self.projection_dim > self.dim:
            raise ValueError(
                f"architecture.projection_dim ({self.projection_dim}) must be at most "
                f"architecture.dim ({self.dim})"
            )
        for width, number in self.filters:
            if not 1 <= width <= self.max_characters or number < 1:
                raise ValueError(
                    f"architecture.filters: [{width}, {number}] must be a width of 1 to "
                    f"{self.max_characters} characters and a number of at least 1"
                )
        return self


class VocabularyConfig(Section):
    """Which words are told apart as targets (and as input, by a model that reads words)."""

    file: str | None = Field(
        None, description="URL of a vocabulary file, such as `elmo vocabulary` writes; null counts"
    )
    max_size: int = Field(20_000, ge=4, description="most words, marks included, if counted")
    min_count: int = Field(3, ge=1, description="rarer words are predicted as <UNK>, if counted")


class StartConfig(Section):
    """What the weights start from, where not from random numbers."""

    directory: str | None = Field(
        None,
        description="model directory to go on from: its shape counts and not `architecture`; the "
        "softmax keeps the rows of words that both vocabularies have",
    )
    options_file: str | None = Field(None, description="options.json of a released model, instead")
    weights_file: str | None = Field(None, description="its weights")
    vocabulary_file: str | None = Field(None, description="its words, for word input")
    word_vectors_file: str | None = Field(
        None,
        description="word input: vectors of words, in word2vec's or GloVe's formats, gzip or not",
    )
    freeze_word_vectors: bool = Field(
        False, description="hold the vectors that were found fixed; the others are learned"
    )

    @model_validator(mode="after")
    def _names_one(self) -> StartConfig:
        if (self.options_file is None) != (self.weights_file is None):
            raise ValueError("give start.options_file and start.weights_file together")
        if self.directory is not None and self.options_file is not None:
            raise ValueError("give start.directory, or start.options_file with its weights")
        if self.freeze_word_vectors and self.word_vectors_file is None:
            raise ValueError("start.freeze_word_vectors needs start.word_vectors_file")
        return self

    @property
    def has_model(self) -> bool:
        """Whether it names a model."""
        return self.directory is not None or self.options_file is not None


class TrainingConfig(Section):
    """How the biLM learns, and for how long."""

    max_seconds: float | None = Field(
        150.0,
        gt=0,
        description="training ends after this time, evaluations not counted; null is off",
    )
    max_steps: int | None = Field(
        None, gt=0, description="training ends after this many steps; null is off"
    )
    batch_size: int = Field(
        64,
        gt=0,
        description="rows of text that are read side by side, by all workers together; original "
        "128 for each GPU",
    )
    unroll_steps: int = Field(
        10,
        gt=0,
        description="words of a row in one step, through which gradients flow; original 20",
    )
    accumulate_batches: int = Field(1, ge=1, description="batches whose gradients make one step")
    shuffle: Literal["sentences", "documents", "none"] = Field(
        "sentences",
        description="anew in every pass: sentences as in the original, or documents, whose "
        "sentences then follow one another in a row, or nothing: each row reads a stretch of the "
        "corpus as it stands",
    )
    optimizer: Literal["adagrad", "adamw"] = Field(
        "adamw", description="adagrad as in the original, or adamw, far faster for short runs"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what is multiplied; weights, sums, cells and the optimiser are float32",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="null takes 0.2 for adagrad and 0.012 for adamw"
    )
    learning_rate_decay: Literal["none", "linear", "cosine"] = Field(
        "linear", description="fall to a fiftieth over the run, or stay as in the original"
    )
    warmup_steps: int = Field(50, ge=0, description="steps over which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="of adamw")
    clip_norm: float | None = Field(
        5.0, gt=0, description="limit of the gradient's global norm, original 10; null is off"
    )
    num_negative_samples: int | None = Field(
        1024,
        gt=0,
        description="negatives of the sampled softmax; null, or half the vocabulary or more, "
        "gives the full softmax",
    )
    state_reset_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="chance that a row starts a step from the zero state, as embedding does; "
        "original 0",
    )
    held_out_share: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="share of the documents, by a hash of the text, not trained on; not used if "
        "held_out names a corpus",
    )
    num_evaluations: int = Field(
        6, ge=1, description="how often perplexity is measured, the end included, the start not"
    )
    max_held_out_tokens: int = Field(
        10_000, gt=0, description="tokens of the held-out text that perplexity is measured on"
    )
    seed: int = Field(
        1, ge=0, description="of weights, order, dropout and negatives; see run.num_threads"
    )

    @model_validator(mode="after")
    def _ends(self) -> TrainingConfig:
        if self.max_seconds is None and self.max_steps is None:
            raise ValueError("give training.max_seconds or training.max_steps: training must end")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("training.weight_decay is of adamw; set training.optimizer to adamw")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Predictions of one direction in a step, by all workers together."""
        return self.batch_size * self.unroll_steps * self.accumulate_batches

    @property
    def initial_learning_rate(self) -> float:
        """The configured learning rate, or the optimiser's default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.2 if self.optimizer == "adagrad" else 0.012


class TrainingRunConfig(Section):
    """Where the training runs, and how it survives."""

    num_workers: int = Field(
        0,
        ge=0,
        description="processes of Ray Train, of any node, that share the rows of each batch; 0 "
        "trains in this process, without Ray",
    )
    min_workers: int | None = Field(
        None,
        gt=0,
        description="the training also begins, and goes on, with so few workers while the cluster "
        "has no room for more; null is num_workers",
    )
    room_timeout_s: float | None = Field(
        300.0,
        ge=0,
        description="how long nodes may take to come while those of a cluster are too few for "
        "min_workers, even with nothing else on them; null waits for ever. For room that others "
        "take up there is no limit",
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each worker of Ray")
    num_threads: int | None = Field(
        2,
        gt=0,
        description="processor threads of a worker, at most the processors there are; null takes "
        "all. A small model gains little from more. Equal seeds and max_steps give equal models "
        "for an equal number of threads and workers on equal machines; runs that max_seconds ends "
        "differ",
    )
    max_failures: int = Field(
        3, ge=0, description="how often the workers are started again after one of them died"
    )
    checkpoint_steps: int | None = Field(
        None, gt=0, description="a checkpoint after so many steps; null is off"
    )
    checkpoint_interval_s: float | None = Field(
        300.0, gt=0, description="a checkpoint after this time; null is off"
    )
    tensorboard_directory: str | None = Field(
        None, description="local directory for TensorBoard's files (extra 'tensorboard')"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: int = Field(1, ge=0, description="checkpoints of the lowest perplexity, kept too")

    @model_validator(mode="after")
    def _workers_fit(self) -> TrainingRunConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"run.min_workers ({self.min_workers}) must be at most run.num_workers "
                f"({self.num_workers})"
            )
        return self


class ModelOutputConfig(Section):
    """Where the model is kept."""

    directory: str = Field(description="directory of the model, local or in a store")
    checkpoint: Literal["best", "last"] = Field(
        "best", description="which becomes the model: that of the lowest mean held-out perplexity"
    )
    work: str | None = Field(
        None,
        description="directory of prepared text, checkpoints and metrics, from which an "
        "interrupted training goes on; all workers must reach it. null is `<directory>.training`",
    )

    @property
    def work_directory(self) -> str:
        """Where prepared text, checkpoints and metrics are."""
        return self.work or f"{self.directory.rstrip('/')}.training"


class PretrainConfig(Section):
    """The whole configuration of `jobs.pretrain`."""

    source: SourceConfig
    held_out: SourceConfig | None = Field(
        None, description="corpus to measure with, read as `source` is; null holds out a part"
    )
    text: TextConfig = TextConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    architecture: ArchitectureConfig = ArchitectureConfig()
    start: StartConfig = StartConfig()
    training: TrainingConfig = TrainingConfig()
    run: TrainingRunConfig = TrainingRunConfig()
    output: ModelOutputConfig

    @model_validator(mode="after")
    def _rows_fit(self) -> PretrainConfig:
        reads_words = self.architecture.token_input == "words" or self.start.has_model
        if self.start.word_vectors_file and not reads_words:
            raise ValueError(
                "start.word_vectors_file needs architecture.token_input: words; a model that reads "
                "characters has no word table"
            )
        if self.architecture.word_dropout and not reads_words:
            raise ValueError(
                "architecture.word_dropout needs architecture.token_input: words; a model that "
                "reads characters has no word table"
            )
        if self.start.freeze_word_vectors and self.training.weight_decay:
            raise ValueError(
                "start.freeze_word_vectors and training.weight_decay exclude each other: the decay "
                "would move what is to stay; set one of them to its default"
            )
        if self.run.num_workers > self.training.batch_size:
            raise ValueError(
                f"run.num_workers ({self.run.num_workers}) must be at most training.batch_size "
                f"({self.training.batch_size}): the workers share the rows of a batch"
            )
        return self
