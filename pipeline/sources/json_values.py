"""JSON values as columns: what fits a type, and what is said of the rest. Knows no files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.types as pt

from pipeline.sources.reasons import Reason

# Why a row is rejected: the reason and the message.
Problem: TypeAlias = tuple[Reason, str]

_MAX_INTEGER = 1 << 63
_DECODER = json.JSONDecoder()
_KIND_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, Problem | None]:
    """The object in a line, or why there is none."""
    try:
        record = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return None, (Reason.NOT_UTF8, f"the line is not valid UTF-8 at its byte {error.start}")
    except RecursionError:
        return None, (Reason.BAD_JSON, "the line is nested too deeply")
    except ValueError as error:
        return None, (Reason.BAD_JSON, f"the line is not JSON: {error}")
    if type(record) is not dict:
        found = type(record).__name__
        return None, (Reason.NOT_AN_OBJECT, f"the line holds a {found}, not an object")
    return record, None


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
        except UnicodeEncodeError:
            message = f"key {name!r} has a lone surrogate, which UTF-8 cannot represent"
            problems.setdefault(row, (Reason.NOT_UTF8, message))
        except _WrongTypeError:
            shown = json.dumps(value)[:60]
            message = f"key {name!r}: expected {_described(target, convert_value)}, found {shown}"
            problems.setdefault(row, (Reason.WRONG_TYPE, message))
    return pa.array(converted, target)


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
