"""What a run that ended early has written is not written again, and what changed says so."""

import contextlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import EmbedConfig, build
from pipeline.errors import CorruptFileError, EmptySourceError
from pipeline.run import execute, prepare, run_to_commit
from pipeline.snapshot.read import open_snapshot
from pipeline.storage import open_storage
from tests.integration.stand_in import DIM, WordBackend, WordLoader, WordModel

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_DOCUMENTS = 100
PER_TASK = 20


@pytest.fixture
def documents():
    rng = np.random.default_rng(5)
    words = ["red", "green", "blue", "apple", "pear", "plum", "eats", "sees", "a", "the"]
    return {
        f"doc-{number:03d}": {
            "text": f"Number {number}: {' '.join(rng.choice(words, size=rng.integers(2, 9)))}.",
            "lang": ["en", "de"][number % 2],
            "title": f"Title {number}",
        }
        for number in range(NUM_DOCUMENTS)
    }


def write_corpus(folder, documents, files=5):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        names = sorted(documents)[number::files]
        rows = [json.dumps({"id": name, **documents[name]}) for name in names]
        (folder / f"part-{number}.jsonl").write_text("\n".join(rows))


def make_config(tmp_path, output="vectors", **sections):
    values = {
        "source": {
            "path": str(tmp_path / "corpus"),
            "id_column": "id",
            "partition_columns": ["lang"],
            "carry_columns": ["title"],
        },
        "model": {"directory": "none"},
        "vectors": {"level": "token"},
        "output": {"path": str(tmp_path / output)},
        "run": {"num_actors": 2, "max_rejected_share": 0.5, "documents_per_task": PER_TASK},
    }
    for section, changes in sections.items():
        values[section] |= changes
    return build(EmbedConfig, values, "test")


def run(config, backend=None, **options):
    return execute(prepare(config, backend=backend or WordBackend(), **options))


class StoppedError(Exception):
    """The driver ends here."""


def run_and_stop(config, after_documents):
    """A run whose driver ends in the middle: what its actors have recorded stays behind."""

    def stop(documents, tokens):
        if documents >= after_documents:
            raise StoppedError

    execute(prepare(config, backend=WordBackend()), stop)


def rows_of(config, number=None):
    snapshot, dataset = open_snapshot(config.output.path, number)
    order = [("id", "ascending"), ("sentence_index", "ascending"), ("token_index", "ascending")]
    return snapshot, dataset.to_table().sort_by(order)


def feed_of(config):
    snapshot, _ = open_snapshot(config.output.path)
    tables = [pq.read_table(f"{config.output.path}/{path}") for path in snapshot.changes]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    for row in rows:
        if row["file"] is not None:
            listed = pq.read_table(f"{config.output.path}/{row['file']}")["id"].to_pylist()
            assert row["id"] in listed
            assert row["file"] in {file.path for file in snapshot.files}
    return {row["id"]: row["op"] for row in rows}


def assert_equals_a_run_from_scratch(tmp_path, config):
    scratch = make_config(tmp_path, "scratch")
    run(scratch)
    assert rows_of(config)[1].equals(rows_of(scratch)[1])


