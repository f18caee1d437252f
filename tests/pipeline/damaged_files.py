"""Good input files of every format, and seeded damage to them. Knows no reader.

Everything is made in code from a number, so a failing case is told by that number alone.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = (
    "The cat sat on the mat. It purred!",
    "Größe, naïveté and 中文 in one — line…",
    "e\u0301 decomposed, \U0001f469\u200d\U0001f680 and \u202eodd\u202c marks",
    "a\tb  c\u00a0d",
    "https://example.org/a?b=c, don't.",
    "x",
    "A longer document. " * 40,
)
NUM_ROWS = 60
INTERESTING = (
    b"\0", b"\n", b"\r", b"\r\n", b'"', b'""', b"{", b"}", b"[", b",", b":", b"\\", b"\t",
    b"\xff", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\\ud800",
    b"NaN", b"1e999", b"null", b"true", b"-9223372036854775809", b"PAR1", b"ARROW1", b"\x1f\x8b",
    b'{"id":', b'{"a":{"a":', b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32,
           (1 << 63) - 1, -(1 << 63), 1 << 40)  # fmt: skip


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _zstd,
}


@dataclass(frozen=True)
class Seed:
    """A good file and the configuration that reads it."""

    name: str
    data: bytes
    config: dict[str, Any] = field(default_factory=dict)
    unpacked: bytes | None = None

    def damaged(self, rng: random.Random) -> bytes:
        """The file with random damage: in compressed ones mostly to what is inside."""
        if self.unpacked is not None and rng.random() < 0.6:
            return PACKERS[self.name.rpartition(".")[2]](mutate(rng, self.unpacked))
        return mutate(rng, self.data)

    @property
    def is_lines(self) -> bool:
        """Whether each physical line that is not blank is one row."""
        return (
            ".csv" not in self.name
            and self.config.get("text_unit") != "file"
            and (".jsonl" in self.name or ".txt" in self.name)
        )


@cache
def seeds() -> tuple[Seed, ...]:
    """One file of every format, compression and layout that the readers treat apart."""
    columns = {"id_column": "id", "carry_columns": ("lang", "n", "text")}
    made = [
        Seed("a.jsonl", _jsonl(), columns),
        Seed("crlf.jsonl", b"\xef\xbb\xbf" + _jsonl().replace(b"\n", b"\r\n\r\n"), columns),
        Seed("noid.jsonl", _jsonl(), {"partition_columns": ("lang",)}),
        Seed("a.csv", _csv(","), columns),
        Seed("a.tsv", _csv("\t"), columns),
        Seed("a.txt", _text()),
        Seed("file.txt", _text(), {"text_unit": "file", "id_column": "path"}),
    ]
    for ending, pack in PACKERS.items():
        made.append(Seed(f"a.jsonl.{ending}", pack(_jsonl()), columns, _jsonl()))
        made.append(Seed(f"a.csv.{ending}", pack(_csv(",")), columns, _csv(",")))
        half = len(_text()) // 2
        members = pack(_text()[:half]) + pack(_text()[half:])
        made.append(Seed(f"a.txt.{ending}", members, {}, _text()))
    wide = {**columns, "carry_columns": ("lang", "n", "tags", "uid", "small", "text")}
    made += [
        Seed("a.parquet", _parquet(compression="none", row_group_size=20), wide),
        Seed("zstd.parquet", _parquet(compression="zstd", data_page_size=256), wide),
        Seed("snappy.parquet", _parquet(use_dictionary=False, data_page_version="2.0"), wide),
        Seed("check.parquet", _parquet(write_page_checksum=True, row_group_size=7), wide),
        Seed("delta.parquet", _parquet(use_dictionary=False, column_encoding=_DELTA), wide),
        Seed("a.arrow", _arrow(pa.ipc.new_file, None), wide),
        Seed("lz4.arrow", _arrow(pa.ipc.new_file, "lz4"), wide),
        Seed("zstd.feather", _arrow(pa.ipc.new_file, "zstd"), wide),
        Seed("stream.arrow", _arrow(pa.ipc.new_stream, None), wide),
        Seed("zstd-stream.ipc", _arrow(pa.ipc.new_stream, "zstd"), wide),
        Seed("views.arrow", _arrow(pa.ipc.new_file, None, _views()), columns),
    ]
    return tuple(made)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to four random damages; rarely the whole file is something else."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_DAMAGES)(rng, found)
    return bytes(found)


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    place, new = _place(rng, data), rng.choice(INTERESTING)
    data[place : place + len(new)] = new


def _number(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((1, 2, 4, 4, 8, 8))
    value = rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))
    new = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "little", "big")))
    place = _place(rng, data)
    data[place : place + size] = new


def _insert(rng: random.Random, data: bytearray) -> None:
    place = _place(rng, data)
    new = rng.choice(INTERESTING) * rng.choice((1, 1, 1, 3, 1000))
    data[place:place] = new if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 40))


def _truncate(rng: random.Random, data: bytearray) -> None:
    if rng.random() < 0.5:
        del data[_place(rng, data) :]
    else:
        del data[len(data) - rng.randrange(min(len(data), 40) + 1) :]


def _delete(rng: random.Random, data: bytearray) -> None:
    place = _place(rng, data)
    del data[place : place + rng.choice((1, 2, 4, 8, 100, 1000))]


def _duplicate(rng: random.Random, data: bytearray) -> None:
    first = _place(rng, data)
    part = data[first : first + rng.choice((1, 4, 16, 100, 2000))]
    place = _place(rng, data)
    data[place:place] = part * rng.choice((1, 1, 2, 50))


def _swap(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((1, 4, 8, 64))
    one, other = _place(rng, data), _place(rng, data)
    data[one : one + size], data[other : other + size] = (
        data[other : other + size],
        data[one : one + size],
    )


def _splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(seeds()).data
    first = rng.randrange(len(other))
    part = other[first : first + rng.choice((8, 100, 1000, 1 << 20))]
    place = _place(rng, data)
    data[place : place + rng.choice((0, len(part), 1 << 20))] = part


def _place(rng: random.Random, data: bytearray) -> int:
    """Somewhere in the file; the ends, where formats keep what they say of themselves, often."""
    if not data:
        return 0
    kind = rng.random()
    if kind < 0.25:
        return len(data) - 1 - rng.randrange(min(len(data), 2000))
    return rng.randrange(min(len(data), 64)) if kind < 0.4 else rng.randrange(len(data))


_DAMAGES = (
    _flip, _flip, _overwrite, _number, _number, _insert, _truncate, _delete, _duplicate, _swap,
    _splice,
)  # fmt: skip
_DELTA = {"text": "DELTA_LENGTH_BYTE_ARRAY", "id": "DELTA_BYTE_ARRAY", "n": "DELTA_BINARY_PACKED"}


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{number}",
            "text": TEXTS[number % len(TEXTS)],
            "lang": ("en", "de", None)[number % 3],
            "n": number * number - 50,
        }
        for number in range(NUM_ROWS)
    ]


def _jsonl() -> bytes:
    return b"".join(
        json.dumps(row, ensure_ascii=number % 2 == 0).encode() + b"\n"
        for number, row in enumerate(_rows())
    )


def _csv(delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["id", "text", "lang", "n"])
    for row in _rows():
        text = row["text"].replace(". ", '.\n"so" ')
        writer.writerow([row["id"], text, row["lang"], row["n"]])
    return file.getvalue().encode()


def _text() -> bytes:
    return "\n".join(row["text"] for row in _rows()).encode()


def _table() -> pa.Table:
    rows = _rows()
    for number, row in enumerate(rows):
        row["tags"] = None if number % 5 == 0 else [f"t{k}" for k in range(number % 4)]
        row["uid"] = uuid.UUID(int=number).bytes
        row["small"] = ("red", "green", None)[number % 3]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("lang", pa.string()),
            ("n", pa.int32()),
            ("tags", pa.list_(pa.string())),
            ("uid", pa.uuid()),
            ("small", pa.dictionary(pa.int8(), pa.string())),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _views() -> pa.Table:
    plain = _table().select(["id", "text", "lang", "n"])
    return plain.set_column(1, "text", plain["text"].cast(pa.string_view())).set_column(
        0, "id", plain["id"].cast(pa.large_string())
    )


def _parquet(**options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(), sink, **options)
    return sink.getvalue()


def _arrow(
    open_writer: Callable[..., Any], compression: str | None, table: pa.Table | None = None
) -> bytes:
    table = _table() if table is None else table
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with open_writer(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=25)
    return sink.getvalue()
