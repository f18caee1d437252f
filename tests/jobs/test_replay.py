"""`jobs.replay` from the command line: what it refuses, before any model is loaded."""

import pytest

from jobs.command import main
from jobs.replay import JOB
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.snapshots import snapshot


def elmo(capsys, *arguments):
    """Exit code, stdout and stderr of the job."""
    code = main(JOB, list(arguments))
    return code, *capsys.readouterr()


@pytest.fixture
def words(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "One document."}\n')
    values = {
        "source.path": tmp_path / "corpus.jsonl",
        "model.directory": "/no/such/model",
        "output.path": tmp_path / "vectors",
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def test_without_a_snapshot_there_is_nothing_to_add_to(capsys, words):
    code, _, log = elmo(capsys, *words)
    assert code == 2
    assert "run elmo embed first" in log


def test_a_run_that_rejected_nothing_is_nothing_to_replay_and_no_failure(capsys, words, tmp_path):
    SnapshotStore(open_storage(str(tmp_path / "vectors"))).commit(snapshot())
    code, shown, _ = elmo(capsys, *words, "--quiet")
    expected = "nothing to replay: run run-1 rejected nothing that could be mended\n"
    assert (code, shown) == (0, expected)
    for run, message in (("../x", "not the id of a run"), ("other", "no rejected rows of a run")):
        code, _, log = elmo(capsys, *words, "--run", run)
        assert code == 2
        assert message in log
