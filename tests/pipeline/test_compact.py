"""Compaction: fewer files, the same rows bit for bit, and nobody's commit is lost."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import OutputConfig, VectorConfig
from pipeline.data_files import DataFileWriter, read_batches
from pipeline.errors import ConfigError, CorruptFileError, MissingFileError
from pipeline.schema import output_schema
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.compact import InThreads, compact, plan_merges
from pipeline.snapshot.expire import expire
from pipeline.snapshot.metadata import DataFile
from pipeline.storage import open_storage
from pipeline.verify import verify_snapshot
from tests.pipeline.histories import Document, Night, difference
from tests.pipeline.snapshots import snapshot, write_file

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
SMALL = 1 << 20
DIM = 6


@pytest.fixture
def store(local_url: str) -> SnapshotStore:
    return SnapshotStore(open_storage(local_url))


def bits(store: SnapshotStore, files) -> dict:
    """All rows, in order, by partition: every column's values, vectors as their bits."""
    found: dict = {}
    for file in files:
        with store.storage.open_input(file.path) as source:
            native = pa.PythonFile(source, mode="r")
            for batch in read_batches(native, file.path):
                rows = []
                for column in batch.columns:
                    if pa.types.is_fixed_size_list(column.type):
                        values = column.flatten().to_numpy()
                        whole = values.view(np.uint16 if values.itemsize == 2 else np.uint32)
                        rows.append([row.tobytes() for row in whole.reshape(len(column), -1)])
                    else:
                        rows.append(column.to_pylist())
                key = tuple(file.partition.items())
                found.setdefault(key, []).extend(zip(*rows, strict=True))
                found.setdefault("schema", batch.schema)
                assert batch.schema.equals(found["schema"], check_metadata=True)
    return found


def token_schema(dtype: str) -> pa.Schema:
    vectors = VectorConfig(level="token", dtype=dtype)  # type: ignore[arg-type]
    carried = [pa.field("title", pa.string()), pa.field("tags", pa.list_(pa.string()))]
    return output_schema(vectors, DIM, ["vector_0", "vector_1"], carried)


def write_tokens(store, schema, ids, output, partition, rng) -> DataFile:
    """Documents of several rows, with vectors of random bits that are finite."""
    with DataFileWriter(store.storage, schema, output, partition, "run") as writer:
        for id_ in ids:
            number = int(rng.integers(1, 5))
            size = schema.field("vector_0").type.value_type.bit_width // 8
            whole = rng.integers(0, 256, number * DIM * size, dtype=np.uint8)
            values = whole.view(f"<f{size}").copy()
            values[~np.isfinite(values)] = -0.0
            vector = pa.FixedSizeListArray.from_arrays(
                pa.array(values), type=schema.field("vector_0").type
            )
            columns = {
                "id": [id_] * number,
                "content_hash": [rng.bytes(16)] * number,
                "title": [None if number == 1 else f"of {id_}"] * number,
                "tags": [["x", None], [], None, ["y"]][:number],
                "sentence_index": [0] * number,
                "token_index": list(range(number)),
                "token": ["w"] * number,
                "start": [0] * number,
                "end": [1] * number,
            }
            arrays = [
                vector if name.startswith("vector") else pa.array(columns[name], field.type)
                for name, field in zip(schema.names, schema, strict=True)
            ]
            writer.write(pa.record_batch(arrays, schema=schema))
        return writer.close()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_rows_stay_bit_for_bit(store, format_, compression, dtype):
    schema, rng = token_schema(dtype), np.random.default_rng(5)
    settings_ = {"path": ".", "format": format_, "compression": compression}
    output = OutputConfig.model_validate(settings_)
    files = []
    for number in range(6):
        ids = [f"doc-{number}-{index}" for index in range(4)]
        partition = {"lang": [None, "en"][number % 2]}
        files.append(write_tokens(store, schema, ids, output, partition, rng))
    table = schema.append(pa.field("lang", pa.string()))
    first = store.commit(snapshot(files, schema=table, config={"output": settings_}))
    made = compact(store, below_bytes=SMALL)
    assert made is not None
    assert [dict(file.partition) for file in made.files] == [{"lang": None}, {"lang": "en"}]
    assert all(file.path.endswith(f".{format_}") for file in made.files)
    assert bits(store, made.files) == bits(store, first.files)
    assert verify_snapshot(store.storage, made).is_good
    if format_ == "parquet":
        codec = pq.ParquetFile(store.storage.url_of(made.files[0].path)).metadata.row_group(0)
        assert codec.column(0).compression == ("ZSTD" if compression else "UNCOMPRESSED")


