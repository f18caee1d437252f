"""Unpack the corpora of the long trainings into what `elmo pretrain` reads. Knows no model.

WikiText-2: an article is a document of JSON lines, split at spaces as it was published, with the
word `<eos>` at the end of each of its lines, empty ones too: these are the predictions that
published perplexities count. Novels: a file is a document.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# ` = Title = `; sections have more signs.
_TITLE = re.compile(r" = [^=].*[^=] = $")
SPECIAL_WORDS = ("<S>", "</S>", "<UNK>")
END_OF_LINE = "<eos>"


def unpack_wikitext(data: Path, target: Path) -> None:
    """Write train.jsonl, valid.jsonl and vocabulary.txt of WikiText-2.

    The vocabulary is closed: all words of the training part by falling counts, 33,278 with `<unk>`
    and `<eos>`.

    Args:
        data: folder of train.txt.xz and valid.txt.xz.
        target: is made if it is not there.
    """
    target.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    for part in ("train", "valid"):
        with (
            lzma.open(data / f"{part}.txt.xz", "rt", encoding="utf-8", newline="\n") as source,
            (target / f"{part}.jsonl").open("w", encoding="utf-8") as sink,
        ):
            for number, words in enumerate(_articles(source)):
                if part == "train":
                    counts.update(words)
                row = {"id": f"{part}-{number:05d}", "text": " ".join(words)}
                sink.write(json.dumps(row, ensure_ascii=False) + "\n")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    text = "".join(f"{word}\n" for word in (*SPECIAL_WORDS, *words))
    (target / "vocabulary.txt").write_text(text, encoding="utf-8")


def _articles(lines: Iterator[str]) -> Iterator[list[str]]:
    words: list[str] = []
    for line in lines:
        if _TITLE.match(line.rstrip("\n")) and words:
            yield words
            words = []
        words += [*line.split(), END_OF_LINE]
    if words:
        yield words


def unpack_novels(data: Path, target: Path) -> None:
    """Write the folders train/ and valid/, a file a novel.

    Args:
        data: folder of train.tar.xz and valid.tar.xz.
        target: is made if it is not there.
    """
    for part in ("train", "valid"):
        (target / part).mkdir(parents=True, exist_ok=True)
        with tarfile.open(data / f"{part}.tar.xz") as archive:
            archive.extractall(target / part, filter="data")
