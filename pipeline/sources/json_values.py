"""JSON values as columns: what fits a type, and what is said of the rest. Knows no files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from pipeline.excerpt import MAX_EXCERPT_CHARS, bounded, excerpt
from pipeline.sources.reasons import Reason

_MAX_INTEGER = 1 << 63
# Python's own limit depends on how deep in calls the reader itself is, and so on who calls it.
MAX_NESTING = 200
_DECODER = json.JSONDecoder()
_KIND_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True)
class Problem:
    """Why a row is rejected, and an excerpt of what was found."""

    reason: Reason
    message: str
    excerpt: str | None = None


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, Problem | None]:
    """The object in a line, or why there is none."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        message = f"the line is not valid UTF-8 at its byte {error.start}"
        return None, Problem(Reason.NOT_UTF8, message, excerpt(line, error.start))
    try:
        record = _DECODER.decode(text)
    except RecursionError:
        return None, _too_deep(text)
    except json.JSONDecodeError as error:
        message = f"the line is not JSON: {error}"
        return None, Problem(Reason.BAD_JSON, message, excerpt(text, error.pos))
    except ValueError as error:
        return None, Problem(Reason.BAD_JSON, f"the line is not JSON: {error}", excerpt(text))
    if line.count(b"[") + line.count(b"{") > MAX_NESTING and _is_deep(record):
        return None, _too_deep(text)
    if type(record) is not dict:
        message = f"the line holds a {type(record).__name__}, not an object"
        return None, Problem(Reason.NOT_AN_OBJECT, message, excerpt(text))
    return record, None


def _too_deep(text: str) -> Problem:
    message = f"the line is nested too deeply: more than {MAX_NESTING} levels"
    return Problem(Reason.BAD_JSON, message, excerpt(text))


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)


class _WrongTypeError(Exception):
    pass


def convert(
    values: list[Any],
    name: str,
    target: pa.DataType,
    convert_value: Callable[[Any], Any],
    problems: dict[int, Problem],
) -> pa.Array:
    """The values of a key as an array.

    Args:
        values: as parsed, None where the key is missing.
        name: the key, for messages.
        target: type of the array.
        convert_value: one of `string`, `id_text`, `partition_text` or `carrier(target)`.
        problems: gets an entry for each row whose value does not fit (and becomes null), unless
            the row has one already.
    """
    kinds = set(map(type, values)) - {type(None)}
    if convert_value is id_text and kinds == {int}:
        return pa.array([None if value is None else str(value) for value in values], target)
    if pt.is_string(target) and kinds <= {str}:
        try:
            return pa.array(values, target)
        except UnicodeEncodeError:
            pass
    converted: list[Any] = [None] * len(values)
    for row, value in enumerate(values):
        if value is None:
            continue
        try:
            found = convert_value(value)
            if isinstance(found, str):
                found.encode()
            converted[row] = found
        except UnicodeEncodeError as error:
            message = f"key {name!r} has a lone surrogate, which UTF-8 cannot represent"
            shown = excerpt(error.object, error.start)
            problems.setdefault(row, Problem(Reason.NOT_UTF8, message, shown))
        except _WrongTypeError:
            shown = _shown(value)
            expected = _described(target, convert_value)
            message = f"key {name!r}: expected {expected}, found {bounded(shown, 60)}"
            problems.setdefault(row, Problem(Reason.WRONG_TYPE, message, shown))
    return pa.array(converted, target)


def _shown(value: Any) -> str:
    """An excerpt of a value as JSON, without writing out more than the start of a large one."""
    if isinstance(value, str):
        return bounded(json.dumps(value[:MAX_EXCERPT_CHARS], ensure_ascii=False), MAX_EXCERPT_CHARS)
    parts = []
    length = 0
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        parts.append(part[: MAX_EXCERPT_CHARS + 1])
        length += len(part)
        if length > MAX_EXCERPT_CHARS:
            break
    return bounded("".join(parts), MAX_EXCERPT_CHARS)


def _described(target: pa.DataType, convert_value: Callable[[Any], Any]) -> str:
    if convert_value is id_text:
        return "a string or an integer"
    if convert_value is partition_text:
        return "a string, an integer or a boolean"
    return "a string" if pt.is_string(target) else f"{target}, as in the file's first rows"


def string(value: Any) -> str:
    """A string as it is."""
    if type(value) is not str:
        raise _WrongTypeError
    return value


def id_text(value: Any) -> str:
    """A string, or an integer's digits."""
    if type(value) is int:
        return str(value)
    return string(value)


def partition_text(value: Any) -> str:
    """A string, an integer's digits, `true` or `false`."""
    if type(value) is bool:
        return "true" if value else "false"
    return id_text(value)


def carrier(target: pa.DataType) -> Callable[[Any], Any]:
    """What turns a JSON value into one of a carried column's type."""
    if pt.is_boolean(target):
        return _boolean
    if pt.is_int64(target):
        return _integer
    if pt.is_float64(target):
        return _number
    # Other types come from other files; JSON has no values of them.
    return _carried_text if pt.is_string(target) else _refuse


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _WrongTypeError
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -_MAX_INTEGER <= value < _MAX_INTEGER:
        raise _WrongTypeError
    return value


def _number(value: Any) -> float:
    if type(value) is int and abs(value) <= 1 << 53:
        return float(value)
    if type(value) is not float:
        raise _WrongTypeError
    return value


def _refuse(value: Any) -> Any:
    raise _WrongTypeError


def _carried_text(value: Any) -> str:
    """A string as it is; an object or array as compact JSON."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return string(value)


def sampled_type(values: list[Any]) -> pa.DataType:
    """The type that most of the values have; integers and other numbers together are doubles."""
    kinds = Counter(type(value) for value in values if value is not None)
    if not kinds:
        return pa.null()
    if kinds[int] and kinds[float]:
        kinds[float] += kinds.pop(int)
    text = kinds.pop(str, 0) + kinds.pop(dict, 0) + kinds.pop(list, 0)
    best = max(kinds, key=lambda kind: kinds[kind], default=str)
    return _KIND_TYPES[best] if best is not str and kinds[best] > text else pa.string()
