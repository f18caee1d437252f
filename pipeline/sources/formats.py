"""Which format and compression a file has, by its name. Knows names only."""

from __future__ import annotations

from typing import Literal, TypeAlias

Format: TypeAlias = Literal["parquet", "jsonl", "csv", "text", "arrow"]
Compression: TypeAlias = Literal["gzip", "zstd", "bz2", "xz"]

FORMAT_ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSION_ENDINGS: dict[str, Compression] = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
}


def format_of(path: str) -> Format | None:
    """The format that a file name stands for, a compression's ending aside; None if unknown."""
    stem = path.rsplit("/", 1)[-1].lower()
    for ending in COMPRESSION_ENDINGS:
        stem = stem.removesuffix(ending)
    return next((found for ending, found in FORMAT_ENDINGS.items() if stem.endswith(ending)), None)


def compression_of(path: str) -> Compression | None:
    """The compression that a file name stands for; None for a plain file."""
    name = path.lower()
    return next(
        (found for ending, found in COMPRESSION_ENDINGS.items() if name.endswith(ending)), None
    )


def delimiter_of(path: str) -> str:
    """What separates the fields of a CSV file: a tab where the name says so, or a comma."""
    name = path.rsplit("/", 1)[-1].lower()
    for ending in COMPRESSION_ENDINGS:
        name = name.removesuffix(ending)
    return "\t" if name.endswith(".tsv") else ","
