"""The content hash is what its description says, and changes with what is stored."""

import datetime
import hashlib
import json
import re
import struct

import pyarrow as pa
import pytest

from pipeline.sources.content_hash import content_hashes, derived_ids, text_hashes


def by_the_book(text, columns):
    """The description of `content_hash` in plain Python: columns of (name, type, encoding)."""
    message = b""
    for _, _, value in columns:
        message += b"\0" if value is None else b"\1" + struct.pack("<Q", len(value)) + value
    of_text = hashlib.blake2b(text.encode(), digest_size=8).digest()
    if not columns:
        return of_text + bytes(8)
    kinds = json.dumps([[name, kind] for name, kind, _ in columns], separators=(",", ":"))
    person = hashlib.blake2b(kinds.encode(), digest_size=16).digest()
    return of_text + hashlib.blake2b(message, digest_size=8, person=person).digest()


def hash_of(text, **columns):
    # A table without columns has no rows unless it is cut out of one that has.
    metadata = pa.table({"_": ["x"], **{name: value[:1] for name, value in columns.items()}})
    metadata = metadata.select(list(columns))
    return content_hashes(pa.array([text]), metadata)[0].as_py()


@pytest.mark.parametrize(
    ("array", "kind", "encoding"),
    [
        (pa.array(["é"]), "string", "é".encode()),
        (pa.array([b"\xff"]), "binary", b"\xff"),
        (pa.array([None], pa.string()), "string", None),
        (pa.array([-2], pa.int8()), "int8", struct.pack("<q", -2)),
        (pa.array([2**63], pa.uint64()), "uint64", struct.pack("<Q", 2**63)),
        (pa.array([0.5], pa.float32()), "float", struct.pack("<d", 0.5)),
        (pa.array([-0.0]), "double", struct.pack("<d", 0.0)),
        (pa.array([None], pa.float64()), "double", None),
        (pa.array([True]), "bool", b"\1"),
        (pa.array([datetime.date(1970, 1, 3)]), "date32[day]", struct.pack("<q", 2)),
        (pa.array([7], pa.timestamp("us")), "timestamp[us]", struct.pack("<q", 7)),
        (pa.array([[1, None]]), "list<item: int64>", b"[1,null]"),
        (pa.array([{"x": "é"}]), "struct<x: string>", b'{"x":"\\u00e9"}'),
    ],
)
def test_the_hash_is_what_its_description_says(array, kind, encoding):
    assert hash_of("text", c=array) == by_the_book("text", [("c", kind, encoding)])


def test_without_metadata_it_is_the_hash_of_the_text():
    assert hash_of("é") == hashlib.blake2b("é".encode(), digest_size=8).digest() + bytes(8)


def test_its_first_half_changes_with_the_text_alone():
    hashes = [
        hash_of("t", a=pa.array(["x"])),
        hash_of("t", a=pa.array(["y"])),
        hash_of("u", a=pa.array(["x"])),
    ]
    same, moved, other = text_hashes(pa.array(hashes, pa.binary(16))).to_pylist()
    assert same == moved != other
    assert hashes[0][8:] == hashes[2][8:] != hashes[1][8:]


def test_documents_without_ids_are_named_by_text_and_metadata():
    texts = pa.array(["t", "t", "u", "t"])
    metadata = pa.table({"a": ["x", "y", "x", "x"]})
    ids = derived_ids(texts, content_hashes(texts, metadata)).to_pylist()
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in ids)


def test_it_changes_with_every_part():
    base = {"a": pa.array(["x"]), "b": pa.array(["y"])}
    others = [
        hash_of("t", **base),
        hash_of("u", **base),
        hash_of("t", a=pa.array(["y"]), b=pa.array(["x"])),
        hash_of("t", a=pa.array(["xy"]), b=pa.array([""])),
        hash_of("t", a=pa.array(["x"]), b=pa.array([None], pa.string())),
        hash_of("t", a=pa.array(["x"]), c=pa.array(["y"])),
        hash_of("t", a=pa.array([b"x"]), b=pa.array(["y"])),
        hash_of("t", a=pa.array(["x"])),
        hash_of("t"),
    ]
    assert len(set(others)) == len(others)


def test_a_change_of_metadata_is_a_change_and_a_carried_text_is_not_hashed_twice(read, tmp_path):
    def hashes(row, **config):
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        return read(tmp_path, **config).documents["content_hash"].to_pylist()

    row = {"text": "a", "p": "x", "c": 1}
    config = {"partition_columns": ("p",), "carry_columns": ("c",)}
    assert hashes(row) == hashes(row | {"c": 2}) == hashes(row, carry_columns=("text",))
    assert hashes(row, **config) != hashes(row | {"c": 2}, **config)
    assert hashes(row, **config) != hashes(row | {"p": "y"}, **config)
    assert hashes(row, **config) == hashes(row | {"other": 3}, **config)
