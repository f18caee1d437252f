"""Real text in files of JSON lines, and its words counted the plain way."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import TextConfig, build
from pipeline.text import normalise, tokenise
from pipeline.vocabulary_config import VocabularyConfig


def news_texts(shared: Path, num_documents: int | None = None) -> list[str]:
    """The first texts of the BBC's news, all of them by default."""
    with lzma.open(shared / "data/bbc-news/bbc.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in list(file)[:num_documents]]


def plain_counts(texts: list[str], text: TextConfig | None = None) -> Counter[str]:
    """How often each word occurs, counted in one dictionary."""
    config = text or TextConfig()
    documents = pa.table({"text": normalise(pa.array(texts), config.unicode_form)})
    tokens = tokenise(documents, config)["tokens"].combine_chunks().flatten()
    return Counter(tokens.to_pylist())


def write_texts(directory: Path, texts: list[str], num_files: int = 1) -> Path:
    """Write a directory of JSON lines with id and text; the files take turns."""
    directory.mkdir(parents=True)
    for number in range(num_files):
        rows = [
            {"id": f"d{place}", "text": texts[place]}
            for place in range(number, len(texts), num_files)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{number:03}.jsonl").write_text(lines)
    return directory


def vocabulary_config(source: Path, output: Path, **settings: Any) -> VocabularyConfig:
    """A configuration; settings are named `section__key`."""
    values: dict[str, dict[str, Any]] = {
        "source": {"path": str(source), "id_column": "id"},
        "output": {"path": str(output)},
    }
    for name, value in settings.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return build(VocabularyConfig, values, "test")
