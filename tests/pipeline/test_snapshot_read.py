"""Snapshots are read by us and by plain readers of the manifest's file list."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pytest

from pipeline.config import OutputConfig
from pipeline.errors import ConfigError, CorruptFileError
from pipeline.partitions import NULL_PARTITION
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.read import open_snapshot
from pipeline.storage import Storage, open_storage
from tests.pipeline.snapshots import DIM, rows, snapshot, table_schema, write_file

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
FORMATS = ["parquet", "arrow"]
KEYS = {"lang": "string", "day": "string"}
PARTITIONS = [
    (["a", "b"], {"lang": "en", "day": "2026-11-21"}),
    (["c"], {"lang": "de", "day": "007"}),
    (["d"], {"lang": None, "day": "a/b"}),
]
EXPECTED = [(id_, p["lang"], p["day"]) for ids, p in PARTITIONS for id_ in ids]


def commit(storage: Storage, format_: str = "parquet") -> Snapshot:
    """Commit one snapshot of three partitions, beside files that belong to nobody."""
    output = OutputConfig.model_validate({"path": storage.url, "format": format_})
    files = [write_file(storage, ids, partition=p, output=output) for ids, p in PARTITIONS]
    write_file(storage, ["orphan"], partition={"lang": "en", "day": "2026-11-21"}, output=output)
    return SnapshotStore(storage).commit(snapshot(files))


def triples(table: pa.Table) -> list[tuple[str, str | None, str | None]]:
    columns = [table[name].to_pylist() for name in ("id", "lang", "day")]
    return sorted(zip(*columns, strict=True))


def manifest_files(url: str) -> list[str]:
    """Paths of the data files, found with nothing but the standard library."""
    latest = max((Path(url) / "_snapshots").glob("*.json"), key=lambda path: int(path.stem))
    return [f"{url}/{file['path']}" for file in json.loads(latest.read_text())["files"]]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_snapshot_has_exactly_the_rows_of_its_files(store, format_, request):
    storage = open_storage(request.getfixturevalue(f"{store}_url"))
    committed = commit(storage, format_)
    found, dataset = open_snapshot(storage.url)
    assert found == committed
    assert dataset.schema.equals(table_schema(partition_columns=["lang", "day"]))
    table = dataset.to_table()
    assert table.schema.equals(dataset.schema)
    assert triples(table) == EXPECTED
    assert dataset.count_rows() == 4
    german = dataset.to_table(["id"], filter=pc.field("lang") == "de")
    assert german["id"].to_pylist() == ["c"]
    unknown = dataset.to_table(["id"], filter=pc.field("lang").is_null())
    assert unknown["id"].to_pylist() == ["d"]


def test_older_snapshots_stay_readable_as_they_were(local_url):
    storage = open_storage(local_url)
    first = commit(storage)
    kept = first.files[1:]
    SnapshotStore(storage).commit(snapshot(kept, run_id="run-2").numbered(first))
    assert triples(open_snapshot(local_url)[1].to_table()) == EXPECTED[2:]
    assert triples(open_snapshot(local_url, 1)[1].to_table()) == EXPECTED


def test_files_of_both_formats_make_one_table(local_url):
    storage = open_storage(local_url)
    arrow = OutputConfig(path=local_url, format="arrow")
    files = [write_file(storage, ["a"]), write_file(storage, ["b"], output=arrow)]
    SnapshotStore(storage).commit(snapshot(files))
    _, dataset = open_snapshot(local_url)
    assert sorted(dataset.to_table()["id"].to_pylist()) == ["a", "b"]


def test_a_snapshot_without_files_is_an_empty_table(local_url):
    SnapshotStore(open_storage(local_url)).commit(snapshot())
    _, dataset = open_snapshot(local_url)
    assert dataset.to_table().num_rows == 0
    assert dataset.schema.equals(table_schema())


def test_the_root_may_look_like_a_partition(tmp_path):
    url = str(tmp_path / "lang=xx" / "day=yy")
    commit(open_storage(url))
    assert triples(open_snapshot(url)[1].to_table()) == EXPECTED


def test_what_is_not_there_is_said(local_url):
    with pytest.raises(ConfigError, match="no snapshot here"):
        open_snapshot(local_url)
    commit(open_storage(local_url))
    with pytest.raises(ConfigError, match="no snapshot 7; found: 1 to 1"):
        open_snapshot(local_url, 7)


def test_a_damaged_manifest_is_no_empty_table(local_url):
    open_storage(local_url).put("_snapshots/00000001.json", b"")
    with pytest.raises(CorruptFileError, match="not JSON"):
        open_snapshot(local_url)


@pytest.mark.parametrize("format_", FORMATS)
def test_pyarrow_alone_reads_the_file_list(local_url, format_):
    commit(open_storage(local_url), format_)
    schema = pa.schema(list(KEYS.items()))
    dataset = pads.dataset(
        manifest_files(local_url),
        format="ipc" if format_ == "arrow" else format_,
        partitioning=pads.partitioning(schema, flavor="hive"),
    )
    table = dataset.to_table()
    assert triples(table) == EXPECTED
    vectors_ND = table.sort_by("id")["vector"].combine_chunks().flatten().to_numpy()
    expected_ND = rows(["a", "b", "c", "d"]).column("vector").flatten().to_numpy()
    np.testing.assert_array_equal(vectors_ND, expected_ND)


@pytest.mark.parametrize("format_", FORMATS)
def test_pyarrow_alone_reads_the_file_list_from_s3(moto_server, format_):
    with moto_server.environment():
        url = moto_server.new_directory()
        commit(open_storage(url), format_)
    filesystem = pafs.S3FileSystem(
        access_key=moto_server.access_key,
        secret_key=moto_server.secret_key,
        endpoint_override=moto_server.endpoint.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
    )
    root = url.removeprefix("s3://")
    (info,) = filesystem.get_file_info(pafs.FileSelector(f"{root}/_snapshots"))
    manifest = json.loads(filesystem.open_input_stream(info.path).read())
    dataset = pads.dataset(
        [f"{root}/{file['path']}" for file in manifest["files"]],
        format="ipc" if format_ == "arrow" else format_,
        filesystem=filesystem,
        partitioning=pads.partitioning(pa.schema(list(KEYS.items())), flavor="hive"),
    )
    assert triples(dataset.to_table()) == EXPECTED


def test_duckdb_reads_the_file_list(local_url):
    import duckdb

    commit(open_storage(local_url))
    connection = duckdb.connect()
    found = connection.execute(
        f"select id, lang, day, vector::float[{DIM}] from read_parquet($1, "
        "hive_partitioning = true, hive_types_autocast = false) order by id",
        [manifest_files(local_url)],
    ).fetchall()
    connection.close()
    assert [row[:3] for row in found] == EXPECTED
    expected_ND = rows(["a", "b", "c", "d"]).column("vector").flatten().to_numpy()
    np.testing.assert_array_equal(np.array([row[3] for row in found]).ravel(), expected_ND)


@pytest.mark.parametrize("format_", FORMATS)
def test_polars_reads_the_file_list(local_url, format_):
    import polars as pl

    commit(open_storage(local_url), format_)
    scan = pl.scan_parquet if format_ == "parquet" else pl.scan_ipc
    frame = scan(
        manifest_files(local_url),
        hive_partitioning=True,
        hive_schema={"lang": pl.String, "day": pl.String},
    ).collect()
    assert frame.schema["vector"] == pl.Array(pl.Float16, DIM)
    assert triples(frame.to_arrow()) == EXPECTED


def test_ray_data_reads_the_file_list(local_url, ray_cluster):
    commit(open_storage(local_url))
    partitioning = ray_cluster.data.datasource.partitioning.Partitioning("hive")
    dataset = ray_cluster.data.read_parquet(manifest_files(local_url), partitioning=partitioning)
    found = dataset.select_columns(["id", "lang", "day", "vector"]).take_all()
    partitions = sorted((row["id"], row["lang"], row["day"]) for row in found)
    # Ray takes the name of the null for a word.
    assert partitions == [*EXPECTED[:3], ("d", NULL_PARTITION, "a/b")]
    assert all(len(row["vector"]) == DIM for row in found)