@pytest.mark.parametrize("kind", STORES)
def test_the_snapshot_stays_what_it_was_but_for_its_files(kind, request):
    store = SnapshotStore(open_storage(request.getfixturevalue(f"{kind}_url")))
    night = Night({f"doc-{n}": Document("one", ["en", "de"][n % 2]) for n in range(8)})
    night.documents_per_file = 1
    first = night.commit(store)
    made = compact(store, below_bytes=SMALL)
    assert made == store.latest()
    assert made is not None
    assert (len(first.files), len(made.files)) == (8, 2)
    for name in ("fingerprint", "schema", "config", "encoder", "idempotency_key", "rejected_files"):
        assert getattr(made, name) == getattr(first, name)
    assert (made.operation, made.changes, made.counts["merged_files"]) == ("compact", (), 8)
    assert made.counts["unchanged"] == made.counts["documents"] == 8
    assert set(made.rewritten) == {file.path for file in first.files}
    assert difference(store.storage, first, made) == {}
    assert [table.num_rows for table in read_changes(store, 1, 2)] == [0]
    assert verify_snapshot(store.storage, made).is_good
    assert compact(store, below_bytes=SMALL) is None
    assert store.numbers() == (1, 2)


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.integers(1, 120), st.booleans()),
        max_size=20,
    ),
    below=st.integers(1, 100),
)
@settings(max_examples=100)
def test_only_small_files_of_one_place_are_merged_and_never_beyond_the_target(sizes, below):
    files = [
        DataFile(
            f"data/{number}.{'parquet' if is_parquet else 'arrow'}",
            *(1, 1, size, "0" * 64, {"key": key}),
        )
        for number, (key, size, is_parquet) in enumerate(sizes)
    ]
    made = snapshot(files, partition_columns=("key",), schema=KEY_SCHEMA)
    merges = plan_merges(made, below, 100)
    seen = [file for merge in merges for file in merge.files]
    assert len({file.path for file in seen}) == len(seen)
    left = {(file.path[-3:], file.partition["key"]): 0 for file in files}
    for merge in merges:
        assert len(merge.files) > 1
        assert merge.size_bytes <= 100
        places = {(file.path[-3:], file.partition["key"]) for file in merge.files}
        assert len(places) == 1
        assert list(merge.files) == sorted(merge.files, key=files.index)
    assert all(file.size_bytes < below for file in seen)
    # Of what stays small in one place, no two neighbours would fit together.
    for place in left:
        here = [f for f in files if (f.path[-3:], f.partition["key"]) == place]
        small = [f for f in here if f.size_bytes < below]
        alone = [f for f in small if f not in seen]
        for one, two in zip(alone, alone[1:], strict=False):
            if small.index(two) == small.index(one) + 1:
                assert one.size_bytes + two.size_bytes > 100


KEY_SCHEMA = pa.schema([("id", pa.string()), ("key", pa.string())])


@pytest.mark.parametrize(("below", "target"), [(0, None), (-1, None), (11, 10), (1 << 40, None)])
def test_sizes_must_make_sense(store, below, target):
    Night({"a": Document("one")}).commit(store)
    with pytest.raises(ConfigError, match="expected 1 to"):
        compact(store, below_bytes=below, target_file_bytes=target)


def test_there_must_be_a_snapshot(store):
    with pytest.raises(ConfigError, match="no snapshot here"):
        compact(store, below_bytes=SMALL)


