"""Verification finds every kind of damage, and nothing where there is none."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import OutputConfig
from pipeline.data_files import DataFileWriter
from pipeline.errors import StorageError
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage, open_storage
from pipeline.verify import VerifyReport, finite_rows, verify_snapshot
from tests.pipeline.snapshots import DIM, rows, snapshot, table_schema, write_file

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]


@pytest.fixture
def storage(local_url: str) -> Storage:
    return open_storage(local_url)


def commit(storage: Storage, files: Sequence[DataFile], **values: object) -> Snapshot:
    return SnapshotStore(storage).commit(snapshot(files, **values))


def codes(report: VerifyReport) -> list[str]:
    assert report.is_good == (not report.problems)
    return [problem.code for problem in report.problems]


def write_rows(storage: Storage, batch: pa.RecordBatch, format_: str = "parquet") -> DataFile:
    output = OutputConfig.model_validate({"path": storage.url, "format": format_})
    with DataFileWriter(storage, batch.schema, output, {}, "run-1") as writer:
        writer.write(batch)
        return writer.close()


@pytest.mark.parametrize("store", STORES)
def test_a_good_snapshot_has_no_problem_on_any_store(store, request):
    storage = open_storage(request.getfixturevalue(f"{store}_url"))
    partition = {"lang": "a/b"}
    arrow = OutputConfig(path=storage.url, format="arrow", compression="zstd")
    files = [
        write_file(storage, ["a", "b"], partition=partition),
        write_file(storage, ["c"], partition={"lang": None}, output=arrow),
    ]
    orphan = write_file(storage, ["x"], partition=partition)
    done: list[tuple[int, int]] = []
    report = verify_snapshot(
        storage, commit(storage, files), progress=lambda *counts: done.append(counts)
    )
    assert codes(report) == []
    assert (report.num_files, report.num_rows, report.num_documents) == (2, 3, 3)
    assert report.orphans == (orphan.path,)
    assert done == [(1, 2), (2, 2)]


def test_an_empty_snapshot_is_good(storage):
    assert codes(verify_snapshot(storage, commit(storage, []))) == []


def test_a_missing_file_is_found(storage):
    files = [write_file(storage, ["a"]), write_file(storage, ["b"])]
    made = commit(storage, files, rejected_files=["_rejected/run-1/x.parquet"])
    storage.delete(files[0].path)
    report = verify_snapshot(storage, made)
    assert codes(report) == ["missing", "missing"]
    assert report.problems[0].path == files[0].path


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_every_flipped_bit_is_found(storage, format_):
    file = write_rows(storage, rows(["a", "b"]), format_)
    made = commit(storage, [file])
    data = storage.read_bytes(file.path, 1 << 20)
    for position in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[position] ^= 1
        storage.put(file.path, bytes(damaged))
        report = verify_snapshot(storage, made)
        assert codes(report) == ["corrupt"]
        assert "SHA-256" in report.problems[0].message


def test_a_cut_file_and_a_grown_one_are_found(storage):
    file = write_file(storage, ["a"])
    made = commit(storage, [file])
    data = storage.read_bytes(file.path, 1 << 20)
    for changed in (data[:-1], data + b"x", b""):
        storage.put(file.path, changed)
        report = verify_snapshot(storage, made)
        assert codes(report) == ["corrupt"]
        assert f"promises {len(data)} bytes, found {len(changed)}" in report.problems[0].message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 5}, "(5, 2, 'a', 'b'), found (2, 2, 'a', 'b')"),
        ({"num_documents": 1}, "found (2, 2"),
        ({"min_id": "0"}, "found (2, 2"),
        ({"max_id": "z"}, "found (2, 2"),
    ],
)
def test_wrong_counts_in_the_manifest_are_found(storage, change, message):
    file = write_file(storage, ["a", "b"])
    report = verify_snapshot(storage, commit(storage, [replace(file, **change)]))
    assert codes(report) == ["counts"]
    assert message in report.problems[0].message


def test_totals_that_do_not_add_up_are_found(storage):
    file = write_file(storage, ["a", "b"])
    made = commit(storage, [file], counts={"documents": 3, "rows": 2})
    assert codes(verify_snapshot(storage, made)) == ["counts"]


def test_a_file_of_another_schema_is_found(storage):
    file = write_rows(storage, rows(["a"], dtype="float32"))
    report = verify_snapshot(storage, commit(storage, [file]))
    assert codes(report) == ["schema"]
    assert "vector: expected fixed_size_list<item: halffloat" in report.problems[0].message
    assert "\n" not in report.problems[0].message


def test_a_file_in_the_wrong_directory_is_found(storage):
    file = write_file(storage, ["a"], partition={"lang": "en"})
    made = commit(storage, [replace(file, partition={"lang": "de"})])
    assert codes(verify_snapshot(storage, made)) == ["partition"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_value_that_is_not_finite_is_found(storage, dtype, value):
    good = rows(["a", "b", "c"], dtype=dtype)
    vectors_ND = good.column("vector").flatten().to_numpy().copy()
    vectors_ND[DIM] = value
    kind = good.schema.field("vector").type
    bad = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND), type=kind)
    file = write_rows(storage, good.set_column(3, good.schema.field("vector"), bad))
    report = verify_snapshot(storage, commit(storage, [file], schema=table_schema(dtype)))
    assert codes(report) == ["not_finite"]
    assert "'b'" in report.problems[0].message


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_finite_rows_agrees_with_numpy(dtype):
    bits = np.random.default_rng(0).integers(0, 256, 4096 * dtype().nbytes, np.uint8)
    values = bits.view(dtype)
    array = pa.FixedSizeListArray.from_arrays(pa.array(values), 2)
    np.testing.assert_array_equal(
        finite_rows(array), np.isfinite(values.reshape(-1, 2)).all(axis=1)
    )
    np.testing.assert_array_equal(finite_rows(array.slice(3, 5)), finite_rows(array)[3:8])


def test_nulls_where_none_may_be_are_found(storage):
    good = rows(["a", "b"])
    hashes = pa.array([None, b"x" * 16], pa.binary(16))
    field = good.schema.field("content_hash")
    file = write_rows(storage, good.set_column(1, field, hashes), "arrow")
    report = verify_snapshot(storage, commit(storage, [file]))
    assert codes(report) == ["null"]
    assert "content_hash" in report.problems[0].message


def test_ids_that_repeat_are_found_within_a_file_and_across_files(storage):
    files = [write_file(storage, ["a", "b", "a"]), write_file(storage, ["c", "b"])]
    report = verify_snapshot(storage, commit(storage, files))
    assert codes(report) == ["duplicate_id"]
    assert "2 ids stand for several documents: 'a' in" in report.problems[0].message
    assert files[1].path in report.problems[0].message


def test_the_rows_of_one_document_are_no_duplicates(storage):
    file = write_file(storage, ["a", "a", "b"])
    assert codes(verify_snapshot(storage, commit(storage, [file]))) == []


def test_a_damaged_manifest_beside_is_reported_and_hides_the_orphans_only(storage):
    made = commit(storage, [write_file(storage, ["a"])])
    storage.put(manifest_path(2), b"{")
    assert codes(verify_snapshot(storage, made)) == ["other_manifest"]


def test_bytes_that_only_look_right_are_found(storage):
    junk = b"PAR1 this is no parquet file PAR1"
    storage.put("data/x.parquet", junk)
    file = DataFile("data/x.parquet", 1, 1, len(junk), hashlib.sha256(junk).hexdigest())
    report = verify_snapshot(storage, commit(storage, [file]))
    assert codes(report) == ["corrupt"]
    assert "cannot be decoded" in report.problems[0].message


def test_a_store_that_fails_is_not_taken_for_a_finding(storage, monkeypatch):
    made = commit(storage, [write_file(storage, ["a"])])

    def fail(path: str) -> None:
        raise StorageError("connection lost")

    monkeypatch.setattr(storage, "open_input", fail)
    with pytest.raises(StorageError, match="connection lost"):
        verify_snapshot(storage, made)


Change = Callable[[pa.Table], pa.Table]
IDS = [f"{index:03d}" for index in range(50)]


def reembedded(storage: Storage, change: Change, *, sample_documents: int = 8) -> VerifyReport:
    """Verify with a stand-in that embeds as at first, and whose result is then changed."""
    made = commit(storage, [write_file(storage, IDS[:20]), write_file(storage, IDS[20:])])

    def embed(ids: Sequence[str]) -> pa.Table:
        assert len(ids) == sample_documents
        return change(pa.Table.from_batches([rows(sorted(ids, reverse=True))]))

    return verify_snapshot(storage, made, reembed=embed, sample_documents=sample_documents)


def test_vectors_that_come_out_again_are_good(storage):
    report = reembedded(storage, lambda table: table)
    assert codes(report) == []
    assert report.reembedded is not None
    assert (report.reembedded.num_compared, report.reembedded.num_skipped) == (8, 0)
    assert report.reembedded.max_difference == 0


def test_vectors_that_come_out_differently_are_a_problem(storage):
    def change(table: pa.Table) -> pa.Table:
        values = table["vector"].combine_chunks().flatten().to_numpy().copy()
        values[0] += np.float16(0.5)
        kind = table.schema.field("vector").type
        vector = pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)
        return table.set_column(3, table.schema.field("vector"), vector)

    report = reembedded(storage, change)
    assert codes(report) == ["reembed_vectors"]
    assert report.reembedded is not None
    assert report.reembedded.max_difference > report.reembedded.tolerance


def test_documents_that_are_gone_or_changed_in_the_source_are_skipped(storage):
    def change(table: pa.Table) -> pa.Table:
        other = pa.Table.from_batches([rows(table["id"].to_pylist()[:2], text="edited")])
        return pa.concat_tables([other, table.slice(3)])

    report = reembedded(storage, change)
    assert codes(report) == []
    assert report.reembedded is not None
    assert (report.reembedded.num_compared, report.reembedded.num_skipped) == (5, 3)


def test_another_number_of_rows_is_a_problem(storage):
    report = reembedded(storage, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert codes(report) == ["reembed_rows"]
