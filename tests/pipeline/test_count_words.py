"""Counting the words of a corpus on a cluster."""

import gzip
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from elmo_model.vocabulary import MARKS, Vocabulary
from pipeline import count_words as module
from pipeline.count_words import count_words, plan_counting
from pipeline.errors import (
    ClusterError,
    ConfigError,
    EmptySourceError,
    SourceError,
    TooManyRejectsError,
)
from pipeline.sources.discover import discover
from tests.pipeline.news_corpus import news_texts, plain_counts, vocabulary_config, write_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def news(shared):
    return news_texts(shared)


@pytest.fixture(scope="module")
def news_counts(news):
    return plain_counts(news)


def counted_in(source, tmp_path, **settings):
    config = vocabulary_config(source, tmp_path / "v.txt", **settings)
    return count_words(config, discover(config.source))


def words_of(counted):
    return (*MARKS, *counted.kept["word"].to_pylist())


def test_news_have_the_vocabulary_of_a_plain_counter(news, news_counts, tmp_path):
    source = write_texts(tmp_path / "corpus", news)
    counted = counted_in(source, tmp_path)
    vocabulary = Vocabulary.from_counts(news_counts, min_count=3)
    assert words_of(counted) == vocabulary.words
    assert counted.kept["count"].to_pylist() == [news_counts[w] for w in vocabulary.words[3:]]
    assert (counted.read.documents, counted.read.tokens) == (len(news), news_counts.total())
    assert counted.words.num_distinct == len(news_counts)
    assert counted.words.max_count == max(news_counts.values())
    covered = sum(count for word, count in news_counts.items() if word in vocabulary)
    assert counted.num_covered_tokens == covered
    assert counted.covered_share == covered / news_counts.total()


@pytest.mark.parametrize(
    ("num_files", "settings"),
    [
        (1, {"source__split_bytes": 100_000}),
        (3, {"run__num_buckets": 7}),
        (40, {"run__num_buckets": 3, "run__max_held_bytes": 50_000}),
        (97, {}),
        (2, {"run__num_buckets": 40, "run__max_held_bytes": 1, "source__split_bytes": 400_000}),
    ],
)
def test_the_vocabulary_does_not_depend_on_how_the_work_was_divided(
    news, news_counts, tmp_path, num_files, settings
):
    texts = news.copy()
    random.Random(num_files).shuffle(texts)
    source = write_texts(tmp_path / "corpus", texts, num_files)
    counted = counted_in(source, tmp_path, vocabulary__max_size=5_000, **settings)
    assert words_of(counted) == Vocabulary.from_counts(news_counts, 3, 5_000).words
    assert counted.read.tokens == news_counts.total()
    assert counted.words.num_distinct == len(news_counts)


@pytest.mark.parametrize(("min_count", "max_size"), [(1, None), (2, None), (1, 4), (50, 300)])
def test_both_limits_hold_and_ties_go_by_code_point(news, tmp_path, min_count, max_size):
    source = write_texts(tmp_path / "corpus", news[:200], num_files=5)
    limits = {"vocabulary__min_count": min_count, "vocabulary__max_size": max_size}
    counted = counted_in(source, tmp_path, run__num_buckets=6, **limits)
    expected = Vocabulary.from_counts(plain_counts(news[:200]), min_count, max_size)
    assert words_of(counted) == expected.words
    assert counted.words.num_kept >= len(expected) - len(MARKS)


def test_words_that_no_file_can_hold_and_marks_are_left_out_and_counted(tmp_path):
    texts = ["<S> a !!!MAXTERMID a", "b\u00a0c \u00a0 !!!MAXTERMID <UNK> a"]
    source = write_texts(tmp_path / "corpus", texts)
    counted = counted_in(source, tmp_path, vocabulary__min_count=1, text__tokenizer="pretokenized")
    assert words_of(counted) == (*MARKS, "a", "b\u00a0c", "\u00a0")
    assert (counted.words.num_faulty, counted.words.num_faulty_tokens) == (1, 2)
    # A mark in the text is predicted as itself, so it is covered.
    assert (counted.num_covered_tokens, counted.read.tokens) == (7, 9)


def test_progress_ends_with_the_whole_corpus(news, tmp_path):
    source = write_texts(tmp_path / "corpus", news[:100], num_files=9)
    config = vocabulary_config(source, tmp_path / "v.txt")
    told = []
    count_words(config, discover(config.source), lambda *progress: told.append(progress))
    assert told == sorted(told, key=lambda progress: progress[:2])
    assert told[-1] == (100, plain_counts(news[:100]).total(), "9 of 9 tasks")


