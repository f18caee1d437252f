"""Seeded nights of a corpus, and an oracle in plain Python of what each must leave behind.

A night changes some documents and writes all of them anew, into other files of other formats in
another order, with bad rows and duplicates in between. The oracle knows the stand-in model and how
these simple texts are cut into words; nothing of the pipeline but its tests' stand-in is used.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.token_window import TokenWindow
from tests.integration.stand_in import WordModel

LANGUAGES = ("en", "de", "fr", "zh/TW", None)
# One word is written with a combining accent: it must come out, and be hashed, composed.
WORDS = (
    *("the", "cat", "sat", "on", "mat", "while", "dogs", "ran", "far", "away", "home", "river"),
    *("stone", "light", "winter", "cafe\u0301", "straße", "over", "under", "quick", "brown"),
    *("silent", "paper", "engine", "garden", "window", "music", "letter", "bridge", "harbour"),
)


class Document(NamedTuple):
    """One document as the corpus has it; `title` and `lang` are its metadata."""

    text: str
    title: str | None
    lang: str | None


Documents = Mapping[str, Document]


class Row(NamedTuple):
    """One row of a snapshot. Places are -1 where the level has none; `vector` are its bytes."""

    id: str
    sentence_index: int
    token_index: int
    token: str | None
    start: int
    end: int
    text: str
    title: str | None
    lang: str | None
    vector: bytes


@dataclass(frozen=True)
class Difference:
    """What leads from one state of the corpus to another, as sets of ids."""

    added: frozenset[str]
    updated: frozenset[str]
    deleted: frozenset[str]
    unchanged: frozenset[str]
    same_text: frozenset[str]

    @property
    def changes(self) -> dict[str, str]:
        """What the change feed must say: an operation for each id."""
        return (
            dict.fromkeys(self.added, "add")
            | dict.fromkeys(self.updated, "update")
            | dict.fromkeys(self.deleted, "delete")
        )

    @property
    def to_embed(self) -> frozenset[str]:
        """Documents whose vectors cannot be found in the earlier state."""
        return self.added | (self.updated - self.same_text)

    @property
    def num_to_embed(self) -> int:
        """How many these are."""
        return len(self.to_embed)


@dataclass(frozen=True)
class Night:
    """One state of the corpus. `documents` are those that count, `num_bad` rows do not."""

    number: int
    documents: Documents
    num_bad: int

    @property
    def num_rows(self) -> int:
        """Rows of all kinds in the input."""
        return len(self.documents) + self.num_bad


def difference(before: Documents, after: Documents) -> Difference:
    """Compare two states of the corpus."""
    both = before.keys() & after.keys()
    updated = frozenset(name for name in both if _stored(before[name]) != _stored(after[name]))
    return Difference(
        added=frozenset(after.keys() - before.keys()),
        updated=updated,
        deleted=frozenset(before.keys() - after.keys()),
        unchanged=frozenset(both - updated),
        same_text=frozenset(
            name for name in updated if _stored(before[name]).text == _stored(after[name]).text
        ),
    )


def expected_rows(documents: Documents, level: str) -> list[Row]:
    """All rows that a snapshot of these documents holds, sorted."""
    return sorted(
        (row for name, document in documents.items() for row in _rows(name, document, level)),
        key=lambda row: row[:3],
    )


def sentences(text: str) -> list[list[tuple[str, int, int]]]:
    """Words with their first and past-last code point, sentence by sentence.

    Right for what `random_text` writes: words of letters, one blank between two of them, and
    sentences that end in a full stop.
    """
    found: list[list[tuple[str, int, int]]] = [[]]
    place = 0
    for word in text.split(" "):
        bare = word.removesuffix(".")
        found[-1].append((bare, place, place + len(bare)))
        if bare != word:
            found[-1].append((".", place + len(bare), place + len(word)))
            found.append([])
        place += len(word) + 1
    return [sentence for sentence in found if sentence]


def random_text(random_: random.Random) -> str:
    """One to four sentences of one to eight words."""
    return " ".join(
        " ".join(random_.choices(WORDS, k=random_.randint(1, 8))).capitalize() + "."
        for _ in range(random_.randint(1, 4))
    )


@dataclass
class History:
    """A corpus that changes from night to night, equally for equal seeds.

    `deleted` remembers what is gone, so that some of it can come back as it was.
    """

    folder: Path
    seed: int
    num_documents: int = 200
    num_nights: int = 0
    documents: dict[str, Document] = field(default_factory=dict)
    deleted: dict[str, Document] = field(default_factory=dict)

    def next_night(self, busyness: float | None = None) -> Night:
        """Change some documents and write the corpus; `busyness` is about the share that changes.

        By default most nights are quiet, some busy, and now and then nothing changes but the files.
        """
        self.num_nights += 1
        # A night depends on its number and the state only, not on how often others drew.
        random_ = random.Random(f"{self.seed}/{self.num_nights}")
        if not self.documents:
            for _ in range(self.num_documents):
                self._add(random_)
        else:
            if busyness is None:
                busyness = random_.choice((0.0, 0.0, 0.02, 0.05, 0.1, 0.3))
            self._change(random_, busyness)
        return self.write(random_)

    def write(self, random_: random.Random) -> Night:
        """Write the present state in a random layout, with some rows that do not count."""
        gone = random_.choice(sorted(self.deleted)) if self.deleted else "bad-empty"
        bad = _bad_rows(random_, random_.randint(0, 6), gone)
        again = random_.sample(sorted(self.documents), min(random_.randint(0, 3), 1))
        rows: list[dict[str, Any] | str] = [
            {"id": name, **document._asdict()} for name, document in self.documents.items()
        ]
        random_.shuffle(rows)
        # Rows are dealt out to files in the order in which readers go through them, so a repeated
        # id comes after its first row if it comes later here.
        for row in bad:
            rows.insert(random_.randint(0, len(rows)), row)
        for name in again:
            first = next(n for n, row in enumerate(rows) if _has_id(row, name))
            copy = {"id": name, "text": "A later row.", "title": "Later", "lang": "en"}
            rows.insert(random_.randint(first + 1, len(rows)), copy)
        write_layout(self.folder, rows, random_)
        documents = {name: _stored(document) for name, document in self.documents.items()}
        return Night(self.num_nights, documents, len(bad) + len(again))

    def _change(self, random_: random.Random, busyness: float) -> None:
        num_changes = round(busyness * len(self.documents))
        for _ in range(num_changes):
            name = random_.choice(sorted(self.documents))
            document = self.documents[name]
            change = random_.choice(_CHANGES)
            if change == "add":
                self._add(random_)
            elif change == "restore" and self.deleted:
                again = random_.choice(sorted(self.deleted))
                self.documents[again] = self.deleted.pop(again)
            elif change == "delete" and len(self.documents) > self.num_documents // 2:
                self.deleted[name] = self.documents.pop(name)
            elif change == "text":
                self.documents[name] = replace_text(document, random_)
            elif change == "title":
                self.documents[name] = document._replace(title=_random_title(random_))
            elif change == "move":
                self.documents[name] = document._replace(lang=random_.choice(LANGUAGES))

    def _add(self, random_: random.Random) -> None:
        name = f"doc-{len(self.documents) + len(self.deleted):05d}"
        self.documents[name] = Document(
            random_text(random_), _random_title(random_), random_.choice(LANGUAGES)
        )


_CHANGES = ("add", "add", "restore", "delete", "delete", "text", "text", "title", "move")


def replace_text(document: Document, random_: random.Random) -> Document:
    """The document with another text."""
    return document._replace(text=random_text(random_))


def write_layout(
    folder: Path, rows: Sequence[dict[str, Any] | str], random_: random.Random
) -> None:
    """Replace the files of a corpus: these rows, in this order of files and rows.

    A row that is a string is a broken line; formats that have no lines leave it to those that do.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    num_files = random_.randint(1, 6)
    edges = sorted(random_.randint(0, len(rows)) for _ in range(num_files - 1))
    for number, (first, last) in enumerate(zip([0, *edges], [*edges, len(rows)], strict=True)):
        part = rows[first:last]
        broken = any(isinstance(row, str) for row in part)
        ending = random_.choice([".jsonl", ".jsonl.gz"] if broken else sorted(_WRITERS))
        # Some files lie deeper; the order of paths stays that of numbers.
        below = f"part-{number:02d}" + random_.choice(["", "/inner"])
        path = folder / f"{below}{ending}"
        path.parent.mkdir(exist_ok=True)
        _WRITERS[ending](path, part)


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any] | str]) -> None:
    path.write_text(_lines(rows), encoding="utf-8")


