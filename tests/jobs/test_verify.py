"""The job `verify`: its verdict, its text and its exit code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.command import main
from jobs.verify import JOB
from pipeline.config import EmbedConfig, build
from pipeline.model import ElmoLoader, describe, load_encoder
from pipeline.prepare import table_schema
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.storage import open_storage
from pipeline.text import tokenise
from pipeline.worker import EmbedWorker, WorkerSpec
from tests.elmo_model.random_models import write_model
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


@pytest.fixture(scope="module")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A snapshot of sentence vectors that a real model made, and its corpus beside it."""
    directory = tmp_path_factory.mktemp("embedded")
    url = str(directory / "vectors")
    lines = [f"The cat number {index} sat. It was black." for index in range(40)]
    (directory / "corpus.txt").write_text("\n".join(lines))
    model = {name: str(path) for name, path in write_model(directory).items()}
    values = {
        "source": {"path": str(directory / "corpus.txt"), "format": "text"},
        "model": model,
        "vectors": {"level": "sentence"},
        "output": {"path": url},
    }
    config = build(EmbedConfig, values, "test")
    discovery = discover(config.source)
    encoder = describe(config, load_encoder(config.model))
    loader = ElmoLoader(config, 1)
    worker = EmbedWorker(WorkerSpec(config, "run-1", discovery.carried_fields, loader))
    files = [
        file
        for split in discovery.splits
        for batch in read_documents(split, config.source, config.text)
        for file in worker.embed(tokenise(batch.documents, config.text)).files
    ]
    made = snapshot(
        files,
        schema=table_schema(config, discovery, encoder),
        fingerprint=encoder.fingerprint,
        config=config.model_dump(mode="json"),
    )
    SnapshotStore(open_storage(url)).commit(made)
    return url


def result_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(JOB, [*words, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)["result"]


def test_a_sample_is_embedded_again_and_comes_out_the_same(embedded_url, capsys):
    found = result_of(capsys, embedded_url)
    assert found["documents"] == 40
    assert found["rows"] == 80
    assert found["reembedded"]["num_compared"] == 16
    assert found["reembedded"]["max_difference"] < found["reembedded"]["tolerance"] / 5
    assert found["sample_missing"] is None
    assert main(JOB, [embedded_url, "--quiet", "--sample", "3"]) == 0
    assert "3 documents embedded again" in capsys.readouterr().out


def test_the_sample_can_be_left_out(embedded_url, capsys):
    assert result_of(capsys, embedded_url, "--sample", "0")["reembedded"] is None


def test_what_the_sample_lacks_is_said_and_is_an_error_where_it_was_asked_for(
    embedded_url, capsys, tmp_path
):
    copy = shutil.copytree(Path(embedded_url).parent, tmp_path / "copy")
    store = SnapshotStore(open_storage(str(copy / "vectors")))
    made = store.load(1)
    corpus = copy / "corpus.txt"
    gone = {"config": {**made.config, "source": {**made.config["source"], "path": str(corpus)}}}
    corpus.unlink()
    store.commit(replace(made, number=2, parent=1, run_id="run-2", **gone))
    found = result_of(capsys, store.url)
    assert str(corpus) in found["sample_missing"]
    assert found["reembedded"] is None
    assert main(JOB, [store.url, "--quiet", "--sample", "3"]) == 3
    no_model = {"config": {**made.config, "model": {"directory": str(copy / "nothing")}}}
    store.commit(replace(made, number=3, parent=2, run_id="run-3", **no_model))
    assert main(JOB, [store.url, "--quiet"]) == 0
    assert "no documents were embedded again" in capsys.readouterr().out
    assert main(JOB, [store.url, "--quiet", "--sample", "3"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no snapshot here"),
        (["--sample", "-1"], "--sample -1"),
        (["--threads", "0"], "--threads 0"),
        (["--number", "4"], "number"),
    ],
)
def test_wrong_words_are_the_users_to_mend(local_url, capsys, words, message):
    assert main(JOB, [local_url, "--quiet", *words]) == 2
    assert message in capsys.readouterr().err.replace("no snapshot 4", "number")
