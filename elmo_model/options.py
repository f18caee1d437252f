"""The released options.json as frozen dataclasses: read, checked, written. Knows no weights.

Unknown keys are kept in `extra` and written back, since files with foreign keys are in use. Wrong
values of known keys are errors that name the file, the key, what was expected and what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from elmo_model.errors import OptionsError

MAX_OPTIONS_BYTES = 1 << 20
# What no biLM exceeds: a file that asks for more was made to fill the memory.
MAX_SIZE = 1 << 24
MAX_LAYERS = 64
MAX_CHARACTERS = 1024
MAX_TOKENS = 1 << 60
NUM_STORED_CHARACTERS = 261
# 256 bytes and 5 marks; prediction files count the row of "no token" too.
N_CHARACTERS_TRAINING, N_CHARACTERS_PREDICTION = NUM_STORED_CHARACTERS, NUM_STORED_CHARACTERS + 1

_TRAINING_MARKS = ("batch_size", "unroll_steps", "all_clip_norm_val", "n_epochs")


@dataclass(frozen=True)
class CharCnnOptions:
    """Section `char_cnn`: how the characters of a word become its context-free vector."""

    embedding_dim: int
    filters: tuple[tuple[int, int], ...]
    max_characters_per_token: int = 50
    activation: str = "relu"
    n_highway: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    embedding_extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_filters(self) -> int:
        """Width of the highways: the sum of all filter counts."""
        return sum(count for _, count in self.filters)


@dataclass(frozen=True)
class LstmOptions:
    """Section `lstm`. Clips are None when off; a 0 in the file means off, too."""

    dim: int
    projection_dim: int
    n_layers: int = 1
    cell_clip: float | None = None
    proj_clip: float | None = None
    use_skip_connections: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_projection(self) -> bool:
        """Whether the cell's output is projected: only if `dim` exceeds `projection_dim`."""
        return self.dim > self.projection_dim


@dataclass(frozen=True)
class TrainingOptions:
    """The keys that only pretraining reads; None where there is neither value nor default."""

    dropout: float | None = None
    all_clip_norm_val: float | None = None
    n_tokens_vocab: int | None = None
    n_negative_samples_batch: int | None = None
    sample_softmax: bool = True
    share_embedding_softmax: bool = False
    batch_size: int | None = None
    unroll_steps: int | None = None
    n_epochs: int | None = None
    n_train_tokens: int = 768_648_884
    learning_rate: float = 0.2


