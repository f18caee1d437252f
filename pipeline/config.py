"""The configuration of an embedding run as one frozen tree. Knows no files, Ray or torch.

Every field has a docstring-like comment in `Field(description=...)`; `docs/CONFIGURATION.md` is
tested to name them all. `None` means off. Unknown keys are errors that list the known ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.redaction import is_secret_name, redact_text

RESERVED_COLUMNS = frozenset(
    {"id", "content_hash", "sentence_index", "token_index", "start", "end", "token", "vector"}
)


MAX_SHOWN_CHARS = 200

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """Base of all configuration sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class SourceConfig(Section):
    """Where the corpus lies and which of its columns mean what."""

    path: str | tuple[str, ...] = Field(
        description="URL, glob or directory of the corpus (s3://, gs://, file://, a plain path), "
        "or a list of them; a directory may hold hive partitions"
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "arrow"] = Field(
        "auto", description="input format; auto goes by the file names' endings"
    )
    id_column: str | None = Field(
        None, description="column of the document id; null derives ids from the content"
    )
    text_columns: tuple[str, ...] = Field(
        ("text",), min_length=1, description="columns that are joined to the document's text"
    )
    text_separator: str = Field("\n", description="what stands between joined text columns")
    partition_columns: tuple[str, ...] = Field(
        (), description="columns (or hive keys of the path) that partition the output"
    )
    carry_columns: tuple[str, ...] = Field(
        (),
        description="columns copied to the output beside the vector; 'text' is the normalised text",
    )
    text_unit: Literal["line", "file"] = Field(
        "line", description="plain text only: is a line a document, or a file"
    )
    on_bad_file: Literal["error", "reject"] = Field(
        "error",
        description="a file that cannot be opened or parsed: stop before any work, or "
        "reject it, keep what the snapshot has, and go on",
    )
    max_document_bytes: int = Field(
        16 << 20, gt=0, description="a larger document (UTF-8 bytes) is rejected"
    )
    split_bytes: int = Field(
        64 << 20, gt=0, description="a larger splittable file is read by several tasks"
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The configured paths as a tuple, also when one was given as a string."""
        return (self.path,) if isinstance(self.path, str) else self.path


class TextConfig(Section):
    """How text becomes sentences of tokens."""

    tokenizer: Literal["words", "chinese", "pretokenized"] = Field(
        "words",
        description="words: languages with spaces; chinese: jieba (extra 'chinese'); "
        "pretokenized: a line is a sentence, ASCII space or tab separates tokens",
    )
    unicode_form: Literal["NFC", "NFKC"] | None = Field(
        "NFC", description="Unicode normalisation, applied once before hashing and tokenising"
    )
    max_sentence_tokens: int = Field(
        256, gt=0, description="a longer sentence is split into pieces of this many tokens"
    )
    max_document_tokens: int = Field(
        100_000, gt=0, description="tokens beyond this are cut from the document, and counted"
    )


class ModelConfig(Section):
    """Which biLM embeds, and where it runs."""

    directory: str | None = Field(
        None, description="model directory: options.json, weights.safetensors, vocabulary"
    )
    options_file: str | None = Field(None, description="options.json of a released model")
    weights_file: str | None = Field(None, description="HDF5 weights of a released model")
    vocabulary_file: str | None = Field(
        None, description="words of a released model with word input (no char_cnn)"
    )
    precomputed_words_file: str | None = Field(
        None,
        description="a word a line: their context-free vectors are made once on each machine and "
        "shared by its actors, which spell other words themselves",
    )
    layers: str = Field(
        "average",
        description="all | top | average | mix, or word_emb | lstm_outputs1 | lstm_outputs2 | elmo",
    )
    mix_weights: tuple[float, ...] | None = Field(
        None, description="layers: mix only; one raw (pre-softmax) weight a layer"
    )
    mix_gamma: float = Field(1.0, description="layers: mix only; factor of the mix")
    weights_sha256: str | None = Field(
        None,
        description="refuse a model with other weights than those of this hash, which a snapshot's "
        "manifest and 'elmo tune-mix' name; null takes any",
    )
    initial_state: Literal["zero", "warm"] = Field(
        "zero",
        description="LSTM state at the start of every sentence: zero, or the state "
        "after a fixed documented text",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "tf32", "bfloat16", "float16", "int8"] = Field(
        "float32", description="arithmetic of the biLM; tf32 on a GPU only, int8 on a CPU only"
    )

    @property
    def needs_gpu(self) -> bool:
        """Whether it is configured for a GPU and nothing else."""
        return self.dtype == "tf32" or self.device.startswith("cuda")

    @property
    def needs_cpu(self) -> bool:
        """Whether it is configured for a CPU and nothing else."""
        return self.dtype == "int8" or self.device == "cpu"

    @model_validator(mode="after")
    def _one_model(self) -> ModelConfig:
        files = (self.options_file, self.weights_file)
        if (self.directory is None) == (files == (None, None)) or (None in files) != (
            files == (None, None)
        ):
            raise ValueError(
                "give either model.directory or both model.options_file and model.weights_file"
            )
        if (self.mix_weights is not None) != (self.layers == "mix"):
            raise ValueError("model.mix_weights goes with model.layers = mix, and only with it")
        return self


class VectorConfig(Section):
    """What a vector stands for and how it is stored."""

    level: Literal["document", "sentence", "token"] = Field(
        "document", description="one vector per document, sentence or token"
    )
    pooling: Literal["mean", "max", "first"] = Field(
        "mean", description="how token vectors become a sentence or document vector"
    )
    dtype: Literal["float16", "float32"] = Field("float16", description="stored element type")
    normalize: bool = Field(False, description="scale every vector to Euclidean length 1")


class BatchConfig(Section):
    """How sentences are grouped for the biLM."""

    max_tokens: int | None = Field(
        None,
        gt=0,
        description=(
            "padded tokens of one biLM batch, sentence marks included; default: 4096 for each "
            "thread of an actor, 65536 on a GPU"
        ),
    )
    window_tokens: int | None = Field(
        None,
        gt=0,
        description=(
            "tokens that are sorted by length together; default: those of four batches, at least "
            "65536"
        ),
    )


class OutputConfig(Section):
    """Where the snapshot is kept and in which files."""

    path: str = Field(description="URL of the snapshot directory")
    format: Literal["parquet", "arrow"] = Field("parquet", description="format of data files")
    compression: Literal["zstd"] | None = Field(
        None, description="compression of data files; null stores plain values, which is fastest"
    )
    target_file_bytes: int = Field(
        256 << 20, gt=0, description="a data file is closed once it reaches this size"
    )
    verify_writes: bool = Field(
        True,
        description="read every data file back from an object store and compare its SHA-256 "
        "before it may be listed; on local disk only the size is looked at",
    )


class RunConfig(Section):
    """Resources and limits of one run."""

    num_actors: int | None = Field(
        None, gt=0, description="embedding actors; null takes what the cluster holds"
    )
    cpus_per_actor: float | None = Field(
        None,
        gt=0,
        description="CPUs an actor reserves; also its threads. Default: 1 beside a GPU; else a "
        "node's cores in shares of up to 2, half of them reserved, so that another run fits in",
    )
    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        description="GPUs an actor reserves; default: 1 where the cluster holds GPUs and the model "
        "can use them, else 0",
    )
    documents_per_task: int | None = Field(
        None, gt=0, description="documents in one call of an actor; null lets the plan choose"
    )
    max_rejected_share: float = Field(
        0.01, ge=0, le=1, description="nothing is committed when a larger share of rows is rejected"
    )
    max_rejected: int | None = Field(
        None, ge=0, description="nothing is committed when more rows are rejected; null: any number"
    )
    max_deleted_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="nothing is committed when the corpus lost a larger share of "
        "the snapshot's documents",
    )
    no_progress_timeout_s: int = Field(
        1800, gt=0, description="a run in which nothing moves for this long fails"
    )


class NightlyConfig(Section):
    """What `jobs.nightly` does after the commit; other jobs leave it alone."""

    compact_below_bytes: int | None = Field(
        None,
        gt=0,
        description="data files smaller than this are merged within their partition, when there "
        "are at least compact_min_files of them; null merges nothing",
    )
    compact_min_files: int = Field(
        16, gt=1, description="fewer small files than this are left alone"
    )
    keep_snapshots: int | None = Field(
        30, gt=0, description="older snapshots are removed, tagged ones never; null removes none"
    )
    keep_days: float | None = Field(
        None, ge=0, description="a snapshot stays for this many days after the next one, at least"
    )
    gc_older_than_hours: float | None = Field(
        72.0,
        ge=24,
        description="files that no snapshot names are removed at this age; null removes none",
    )


class EmbedConfig(Section):
    """The whole configuration of `jobs.embed` and `jobs.nightly`."""

    source: SourceConfig
    text: TextConfig = TextConfig()
    model: ModelConfig
    vectors: VectorConfig = VectorConfig()
    batch: BatchConfig = BatchConfig()
    output: OutputConfig
    run: RunConfig = RunConfig()
    nightly: NightlyConfig = NightlyConfig()

    @model_validator(mode="after")
    def _columns_are_free(self) -> EmbedConfig:
        source = self.source
        for name in (*source.partition_columns, *source.carry_columns):
            if name in RESERVED_COLUMNS or name.startswith(("vector_", "_")):
                raise ValueError(f"source: column {name!r} would hide a column of the output")
        both = set(source.partition_columns) & set(source.carry_columns)
        if both:
            raise ValueError(f"source: {sorted(both)} both partition the output and are carried")
        return self

    @model_validator(mode="after")
    def _actors_have_what_the_model_needs(self) -> EmbedConfig:
        # Said here, before actors are started that cannot load it.
        model, gpus = self.model, self.run.gpus_per_actor
        if gpus == 0 and model.needs_gpu:
            what = "dtype: tf32" if model.dtype == "tf32" else f"device: {model.device}"
            raise ValueError(
                f"model.{what} needs a GPU, but run.gpus_per_actor is 0: set it to 1, or take "
                "another"
            )
        if gpus and model.needs_cpu:
            what = "dtype: int8" if model.dtype == "int8" else "device: cpu"
            raise ValueError(
                f"model.{what} runs on a CPU, but run.gpus_per_actor is {gpus:g}: set it to 0, or "
                "take another"
            )
        return self


def build(model: type[T], values: Mapping[str, Any], where: str) -> T:
    """Validate `values` as a `model`.

    Args:
        model: the pydantic section to build.
        values: nested mapping as read from YAML plus overrides.
        where: name of the file or command line, for messages.

    Raises:
        ConfigError: names the key, what was found and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """All keys of a section tree, dotted (`source.path`), with their descriptions."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is None:
            keys[prefix + name] = field.description or ""
        else:
            keys |= known_keys(section, f"{prefix}{name}.")
    return keys


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
    return found[0] if found else None


def _explain(model: type[BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: type[BaseModel] | None = model
        for part in error["loc"][:-1]:
            section = _section_of(section.model_fields[str(part)].annotation) if section else None
        known = ", ".join(section.model_fields) if section else ""
        return f"{key} is not a known key; known here: {known}"
    if error["type"] == "missing":
        return f"{key} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key or isinstance(error["input"], (dict, BaseModel)):
        return message
    found = "***" if is_secret_name(key) else redact_text(repr(error["input"])[:MAX_SHOWN_CHARS])
    return f"{key}: {message}, found {found}"
