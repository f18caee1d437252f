"""A secret is planted wherever a user may put one, and every byte that comes out is searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.command import Call, Job, JobResult, main
from jobs.embed import JOB as EMBED
from jobs.search import JOB as SEARCH
from jobs.snapshots import JOB as SNAPSHOTS
from pipeline.config import OutputConfig
from pipeline.errors import SourceError, StorageError
from pipeline.records import RejectedRow, rejected_table
from pipeline.redaction import is_secret_name, redact_message, redact_text, redact_values
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.snapshots import snapshot

ROOT = Path(__file__).parents[2]
# As AWS makes them: with a slash and a plus sign.
SECRET = "wJalrXUt/nFEMI+K7MDENG0bPxRfiCYplanted"
PARTS = (SECRET, "nFEMI+K7MDENG0", "bPxRfiCYplanted")


def assert_clean(*texts):
    for text in texts:
        for part in PARTS:
            assert part not in text, text


def run_job(job, words, tmp_path, capfd):
    """Everything that a job puts out: streams and result file."""
    result = tmp_path / "status.json"
    for more in ([], ["--json"], ["--debug"], ["--json", "--debug"]):
        code = main(job, [*words, *more, "--result", str(result)])
        out, err = capfd.readouterr()
        assert_clean(out, err, result.read_text())
        json.loads(result.read_text())
    return code, err


URLS = (
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/corpus/",
    f"https://user:{SECRET}@host.example/corpus.parquet",
    f"ftp://user:x@{SECRET}@host.example/corpus.parquet",
    f"https://host.example/c.parquet?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    f"https://host.example/c.parquet?sv=1&sig={SECRET}",
    f"s3://bucket/c.parquet?token={SECRET}",
    f"simplecache::s3://key:{SECRET}@bucket/c",
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("key", ["source.path", "output.path", "model.directory"])
def test_secrets_in_urls_of_the_configuration(tmp_path, capfd, url, key):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a b\n")
    values = {"source.path": str(corpus), "output.path": str(tmp_path / "out")}
    values |= {"model.directory": str(tmp_path / "no-model"), key: url}
    words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    code, _ = run_job(EMBED, [*words, "--dry-run"], tmp_path, capfd)
    assert code
    config = tmp_path / "c.yaml"
    sections = {}
    for name, value in values.items():
        section, _, last = name.partition(".")
        sections.setdefault(section, {})[last] = value
    config.write_text(json.dumps(sections))
    run_job(EMBED, ["--config", str(config)], tmp_path, capfd)


@pytest.mark.parametrize("url", URLS[:3])
def test_secrets_in_other_places_for_urls(tmp_path, capfd, url):
    run_job(EMBED, ["--config", url], tmp_path, capfd)
    run_job(SNAPSHOTS, ["list", url], tmp_path, capfd)
    run_job(SEARCH, [url, "a query"], tmp_path, capfd)
    assert main(SNAPSHOTS, ["list", str(tmp_path), "--result", url])
    assert_clean(*capfd.readouterr())


BROKEN_YAML = (
    "source: {path: x, password: 'SECRET\n",
    "secret_access_key: SECRET: more: colons\n",
    "source: *SECRET\n",
    "source: !SECRET x\n",
    "source: &SECRET\n  - a\n b\n",
    "'SECRET': 1\n'SECRET': 2\n"[:0] + "source: @SECRET\n",
    "source: `SECRET\n",
    "SECRET\n",
    "source: SECRET\n\tpath: x\n",
    "source: 'SECRET\x00'\n",
    "output: {aws_secret_access_key: SECRET, path: x}\n",
    "source: {path: {password: SECRET}}\n",
    "run: {num_actors: '?token=SECRET'}\n",
    "[SECRET]\n",
)


@pytest.mark.parametrize("text", BROKEN_YAML, ids=range(len(BROKEN_YAML)))
def test_secrets_in_a_configuration_that_is_wrong(tmp_path, capfd, text):
    config = tmp_path / "c.yaml"
    config.write_text(text.replace("SECRET", SECRET))
    code, _ = run_job(EMBED, ["--config", str(config)], tmp_path, capfd)
    assert code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "secret_key=" + SECRET],
        ["--set", "output.secret=" + SECRET],
        ["--set", "source.path='" + SECRET],
        ["--set", "source.path=[" + SECRET],
        ["--set", SECRET],
        ["--password", SECRET],
        ["--aws-secret-access-key=" + SECRET],
        ["--token", SECRET],
        ["--api-key", SECRET],
    ],
)
def test_secrets_on_the_command_line(tmp_path, capfd, words):
    code, _ = run_job(EMBED, words, tmp_path, capfd)
    assert code == 2


def raising(error):
    def run(call: Call) -> JobResult:
        try:
            raise OSError(f"<StringToSign> {SECRET} </StringToSign>")
        except OSError as cause:
            raise error from cause

    return Job(name="trial", summary="try", run=run)


@pytest.mark.parametrize(
    "variable",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MY_DB_PASSWORD", "RAY_AUTH_TOKEN"]
    + ["GITHUB_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "OPENAI_API_KEY"],
)
def test_secrets_of_the_environment_in_errors_of_any_kind(tmp_path, capfd, monkeypatch, variable):
    monkeypatch.setenv(variable, SECRET)
    for error in (SourceError, StorageError, RuntimeError, OSError, KeyError):
        run_job(raising(error(f"failed with {SECRET}!")), [], tmp_path, capfd)

    def show(call: Call) -> JobResult:
        return JobResult({"config": {SECRET: [SECRET]}, "object": Path(SECRET)}, f"is {SECRET}")

    run_job(Job(name="trial", summary="try", run=show), [], tmp_path, capfd)


def test_a_secret_with_signs_that_json_escapes_is_found(tmp_path, capfd, monkeypatch):
    secret = 'pass"word\\with\nsigns-planted'
    monkeypatch.setenv("DB_PASSWORD", secret)
    assert main(raising(SourceError(f"no: {secret}")), ["--json"]) == 3
    out, err = capfd.readouterr()
    assert "signs-planted" not in out + err


def test_secrets_reach_no_manifest_run_record_or_rejected_row(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    storage = open_storage(str(tmp_path / "store"))
    made = snapshot(
        config={"source": {"path": URLS[0], "note": f"see {SECRET}"}, "api_key": SECRET},
        encoder={"options": {"comment": SECRET}},
        lineage={"source": list(URLS), "storage_token": SECRET},
    )
    SnapshotStore(storage).commit(made)
    table = rejected_table(
        [RejectedRow(url, 0, "a", "read", "x", f"{url}: no {SECRET}") for url in URLS]
    )
    pq.write_table(
        table, tmp_path / "store" / "rejected.parquet", compression="none", use_dictionary=False
    )
    for info in storage.list_files():
        data = storage.read_bytes(info.path, 1 << 20)
        assert all(part.encode() not in data for part in PARTS), info.path
    assert pa.types.is_string(table["source"].type)


def test_a_store_that_refuses_is_reported_without_its_credentials(
    tmp_path, capfd, monkeypatch, moto_url
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET[::-1])
    words = ["list", "s3://no-such-bucket-at-all/x"]
    code, err = run_job(SNAPSHOTS, words, tmp_path, capfd)
    assert code == 2
    assert SECRET[::-1] not in err


def test_what_a_driver_prints_when_it_is_run_as_a_program(moto_url):
    """No log of another library's gets past: the whole process, with its debug output."""
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}
    command = [sys.executable, "-m", "jobs.snapshots", "list", "s3://no-bucket/x", "--debug"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no-bucket" in done.stderr
    assert_clean(done.stdout, done.stderr)


def test_names_of_secrets():
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "password",
        "apiKey",
        "storage_key",
        "accessKey",
        "HF_TOKEN",
        "client_secret",
        "AZURE_STORAGE_CONNECTION_STRING",
    ):
        assert is_secret_name(name), name
    for name in (
        "PWD",
        "max_tokens",
        "tokenizer",
        "AWS_ACCESS_KEY_ID",
        "RAY_AUTH_TOKEN_PATH",
        "id_column",
        "sort_key",
        "unroll_steps",
        "n_tokens_vocab",
        "",
    ):
        assert not is_secret_name(name), name


