"""Read the text files of labelled sets, plain or packed. Knows lines, tables and JSON only."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError

# A labelled set is held in memory; what unpacks to more is not one.
MAX_SET_BYTES = 1 << 30
_OPENERS: dict[str, Callable[[Path], Any]] = {".xz": lzma.open, ".gz": gzip.open}

Row = dict[str, str]


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name, as it is or with `.xz` or `.gz` behind it, or None."""
    for ending in ("", *_OPENERS):
        path = folder / f"{name}{ending}"
        if path.is_file():
            return path
    return None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The whole text of a file that may be packed (`.xz`, `.gz`).

    Raises:
        SourceError: no such file, damaged, over 1 GiB of text, or not in this encoding.
    """
    try:
        with _OPENERS[path.suffix](path) if path.suffix in _OPENERS else path.open("rb") as file:
            content = file.read(MAX_SET_BYTES + 1)
        if len(content) > MAX_SET_BYTES:
            raise SourceError(f"{path}: more than 1 GiB of text; is this a labelled set?")
        return str(content.decode(encoding).removeprefix("\ufeff"))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise SourceError(f"{path}: cannot be read ({error}); expected a readable file") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: byte {error.start} is not {encoding}; save the file as UTF-8"
        ) from None


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines that are not blank, without their ends."""
    lines = read_text(path, encoding).split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a `.jsonl`, `.csv` or `.tsv` file (packed or not) as strings by column name.

    Numbers of JSON become their digits, null an empty string. A `.tsv` has no quotation marks.

    Raises:
        SourceError: another ending, no header, a row with more or fewer fields, or no JSON.
    """
    kind = Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix
    if kind in (".jsonl", ".json"):
        yield from _json_rows(path)
    elif kind in (".csv", ".tsv"):
        yield from _table_rows(path, "\t" if kind == ".tsv" else ",")
    else:
        raise SourceError(f"{path}: expected .jsonl, .csv or .tsv (also with .xz or .gz)")


def columns_of(path: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Make sure that each row has these columns; those of JSON need not be alike.

    Raises:
        SourceError: there is no row, or one lacks a column; the message names those that it has.
    """
    if not rows:
        raise SourceError(f"{path}: has no rows")
    for number, row in enumerate(rows, 1):
        missing = [name for name in names if name not in row]
        if missing:
            raise SourceError(
                f"{path}: row {number}: no column {', '.join(missing)}; its columns are "
                f"{', '.join(row)}"
            )


def numbers_of(path: Path, rows: Sequence[Row], column: str) -> list[float]:
    """A column of numbers.

    Raises:
        SourceError: a value is no finite number; the message names its row.
    """
    numbers = []
    for place, row in enumerate(rows, 1):
        try:
            number = float(row[column])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise SourceError(
                f"{path}: row {place}: {column} is {row[column]!r}; expected a number"
            )
        numbers.append(number)
    return numbers


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"{path}: row {number} is not JSON: {error.msg}") from None
        if not isinstance(values, dict):
            raise SourceError(f"{path}: row {number} is not a JSON object with named values")
        yield {key: "" if value is None else str(value) for key, value in values.items()}


def _table_rows(path: Path, delimiter: str) -> Iterator[Row]:
    lines = io.StringIO(read_text(path), newline="")
    try:
        if delimiter == "\t":
            reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(lines, delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            raise SourceError(f"{path}: is empty; expected a header and rows")
        for fields in reader:
            if fields and len(fields) != len(header):
                raise SourceError(
                    f"{path}: line {reader.line_num} has {len(fields)} fields, the header "
                    f"{len(header)}"
                )
            if fields:
                yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise SourceError(f"{path}: line {reader.line_num}: {error}") from None
