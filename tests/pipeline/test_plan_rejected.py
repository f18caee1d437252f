"""What the tasks of the plan reject: rows in tables, and duplicates that name the row kept."""

import pyarrow as pa

from pipeline.compare import INDEX_SCHEMA, KnownFiles
from pipeline.config import EmbedConfig, build
from pipeline.plan_tasks import CompareTask, compare_bucket, index_group
from pipeline.records import REJECTED_SCHEMA
from pipeline.sources.discover import discover


def config(path):
    values = {
        "source": {"path": str(path), "id_column": "id"},
        "model": {"directory": "none"},
        "output": {"path": str(path / "out")},
    }
    return build(EmbedConfig, values, "test")


def plan(path):
    """Index and compare a corpus in one bucket; returns counts, rejected rows and duplicates."""
    settings = config(path)
    splits = discover(settings.source).splits
    index, counts, rejected = index_group(settings, splits, 1)
    task = CompareTask(KnownFiles(0), splits, (splits[0].index,), 1, "duplicate_id")
    assert index.schema.equals(INDEX_SCHEMA)
    return counts, rejected, compare_bucket(task, index)[-2]


def test_a_duplicate_names_the_file_and_place_of_the_row_that_is_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "3", "text": "c"}\n{"id": "2", "text": "d"}\n' * 2)
    _, _, duplicates = plan(tmp_path)
    assert duplicates.schema.equals(REJECTED_SCHEMA)
    found = [
        (row["source"][-7:], row["offset"], row["id"], row["kept_source"][-7:])
        for row in duplicates.to_pylist()
    ]
    assert found == [
        ("b.jsonl", 25, "2", "a.jsonl"),
        ("b.jsonl", 50, "3", "b.jsonl"),
        ("b.jsonl", 75, "2", "a.jsonl"),
    ]
    first = duplicates["message"][0].as_py()
    assert first.endswith(f"has the same id; that one is kept: offset 25 of {tmp_path}/a.jsonl")


def test_rejected_rows_of_many_splits_come_as_one_table(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "text": "a"}\n' + "bad\n" * 10_000)
    counts, rejected, duplicates = plan(tmp_path)
    assert (counts.documents, counts.rejected, counts.bad_files) == (3, 30_000, 0)
    assert rejected.num_rows == 30_000
    assert set(rejected["excerpt"].to_pylist()) == {"bad"}
    assert duplicates.num_rows == 2
    assert rejected.nbytes + duplicates.nbytes < 30_000 * 250
    rejected.validate(full=True)
    pa.concat_tables([rejected, duplicates]).validate(full=True)