def test_a_damaged_file_stops_it_before_anything_is_committed(store):
    night = Night({"a": Document("one"), "b": Document("one")}, documents_per_file=1)
    path = night.commit(store).files[1].path
    data = bytearray(store.storage.read_bytes(path, SMALL))
    data[40] ^= 1
    store.storage.put(path, bytes(data))
    with pytest.raises(CorruptFileError, match="SHA-256"):
        compact(store, below_bytes=SMALL)
    store.storage.delete(path)
    with pytest.raises(MissingFileError):
        compact(store, below_bytes=SMALL)
    assert store.numbers() == (1,)


def test_files_that_promise_more_than_they_hold_are_not_merged(store):
    files = [write_file(store.storage, [name]) for name in "ab"]
    store.commit(snapshot([files[0], replace(files[1], num_rows=2)]))
    with pytest.raises(CorruptFileError, match="promise"):
        compact(store, below_bytes=SMALL)


def test_files_of_other_columns_are_not_merged(store):
    files = [write_file(store.storage, ["a"]), write_file(store.storage, ["b"], dtype="float32")]
    store.commit(snapshot(files))
    with pytest.raises(CorruptFileError, match="its columns differ"):
        compact(store, below_bytes=SMALL)


def fragmented(store: SnapshotStore, number: int = 4) -> None:
    for index in range(number):
        Night({f"doc-{index}": Document("one")}).commit(store)


class Meanwhile(InThreads):
    """Merges, and lets another commit before the result is."""

    def __init__(self, store, *actions) -> None:
        super().__init__(store.url, store.storage)
        self.actions = list(actions)
        self.merged: list[tuple[str, ...]] = []

    def __call__(self, merges):
        self.merged += [tuple(file.path for file in merge.files) for merge in merges]
        files = super().__call__(merges)
        if self.actions:
            self.actions.pop(0)()
        return files


def test_a_nightly_that_commits_first_is_built_upon(store):
    fragmented(store)
    night = Night({"doc-0": Document("two"), "new": Document("one")}, ["doc-1"])
    run = Meanwhile(store, lambda: night.commit(store))
    made = compact(store, below_bytes=SMALL, run=run)
    assert made is not None
    assert made.parent == 5
    assert difference(store.storage, store.load(5), made) == {}
    assert made.idempotency_key == store.load(5).idempotency_key
    # doc-0's and doc-1's files had gone, so the merge was made anew.
    assert len(run.merged) == 2
    assert len(made.files) == 1


def test_a_merge_whose_files_are_all_still_there_is_used_again(store):
    fragmented(store)
    run = Meanwhile(store, lambda: Night({"new": Document("one", "de")}).commit(store))
    made = compact(store, below_bytes=SMALL, run=run)
    assert made is not None
    assert len(run.merged) == 1
    assert difference(store.storage, store.load(5), made) == {}
    assert len(made.files) == 2


def test_two_compactions_at_once_merge_once(store):
    fragmented(store)
    run = Meanwhile(store, lambda: compact(store, below_bytes=SMALL))
    assert compact(store, below_bytes=SMALL, run=run) is None
    assert store.numbers() == (1, 2, 3, 4, 5)
    assert difference(store.storage, store.load(4), store.load(5)) == {}


def test_files_that_vanish_with_their_snapshot_are_not_waited_for(store):
    """While it merges, all documents change, and the old state is expired and collected."""
    fragmented(store)
    old = store.latest()
    assert old is not None

    class Late(InThreads):
        def __call__(self, merges):
            if store.latest_number() == 4:
                Night({f"doc-{n}": Document("two") for n in range(4)}).commit(store)
                expire(store, keep=1)
                for file in old.files:
                    store.storage.delete(file.path)
            return super().__call__(merges)

    made = compact(store, below_bytes=SMALL, run=Late(store.url))
    assert made is not None
    assert made.parent == 5
    assert difference(store.storage, store.load(5), made) == {}
