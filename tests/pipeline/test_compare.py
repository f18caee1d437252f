"""The corpus is compared with the snapshot by id and content hash."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare import INDEX_SCHEMA, KNOWN_SCHEMA, bucket_of, compare, distinct_runs


def _hash(text):
    return text.encode().ljust(16, b"\0")


def _corpus(rows):
    return pa.table(
        {
            "id": [row[0] for row in rows],
            "content_hash": [_hash(row[1]) for row in rows],
            "split": [0] * len(rows),
            "offset": list(range(len(rows))),
        },
        schema=INDEX_SCHEMA,
    )


def _known(documents):
    return pa.table(
        {
            "id": list(documents),
            "content_hash": [_hash(text) for text in documents.values()],
            "file": [0] * len(documents),
        },
        schema=KNOWN_SCHEMA,
    )


ids = st.sampled_from("abcdefg")
texts = st.sampled_from("xyz")


@given(st.lists(st.tuples(ids, texts), max_size=12), st.dictionaries(ids, texts))
def test_comparison_agrees_with_dictionaries(rows, known):
    first = {}
    for name, text in rows:
        first.setdefault(name, text)
    result = compare(_corpus(rows), _known(known))
    selected = {row["id"]: row["content_hash"] for row in result.selected.to_pylist()}
    assert selected == {k: _hash(v) for k, v in first.items() if known.get(k) != v}
    expected_dropped = {k for k, v in known.items() if first.get(k) != v}
    assert set(result.dropped["id"].to_pylist()) == expected_dropped
    assert result.duplicates.num_rows == len(rows) - len(first)
    assert result.num_new == len(first.keys() - known.keys())
    assert result.num_gone == len(known.keys() - first.keys())
    assert result.num_unchanged == sum(known.get(k) == v for k, v in first.items())
    assert result.num_changed == len(first) - result.num_new - result.num_unchanged


def test_documents_that_may_only_be_unreadable_are_kept_on_request():
    result = compare(_corpus([("a", "x")]), _known({"b": "y"}), keep_gone=True)
    assert result.num_gone == 0
    assert result.dropped.num_rows == 0


def test_equal_ids_meet_in_one_bucket():
    names = pa.chunked_array([["a", "b", "a"], ["b", "ä"]])
    buckets = bucket_of(names, 7)
    assert buckets[0] == buckets[2]
    assert buckets[1] == buckets[3]
    assert ((buckets >= 0) & (buckets < 7)).all()


def test_first_rows_of_documents_are_found():
    found = distinct_runs(pa.array(["a", "a", "b", "c", "c"]))
    assert found.tolist() == [True, False, True, True, False]
