"""From `--config FILE` and `--set key=value` to a validated section. Knows no job, Ray or torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    T = TypeVar("T", bound=BaseModel)

MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_VALUES = 10_000
# What YAML's errors quote: signs of its grammar ('}', '<block end>'), and parts of the text.
_QUOTED = re.compile(r"'(?P<word>[^']*)'")
_MAX_SIGN_LENGTH = 2
_TOO_LARGE = "--config {}: larger than 1 MiB; is this the configuration file?"


def load_config(model: type[T], path: str | None, overrides: Sequence[str]) -> T:
    """Build `model` from a YAML file and dotted overrides, which win.

    Args:
        model: pydantic section, such as `pipeline.config.EmbedConfig`.
        path: local path or URL of a YAML file of at most 1 MiB; None starts from nothing.
        overrides: `dotted.key=value`, the value read as YAML; an empty value is null.

    Raises:
        ConfigError: the file is missing, too large or not YAML (with line and column), a key is
            unknown (with the nearest known one), or a value is not allowed.
    """
    from pipeline.config import build, known_keys

    values = {} if path is None else parse_yaml(_read(path), path)
    keys = known_keys(model)
    for override in overrides:
        key, value = _parse_override(override)
        _check_key(key, keys)
        _put(values, key, value)
    sources = [path or "no --config given", *(["--set"] if overrides else [])]
    return build(model, values, " and ".join(sources))


def parse_yaml(content: bytes, where: str) -> dict[str, Any]:
    """Read one YAML mapping; repeated keys are errors.

    Raises:
        ConfigError: not UTF-8, not YAML (with line and column), a repeated key, or not a mapping.
    """
    import yaml

    try:
        values = _load_yaml(content.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {_explain_yaml(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: expected a mapping such as 'source: {{path: ...}}', "
            f"found a {type(values).__name__}"
        )
    return values


def _load_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: a repeated key, or more than a configuration can mean: nested too deeply,
            expanded without end by aliases, a number of thousands of digits.
        yaml.YAMLError: not YAML.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, where)
        return loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply for a configuration") from None
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(
            f"{where}: a key or a value cannot be read; keys are words, numbers have few digits"
        ) from None
    finally:
        loader.dispose()


def _check_nodes(root: Any, where: str) -> None:
    """Refuse repeated keys, of which YAML keeps the last in silence, and aliases that explode."""
    import yaml

    sizes: dict[int, int] = {}

    def size_of(node: Any) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise ConfigError(f"{where}: an alias stands inside of what it stands for")
            return sizes[id(node)]
        sizes[id(node)] = 0
        size = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            size += sum(size_of(key) + size_of(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(map(size_of, node.value))
        sizes[id(node)] = size
        return size

    if size_of(root) > MAX_CONFIG_VALUES:
        raise ConfigError(
            f"{where}: more than {MAX_CONFIG_VALUES} values once its aliases are followed; is this "
            "the configuration file?"
        )


def _check_keys(node: Any, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            mark = key.start_mark
            raise ConfigError(
                f"{where}: line {mark.line + 1}, column {mark.column + 1}: the key "
                f"{str(key.value)[:100]!r} stands twice; keep one of them"
            )
        if key.tag != "tag:yaml.org,2002:merge":
            seen.add(str(key.value))


def _explain_yaml(error: Any) -> str:
    """Where and what, without quoting the text: the line may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = str(getattr(error, "problem", None) or "a character that YAML does not allow")
    return f"{place}not valid YAML: {_QUOTED.sub(_without_text, problem)}"


def _without_text(quoted: re.Match[str]) -> str:
    word = quoted["word"]
    is_sign = len(word) <= _MAX_SIGN_LENGTH or (word.startswith("<") and word.endswith(">"))
    return f"'{word}'" if is_sign else "'...'"


def _read(path: str) -> bytes:
    if "://" in path:
        from pipeline.storage import open_storage

        directory, _, name = path.rpartition("/")
        storage = open_storage(directory)
        info = storage.info_or_none(name)
        if info is None:
            raise ConfigError(f"--config {path}: no such file; expected a readable YAML file")
        if info.size_bytes > MAX_CONFIG_BYTES:
            raise ConfigError(_TOO_LARGE.format(path))
        return storage.read_bytes(name, MAX_CONFIG_BYTES)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"--config {path}: {error.strerror}; expected a readable YAML file"
        ) from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(_TOO_LARGE.format(path))
    return content


def _parse_override(override: str) -> tuple[str, Any]:
    import yaml

    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError("--set: expected key=value, such as --set run.num_actors=2")
    try:
        return key, _load_yaml(text, f"--set {key}")
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value is {_explain_yaml(error)}") from None


def _check_key(key: str, known: Mapping[str, str]) -> None:
    if key in known or any(name.startswith(f"{key}.") for name in known):
        return
    import difflib

    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f", did you mean {near[0]}?" if near else ";"
    section = key.rpartition(".")[0]
    siblings = [name for name in known if name.startswith(f"{section}.")] if section else []
    raise ConfigError(f"--set {key}: unknown key{hint} known: {', '.join(siblings or known)}")


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {key}: the file gives {section} a value of type "
                f"{type(inner).__name__}, expected a mapping"
            )
        values = inner
    values[last] = value
