"""`elmo corpus`, from installed packages to partitioned Parquet."""

from __future__ import annotations

import hashlib
import json

import pyarrow.dataset as pads
import pytest

from jobs.command import main
from jobs.corpus import JOB
from pipeline.storage import open_storage

PACKAGES = ["click", "jinja2", "packaging"]


def run(*words: str) -> int:
    return main(JOB, ["--packages", *PACKAGES, "--processes", "1", "--quiet", *words])


def contents(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_corpus_is_hive_partitioned_parquet_of_english_text(tmp_path, capsys):
    assert run("--output", str(tmp_path / "corpus"), "--json") == 0
    result = json.loads(capsys.readouterr().out)["result"]
    table = pads.dataset(tmp_path / "corpus", partitioning="hive").to_table()
    assert set(contents(tmp_path / "corpus")) == {f"package={p}/part-0.parquet" for p in PACKAGES}
    assert table.column_names == ["id", "kind", "text", "package"]
    rows = table.to_pylist()
    assert len(rows) == result["documents"] > 300
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["id"].split(".")[0] == row["package"] for row in rows)
    assert {row["kind"] for row in rows} == {"module", "class", "function", "method"}
    assert all(len(row["text"].split()) >= 5 for row in rows)
    assert not [row["id"] for row in rows if ">>>" in row["text"] or "::\n" in row["text"]]
    assert sum(result["packages"].values()) == len(rows)
    found = {row["id"]: row["text"] for row in rows}
    assert found["click.decorators.pass_context"].startswith("Marks a callback as wanting")


def test_the_same_environment_gives_the_same_bytes(tmp_path, capsys):
    assert run("--output", str(tmp_path / "a")) == 0
    assert run("--output", str(tmp_path / "b")) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_corpus_is_replaced_only_when_asked(tmp_path, capsys):
    output = str(tmp_path / "corpus")
    assert run("--output", output) == 0
    before = contents(tmp_path / "corpus")
    assert run("--output", output, "--max-documents", "10") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(tmp_path / "corpus") == before
    assert run("--output", output, "--max-documents", "10", "--overwrite") == 0
    assert pads.dataset(tmp_path / "corpus").count_rows() == 10
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_other_files_are_never_replaced(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    assert run("--output", str(tmp_path), "--overwrite") == 2
    assert "letter.txt" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_an_object_store_loses_the_files_of_an_older_corpus(capsys):
    url = "memory://corpus-job/corpus"
    assert run("--output", url) == 0
    storage = open_storage(url)
    storage.put("package=older/part-0.parquet", b"old")
    assert run("--output", url, "--overwrite") == 0
    assert [info.path for info in storage.list_files()] == [
        f"package={package}/part-0.parquet" for package in PACKAGES
    ]


def test_a_sample_is_spread_over_the_packages(tmp_path, capsys):
    assert run("--output", str(tmp_path / "c"), "--max-documents", "60") == 0
    table = pads.dataset(tmp_path / "c", partitioning="hive").to_table()
    assert len(table) == 60
    assert set(table["package"].to_pylist()) == set(PACKAGES)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert run("--output", str(tmp_path / "c"), "--dry-run") == 0
    assert "Would parse" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_summary_names_packages_documents_and_size(tmp_path, capsys):
    assert run("--output", str(tmp_path / "c")) == 0
    out = capsys.readouterr().out
    assert out.startswith("package    documents  text")
    assert "of 3 packages" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--packages", "nothing_here"], 3), (["--max-documents", "0"], 2), (["--processes", "x"], 2)],
)
def test_wrong_flags_are_explained(tmp_path, capsys, words, code):
    assert run("--output", str(tmp_path / "c"), *words) == code
    assert list(tmp_path.iterdir()) == []