def test_the_plan_divides_a_large_corpus_into_more_tasks_and_buckets_without_reading(
    news, tmp_path, monkeypatch
):
    source = write_texts(tmp_path / "corpus", news[:100], num_files=50)
    config = vocabulary_config(source, tmp_path / "v.txt")
    discovery = discover(config.source)
    small = plan_counting(config, discovery)
    assert 40 < len(small.groups) <= 50
    assert small.num_buckets == 1
    monkeypatch.setattr(module, "MIN_TASKS", 4)
    monkeypatch.setattr(module, "BUCKET_BYTES", discovery.size_bytes // 10)
    large = plan_counting(config, discovery)
    assert (len(large.groups), large.num_buckets) == (4, 11)
    assert [split for group in large.groups for split in group] == list(discovery.splits)
    monkeypatch.setattr(module, "BUCKET_BYTES", 1)
    assert plan_counting(config, discovery).num_buckets == module.MAX_BUCKETS
    fixed = vocabulary_config(source, tmp_path / "v.txt", run__num_buckets=5)
    assert plan_counting(fixed, discovery).num_buckets == 5


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


GOOD = json.dumps({"id": "a", "text": "One document."})
EMPTY = json.dumps({"id": "b", "text": ""})


def test_a_corpus_without_documents_is_an_error(tmp_path):
    source = write_lines(tmp_path / "c.jsonl", "")
    with pytest.raises(EmptySourceError, match=r"c\.jsonl: expected at least one document"):
        counted_in(source, tmp_path)


def test_too_many_rejected_rows_are_an_error_and_fewer_are_counted(tmp_path, caplog):
    source = write_lines(tmp_path / "c.jsonl", GOOD, EMPTY, EMPTY, "{")
    with pytest.raises(TooManyRejectsError, match=r"3 of 4 rows .*2 empty_text, 1 bad_json"):
        counted_in(source, tmp_path)
    assert "2 empty_text, 1 bad_json" in caplog.text
    assert "rejected as empty_text: " in caplog.text
    counted = counted_in(source, tmp_path, run__max_rejected_share=0.8, vocabulary__min_count=1)
    assert counted.read.rejected.by_code == {"bad_json": 1, "empty_text": 2}
    assert counted.read.documents == 1
    with pytest.raises(TooManyRejectsError, match=r"run\.max_rejected = 2"):
        counted_in(source, tmp_path, run__max_rejected_share=1, run__max_rejected=2)


def test_a_file_that_cannot_be_opened_counts_as_a_rejected_row(news, tmp_path):
    source = write_texts(tmp_path / "corpus", news[:20])
    (source / "bad.parquet").write_bytes(b"no such thing")
    counted = counted_in(
        source, tmp_path, source__on_bad_file="reject", run__max_rejected_share=0.5
    )
    assert counted.read.rejected.by_code == {"corrupt_file": 1}
    assert counted.read.documents == 20


def test_no_word_that_is_frequent_enough_is_an_error_that_says_how_frequent_they_are(tmp_path):
    source = write_texts(tmp_path / "corpus", ["word word other"])
    with pytest.raises(ConfigError, match=r"least 3 times, found none among the 2 .* 2 times"):
        counted_in(source, tmp_path)


def test_a_vocabulary_without_limit_that_no_reader_would_take_is_refused(
    news, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "MAX_VOCABULARY_BYTES", 1_000)
    source = write_texts(tmp_path / "corpus", news[:100])
    with pytest.raises(ConfigError, match=r"vocabulary\.max_size: the file of all .* set it"):
        counted_in(source, tmp_path, vocabulary__max_size=None)


@pytest.mark.parametrize("max_held_bytes", [1, 64 << 20])
def test_a_file_that_breaks_off_is_named_however_far_its_reading_came(
    news, tmp_path, max_held_bytes
):
    source = write_texts(tmp_path / "corpus", news[:60], num_files=3)
    rows = [json.dumps({"id": f"x{n}", "text": news[n % 2000]}) for n in range(20_000)]
    packed = gzip.compress("\n".join(rows).encode(), compresslevel=1)
    (source / "broken.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(SourceError, match=r"broken\.jsonl\.gz.*source\.on_bad_file: reject"):
        counted_in(source, tmp_path, run__max_held_bytes=max_held_bytes, run__num_buckets=3)


def test_tasks_that_never_start_are_an_error_that_says_so(ray_cluster, news, tmp_path):
    class Holder:
        def hold(self):
            return True

    source = write_texts(tmp_path / "corpus", news[:20])
    deadline = time.monotonic() + 60
    while ray_cluster.available_resources().get("CPU", 0) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)  # Those of earlier tests may be ending.
    free = ray_cluster.available_resources()["CPU"]
    holder = ray_cluster.remote(num_cpus=free)(Holder).remote()
    try:
        assert ray_cluster.get(holder.hold.remote(), timeout=120)
        with pytest.raises(ClusterError, match=r"counting words: nothing moved.* 0 of 1 tasks are"):
            counted_in(source, tmp_path, run__no_progress_timeout_s=2)
    finally:
        ray_cluster.kill(holder)


def children_of_this_process():
    """Process ids with their command lines, of all descendants."""
    parents, names = {}, {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int(
                    (path / "stat").read_text().rsplit(")")[-1].split()[1]
                )
                names[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue

    def is_ours(pid):
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return {pid: name.decode() for pid, name in names.items() if is_ours(pid)}


def test_readers_that_are_killed_in_the_middle_change_nothing(news, news_counts, tmp_path):
    # As much as takes some seconds to read, handed on in many rounds.
    source = write_texts(tmp_path / "corpus", news * 6, num_files=2)
    killed, done = [], threading.Event()

    def kill():
        while len(killed) < 2 and not done.is_set():
            readers = [
                pid for pid, name in children_of_this_process().items() if "count_group" in name
            ]
            fresh = [pid for pid in readers if pid not in killed]
            if fresh:
                time.sleep(0.7)
                os.kill(fresh[0], signal.SIGKILL)
                killed.append(fresh[0])
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        counted = counted_in(source, tmp_path, run__max_held_bytes=300_000, run__num_buckets=5)
    finally:
        done.set()
        killer.join()
    assert killed
    assert counted.read.tokens == 6 * news_counts.total()
    assert (
        words_of(counted)
        == Vocabulary.from_counts({w: 6 * c for w, c in news_counts.items()}, 3).words
    )