def _write_gzip(path: Path, rows: Sequence[dict[str, Any] | str]) -> None:
    path.write_bytes(gzip.compress(_lines(rows).encode(), mtime=0))


def _lines(rows: Sequence[dict[str, Any] | str]) -> str:
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
        for row in rows
    )


def _write_parquet(path: Path, rows: Sequence[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), _SOURCE_SCHEMA), path, row_group_size=40)


def _write_arrow(path: Path, rows: Sequence[Any]) -> None:
    table = pa.Table.from_pylist(list(rows), _SOURCE_SCHEMA)
    with pa.ipc.new_file(str(path), _SOURCE_SCHEMA) as file:
        file.write_table(table, max_chunksize=40)


def _write_csv(path: Path, rows: Sequence[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _SOURCE_SCHEMA.names)
        writer.writeheader()
        writer.writerows(rows)


_SOURCE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "title", "lang")])
_WRITERS: dict[str, Callable[[Path, Sequence[Any]], None]] = {
    ".jsonl": _write_jsonl,
    ".jsonl.gz": _write_gzip,
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".csv": _write_csv,
}


def _bad_rows(random_: random.Random, number: int, gone: str) -> list[dict[str, Any] | str]:
    kinds: list[dict[str, Any] | str] = [
        {"id": "bad-null", "text": None, "title": None, "lang": "en"},
        {"id": "bad-blank", "text": "  \t ", "title": "Blank", "lang": "en"},
        {"id": None, "text": "Nobody knows me.", "title": "No id", "lang": "de"},
        {"id": "bad-partition", "text": "A long way.", "title": "x", "lang": "x" * 300},
        {"id": gone, "text": "", "title": "Emptied", "lang": "fr"},
        "{broken",
        "[]",
    ]
    return [random_.choice(kinds) for _ in range(number)]


