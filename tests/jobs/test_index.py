"""`elmo index` and `elmo search --index` from the command line, over a corpus that was embedded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jobs.index
import jobs.search
from jobs.command import main
from pipeline.config import EmbedConfig, build
from pipeline.model import ElmoLoader, describe, load_encoder
from pipeline.prepare import table_schema
from pipeline.snapshot.commit import SnapshotStore
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.storage import open_storage
from pipeline.text import tokenise
from pipeline.worker import EmbedWorker, WorkerSpec
from tests.elmo_model.random_models import write_model
from tests.pipeline.index.indexing import new_url
from tests.pipeline.snapshots import snapshot

NUM_DOCUMENTS = 40
# Vectors of length 1 are stored as float16 once more.
SCORE_TOLERANCE = 1e-3


def embed(directory: Path, level: str) -> str:
    """A snapshot that a real model made of a corpus in two languages; returns its URL."""
    url = str(directory / "vectors")
    lines = [
        {"id": f"doc-{n}", "text": f"The cat number {n} sat. It was black.", "language": "en"}
        for n in range(NUM_DOCUMENTS)
    ]
    lines[3] |= {"text": "Die Katze schlief. Es war Nacht.", "language": "de"}
    corpus = directory / "corpus.jsonl"
    corpus.write_text("\n".join(map(json.dumps, lines)))
    values = {
        "source": {
            "path": str(corpus),
            "id_column": "id",
            "partition_columns": ["language"],
            "carry_columns": ["text"],
        },
        "model": {name: str(path) for name, path in write_model(directory).items()},
        "vectors": {"level": level},
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
        for file in worker.embed(tokenise(batch.documents, config.text, keep_text=True)).files
    ]
    made = snapshot(
        files,
        schema=table_schema(config, discovery, encoder),
        partition_columns=("language",),
        fingerprint=encoder.fingerprint,
        config=config.model_dump(mode="json"),
    )
    SnapshotStore(open_storage(url)).commit(made)
    return url


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> str:
    return embed(tmp_path_factory.mktemp("documents"), "document")


@pytest.fixture(scope="module")
def index(vectors) -> str:
    url = f"{vectors}-index"
    assert main(jobs.index.JOB, [*flags(vectors, url), "--quiet"]) == 0
    return url


@pytest.fixture(scope="module")
def served_index(vectors) -> str:
    url = new_url("opensearch")
    words = flags(vectors, url, "index.kind=opensearch")
    assert main(jobs.index.JOB, [*words, "--quiet"]) == 0
    return url


def flags(snapshot_url: str, index_url: str, *settings: str) -> list[str]:
    pairs = [f"snapshot.path={snapshot_url}", f"index.path={index_url}", *settings]
    return [word for pair in pairs for word in ("--set", pair)]


def result(job: Any, words: list[str], capsys, code: int = 0) -> dict:
    assert main(job, [*words, "--json", "--quiet"]) == code
    status = json.loads(capsys.readouterr().out)
    return status.get("result", status)


def hits(words: list[str], capsys) -> list[dict]:
    return result(jobs.search.JOB, words, capsys)["queries"][0]["hits"]


def test_it_says_what_it_would_do_and_what_it_did(vectors, tmp_path, capsys):
    words = flags(vectors, str(tmp_path / "index"), "faiss.type=hnsw", "faiss.dtype=float32")
    planned = result(jobs.index.JOB, [*words, "--dry-run"], capsys)
    assert (planned["action"], planned["rows"]) == ("full", NUM_DOCUMENTS)
    assert not (tmp_path / "index").exists()
    done = result(jobs.index.JOB, words, capsys)
    assert (done["action"], done["is_published"], done["rows"]) == ("full", True, NUM_DOCUMENTS)
    assert done["quality"]["recall"] == 1
    assert main(jobs.index.JOB, [*words, "--quiet"]) == 0
    assert "nothing to do: it holds snapshot 1 already" in capsys.readouterr().out


def test_an_index_below_the_bar_has_its_own_exit_code_and_says_what_was_found(
    vectors, tmp_path, capsys
):
    settings = ("faiss.type=ivf", "faiss.num_lists=20", "faiss.num_probes=1")
    words = flags(vectors, str(tmp_path / "index"), *settings, "quality.min_recall=0.99")
    assert main(jobs.index.JOB, [*words, "--quiet"]) == jobs.index.EXIT_REFUSED == 10
    text = capsys.readouterr().out
    assert "problem: recall@10 is 0." in text
    assert "NOT PUBLISHED" in text
    assert main(jobs.search.JOB, [vectors, "cat", "--index", str(tmp_path / "index")]) == 2
    assert "there is no index here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("index.kind=annoy", "index.kind"),
        ("snapshot.vector_column=vector_7", "vector_7 is not in snapshot 1"),
        ("snapshot.number=4", "no snapshot 4"),
        ("faiss.lists=4", "faiss.lists: unknown key"),
    ],
)
def test_wrong_settings_are_the_users_to_mend(vectors, tmp_path, capsys, setting, message):
    words = flags(vectors, str(tmp_path / "index"), setting)
    assert main(jobs.index.JOB, [*words, "--quiet"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["index", "served_index"])
@pytest.mark.parametrize("where", [[], ["--where", "language=de"]])
def test_an_index_answers_a_text_as_reading_all_vectors_does(vectors, kind, request, capsys, where):
    index = request.getfixturevalue(kind)
    capsys.readouterr()
    query = [vectors, "The dog number 7 sat.", "--hits", "5", *where]
    exact = hits([*query, "--space", "plain"], capsys)
    found = hits([*query, "--index", index], capsys)
    assert len(found) == (1 if where else 5)
    # Documents of almost the same words: which one is last of the five, rounding decides.
    scores = [hit["score"] for hit in found]
    assert scores == pytest.approx([hit["score"] for hit in exact], abs=SCORE_TOLERANCE)
    assert found[0]["columns"].keys() == {"language"}
    assert "sat." in found[0]["excerpt"] or "schlief" in found[0]["excerpt"]


def test_an_index_of_lancedb_answers_as_well(vectors, tmp_path, capsys):
    url = str(tmp_path / "an index, 100 % of it")
    words = flags(vectors, url, "index.kind=lancedb", "lancedb.dtype=float32")
    done = result(jobs.index.JOB, words, capsys)
    assert (done["is_published"], done["quality"]["recall"]) == (True, 1)
    query = [vectors, "The dog number 7 sat.", "--where", "language=de"]
    exact = hits([*query, "--space", "plain"], capsys)
    (hit,) = hits([*query, "--index", url], capsys)
    assert (hit["id"], hit["columns"]) == ("doc-3", {"language": "de"})
    assert hit["score"] == pytest.approx(exact[0]["score"], abs=SCORE_TOLERANCE)
    assert "schlief" in hit["excerpt"]


def test_what_is_like_a_document_leaves_the_document_out(vectors, index, capsys):
    like = [vectors, "--like", "doc-3", "--hits", "4"]
    for words in ([*like, "--index", index], like, [*like, "--space", "plain"]):
        found = hits(words, capsys)
        assert len(found) == 4
        assert "doc-3" not in {hit["id"] for hit in found}
    both = result(jobs.search.JOB, [*like, "a cat", "--index", index], capsys)["queries"]
    assert [query["query"] for query in both] == ["a cat", "like doc-3"]
    assert main(jobs.search.JOB, [vectors, "--like", "doc-99", "--index", index]) == 2
    assert "--like doc-99: no such document in snapshot 1" in capsys.readouterr().err


def test_hits_are_shown_as_a_table(vectors, index, capsys):
    words = [vectors, "a cat", "--index", index, "--hits", "2", "--quiet"]
    assert main(jobs.search.JOB, words) == 0
    text = capsys.readouterr().out
    assert text.startswith("query: a cat\ncosine")
    assert text.count("doc-") == 2
    assert "The cat number" in text


def test_an_index_of_another_encoder_is_refused(vectors, tmp_path, capsys):
    store = SnapshotStore(open_storage(vectors))
    other = SnapshotStore(open_storage(str(tmp_path / "vectors")))
    made = store.load(1)
    for file in made.files:
        data = store.storage.read_bytes(file.path, 1 << 30)
        other.storage.put(file.path, data)
    other.commit(replace(made, fingerprint="0" * 64))
    index = str(tmp_path / "index")
    assert main(jobs.index.JOB, [*flags(other.url, index), "--quiet"]) == 0
    capsys.readouterr()
    failed = result(jobs.search.JOB, [vectors, "a cat", "--index", index], capsys, code=2)
    assert failed["error_type"] == "CompatibilityError"
    failed = result(jobs.index.JOB, flags(vectors, index), capsys, code=2)
    assert failed["error_type"] == "CompatibilityError"
    assert "--rebuild" in failed["error"]
    assert main(jobs.index.JOB, [*flags(vectors, index), "--rebuild", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "--number", "1"], "leave out --number"),
        (["cat", "--layer", "0"], "leave out --layer"),
        (["cat", "--space", "white"], "leave out --space"),
        (["cat", "--word", "cat"], "leave out --index"),
        (["cat", "--hits", "0"], "--hits 0"),
        (["cat", "--where", "day=1"], "expected COLUMN=VALUE with one of id, language"),
        ([], "at least one text"),
    ],
)
def test_what_an_index_settles_itself_cannot_be_asked_for(vectors, index, capsys, words, message):
    assert main(jobs.search.JOB, [vectors, "--index", index, *words]) == 2
    assert message in capsys.readouterr().err


def test_sentences_are_rows_of_their_own(tmp_path, capsys):
    vectors, index = embed(tmp_path, "sentence"), str(tmp_path / "index")
    done = result(jobs.index.JOB, flags(vectors, index, "faiss.dtype=float32"), capsys)
    assert done["rows"] == 2 * NUM_DOCUMENTS
    assert done["quality"]["recall"] == 1
    found = hits([vectors, "It was black.", "--index", index, "--hits", "3"], capsys)
    assert {hit["columns"]["sentence_index"] for hit in found} == {1}
    assert found[0]["columns"]["start"] > 0
    assert "It was black." in found[0]["excerpt"]
    like = hits([vectors, "--like", "doc-5", "--index", index, "--hits", "70"], capsys)
    assert len(like) == 70
    assert "doc-5" not in {hit["id"] for hit in like}
