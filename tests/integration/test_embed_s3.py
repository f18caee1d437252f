"""The main job as a user runs it, between directories of an S3 bucket, on real servers."""

import json
import lzma
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs
import pytest

from elmo_model import Encoder
from pipeline.config import TextConfig
from pipeline.storage import open_storage
from pipeline.text import tokenise

pytestmark = pytest.mark.s3

NUM_DOCUMENTS = 150
# Stored as float32; what is left is the order of additions, which depends on the batch.
TOLERANCE = 2e-6


@pytest.fixture
def news(shared):
    with lzma.open(shared / "data/bbc-news/bbc.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(NUM_DOCUMENTS), file, strict=False)]
    return {f"news-{n}": {"text": row["text"], "part": f"p{n % 2}"} for n, row in enumerate(rows)}


@pytest.fixture
def model(shared):
    folder = shared / "golden/bilm-tf"
    return {
        "options_file": str(folder / "options.json"),
        "weights_file": str(folder / "lm_weights.hdf5"),
    }


def write_corpus(url, documents):
    storage = open_storage(url)
    for part in ("p0", "p1"):
        lines = [
            json.dumps({"id": name, "text": document["text"]})
            for name, document in documents.items()
            if document["part"] == part
        ]
        storage.put(f"corpus/part={part}/rows.jsonl", "\n".join(lines).encode())


def settings(url, model, **more):
    values = {
        "source.path": f"{url}/corpus",
        "source.id_column": "id",
        "source.partition_columns": "[part]",
        "vectors.dtype": "float32",
        "output.path": f"{url}/vectors",
        "run.num_actors": 2,
        **{f"model.{name}": path for name, path in model.items()},
        **more,
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.embed", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(*arguments):
    process = start(*arguments)
    out, log = process.communicate(timeout=480)
    assert process.returncode == 0, out + log
    return json.loads(out)["result"]


def read_with_pyarrow_alone(url):
    """As docs/FORMAT.md tells a stranger to read a snapshot."""
    filesystem, root = pyarrow.fs.FileSystem.from_uri(url + "/vectors")
    selector = pyarrow.fs.FileSelector(f"{root}/_snapshots")
    newest = max(info.path for info in filesystem.get_file_info(selector))
    with filesystem.open_input_stream(newest) as stream:
        manifest = json.loads(stream.read())
    dataset = pads.dataset(
        [f"{root}/{file['path']}" for file in manifest["files"]],
        filesystem=filesystem,
        format="parquet",
        partitioning=pads.partitioning(flavor="hive"),
        partition_base_dir=f"{root}/data",
    )
    return manifest, dataset.to_table()


def reference_vectors(model, documents):
    """Mean over layers and tokens, one sentence at a time through the plain encoder."""
    encoder = Encoder.from_files(model["options_file"], model["weights_file"])
    table = pa.table({"text": [document["text"] for document in documents.values()]})
    tokens = tokenise(table, TextConfig())
    vectors = {}
    for name, row in zip(documents, tokens.to_pylist(), strict=True):
        ends = np.cumsum(row["sentence_lengths"])
        pieces = [
            encoder.encode([row["tokens"][end - length : end]]).layers.mean(0)[0]
            for end, length in zip(ends, row["sentence_lengths"], strict=True)
        ]
        vectors[name] = np.concatenate([piece.numpy() for piece in pieces]).mean(axis=0)
    return vectors


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("server", ["moto", "rgw"])
def test_news_in_a_bucket_become_vectors_that_pyarrow_alone_reads(server, request, news, model):
    url = request.getfixturevalue(f"{server}_url")
    write_corpus(url, news)
    done = run(*settings(url, model))
    # The news repeat themselves, but their ids do not.
    assert (done["new"], done["rejected"]) == (len(news), {})
    manifest, table = read_with_pyarrow_alone(url)
    assert manifest["counts"]["documents"] == len(news)
    assert table.schema.field("vector").type.list_size == 32
    rows = {row["id"]: row for row in table.to_pylist()}
    assert {name: row["part"] for name, row in rows.items()} == {
        name: document["part"] for name, document in news.items()
    }
    few = dict(list(news.items())[:8])
    for name, expected in reference_vectors(model, few).items():
        np.testing.assert_allclose(rows[name]["vector"], expected, atol=TOLERANCE)

    assert run(*settings(url, model))["status"] == "unchanged"
    extra = {f"extra-{n}": {"text": f"Ten more, number {n}.", "part": "p1"} for n in range(10)}
    write_corpus(url, {**news, **extra})
    again = run(*settings(url, model))
    assert (again["new"], again["changed"], again["embedded_documents"]) == (10, 0, 10)
    assert len(read_with_pyarrow_alone(url)[1]) == len(news) + 10


@pytest.mark.timeout(600)
def test_a_store_without_put_if_absent_is_refused_before_any_work(rclone_url, news, model):
    write_corpus(rclone_url, dict(list(news.items())[:4]))
    process = start(*settings(rclone_url, model))
    out, log = process.communicate(timeout=480)
    assert process.returncode == 2
    assert "does not honour put-if-absent" in json.loads(out)["error"]
    assert "Traceback" not in log
    storage = open_storage(rclone_url)
    # After raced creates rclone may go on listing a file that a HEAD says is gone: its own fault.
    assert not [info for info in storage.list_files("vectors") if storage.exists(info.path)]


@pytest.mark.timeout(600)
def test_a_run_killed_in_the_middle_shows_no_reader_anything(moto_url, news, model):
    write_corpus(moto_url, news)
    small = settings(moto_url, model, **{"run.documents_per_task": 5})
    process = start(*small)
    storage = open_storage(moto_url)
    while not storage.list_files("vectors/data"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not storage.list_files("vectors/_snapshots")
    done = run(*small)
    assert done["snapshot"] == 1
    _, table = read_with_pyarrow_alone(moto_url)
    assert len(table) == len(news) == len(pc.unique(table["id"]))
