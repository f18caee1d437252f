"""Unpack the corpora of the long trainings into what `elmo pretrain` reads. Knows no model.

WikiText-2: an article is a document of JSON lines, split at spaces as it was published, with the
word `<eos>` at the end of each of its lines, empty ones too: these are the predictions that
published perplexities count. Novels: a file is a document. Chinese: a review is a document, and so
are a few sentences of the treebank.
"""

from __future__ import annotations

import json
import lzma
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation.classification import read_table
from pipeline.evaluation.documents import is_held_out
from pipeline.evaluation.part_of_speech import read_conllu

# ` = Title = `; sections have more signs.
_TITLE = re.compile(r" = [^=].*[^=] = $")
SPECIAL_WORDS = ("<S>", "</S>", "<UNK>")
END_OF_LINE = "<eos>"
REVIEWS = "zh-online-shopping/online_shopping_10_cats.csv.xz"
TREEBANK = "ud-zh-gsd/zh-ud-train.conllu.xz"
SENTENCES_OF_A_DOCUMENT = 10


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


def unpack_chinese(data: Path, target: Path) -> None:
    """Write train.jsonl and valid.jsonl of Chinese: reviews (simplified), a treebank (traditional).

    The reviews that `elmo evaluate` tests are not trained on; they are the validation part. Of the
    treebank only the training part is read.

    Args:
        data: folder that holds zh-online-shopping and ud-zh-gsd.
        target: is made if it is not there.
    """
    target.mkdir(parents=True, exist_ok=True)
    texts = [text for text, _ in read_table(data / REVIEWS, "review", "cat")]
    parts: dict[str, list[str]] = {"train": [], "valid": []}
    for text, held in zip(texts, is_held_out(texts).tolist(), strict=True):
        parts["valid" if held else "train"].append(text)
    sentences = ["".join(word for word, _ in tagged) for tagged in read_conllu(data / TREEBANK)]
    for first in range(0, len(sentences), SENTENCES_OF_A_DOCUMENT):
        parts["train"].append("\n".join(sentences[first : first + SENTENCES_OF_A_DOCUMENT]))
    for part, chosen in parts.items():
        # The file has the reviews by category, which neither a batch nor a sample should.
        random.Random(1).shuffle(chosen)
        with (target / f"{part}.jsonl").open("w", encoding="utf-8") as sink:
            for number, text in enumerate(chosen):
                row = {"id": f"{part}-{number:05d}", "text": text}
                sink.write(json.dumps(row, ensure_ascii=False) + "\n")
