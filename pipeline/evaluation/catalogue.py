"""Which tasks there are: public sets by the names of their files, and kinds for one's own files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import TextConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import classification, retrieval, similarity, word_vectors
from pipeline.evaluation.classification import Classification
from pipeline.evaluation.documents import CHINESE, WORDS, thinned
from pipeline.evaluation.part_of_speech import PartOfSpeech
from pipeline.evaluation.read_text import find_file, read_lines
from pipeline.evaluation.retrieval import Retrieval
from pipeline.evaluation.similarity import Similarity
from pipeline.evaluation.task import Task
from pipeline.evaluation.words_in_context import WordsInContext

Paths = Sequence[Path]
Make = Callable[[Paths, int | None], Task]


@dataclass(frozen=True)
class Listed:
    """A task that can be made: its name, and the files (relative to the data) that it reads."""

    name: str
    files: tuple[str, ...]
    make: Make


def standard() -> tuple[Listed, ...]:
    """The public sets, under the file names that docs/EVALUATION.md lists."""
    return (
        Listed("scifact", ("scifact/corpus_train.csv", "scifact/claims_train.csv"), _scifact),
        Listed(
            "cranfield",
            ("cranfield/cran.all.1400", "cranfield/cran.qry", "cranfield/cranqrel"),
            _cranfield,
        ),
        Listed("cmrc", ("zh-cmrc2018/cmrc2018_trial.json",), _cmrc),
        Listed("sts-b", ("stsb/sts-dev.tsv", "stsb/sts-train.tsv"), _sts),
        Listed("wic", _WIC_FILES, _wic),
        Listed("ws-353", ("wordsim/wordsim-give.tar",), _wordsim("EN-WS-353-ALL.txt")),
        Listed("simlex-999", ("wordsim/wordsim-give.tar",), _wordsim("EN-SIMLEX-999.txt")),
        Listed("analogies", ("analogy/questions-words.txt",), _analogies),
        Listed("sst-2", ("sst/stsa.binary.train", "sst/stsa.binary.dev"), _label_first),
        Listed("sst-5", ("sst/stsa.fine.train", "sst/stsa.fine.dev"), _label_first),
        Listed("trec", ("trec-qc/TREC.train.all",), _trec),
        Listed("bbc", ("bbc-news/bbc.jsonl",), _bbc),
        Listed("reviews-chinese", (REVIEWS,), _reviews("label")),
        Listed("topics-chinese", (REVIEWS,), _reviews("cat")),
        Listed(
            "ud-english",
            ("ud-en-ewt/en_ewt-ud-train.slim.conllu", "ud-en-ewt/en_ewt-ud-dev.conllu"),
            _tagged,
        ),
        Listed(
            "ud-chinese",
            ("ud-zh-gsd/zh-ud-train.conllu", "ud-zh-gsd/zh-ud-dev.conllu"),
            _tagged,
        ),
    )


def found_in(data: Path, names: Sequence[str] | None, max_items: int | None) -> dict[str, Task]:
    """Read the tasks whose files are in `data`, in the order of the catalogue.

    Args:
        data: the folder of public sets.
        names: only these; None takes all that are there.
        max_items: so many test items (and as many to learn from) at most; None takes all.

    Raises:
        ConfigError: an unknown name, a named task whose files are missing, or none at all.
        SourceError: a file is not what its task reads.
    """
    known = {listed.name: listed for listed in standard()}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--tasks {name}: unknown; known: {', '.join(known)}")
    tasks: dict[str, Task] = {}
    for listed in known.values():
        if names is not None and listed.name not in names:
            continue
        paths = [find_file(data, name) for name in listed.files]
        missing = [name for name, path in zip(listed.files, paths, strict=True) if path is None]
        if missing and names is not None:
            raise ConfigError(f"--tasks {listed.name}: {data} has no {', '.join(missing)}")
        if not missing:
            there = [path for path in paths if path is not None]
            tasks[listed.name] = listed.make(there, max_items)
    if not tasks:
        raise ConfigError(
            f"--data {data}: has none of the public sets; docs/EVALUATION.md lists their files"
        )
    return tasks


KINDS = (
    "retrieval",
    "similarity",
    "words-in-context",
    "word-similarity",
    "analogies",
    "classification",
    "part-of-speech",
)


@dataclass(frozen=True)
class Columns:
    """What the columns of one's own tables are called; None is the name that the kind expects."""

    texts: tuple[str, ...] | None = None
    label: str | None = None

    def named(self, texts: tuple[str, ...], label: str) -> tuple[str, ...]:
        """Of the texts, and of the label or score, with the kind's own names as the defaults.

        Raises:
            ConfigError: another number of texts than the kind has.
        """
        chosen = self.texts or texts
        if len(chosen) != len(texts):
            raise ConfigError(
                f"--text {' '.join(chosen)}: {len(texts)} columns expected, as {' '.join(texts)}"
            )
        return (*chosen, self.label or label)