@dataclass(frozen=True)
class ElmoOptions:
    """One model's options.json.

    `char_cnn` is None for a model whose input is word ids. `bidirectional` follows the original
    where the key is absent: prediction files describe two directions, training files one.
    """

    lstm: LstmOptions
    char_cnn: CharCnnOptions | None = None
    bidirectional: bool = True
    training: TrainingOptions = TrainingOptions()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_directions(self) -> int:
        """2, or 1 for a model trained forward only."""
        return 2 if self.bidirectional else 1

    @property
    def num_layers(self) -> int:
        """Layers that come out: the context-free one and every LSTM layer."""
        return self.lstm.n_layers + 1

    @property
    def output_dim(self) -> int:
        """Width of a layer: both directions' projections side by side."""
        return self.num_directions * self.lstm.projection_dim

    @classmethod
    def read(cls, path: str | Path) -> ElmoOptions:
        """Read an options.json.

        Raises:
            OptionsError: no such file, larger than 1 MiB, no JSON, or a key with a wrong value.
        """
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_OPTIONS_BYTES + 1)
        except OSError as error:
            raise OptionsError(f"{path}: cannot be read: {error.strerror}") from error
        if len(content) > MAX_OPTIONS_BYTES:
            raise OptionsError(
                f"{path}: larger than {MAX_OPTIONS_BYTES} bytes, an options.json has about 500; "
                "was another file given?"
            )
        try:
            values = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise OptionsError(f"{path}: expected one JSON object, found: {error}") from error
        return cls.from_dict(values, where=str(path))

    @classmethod
    def from_dict(cls, values: Any, where: str = "options") -> ElmoOptions:
        """Check the content of an options.json.

        Args:
            values: what the JSON text holds.
            where: the file's name, for messages.

        Raises:
            OptionsError: names `where`, the key, what was expected and what was found.
        """
        top = _Section(values, where)
        is_training = any(key in top.left for key in _TRAINING_MARKS)
        char_cnn = _char_cnn(top.section("char_cnn")) if "char_cnn" in top.left else None
        options = cls(
            lstm=_lstm(top.section("lstm")),
            char_cnn=char_cnn,
            bidirectional=top.boolean("bidirectional", default=not is_training),
            training=_training(top),
            extra=top.left,
        )
        if options.training.share_embedding_softmax and char_cnn is not None:
            top.fail("share_embedding_softmax", "false beside char_cnn", True)
        return options

    def to_dict(self, *, prediction: bool = True) -> dict[str, Any]:
        """The content of an options.json that the original programs accept.

        Args:
            prediction: write `n_characters` as prediction wants it (262), else as training (261).
        """
        lstm, char_cnn = self.lstm, self.char_cnn
        values: dict[str, Any] = {"bidirectional": self.bidirectional}
        values |= {
            key: value for key, value in vars(self.training).items() if value != _DEFAULTS[key]
        }
        values["lstm"] = {
            **{key: value for key, value in vars(lstm).items() if key != "extra"},
            **lstm.extra,
        }
        if char_cnn is not None:
            values["char_cnn"] = {
                "activation": char_cnn.activation,
                "embedding": {"dim": char_cnn.embedding_dim, **char_cnn.embedding_extra},
                "filters": [list(pair) for pair in char_cnn.filters],
                "max_characters_per_token": char_cnn.max_characters_per_token,
                "n_characters": N_CHARACTERS_PREDICTION if prediction else N_CHARACTERS_TRAINING,
                "n_highway": char_cnn.n_highway,
                **char_cnn.extra,
            }
        return {**values, **self.extra}

    def to_json(self, *, prediction: bool = True) -> str:
        """The text of an options.json; equal options give equal text."""
        return json.dumps(self.to_dict(prediction=prediction), indent=2, sort_keys=True) + "\n"

    def with_word_input(self) -> ElmoOptions:
        """The same biLM over stored word vectors instead of characters."""
        return replace(self, char_cnn=None, training=replace(self.training, n_tokens_vocab=None))


_DEFAULTS = vars(TrainingOptions())


class _Section:
    """One JSON object; taking a key checks it, what is left over is foreign."""

    def __init__(self, values: Any, where: str, prefix: str = "") -> None:
        if not isinstance(values, dict):
            raise OptionsError(
                f"{where}: {prefix.rstrip('.') or 'the file'} must be an object, {_found(values)}"
            )
        self.left: dict[str, Any] = dict(values)
        self._where, self._prefix = where, prefix

    def fail(self, key: str, expected: str, found: Any) -> NoReturn:
        raise OptionsError(
            f"{self._where}: {self._prefix}{key}: expected {expected}, {_found(found)}"
        )

    def section(self, key: str) -> _Section:
        if key not in self.left:
            self._missing(key, "an object")
        return _Section(self.left.pop(key), self._where, f"{self._prefix}{key}.")

    def integer(
        self, key: str, *, minimum: int = 1, maximum: int = MAX_SIZE, default: int | None = None
    ) -> int:
        value = self.left.pop(key, default)
        if value is None:
            self._missing(key, f"an integer of at least {minimum}")
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            self.fail(key, f"an integer of at least {minimum}", value)
        if value > maximum:
            self.fail(key, f"an integer of at most {maximum}", value)
        return value

    def optional_integer(self, key: str) -> int | None:
        return self.integer(key) if self.left.get(key) is not None else self.left.pop(key, None)

    def optional_number(self, key: str) -> float | None:
        value = self.left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
            self.fail(key, "a number of at least 0", value)
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self.left.pop(key, default)
        if not isinstance(value, bool):
            self.fail(key, "true or false", value)
        return value

    def _missing(self, key: str, expected: str) -> NoReturn:
        raise OptionsError(f"{self._where}: {self._prefix}{key} is missing; expected {expected}")


