"""The corpus is compared with the snapshot by id and content hash."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare import (
    INDEX_SCHEMA,
    KNOWN_SCHEMA,
    KnownFiles,
    bucket_of,
    compare,
    distinct_runs,
)

NUM_PARENT_FILES = 2


def _hash(content):
    text, metadata = content
    return text.encode().ljust(8, b"\0") + metadata.encode().ljust(8, b"\0")


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


def _known(rows):
    """Rows of (id, content, file)."""
    rows = sorted(rows, key=lambda row: row[2])
    return pa.table(
        {
            "id": [row[0] for row in rows],
            "content_hash": [_hash(row[1]) for row in rows],
            "file": [row[2] for row in rows],
        },
        schema=KNOWN_SCHEMA,
    )


ids = st.sampled_from("abcdefg")
contents = st.tuples(st.sampled_from("xyz"), st.sampled_from("mn"))
corpora = st.lists(st.tuples(ids, contents), max_size=12)
parents = st.dictionaries(ids, st.tuples(contents, st.integers(0, NUM_PARENT_FILES - 1)))
# Of interrupted runs, several files may hold one id.
interrupted = st.lists(st.tuples(ids, contents, st.integers(NUM_PARENT_FILES, 4)), max_size=8)


def _expected(rows, parent, others, files):
    """What has to happen to each id, by dictionaries."""
    first = {}
    for name, content in rows:
        first.setdefault(name, content)
    usable = [(n, c, f) for n, (c, f) in parent.items() if files.reuse_parent]
    usable = sorted(usable + others, key=lambda row: row[2])
    kept, selected, operations = {}, {}, {}
    for name, content in first.items():
        same = [f for n, c, f in usable if (n, c) == (name, content)]
        same_text = [f for n, c, f in usable if (n, c[0]) == (name, content[0])]
        if same:
            kept[name] = same[0]
        else:
            selected[name] = same_text[0] if same_text else None
        if same and same[0] >= NUM_PARENT_FILES:
            operations[name] = ("update" if name in parent else "add", same[0])
        elif not same and name in parent:
            operations[name] = ("update", None)
    if not files.keep_gone:
        operations |= dict.fromkeys(parent.keys() - first.keys(), ("delete", None))
    return first, kept, selected, operations


@given(corpora, parents, interrupted, st.booleans(), st.booleans())
def test_comparison_agrees_with_dictionaries(rows, parent, others, reuse_parent, keep_gone):
    others = [(n, c, f) for n, f, c in {(n, f): (n, f, c) for n, c, f in others}.values()]
    files = KnownFiles(NUM_PARENT_FILES, reuse_parent=reuse_parent, keep_gone=keep_gone)
    first, kept, selected, operations = _expected(rows, parent, others, files)
    known = [(n, c, f) for n, (c, f) in parent.items()] + others
    result = compare(_corpus(rows), _known(known), files)
    assert {row["id"]: row["file"] for row in result.selected.to_pylist()} == selected
    found = {row["id"]: (row["op"], row["file"]) for row in result.operations.to_pylist()}
    assert found == operations
    stays = {(name, file) for name, file in kept.items()}
    if keep_gone:
        stays |= {(name, file) for name, (_, file) in parent.items() if name not in first}
    # Files that will not be listed need not be rewritten.
    listed = [row for row in known if reuse_parent or row[2] >= NUM_PARENT_FILES]
    dropped = {(row["id"], row["file"]) for row in result.dropped.to_pylist()}
    assert dropped == {(name, file) for name, _, file in listed} - stays
    assert result.duplicates.num_rows == len(rows) - len(first)
    assert result.num_new == len(first.keys() - parent.keys())
    assert result.num_gone == (0 if keep_gone else len(parent.keys() - first.keys()))
    assert result.num_unchanged == sum(file < NUM_PARENT_FILES for file in kept.values())
    assert result.num_resumed == sum(file >= NUM_PARENT_FILES for file in kept.values())
    assert result.num_metadata_only == sum(file is not None for file in selected.values())
    assert result.num_changed == len(first.keys() & parent.keys()) - result.num_unchanged


@pytest.mark.parametrize("rows", [[], [("a", ("x", "m"))]])
def test_an_empty_side_is_no_special_case(rows):
    files = KnownFiles(1)
    known = [(name, content, 0) for name, content in rows]
    assert compare(_corpus([]), _known(known), files).num_gone == len(rows)
    assert compare(_corpus(rows), _known([]), files).num_new == len(rows)


def test_equal_ids_meet_in_one_bucket():
    names = pa.chunked_array([["a", "b", "a"], ["b", "ä"]])
    buckets = bucket_of(names, 7)
    assert buckets[0] == buckets[2]
    assert buckets[1] == buckets[3]
    assert ((buckets >= 0) & (buckets < 7)).all()


def test_first_rows_of_documents_are_found():
    found = distinct_runs(pa.array(["a", "a", "b", "c", "c"]))
    assert found.tolist() == [True, False, True, True, False]
