"""Reading a corpus for pretraining."""

import json

import pytest

from pipeline.config import build
from pipeline.errors import SourceError
from pipeline.pretrain_config import PretrainConfig
from pipeline.pretrain_text import count_words, read_text
from pipeline.sources.discover import discover
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus


def read(source, tmp_path, **training):
    config = build(PretrainConfig, toy_config(source, tmp_path / "model", **training), "test")
    return read_text(config, discover(config.source))


def write(path, texts, first_id=0):
    rows = [{"id": f"d{first_id + k}", "text": text} for k, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences_of(corpus):
    """The sentences of a corpus as vocabulary words."""
    words = corpus.table.vocabulary.words
    return sorted(
        " ".join(words[target] for target in corpus.table.targets_of(sequence).tolist())
        for sequence in corpus.sequences()
    )


@pytest.fixture
def toy(tmp_path):
    return write_toy_corpus(tmp_path / "corpus.jsonl")


def test_sentences_and_words_come_through_as_they_were_tokenised(tmp_path):
    source = write(tmp_path / "c.jsonl", ["One cat. Two dogs here.", "Three cats!", "No birds?"])
    text = read(source, tmp_path, held_out_share=0.0001, min_count=1)
    both = sentences_of(text.train) + sentences_of(text.held_out)
    assert len(both) == 4
    assert "<S> One cat . </S>" in both or "<S> Three cats ! </S>" in both
    assert text.num_train_documents == 2
    assert text.num_held_out_documents == 1
    assert text.train.num_tokens + text.held_out.num_tokens == 13


def test_about_the_configured_share_is_held_out_and_nothing_is_lost(toy, tmp_path):
    text = read(toy, tmp_path, held_out_share=0.2)
    assert text.num_train_documents + text.num_held_out_documents == 300
    # Three standard deviations of a binomial draw of 300 with 0.2 are 21.
    assert 39 <= text.num_held_out_documents <= 81
    assert text.train.num_sentences + text.held_out.num_sentences == 300 * 5


def test_the_choice_depends_on_the_text_alone(toy, tmp_path):
    lines = toy.read_text().splitlines()
    renamed = tmp_path / "renamed.jsonl"
    rows = [json.loads(line) | {"id": f"x{k}"} for k, line in enumerate(reversed(lines))]
    renamed.write_text("".join(json.dumps(row) + "\n" for row in rows[:200]))
    whole, part = read(toy, tmp_path), read(renamed, tmp_path)
    assert set(sentences_of(part.held_out)) <= set(sentences_of(whole.held_out)) | {
        "<S> This is story <UNK> . </S>"
    }
    assert 0 < part.num_held_out_documents < whole.num_held_out_documents


def test_copies_of_a_text_are_on_one_side(tmp_path):
    texts = [f"Document number {k} tells its story." for k in range(50)] * 3
    source = write(tmp_path / "c.jsonl", texts)
    text = read(source, tmp_path, held_out_share=0.3, min_count=1)
    assert text.num_held_out_documents % 3 == 0
    assert not set(sentences_of(text.held_out)) & set(sentences_of(text.train)) - {
        "<S> Document number <UNK> tells its story . </S>"
    }


def test_one_document_is_held_out_even_if_the_share_is_tiny(toy, tmp_path):
    assert read(toy, tmp_path, held_out_share=1e-9).num_held_out_documents == 1


def test_the_vocabulary_is_counted_without_the_held_out_text(toy, tmp_path):
    text = read(toy, tmp_path, min_count=1)
    numbers = {word for word in text.vocabulary.words if word.isdigit()}
    assert len(numbers) == text.num_train_documents
    assert text.covered_share == 1
    rare = read(toy, tmp_path, min_count=2)
    assert not [word for word in rare.vocabulary.words if word.isdigit()]
    assert 0.9 < rare.covered_share < 1
    assert len(read(toy, tmp_path, vocabulary_size=10).vocabulary) == 10


def test_reading_stops_at_the_configured_number_of_tokens(tmp_path, caplog):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(4):
        write(folder / f"{number}.jsonl", [f"Story {number} a.", f"Story {number} b."], number * 2)
    text = read(folder, tmp_path, max_tokens=9, min_count=1, held_out_share=0.0001)
    assert text.num_train_documents + text.num_held_out_documents == 4
    assert "training.max_tokens" in caplog.text


def test_a_corpus_of_one_text_cannot_be_trained_on(tmp_path):
    source = write(tmp_path / "c.jsonl", ["The same text.", "The same text."])
    with pytest.raises(SourceError, match="at least two different documents"):
        read(source, tmp_path)


def test_rejected_rows_are_counted(tmp_path):
    source = write(tmp_path / "c.jsonl", ["One text.", "", "Two texts.", "Three texts."])
    text = read(source, tmp_path)
    assert text.num_rejected == 1
    assert text.num_train_documents + text.num_held_out_documents == 3


def test_no_text_has_no_words():
    assert not count_words([])
