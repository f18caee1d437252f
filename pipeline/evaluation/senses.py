"""Words with two senses, in sentences of our own: does a word's vector show which one is meant?

For each word: the vectors of its uses (average of layers, less their mean), a map of them in two
dimensions (t-SNE of scikit-learn), the share of uses whose nearest other use has the same sense,
and the nearest words in context of one use of each sense. Small, and an illustration: tables judge.

M uses, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TextConfig
from pipeline.evaluation.bilms import LayerVectors
from pipeline.evaluation.documents import Document, flat_tokens, tokenised
from pipeline.evaluation.systems import centered_unit

NUM_NEIGHBOURS = 5
SPACED = TextConfig(tokenizer="pretokenized")
_SEED = 2018
_PERPLEXITY = 5.0


@dataclass(frozen=True)
class SensedWord:
    """A word, and sentences (tokens between blanks) that use it in each of its senses."""

    word: str
    sentences: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Use:
    """One use of the word: where on the map, in which sense, in which sentence."""

    x: float
    y: float
    sense: str
    sentence: str


@dataclass(frozen=True)
class Neighbour:
    """Another word in another sentence that is near to a use: its cosine, itself, its sentence."""

    cosine: float
    word: str
    sentence: str


@dataclass(frozen=True)
class WordMap:
    """What was found for one word; `neighbours` has the first sentence of each sense."""

    word: str
    uses: list[Use]
    same_sense_share: float
    largest_sense_share: float
    neighbours: dict[str, list[Neighbour]]


def map_words(vectors: LayerVectors, words: Sequence[SensedWord] | None = None) -> list[WordMap]:
    """Map each word.

    Args:
        vectors: of the model that is looked at.
        words: which, `SENSED_WORDS` by default.
    """
    return [_map(vectors, sensed) for sensed in (SENSED_WORDS if words is None else words)]


def _map(vectors: LayerVectors, sensed: SensedWord) -> WordMap:
    pairs = [(sense, text) for sense, texts in sensed.sentences.items() for text in texts]
    documents = tokenised([text for _, text in pairs], SPACED)
    positions, uses = _positions(documents, sensed.word)
    everything = np.arange(sum(len(flat_tokens(document)) for document in documents))
    all_ND = vectors.of_tokens(documents, everything).mean(axis=1)
    kept = [pairs[number] for number in uses]
    unit_MD = centered_unit(all_ND[positions])
    return WordMap(
        sensed.word,
        [
            Use(float(x), float(y), sense, readable(text))
            for (x, y), (sense, text) in zip(_flattened(unit_MD), kept, strict=True)
        ],
        _same_sense_share(unit_MD, [sense for sense, _ in kept]),
        max(len(texts) for texts in sensed.sentences.values()) / len(pairs),
        _neighbours(all_ND, documents, positions, kept),
    )


def _positions(documents: Sequence[Document], word: str) -> tuple[NDArray[np.int64], list[int]]:
    """Place of the word among all tokens, for each document that has it, and those documents."""
    places, uses, start = [], [], 0
    for number, document in enumerate(documents):
        tokens = [token.lower() for token in flat_tokens(document)]
        if word in tokens:
            places.append(start + tokens.index(word))
            uses.append(number)
        start += len(tokens)
    return np.array(places, np.int64), uses


def _flattened(unit_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    tsne = TSNE(perplexity=_PERPLEXITY, init="pca", random_state=_SEED)
    flat_M2: NDArray[np.float32] = tsne.fit_transform(unit_MD)
    return flat_M2


def _same_sense_share(unit_MD: NDArray[np.float32], senses: Sequence[str]) -> float:
    cosines_MM = unit_MD @ unit_MD.T
    np.fill_diagonal(cosines_MM, -np.inf)
    nearest = cosines_MM.argmax(axis=1).tolist()
    return float(np.mean([senses[m] == senses[near] for m, near in enumerate(nearest)]))


def _neighbours(
    all_ND: NDArray[np.float32],
    documents: Sequence[Document],
    positions: NDArray[np.int64],
    kept: Sequence[tuple[str, str]],
) -> dict[str, list[Neighbour]]:
    """The other words of other sentences that are nearest to the first use of each sense."""
    flat = [token for document in documents for token in flat_tokens(document)]
    lengths = [len(flat_tokens(document)) for document in documents]
    sentence = np.repeat(np.arange(len(documents)), lengths)
    texts = [readable(" ".join(flat_tokens(document))) for document in documents]
    is_word = np.array([token.isalnum() for token in flat])
    unit_ND = centered_unit(all_ND)
    found: dict[str, list[Neighbour]] = {}
    for position, (sense, _) in zip(positions.tolist(), kept, strict=True):
        if sense in found:
            continue
        cosines_N = unit_ND @ unit_ND[position]
        same_word = np.array([token == flat[position] for token in flat])
        cosines_N[(sentence == sentence[position]) | same_word | ~is_word] = -np.inf
        order = np.argsort(-cosines_N, kind="stable")[:NUM_NEIGHBOURS].tolist()
        found[sense] = [Neighbour(float(cosines_N[n]), flat[n], texts[sentence[n]]) for n in order]
    return found


def readable(sentence: str) -> str:
    """A tokenised sentence as it is written: Chinese without blanks, none before a full stop."""
    joined = sentence.replace(" ", "") if not sentence.isascii() else sentence
    return joined.replace(" .", ".").replace(" ,", ",")


SENSED_WORDS = (
    SensedWord(
        "bank",
        {
            "money": (
                "She opened an account at the bank on Monday .",
                "The bank lent him the money for a house .",
                "He works as a clerk in a large bank .",
                "The bank closed before I could cash the cheque .",
                "They robbed the bank and fled with the gold .",
                "Our bank charges a fee for every payment .",
                "The bank refused to lower the rate of interest .",
                "Her savings were kept in a bank in London .",
            ),
            "river": (
                "We sat on the bank of the river and fished .",
                "The boat was tied to the bank by a rope .",
                "Willows grew along the bank of the stream .",
                "The water rose over the bank and flooded the field .",
                "He swam across and climbed up the muddy bank .",
                "Wild flowers covered the grassy bank above the water .",
                "They walked along the left bank until the bridge .",
                "The river had washed away part of its bank .",
            ),
        },
    ),
    SensedWord(
        "spring",
        {
            "season": (
                "The garden is full of flowers in spring .",
                "They were married in the spring of that year .",
                "After a long winter came a warm spring .",
                "Birds return from the south every spring .",
                "Farmers sow their corn in early spring .",
                "Last spring it rained for three weeks .",
                "The snow melts when spring comes at last .",
            ),
            "water": (
                "They drank cold water from a spring in the rock .",
                "The stream rises from a spring under the hill .",
                "A spring of clear water flowed through the wood .",
                "The horses stopped to drink at the spring .",
                "She filled the jug at the spring near the village .",
                "The well is fed by a hidden spring .",
                "Warm water rose out of the spring between the stones .",
            ),
        },
    ),
    SensedWord(
        "letter",
        {
            "post": (
                "He wrote a long letter to his mother .",
                "The letter arrived by the morning post .",
                "She tore the letter open and read it twice .",
                "I received your letter of the third of May .",
                "He sealed the letter and gave it to a servant .",
                "There was no answer to my last letter .",
                "A letter from her brother lay on the table .",
            ),
            "alphabet": (
                "The first letter of the alphabet is a vowel .",
                "Every sentence begins with a capital letter .",
                "The word is spelled with a double letter .",
                "Each letter was carved into the stone .",
                "The child could not yet read a single letter .",
                "A letter is missing in the middle of this word .",
                "The printer had set one letter upside down .",
            ),
        },
    ),
    SensedWord(
        "花",
        {
            "flower": (
                "公园 里 的 花 开 了 。",
                "她 送 给 妈妈 一 束 花 。",
                "春天 有 很多 红色 的 花 。",
                "这 朵 花 很 香 。",
                "院子 里 种 着 花 和 树 。",
                "桌上 放 着 一 瓶 花 。",
            ),
            "to spend": (
                "他 一 天 就 花 了 很多 钱 。",
                "我 花 了 三 个 小时 写 作业 。",
                "不要 随便 花 钱 。",
                "她 花 了 一 年 的 时间 学习 。",
                "他们 花 了 十万 元 买 车 。",
                "做 这 件 事 要 花 很多 时间 。",
            ),
        },
    ),
)
