"""Run records: written once, read back by whoever continues, and never trusted blindly."""

import json

import pytest

from pipeline.errors import AlreadyExistsError, CommitConflictError, ConfigError, CorruptFileError
from pipeline.snapshot.run_record import (
    Interrupted,
    RunRecord,
    RunStart,
    check_there,
    forget,
    interrupted_files,
    recorded_runs,
)
from pipeline.storage import open_storage
from tests.pipeline.snapshots import write_file

FINGERPRINT, COLUMNS = "f" * 64, "c" * 64
ID = "0" * 32


@pytest.fixture(params=["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)])
def storage(request):
    return open_storage(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def local(local_url):
    return open_storage(local_url)


def start(run_id, fingerprint=FINGERPRINT, columns=COLUMNS):
    return RunStart(run_id, "key", fingerprint, columns, None)


def recorded(storage, run_id, *documents, **values):
    """A run that has recorded a file for each list of ids."""
    record = RunRecord(storage, run_id)
    record.start(start(run_id, **values))
    files = [write_file(storage, ids) for ids in documents]
    for file in files:
        record.add([file])
    return files


def found(storage, committed=()):
    return interrupted_files(storage, FINGERPRINT, COLUMNS, set(committed))


def paths(files):
    return sorted(file.path for file in files)


def test_a_run_records_its_files_and_reads_them_back(storage):
    record = RunRecord(storage, "run-1")
    assert record.files() == ()
    assert record.started() is None
    files = recorded(storage, "run-1", ["a"], ["b"])
    recorded(storage, "run-2", ["c"])
    again = RunRecord(open_storage(storage.url), "run-1")
    assert paths(again.files()) == paths(files)
    assert again.started() == start("run-1")
    assert recorded_runs(storage) == ("run-1", "run-2")
    again.delete()
    assert again.files() == ()
    assert recorded_runs(storage) == ("run-2",)


def test_a_run_starts_once(storage):
    record = RunRecord(storage, "run-1")
    record.start(start("run-1"))
    with pytest.raises(AlreadyExistsError):
        record.start(start("run-1", fingerprint="other"))


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "x" * 200, "a b"])
def test_a_run_id_must_be_a_name(local, run_id):
    with pytest.raises(ConfigError, match="run id"):
        RunRecord(local, run_id)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"files": [{}]}'])
def test_a_damaged_record_is_named(local, content):
    local.put(f"_runs/run-1/{ID}.json", content)
    with pytest.raises(CorruptFileError, match=rf"_runs/run-1/{ID}\.json"):
        RunRecord(local, "run-1").files()
    local.put("_runs/run-1/run.json", b"[1")
    with pytest.raises(CorruptFileError, match=r"run\.json"):
        RunRecord(local, "run-1").started()


def test_only_runs_with_equal_vectors_and_columns_are_of_use(storage):
    mine = recorded(storage, "run-1", ["a"], ["b"])
    recorded(storage, "run-2", ["c"], fingerprint="e" * 64)
    recorded(storage, "run-3", ["d"], columns="d" * 64)
    also_mine = recorded(storage, "run-4", ["e"])
    assert paths(found(storage).files) == paths(mine + also_mine)


def test_what_a_snapshot_lists_is_not_interrupted(storage):
    first, second = recorded(storage, "run-1", ["a"], ["b"])
    assert paths(found(storage, [first.path]).files) == [second.path]


def test_a_file_that_is_recorded_twice_counts_once(storage):
    files = recorded(storage, "run-1", ["a"])
    record = RunRecord(storage, "run-2")
    record.start(start("run-2"))
    record.add(files)
    assert paths(found(storage).files) == paths(files)


def test_files_that_are_gone_or_of_another_size_are_left_out(storage):
    gone, short, good = recorded(storage, "run-1", ["a"], ["b"], ["c"])
    storage.delete(gone.path)
    storage.put(short.path, b"short")
    assert paths(found(storage).files) == [good.path]


def test_files_that_vanish_while_they_are_taken_over_are_a_lost_race(storage):
    files = recorded(storage, "run-1", ["a"], ["b"])
    check_there(storage, files)
    storage.delete(files[1].path)
    with pytest.raises(CommitConflictError, match=files[1].path):
        check_there(storage, files)


@pytest.mark.parametrize("name", ["run.json", f"{ID}.json"])
def test_damaged_records_are_left_out_with_a_warning(local, name, caplog):
    good = recorded(local, "run-1", ["a"])
    recorded(local, "run-2", ["b"])
    local.put(f"_runs/run-2/{name}", b"{")
    assert set(paths(good)) <= set(paths(found(local).files))
    assert f"run-2/{name}" in caplog.text


def test_records_of_an_earlier_version_are_left_out(local):
    recorded(local, "run-1", ["a"])
    path = "_runs/run-1/run.json"
    values = json.loads(local.read_bytes(path, 10_000))
    del values["columns"]
    local.put(path, json.dumps(values).encode())
    assert found(local) == Interrupted()


def test_taken_over_records_are_forgotten_but_not_what_a_living_run_adds(storage):
    recorded(storage, "run-1", ["a"])
    interrupted = found(storage)
    later = write_file(storage, ["b"])
    RunRecord(storage, "run-1").add([later])
    forget(storage, interrupted)
    # run-1 may be alive: what it has added since then is still found.
    assert paths(found(storage).files) == [later.path]
