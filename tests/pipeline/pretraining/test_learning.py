"""A model learns: a little text by heart, and of much text more than pairs of words tell."""

import random

import pyarrow as pa
import pytest

from pipeline.config import TextConfig, build
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.run import prepare, train_here
from pipeline.text import normalise, tokenise
from tests.pipeline.news_corpus import news_texts, write_texts
from tests.pipeline.pretraining.bigrams import KneserNeyBigrams

pytestmark = pytest.mark.shared

NUM_SENTENCES = 50
# Of the sentences of news, these are told apart by their beginnings.
MIN_TOKENS = 20


@pytest.fixture(scope="module")
def texts(shared):
    """Distinct texts of the news in a fixed order without topics."""
    found = list(dict.fromkeys(news_texts(shared)))
    random.Random(0).shuffle(found)
    return found


def trained(train, held_out, directory, architecture, max_size, **training):
    """The last measurement of a training on texts, and its vocabulary."""
    values = {
        "source": {"path": str(write_texts(directory / "train", train)), "id_column": "id"},
        "held_out": {"path": str(write_texts(directory / "held-out", held_out)), "id_column": "id"},
        "vocabulary": {"max_size": max_size, "min_count": 1},
        "architecture": {"num_layers": 2, **architecture},
        "training": {
            "max_seconds": None,
            "unroll_steps": 20,
            "num_negative_samples": None,
            "num_evaluations": 1,
            "max_held_out_tokens": 100_000,
            **training,
        },
        "run": {"num_threads": 1},
        "output": {"directory": str(directory / "model")},
    }
    prepared = prepare(build(PretrainConfig, values, "test"))
    end = train_here(prepared.task, lambda *progress: None)
    return end.curve[-1], prepared.task.words


def sentences_of(texts):
    """The sentences of texts as training reads them."""
    documents = pa.table({"text": normalise(pa.array(texts), TextConfig().unicode_form)})
    for row in tokenise(documents, TextConfig()).to_pylist():
        start = 0
        for length in row["sentence_lengths"]:
            yield row["tokens"][start : start + length]
            start += length


def test_fifty_sentences_are_learnt_by_heart_in_both_directions(texts, tmp_path):
    sentences = (" ".join(words) for words in sentences_of(texts) if len(words) >= MIN_TOKENS)
    by_heart = [next(sentences) for _ in range(NUM_SENTENCES)]
    last, _ = trained(
        by_heart,
        by_heart,
        tmp_path,
        {"projection_dim": 64, "dim": 128},
        max_size=5_000,
        max_steps=450,
        batch_size=8,
        learning_rate=0.01,
    )
    assert last.forward < 1.5
    assert last.backward < 1.5


def test_held_out_text_is_predicted_better_than_by_bigrams(texts, tmp_path):
    train, held_out = texts[:400], texts[400:460]
    last, words = trained(
        train,
        held_out,
        tmp_path,
        {"token_input": "words", "projection_dim": 64, "dim": 128, "dropout": 0.1},
        max_size=1_000,
        max_steps=600,
        batch_size=32,
        learning_rate=0.006,
    )
    known = set(words)

    def mapped(texts):
        return [
            [word if word in known else "<UNK>" for word in words] for words in sentences_of(texts)
        ]

    # All but <S> can be predicted. These discounts are the best ones for the held-out text.
    bigrams = KneserNeyBigrams(mapped(train), len(words) - 1, discount=0.7, floor=0.001)
    expected = bigrams.perplexity(mapped(held_out))
    assert last.forward < expected
    assert last.backward < expected