def own(kind: str, paths: Paths, text: TextConfig, max_items: int | None, columns: Columns) -> Task:
    """A task of the user's own files; what each kind reads stands in docs/EVALUATION.md.

    Raises:
        ConfigError: an unknown kind, another number of paths than it takes, or of columns.
        SourceError: a file is not what the kind reads.
    """
    if kind == "retrieval" and len(paths) == 1:
        return Retrieval.of(retrieval.read_beir(paths[0]), text, max_items)
    if kind == "similarity" and len(paths) in (1, 2):
        first, second, score = columns.named(similarity.SENTENCES, similarity.SCORE)
        train_path = paths[0] if len(paths) == 2 else None
        return Similarity.read(paths[-1], train_path, text, max_items, (first, second, score))
    if kind == "words-in-context" and len(paths) == 4:
        return WordsInContext.read((paths[0], paths[1]), (paths[2], paths[3]), max_items)
    if kind == "word-similarity" and len(paths) == 1:
        return word_vectors.WordSimilarity.read(str(paths[0]), read_lines(paths[0]), max_items)
    if kind == "analogies" and len(paths) == 1:
        return word_vectors.Analogies.read(paths[0], max_items)
    if kind == "classification" and len(paths) in (1, 2):
        names = columns.named((classification.TEXT,), classification.LABEL)
        parts = [classification.read_table(path, *names) for path in paths]
        if len(parts) == 1:
            parts = list(classification.held_out_split(parts[0]))
        train, test = (thinned(part, max_items) for part in parts)
        return Classification.of(train, test, text)
    if kind == "part-of-speech" and len(paths) == 2:
        return PartOfSpeech.read(paths[0], paths[1], max_items)
    raise ConfigError(
        f"--own {kind} with {len(paths)} paths: expected retrieval=DIR, similarity=[TRAIN,]TEST, "
        "words-in-context=TRAIN,GOLD,TEST,GOLD, word-similarity=FILE, analogies=FILE, "
        "classification=FILE or TRAIN,TEST, part-of-speech=TRAIN,TEST"
    )


_WIC_FILES = (
    "wic/train.data.txt",
    "wic/train.gold.txt",
    "wic/dev.data.txt",
    "wic/dev.gold.txt",
)
REVIEWS = "zh-online-shopping/online_shopping_10_cats.csv"
# A probe has learned what it can from so many, and all of them would cost minutes a line.
MAX_REVIEWS = 10_000
_REVIEWS_NOTE = (
    f"Equal reviews are one, a fifth is held out; at most {MAX_REVIEWS:,} are learned from and "
    f"{MAX_REVIEWS:,} tested."
)
_DEV = "The part to test is the public development set."


def _scifact(paths: Paths, max_items: int | None) -> Task:
    return Retrieval.of(retrieval.read_scifact(*paths), WORDS, max_items)


def _cranfield(paths: Paths, max_items: int | None) -> Task:
    return Retrieval.of(retrieval.read_cranfield(*paths), WORDS, max_items)


def _cmrc(paths: Paths, max_items: int | None) -> Task:
    return Retrieval.of(retrieval.read_cmrc(*paths), CHINESE, max_items)


def _sts(paths: Paths, max_items: int | None) -> Task:
    return Similarity.read(paths[0], paths[1], WORDS, max_items)


def _wic(paths: Paths, max_items: int | None) -> Task:
    return WordsInContext.read((paths[0], paths[1]), (paths[2], paths[3]), max_items)


def _wordsim(member: str) -> Make:
    def make(paths: Paths, max_items: int | None) -> Task:
        lines = word_vectors.read_member(paths[0], member)
        return word_vectors.WordSimilarity.read(f"{paths[0]}: {member}", lines, max_items)

    return make


def _analogies(paths: Paths, max_items: int | None) -> Task:
    return word_vectors.Analogies.read(paths[0], max_items)


def _label_first(paths: Paths, max_items: int | None) -> Task:
    train, test = (thinned(classification.read_label_first(path), max_items) for path in paths)
    return Classification.of(train, test, None, [_DEV])


def _trec(paths: Paths, max_items: int | None) -> Task:
    labelled = dict(classification.read_label_first(paths[0], "latin-1"))
    train, test = classification.held_out_split(list(labelled.items()))
    note = "A fifth of the distinct training questions is held out: the set's own test part is not."
    return Classification.of(thinned(train, max_items), thinned(test, max_items), None, [note])


def _bbc(paths: Paths, max_items: int | None) -> Task:
    train, test = classification.held_out_split(classification.read_table(paths[0]))
    note = "Equal articles are one; a fifth is held out."
    return Classification.of(thinned(train, max_items), thinned(test, max_items), WORDS, [note])


def _reviews(label: str) -> Make:
    def make(paths: Paths, max_items: int | None) -> Task:
        rows = classification.read_table(paths[0], "review", label)
        train, test = classification.held_out_split(rows)
        train = thinned(train, min(max_items or MAX_REVIEWS, MAX_REVIEWS))
        test = thinned(test, min(max_items or MAX_REVIEWS, MAX_REVIEWS))
        return Classification.of(train, test, CHINESE, [_REVIEWS_NOTE])

    return make


def _tagged(paths: Paths, max_items: int | None) -> Task:
    return PartOfSpeech.read(paths[0], paths[1], max_items)
