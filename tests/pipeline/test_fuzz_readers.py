"""Damaged and odd files: no crash, no hang, no row that vanishes. `make fuzz` is the long form."""

import csv
import io
import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig, TextConfig
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from tests.pipeline.damaged_files import NUM_ROWS, Seed, mutate, seeds
from tests.pipeline.fuzz_readers import check, read_all, run_cases

# A part of the numbers that `make fuzz` begins with; it takes about ten seconds.
NUM_CASES = 150
LINE_ENDS = (b"\n", b"\r\n", b"\n\n", b"\n \t\n")


@pytest.mark.parametrize("seed", seeds(), ids=lambda seed: seed.name)
def test_an_undamaged_file_of_every_kind_is_read_whole(seed, tmp_path):
    (tmp_path / seed.name).write_bytes(seed.data)
    found = read_all(tmp_path, seed.config)
    assert (found.error, found.rejected) == (None, [])
    expected = 1 if seed.config.get("text_unit") == "file" else NUM_ROWS
    assert len(found.documents) == expected


def test_damaged_files_of_all_kinds_crash_nothing_and_lose_no_row():
    findings, summary = run_cases(0, NUM_CASES)
    assert findings == []
    # All outcomes are met, so the damage is neither too small nor too great to test anything.
    assert summary.startswith("done")
    assert all(kind in summary for kind in ("'read'", "'rejected rows'", "'bad file'"))


def test_damage_follows_from_the_number_alone():
    for seed in seeds()[:3]:
        once, again = (mutate(random.Random(7), seed.data) for _ in range(2))
        assert once == again != seed.data


# What a fuzzer, or a look at the code, has found: each was a crash, a hang or a difference once.
ODD_FILES = [
    ("deep.jsonl", b'{"text": "a", "n": ' + b"[" * 900 + b"]" * 900 + b"}\n"),
    ("digits.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n"),
    ("marks.jsonl", json.dumps({"text": "a" + "\u0307\u0323" * 200_000}).encode()),
    ("surrogate.jsonl", b'{"text": "\\ud800", "n": {"\\udfff": 1}}\n{"\\ud800": 1, "text": "a"}'),
    ("nul.csv", b"text,n\n\0,\0\na\0b,1\n"),
    ("returns.csv", b"text\ra\rb\r"),
    ("quote.csv", b'text,n\n"a,1\nb,2\n'),
    ("blank.csv", b"\n\n\r\n"),
    ("mark-only.txt", b"\xef\xbb\xbf"),
    ("marks.txt", b"\xef\xbb\xbf\xef\xbb\xbf\n\xef\xbb\xbf\n"),
    ("nul.txt", b"\0\n\0\0\n\x1c\n\x85\n"),
    ("members.txt.gz", b"\x1f\x8b"),
    ("empty.parquet", b"PAR1PAR1"),
    ("magic.arrow", b"ARROW1\0\0" * 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), ODD_FILES, ids=[name for name, _ in ODD_FILES])
def test_an_odd_file_ends_as_documents_rejected_rows_or_a_clear_error(name, data, tmp_path):
    ending = name.partition(".")[2]
    neighbour = {"jsonl": b'{"text": "good", "n": 1}\n', "csv": b"text,n\ngood,1\n"}.get(ending)
    if neighbour is None:
        (neighbour,) = [seed.data for seed in seeds() if seed.name == f"a.{ending}"]
    check(Seed(name, neighbour, {}), data, tmp_path, random.Random(0))


def read_split(path, split_bytes, **config):
    """(offset, text or code) of everything in a file, in order."""
    source = SourceConfig(path=str(path), split_bytes=split_bytes, **config)
    found = []
    for split in discover(source).splits:
        for batch in read_documents(split, source, TextConfig(unicode_form=None)):
            rows = zip(
                batch.documents["_offset"].to_pylist(),
                batch.documents["text"].to_pylist(),
                strict=True,
            )
            found += rows
            found += [(row.offset, row.code) for row in batch.rejected]
    return sorted(found)


lines = st.lists(
    st.binary(max_size=12) | st.sampled_from([b"a", b"\xef\xbb\xbfb", b"\r", b" ", b"\0", b""]),
    max_size=12,
)


@settings(max_examples=60)
@given(
    parts=lines, end=st.sampled_from(LINE_ENDS), last=st.booleans(), split_bytes=st.integers(1, 40)
)
@example(parts=[b"a", b"b"], end=b"\n", last=True, split_bytes=2)
def test_any_splits_cover_every_line_of_text_once(parts, end, last, split_bytes, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    data = end.join(parts) + (end if last else b"")
    path.write_bytes(b"x" + data)  # The mark of UTF-16 at the start would be another test.
    whole = read_split(path, 1 << 20)
    assert read_split(path, split_bytes) == whole
    starts = [0, *(place + 1 for place, byte in enumerate(path.read_bytes()) if byte == 10)]
    filled = [start for start in starts if path.read_bytes()[start:].split(b"\n")[0].strip()]
    assert [offset for offset, _ in whole] == filled


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(
    records=st.lists(
        st.dictionaries(st.sampled_from(["id", "text", "n", "p", "x"]), json_values), max_size=8
    ),
    split_bytes=st.integers(8, 200),
)
def test_any_json_objects_are_documents_or_rejected_each_by_its_line(
    records, split_bytes, tmp_path_factory
):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    first = {"id": "first", "text": "a", "n": 1, "p": "x"}
    encoded = [json.dumps(record).encode() + b"\n" for record in [first, *records]]
    path.write_bytes(b"".join(encoded))
    config = {"id_column": "id", "carry_columns": ("n",), "partition_columns": ("p",)}
    whole = read_split(path, 1 << 20, **config)
    assert [offset for offset, _ in whole] == [
        sum(map(len, encoded[:number])) for number in range(len(encoded))
    ]
    assert read_split(path, split_bytes, **config) == whole


fields = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\n\r\t\0 é'), max_size=10
)


@settings(max_examples=60)
@given(rows=st.lists(st.lists(fields, min_size=1, max_size=4), max_size=8), tabs=st.booleans())
def test_what_a_csv_writer_writes_comes_back_field_by_field(rows, tabs, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / ("a.tsv" if tabs else "a.csv")
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "n"])
    writer.writerows(rows)
    path.write_bytes(file.getvalue().encode())
    found = read_split(path, 1 << 20, carry_columns=("n",))
    assert [offset for offset, _ in found] == list(range(len(rows)))
    for row, (_, text) in zip(rows, found, strict=True):
        if len(row) != 2:
            assert text == "bad_csv_row"
        elif not row[0]:
            assert text == "null_text"
        elif text != "no_tokens":
            assert text == row[0]