def _char_cnn(section: _Section) -> CharCnnOptions:
    n_characters = section.left.pop("n_characters", N_CHARACTERS_PREDICTION)
    if n_characters not in (N_CHARACTERS_TRAINING, N_CHARACTERS_PREDICTION):
        section.fail("n_characters", "261 (training) or 262 (prediction)", n_characters)
    max_characters = section.integer("max_characters_per_token", minimum=3, maximum=MAX_CHARACTERS)
    activation = section.left.pop("activation", "relu")
    if activation not in ("relu", "tanh"):
        section.fail("activation", "relu or tanh", activation)
    n_highway = section.left.pop("n_highway", None) or 0
    if not isinstance(n_highway, int) or isinstance(n_highway, bool) or n_highway < 0:
        section.fail("n_highway", "an integer of at least 0", n_highway)
    if n_highway > MAX_LAYERS:
        section.fail("n_highway", f"an integer of at most {MAX_LAYERS}", n_highway)
    embedding = section.section("embedding")
    return CharCnnOptions(
        embedding_dim=embedding.integer("dim"),
        filters=_filters(section, max_characters),
        max_characters_per_token=max_characters,
        activation=activation,
        n_highway=n_highway,
        extra=section.left,
        embedding_extra=embedding.left,
    )


def _filters(section: _Section, max_width: int) -> tuple[tuple[int, int], ...]:
    expected = f"a list of [width, count] with width 1..{max_width} and count of at least 1"
    filters = section.left.pop("filters", None)
    if not isinstance(filters, list) or not filters:
        section.fail("filters", expected, filters)
    for pair in filters:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or any(type(part) is not int or not 1 <= part <= MAX_SIZE for part in pair):
            section.fail("filters", expected, pair)
        if pair[0] > max_width:
            section.fail("filters", expected, pair)
    return tuple((width, count) for width, count in filters)


def _lstm(section: _Section) -> LstmOptions:
    options = LstmOptions(
        dim=section.integer("dim"),
        projection_dim=section.integer("projection_dim"),
        n_layers=section.integer("n_layers", maximum=MAX_LAYERS, default=1),
        cell_clip=section.optional_number("cell_clip") or None,
        proj_clip=section.optional_number("proj_clip") or None,
        use_skip_connections=section.boolean("use_skip_connections", default=False),
        extra=section.left,
    )
    if options.projection_dim > options.dim:
        section.fail("projection_dim", f"at most lstm.dim ({options.dim})", options.projection_dim)
    return options


def _training(top: _Section) -> TrainingOptions:
    rate = top.optional_number("learning_rate")
    return TrainingOptions(
        dropout=top.optional_number("dropout"),
        all_clip_norm_val=top.optional_number("all_clip_norm_val"),
        n_tokens_vocab=top.optional_integer("n_tokens_vocab"),
        n_negative_samples_batch=top.optional_integer("n_negative_samples_batch"),
        sample_softmax=top.boolean("sample_softmax", default=True),
        share_embedding_softmax=top.boolean("share_embedding_softmax", default=False),
        batch_size=top.optional_integer("batch_size"),
        unroll_steps=top.optional_integer("unroll_steps"),
        n_epochs=top.optional_integer("n_epochs"),
        n_train_tokens=top.integer(
            "n_train_tokens", maximum=MAX_TOKENS, default=TrainingOptions.n_train_tokens
        ),
        learning_rate=TrainingOptions.learning_rate if rate is None else rate,
    )


def _found(value: Any) -> str:
    text = json.dumps(value, default=str)
    return f"found {text if len(text) <= 80 else text[:77] + '...'}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