def test_a_run_that_ended_early_is_gone_on_with(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    with pytest.raises(StoppedError):
        run_and_stop(config, after_documents=2 * PER_TASK)
    assert not (tmp_path / "vectors/_snapshots").exists()
    report = run(config)
    assert report.accounting.resumed >= 2 * PER_TASK
    assert report.counts.documents == NUM_DOCUMENTS - report.accounting.resumed
    assert report.num_new == NUM_DOCUMENTS
    assert feed_of(config) == dict.fromkeys(documents, "add")
    assert_equals_a_run_from_scratch(tmp_path, config)
    # What is committed needs no record any more; only what the dead run was stays, for gc.
    left = [info.path for info in open_storage(config.output.path).list_files("_runs")]
    assert all(path.endswith(("/run.json",)) or "/attempts/" in path for path in left)


def test_what_changed_since_the_early_end_is_embedded_again(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    with pytest.raises(StoppedError):
        run_and_stop(config, after_documents=NUM_DOCUMENTS)
    names = sorted(documents)
    for name in names[:7]:
        documents[name] = {**documents[name], "text": "Something else by now."}
    for name in names[7:10]:
        documents[name] = {**documents[name], "title": "Another title"}
    for name in names[10:15]:
        del documents[name]
    write_corpus(tmp_path / "corpus", documents)
    report = run(config)
    assert report.counts.documents == 7
    assert report.accounting.metadata_only == 3
    assert report.accounting.resumed == NUM_DOCUMENTS - 15
    assert feed_of(config) == dict.fromkeys(documents, "add")
    assert_equals_a_run_from_scratch(tmp_path, config)


def test_several_early_ends_add_up(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    with pytest.raises(StoppedError):
        run_and_stop(config, after_documents=PER_TASK)
    # Actors may have finished more than the driver has seen, so the next one may get to the end.
    with contextlib.suppress(StoppedError):
        run_and_stop(config, after_documents=PER_TASK)
    run(config)
    assert_equals_a_run_from_scratch(tmp_path, config)


def test_a_lost_race_costs_no_vector(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    slow = prepare(config, backend=WordBackend())
    winner = run(config)
    prepared = iter([slow])
    _, report = run_to_commit(
        lambda: next(prepared, None) or prepare(config, backend=WordBackend())
    )
    assert report.snapshot is None
    assert report.counts.documents == 0
    assert rows_of(config)[0].run_id == winner.snapshot.run_id


def test_the_loser_adds_what_the_winner_lacks(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    with_one_more = {**documents, "one-more": {"text": "New.", "lang": "en", "title": "N"}}
    write_corpus(tmp_path / "corpus", with_one_more)
    slow = prepare(config, backend=WordBackend())
    write_corpus(tmp_path / "other", documents)
    winner = make_config(tmp_path, source={"path": str(tmp_path / "other")})
    assert run(winner).snapshot.number == 1
    prepared = iter([slow])
    _, report = run_to_commit(
        lambda: next(prepared, None) or prepare(config, backend=WordBackend())
    )
    assert report.snapshot.number == 2
    # It was embedded once, by the try that lost.
    assert (report.counts.documents, report.accounting.resumed) == (0, 1)
    assert feed_of(config) == {"one-more": "add"}
    assert_equals_a_run_from_scratch(tmp_path, config)


def test_new_metadata_takes_the_old_vectors_to_another_partition(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    run(config)
    before = rows_of(config)[1]
    for name in sorted(documents)[:30]:
        documents[name] = {**documents[name], "lang": "fr/ça", "title": None}
    write_corpus(tmp_path / "corpus", documents)
    report = run(config)
    assert (report.counts.documents, report.accounting.metadata_only) == (0, 30)
    snapshot, after = rows_of(config)
    assert after["vector"].equals(before["vector"])
    assert {file.partition["lang"] for file in snapshot.files} == {"en", "de", "fr/ça"}
    assert feed_of(config) == dict.fromkeys(sorted(documents)[:30], "update")
    assert_equals_a_run_from_scratch(tmp_path, config)


def test_the_feed_says_what_was_added_updated_and_deleted(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    run(config)
    first = rows_of(config)[0]
    changed = dict(documents)
    changed["doc-000"] = {**documents["doc-000"], "text": "Changed."}
    changed["new"] = {"text": "Added.", "lang": "en", "title": "N"}
    del changed["doc-001"]
    write_corpus(tmp_path / "corpus", changed)
    run(config)
    assert feed_of(config) == {"doc-000": "update", "new": "add", "doc-001": "delete"}
    second = rows_of(config)[0]
    # Every file of the parent is there still, or it is said where its rows are now.
    now = {file.path for file in second.files}
    for file in first.files:
        assert file.path in now or second.rewritten[file.path] in now


class FailingModel(WordModel):
    def vectors(self, window):
        if "unspeakable" in window.words:
            raise ValueError("this word has no vector")
        return super().vectors(window)


class FailingLoader(WordLoader):
    def __call__(self):
        return FailingModel(self._level)


class FailingBackend(WordBackend):
    def loader(self, config, num_threads):
        return FailingLoader(config.vectors.level)


def test_an_update_that_the_model_rejects_is_a_delete_in_the_feed(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    run(config, FailingBackend())
    documents["doc-003"] = {**documents["doc-003"], "text": "This is unspeakable."}
    documents["new"] = {"text": "Also unspeakable.", "lang": "en", "title": "N"}
    documents["doc-004"] = {**documents["doc-004"], "text": "This is good."}
    write_corpus(tmp_path / "corpus", documents)
    report = run(config, FailingBackend())
    assert report.rejected_by_code == {"embed_failed": 2}
    assert feed_of(config) == {"doc-003": "delete", "doc-004": "update"}
    counts = report.snapshot.counts
    assert (counts["added"], counts["changed"], counts["deleted"]) == (0, 1, 1)
    assert counts["rejected_embed_failed"] == 2


def test_an_empty_or_missing_source_wipes_nothing_unless_asked_to(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    run(config)
    for path in (tmp_path / "corpus").iterdir():
        path.write_text("")
    with pytest.raises(EmptySourceError, match="--allow-empty-source"):
        run(config)
    for path in (tmp_path / "corpus").iterdir():
        path.unlink()
    with pytest.raises(EmptySourceError):
        run(config)
    assert rows_of(config)[0].number == 1
    report = run(config, allow_empty_source=True)
    assert (report.num_deleted, report.snapshot.num_documents) == (NUM_DOCUMENTS, 0)
    assert feed_of(config) == dict.fromkeys(documents, "delete")
    write_corpus(tmp_path / "corpus", documents)
    assert run(config).num_new == NUM_DOCUMENTS


def test_a_run_over_a_few_files_lets_nothing_go(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    run(config)
    documents["doc-000"] = {**documents["doc-000"], "text": "In part 0."}
    documents["doc-001"] = {**documents["doc-001"], "text": "In part 1."}
    del documents["doc-002"]
    write_corpus(tmp_path / "corpus", documents)
    part = str(tmp_path / "corpus/part-0.jsonl")
    report = run(config, only_files=frozenset([part]))
    assert report.snapshot.operation == "replay"
    assert report.num_deleted == 0
    assert feed_of(config)["doc-000"] == "update"
    assert report.snapshot.num_documents == NUM_DOCUMENTS


def test_a_damaged_file_of_an_interrupted_run_is_left_out(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    with pytest.raises(StoppedError):
        run_and_stop(config, after_documents=2 * PER_TASK)
    storage = open_storage(config.output.path)
    damaged = storage.list_files("data")[0]
    storage.put(damaged.path, bytes(damaged.size_bytes))
    report = run(config)
    assert report.counts.documents + report.accounting.resumed == NUM_DOCUMENTS
    assert damaged.path not in {file.path for file in report.snapshot.files}
    assert_equals_a_run_from_scratch(tmp_path, config)


def test_a_damaged_file_of_the_parent_is_named_and_nothing_is_committed(tmp_path, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path)
    damaged = run(config).snapshot.files[0]
    open_storage(config.output.path).put(damaged.path, bytes(damaged.size_bytes))
    documents["new"] = {"text": "Added.", "lang": "en", "title": "N"}
    write_corpus(tmp_path / "corpus", documents)
    with pytest.raises(CorruptFileError, match=damaged.path):
        run(config)
    assert rows_of_numbers(config) == 1


def rows_of_numbers(config):
    return len(list(open_storage(config.output.path).list_files("_snapshots")))


def test_a_mass_delete_is_refused_also_when_embedding_anew(tmp_path, documents):
    from pipeline.errors import SourceError

    write_corpus(tmp_path / "corpus", documents)
    run(make_config(tmp_path))
    few = {name: documents[name] for name in sorted(documents)[:10]}
    write_corpus(tmp_path / "corpus", few)
    top = make_config(tmp_path, model={"layers": "top"})
    with pytest.raises(SourceError, match="90 of the snapshot's 100"):
        run(top, reembed=True)
    report = run(top, reembed=True, allow_mass_delete=True)
    ops = feed_of(top)
    assert {name for name, op in ops.items() if op == "update"} == set(few)
    assert sum(op == "delete" for op in ops.values()) == 90
    assert report.snapshot.num_documents == 10
    assert report.snapshot.schema.field("vector").type.list_size == DIM