def _has_id(row: dict[str, Any] | str, name: str) -> bool:
    return isinstance(row, dict) and row["id"] == name


def _random_title(random_: random.Random) -> str | None:
    return random_.choice((None, f'Title "{random_.randint(0, 999)}", again', "Straße"))


def _stored(document: Document) -> Document:
    """The document as it is stored: its text composed; metadata stays as it is."""
    return document._replace(text=unicodedata.normalize("NFC", document.text))


def _rows(name: str, document: Document, level: str) -> list[Row]:
    document = _stored(document)
    parts = sentences(document.text)
    words = [word for part in parts for word, _, _ in part]
    distinct = sorted(set(words))
    vectors = WordModel(level).vectors(
        TokenWindow(
            words=distinct,
            word_ids=np.array([distinct.index(word) for word in words], np.int32),
            sentence_lengths=np.array([len(part) for part in parts], np.int64),
            sentences_per_document=np.array([len(parts)], np.int64),
        )
    )[:, 0]
    places: list[tuple[int, int, str | None, int, int]] = [(-1, -1, None, -1, -1)]
    if level == "sentence":
        places = [(n, -1, None, part[0][1], part[-1][2]) for n, part in enumerate(parts)]
    elif level == "token":
        of_document = ((number, token) for number, part in enumerate(parts) for token in part)
        places = [(number, n, *token) for n, (number, token) in enumerate(of_document)]
    return [
        Row(name, *place, *document, vector.tobytes())
        for place, vector in zip(places, vectors, strict=True)
    ]