def test_ordinary_text_and_values_are_left_alone():
    values = {"a": [1, None, True, 1.5], "tokenizer": "words", "secret": None, "b": {"c": "s3://x"}}
    assert redact_values(values, by_name=True) == values
    assert redact_values({"token": "sign", "password": "word"}) == {
        "token": "sign",
        "password": "word",
    }
    for text in (
        "embedded_tokens: 5, max_tokens=4096",
        "http://host:8080/path/a@b",
        "s3://bucket/x@y/z",
        "tokens/s: 12; the token 'the' has no id",
        "mail@example.org: https://example.org/?page=2",
    ):
        assert redact_message(text) == text
    assert redact_text("s3://b/x?versionId=1") == "s3://b/x?versionId=1"


def test_a_configuration_is_shown_as_it_is_but_for_its_secrets():
    config = OutputConfig(path="s3://bucket/vectors")
    assert redact_values(config.model_dump(), by_name=True) == config.model_dump()


@pytest.mark.parametrize(
    "piece", ["x", "a://", "s3://a:", "?", "?a", "?token", "password", "password ", "bearer ", " "]
)
def test_long_texts_are_searched_in_linear_time(piece):
    """In quadratic time a megabyte would take until the test's time is up."""
    text = piece * ((1 << 20) // len(piece))
    assert SECRET not in redact_message(f"{text} s3://user:{SECRET}@bucket")
