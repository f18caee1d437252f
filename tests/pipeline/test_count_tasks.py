"""What a reading task hands on while it counts."""

import json
from collections import Counter

import pytest

from pipeline.count_tasks import ReadTally, count_group
from pipeline.sources.discover import discover
from tests.pipeline.news_corpus import news_texts, plain_counts, vocabulary_config, write_texts

NUM_BUCKETS = 3


@pytest.fixture(scope="module")
def news(shared):
    return news_texts(shared, 300)


def rounds_of(config):
    """What the task of a whole corpus yields: the counts of each round, and its tally."""
    splits = discover(config.source).splits
    rounds, tables = [], []
    for item in count_group(config, splits, NUM_BUCKETS):
        if isinstance(item, ReadTally):
            rounds.append((tables, item))
            tables = []
        else:
            tables.append(item)
    assert tables == [], "the last object is a tally"
    assert all(len(tables) == NUM_BUCKETS for tables, _ in rounds)
    return rounds


def total(rounds):
    counts, tally = Counter(), ReadTally()
    for tables, part in rounds:
        tally.add(part)
        for table in tables:
            for word, count in zip(*table.to_pydict().values(), strict=True):
                counts[word] += count
    return counts, tally


def test_counts_are_handed_on_before_they_take_more_memory_than_allowed(news, tmp_path):
    source = write_texts(tmp_path / "corpus", news, num_files=30)
    config = vocabulary_config(source, tmp_path / "v.txt", run__max_held_bytes=40_000)
    rounds = rounds_of(config)
    assert len(rounds) > 5
    # A batch is a file of 10 texts here; its counts come on top of what is held.
    largest_batch = max(
        sum(len(word) + 12 for word in plain_counts(news[number::30])) for number in range(30)
    )
    for tables, _ in rounds:
        assert sum(table.nbytes for table in tables) < 40_000 + largest_batch + 1_000
    counts, tally = total(rounds)
    assert counts == plain_counts(news)
    assert (tally.documents, tally.tokens) == (300, counts.total())


def test_what_fits_is_handed_on_once_and_at_the_end(news, tmp_path):
    source = write_texts(tmp_path / "corpus", news, num_files=30)
    rounds = rounds_of(vocabulary_config(source, tmp_path / "v.txt"))
    assert len(rounds) == 1
    assert total(rounds)[0] == plain_counts(news)


def test_rows_that_cannot_be_read_are_counted_with_the_first_of_each_kind(tmp_path):
    lines = [json.dumps({"id": f"d{n}", "text": "Some words."}) for n in range(5)]
    bad = ["{", '{"id": "x", "text": ""}', '{"id": "y", "text": ""}', '{"id": "z", "text": 7}']
    (tmp_path / "c.jsonl").write_text("\n".join([*lines, *bad]) + "\n")
    rounds = rounds_of(vocabulary_config(tmp_path / "c.jsonl", tmp_path / "v.txt"))
    counts, tally = total(rounds)
    assert counts == {"Some": 5, "words": 5, ".": 5}
    assert tally.rejected.by_code == {"bad_json": 1, "empty_text": 2, "wrong_type": 1}
    assert tally.rejected.total == 4
    assert [row.id for row in tally.rejected.shown if row.code == "empty_text"] == ["x", "y"]
    assert {row.code for row in tally.rejected.shown} == tally.rejected.by_code.keys()


def test_tokens_beyond_the_limit_of_a_document_are_not_counted_but_said(tmp_path):
    source = write_texts(tmp_path / "corpus", ["a b c d e", "a b"])
    config = vocabulary_config(source, tmp_path / "v.txt", text__max_document_tokens=3)
    counts, tally = total(rounds_of(config))
    assert counts == {"a": 2, "b": 2, "c": 1}
    assert (tally.tokens, tally.cut_tokens) == (5, 2)


def test_splits_without_documents_have_empty_counts(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n")
    rounds = rounds_of(vocabulary_config(tmp_path / "c.jsonl", tmp_path / "v.txt"))
    assert total(rounds) == (Counter(), ReadTally())
