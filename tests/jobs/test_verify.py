"""The job `verify`: its verdict, its text and its exit code."""

import json

import pytest

from jobs.command import main
from jobs.verify import JOB
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import open_storage
from tests.pipeline.snapshots import snapshot, write_file


def fill(url: str) -> Snapshot:
    storage = open_storage(url)
    files = [write_file(storage, ["a", "b"]), write_file(storage, ["c"])]
    return SnapshotStore(storage).commit(snapshot(files))


def test_a_good_snapshot_passes(local_url, capsys):
    fill(local_url)
    write_file(open_storage(local_url), ["orphan"])
    assert main(JOB, [local_url, "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "snapshot 1: good; 2 files" in text
    assert "3 documents, 3 rows" in text
    assert "belong to no snapshot: 1" in text


def test_a_damaged_snapshot_fails_with_its_own_code_and_lists_what_is_wrong(local_url, capsys):
    made = fill(local_url)
    open_storage(local_url).delete(made.files[1].path)
    assert main(JOB, [local_url, "--quiet"]) == 7
    text = capsys.readouterr().out
    assert "NOT GOOD, problems: 1" in text
    assert made.files[1].path in text
    assert main(JOB, [local_url, "--quiet", "--json"]) == 7
    status = json.loads(capsys.readouterr().out)
    assert (status["status"], status["exit_code"]) == ("failed", 7)
    assert status["result"]["problems"][0]["code"] == "missing"
    assert status["result"]["is_good"] is False


def test_a_damaged_manifest_has_the_same_code(local_url, capsys):
    open_storage(local_url).put("_snapshots/00000001.json", b"{")
    assert main(JOB, [local_url, "--quiet"]) == 7
    assert "00000001.json: not JSON" in capsys.readouterr().err


def test_an_older_snapshot_can_be_checked(local_url, capsys):
    first = fill(local_url)
    store = SnapshotStore(open_storage(local_url))
    store.commit(snapshot([], run_id="run-2").numbered(first))
    assert main(JOB, [local_url, "--number", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["documents"] == 3


def test_it_works_on_s3(moto_url, capsys):
    fill(moto_url)
    assert main(JOB, [moto_url, "--quiet", "--threads", "2"]) == 0
    assert "good" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no snapshot here"), (["--threads", "0"], "--threads 0"), (["--number", "4"], "number")],
)
def test_wrong_words_are_the_users_to_mend(local_url, capsys, words, message):
    assert main(JOB, [local_url, "--quiet", *words]) == 2
    assert message in capsys.readouterr().err.replace("no snapshot 4", "number")
