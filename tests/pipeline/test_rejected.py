"""Rejected rows find their way into the store."""

import contextlib
import json
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.errors import TooManyRejectsError
from pipeline.excerpt import MAX_EXCERPT_CHARS, MAX_MESSAGE_CHARS
from pipeline.records import REJECTED_SCHEMA, RejectedRow, rejected_table
from pipeline.rejected import (
    NUM_SHOWN,
    RejectedFile,
    RejectedTally,
    check_rejected,
    count_by_code,
    write_rejected,
)
from pipeline.storage import open_storage

ROWS = (
    RejectedRow("s3://b/a.jsonl", 17, "x", "validate", "empty_text", "the text is empty"),
    RejectedRow("s3://b/a.jsonl", 40, None, "parse", "bad_json", "no JSON", r"{'a': 1}\n"),
    RejectedRow("s3://b/b.parquet", None, None, "read", "corrupt_file", "no footer"),
    RejectedRow("s3://b/c.jsonl", 0, None, "parse", "bad_json", "no JSON"),
)


@pytest.mark.parametrize("store", ["local_url", "memory_url", "moto_url"])
def test_rejected_rows_come_back_as_they_were_written(store, request):
    storage = open_storage(request.getfixturevalue(store))
    path = write_rejected(storage, "run-1", ROWS)
    assert path.startswith("_rejected/run-1/")
    assert path.endswith(".parquet")
    with storage.open_input(path) as file:
        table = pq.read_table(file)
    assert table.schema.equals(REJECTED_SCHEMA)
    assert tuple(RejectedRow(**row) for row in table.to_pylist()) == ROWS


def test_every_call_writes_a_file_of_its_own(local_url):
    storage = open_storage(local_url)
    paths = {write_rejected(storage, "run", rejected_table(ROWS)) for _ in range(3)}
    assert len(paths) == 3
    assert [file.path for file in storage.list_files("_rejected/run")] == sorted(paths)


def test_no_rows_make_no_file(local_url):
    storage = open_storage(local_url)
    with pytest.raises(ValueError, match="no rejected rows"):
        write_rejected(storage, "run", ())
    assert storage.list_files() == []


@pytest.mark.parametrize("store", ["local_url", "memory_url", "moto_url"])
def test_a_file_of_rejected_rows_grows_as_they_come(store, request):
    storage = open_storage(request.getfixturevalue(store))
    with RejectedFile(storage, "rejected/a.parquet") as file:
        for row in ROWS:
            file.write(rejected_table([row]))
            file.write(rejected_table([]))
    with storage.open_input("rejected/a.parquet") as source:
        table = pq.read_table(source)
    assert tuple(RejectedRow(**row) for row in table.to_pylist()) == ROWS


@pytest.mark.parametrize("rows", [(), ROWS])
def test_without_rejected_rows_and_after_an_error_there_is_no_file(local_url, rows):
    def write():
        with RejectedFile(storage, "rejected/a.parquet") as file:
            file.write(rejected_table(rows))
            if rows:
                raise ZeroDivisionError

    storage = open_storage(local_url)
    with contextlib.nullcontext() if not rows else pytest.raises(ZeroDivisionError):
        write()
    assert storage.list_files() == []
    assert storage.list_partial_files() == []


def test_a_tally_tells_how_many_why_and_the_first_of_each_with_their_place(caplog):
    tally = RejectedTally()
    for start in (0, 5):
        rows = [
            RejectedRow("c.jsonl", 10 * k, None, "validate", "empty_text", "the text is empty")
            for k in range(start, start + 5)
        ]
        tally.reject(rejected_table([*rows, ROWS[2]]))
    tally = RejectedTally.from_json(json.loads(json.dumps(asdict(tally))))
    assert tally.by_code == {"empty_text": 10, "corrupt_file": 2}
    tally.tell(1000, "work/rejected")
    assert "12 of 1,000 rows were rejected: 10 empty_text, 2 corrupt_file; " in caplog.text
    assert "all of them with place and reason: work/rejected" in caplog.text
    assert caplog.text.count("empty_text: c.jsonl, offset") == NUM_SHOWN
    assert "empty_text: c.jsonl, offset 0: the text is empty" in caplog.text
    assert "corrupt_file: s3://b/b.parquet: no footer" in caplog.text
    caplog.clear()
    RejectedTally().tell(1000)
    assert caplog.text == ""


def test_codes_are_counted_most_frequent_first():
    expected = {"bad_json": 2, "corrupt_file": 1, "empty_text": 1}
    assert count_by_code(ROWS) == expected
    assert list(count_by_code(rejected_table(ROWS)).items()) == list(expected.items())
    assert count_by_code(()) == {}


def test_what_utf8_or_a_terminal_cannot_bear_is_escaped_and_what_is_long_is_cut():
    wild = "\ud800\x1b" + "x" * 100_000
    row = RejectedRow("s3://b/a.jsonl", 0, None, "embed", "embed_failed", wild, wild)
    (found,) = rejected_table([row]).to_pylist()
    assert found["message"].startswith(r"\ud800\x1bxxx")
    assert len(found["message"]) == MAX_MESSAGE_CHARS
    assert len(found["excerpt"]) == MAX_EXCERPT_CHARS


def allowed(count, share):
    return RunConfig(max_rejected=count, max_rejected_share=share)


@pytest.mark.parametrize(
    ("by_code", "count", "share"),
    [
        ({}, 0, 0.0),
        ({"bad_json": 10}, None, 0.01),
        ({"bad_json": 10}, 10, 1.0),
        ({"duplicate_text": 900}, 0, 0.0),
        ({"bad_json": 5, "empty_text": 5, "duplicate_text": 900}, 10, 0.01),
    ],
)
def test_as_many_rejected_rows_as_a_limit_says_are_allowed(by_code, count, share):
    check_rejected(by_code, 1000, allowed(count, share), "s3://corpus/")


@pytest.mark.parametrize(
    ("by_code", "count", "share", "limits"),
    [
        ({"bad_json": 1}, 0, 1.0, ["run.max_rejected = 0"]),
        ({"bad_json": 11}, None, 0.01, ["run.max_rejected_share = 1.00%"]),
        ({"bad_json": 5, "empty_text": 6}, 10, 1.0, ["run.max_rejected = 10"]),
        ({"corrupt_file": 1}, 0, 0.0, ["run.max_rejected = 0", "run.max_rejected_share = 0.00%"]),
    ],
)
def test_one_more_than_either_limit_blocks_the_commit(by_code, count, share, limits):
    files = ["s3://out/_rejected/run/a.parquet", "s3://out/_rejected/run/b.parquet"]
    with pytest.raises(TooManyRejectsError) as caught:
        check_rejected(by_code, 1000, allowed(count, share), "s3://corpus/", files)
    message = str(caught.value)
    assert [limit for limit in limits if limit not in message] == []
    assert f"{sum(by_code.values())} of 1,000 rows" in message
    assert f"1 {next(iter(by_code))}" in message or "5 bad_json" in message
    assert "nothing was committed" in message
    assert message.endswith(f"{files[0]} and 1 more files")
    assert caught.value.exit_code == 3


def test_a_corpus_without_rows_is_within_any_limit():
    check_rejected({}, 0, allowed(0, 0.0), "s3://corpus/")
