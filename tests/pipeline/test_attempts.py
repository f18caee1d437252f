"""Notes of what was begun: the second attempt knows of the first, and the last one is an error."""

import pytest

from pipeline.attempts import MAX_ATTEMPTS, ActorStarts, BlockAttempts, block_key
from pipeline.errors import ClusterError
from pipeline.snapshot.run_record import RunRecord, RunStart, recorded_runs
from pipeline.storage import open_storage
from tests.pipeline.test_embed import DOCUMENTS, tokenised


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "vectors"))


def test_attempts_are_counted_for_each_block_and_run(storage):
    block = BlockAttempts(storage, "run-1", "a" * 32)
    assert [block.begin(), block.begin(), block.begin()] == [1, 2, 3]
    assert BlockAttempts(storage, "run-1", "b" * 32).begin() == 1
    assert BlockAttempts(storage, "run-2", "a" * 32).begin() == 1


def test_a_block_that_always_kills_its_worker_is_an_error_in_the_end(storage):
    block = BlockAttempts(storage, "run-1", "a" * 32)
    for _ in range(MAX_ATTEMPTS):
        block.begin()
    with pytest.raises(ClusterError, match=f"begun {MAX_ATTEMPTS} times.*{'a' * 32}"):
        block.begin()


def test_of_two_attempts_that_end_the_first_one_counts(storage):
    block = BlockAttempts(storage, "run-1", "a" * 32)
    assert block.recorded() is None
    assert block.record('{"files": []}') == '{"files": []}'
    assert block.record('{"files": [1]}') == '{"files": []}'
    assert block.recorded() == '{"files": []}'


def test_notes_are_no_records_and_go_with_the_run(storage):
    run = RunRecord(storage, "run-1")
    run.start(RunStart("run-1", "key", "fingerprint", "columns", None))
    block = BlockAttempts(storage, "run-1", "a" * 32)
    block.begin()
    block.record('{"files": []}')
    ActorStarts(storage, "run-1", 1).begin()
    assert run.files() == ()
    run.delete()
    assert recorded_runs(storage) == ()


def test_a_block_is_named_by_its_documents():
    table = tokenised(DOCUMENTS)
    key = block_key(table)
    assert len(key) == 32
    assert key == block_key(tokenised(DOCUMENTS))
    assert key != block_key(table.slice(1))
    changed = table.set_column(1, "content_hash", table["content_hash"].take([1, 0, 2, 3]))
    assert key != block_key(changed)


def test_actors_that_never_load_the_model_end_the_run(storage):
    starts = ActorStarts(storage, "run-1", 3)
    for _ in range(3):
        starts.begin()
    with pytest.raises(ClusterError, match="3 actors died while they loaded the model"):
        starts.begin()
    starts.succeeded()
    starts.begin()
