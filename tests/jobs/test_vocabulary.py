"""`elmo vocabulary` from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from elmo_model.vocabulary import Vocabulary
from jobs.command import main
from jobs.vocabulary import JOB
from pipeline.config import EmbedConfig, build
from pipeline.storage import open_storage
from pipeline.vocabulary_config import VocabularyConfig
from tests.pipeline.news_corpus import news_texts, plain_counts, write_texts

NUM_DOCUMENTS = 120


@pytest.fixture(scope="module")
def news(shared):
    return news_texts(shared, NUM_DOCUMENTS)


@pytest.fixture
def config_file(news, tmp_path):
    source = write_texts(tmp_path / "corpus", news, num_files=4)
    values = {
        "source": {"path": str(source), "id_column": "id"},
        "output": {"path": str(tmp_path / "out/vocabulary.txt")},
    }
    path = tmp_path / "vocabulary.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(config_file, *words):
    return main(JOB, ["--config", str(config_file), *words])


@pytest.mark.usefixtures("ray_cluster")
def test_the_vocabulary_is_written_and_the_result_says_what_it_covers(
    news, config_file, tmp_path, capsys
):
    assert run(config_file, "--json", "--set", "output.counts=true") == 0
    result = json.loads(capsys.readouterr().out)["result"]
    counts = plain_counts(news)
    vocabulary = Vocabulary.read(tmp_path / "out/vocabulary.txt")
    assert vocabulary == Vocabulary.from_counts(counts, 3)
    covered = sum(count for word, count in counts.items() if word in vocabulary)
    assert result["covered_share"] == covered / counts.total()
    expected = {
        "documents": NUM_DOCUMENTS,
        "tokens": counts.total(),
        "distinct_words": len(counts),
        "kept_words": len(vocabulary) - 3,
        "rarest_kept_count": 3,
        "faulty_words": 0,
        "rejected": {},
    }
    assert {name: result[name] for name in expected} == expected
    lines = (tmp_path / "out/vocabulary.counts.tsv").read_text().splitlines()
    assert dict(line.split("\t") for line in lines) == {
        word: str(counts[word]) for word in vocabulary.words[3:]
    }
    summary = json.loads((tmp_path / "out/vocabulary.summary.json").read_text())
    assert summary == result
    assert result["files"] == [str(tmp_path / "out" / name) for name in FILES]


FILES = ["vocabulary.txt", "vocabulary.counts.tsv", "vocabulary.summary.json"]


@pytest.mark.usefixtures("ray_cluster")
def test_the_text_result_is_for_people_and_an_old_file_is_replaced_only_when_asked(
    config_file, tmp_path, capsys
):
    flags = ["--quiet", "--set", "vocabulary.max_size=100"]
    assert run(config_file, *flags) == 0
    output = capsys.readouterr()
    assert output.out.startswith("kept 97 of ")
    assert "vocabulary.max_size left out" in output.out
    assert f"vocabulary: {tmp_path}/out/vocabulary.txt\n" in output.out
    assert output.err == ""
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["vocabulary.txt"]
    assert run(config_file, *flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(config_file, "--overwrite", "--set", "vocabulary.max_size=50") == 0
    assert len(Vocabulary.read(tmp_path / "out/vocabulary.txt")) == 50
    assert "documents" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
def test_rejected_rows_are_told_by_reason(config_file, tmp_path, capsys):
    (tmp_path / "corpus/bad.jsonl").write_text('{"id": "x", "text": ""}\n{\n')
    assert run(config_file, "--quiet") == 3
    assert "2 of 122 rows were rejected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(config_file, "--quiet", "--set", "run.max_rejected_share=0.02") == 0
    output = capsys.readouterr()
    assert "rejected rows: 1 bad_json, 1 empty_text" in output.out
    assert "bad.jsonl, offset 24" in output.err


def test_a_dry_run_says_what_would_be_done_and_reads_nothing(config_file, tmp_path, capsys):
    assert run(config_file, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["result"]
    assert (plan["files"], plan["tasks"], plan["buckets"]) == (4, 4, 1)
    assert plan["bytes"] == sum(path.stat().st_size for path in (tmp_path / "corpus").iterdir())
    assert run(config_file, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Would count the words of 4 files" in said
    assert "keep at most 799,997 words that occur at least 3 times" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "exit_code", "message"),
    [
        ("source.path=/no/such/corpus", 3, "/no/such/corpus"),
        ("source.text_columns=[body]", 3, "body"),
        ("output.path=.", 2, "found a directory; add a name"),
        ("output.path=s3://bucket", 2, "the name of the bucket is missing"),
        ("output.path=", 2, "output.path"),
        ("vocabulary.max_size=3", 2, "allow at least 4"),
        ("vocabulary.min_count=0", 2, "vocabulary.min_count"),
        ("vocabulary.size=3", 2, "did you mean vocabulary.max_size"),
        ("run.num_buckets=0", 2, "run.num_buckets"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(config_file, capsys, setting, exit_code, message):
    assert run(config_file, "--quiet", "--set", setting) == exit_code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_sections_of_an_embedding_run_are_taken_as_they_are():
    path = Path(__file__).resolve().parents[2] / "configs/demo.yaml"
    embedding = build(EmbedConfig, yaml.safe_load(path.read_text()), str(path))
    shared_sections = embedding.model_dump(include={"source", "text"})
    config = build(VocabularyConfig, shared_sections | {"output": {"path": "v.txt"}}, "test")
    assert (config.source, config.text) == (embedding.source, embedding.text)


@pytest.mark.s3
@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["moto", "rgw"])
def test_a_corpus_in_a_bucket_gets_its_vocabulary_there(server, request, news):
    url = request.getfixturevalue(f"{server}_url")
    storage = open_storage(url)
    for number in range(3):
        rows = [
            json.dumps({"id": f"d{place}", "text": news[place]})
            for place in range(number, len(news), 3)
        ]
        storage.put(f"corpus/part-{number}.jsonl", "\n".join(rows).encode())
    settings = [
        f"source.path={url}/corpus",
        f"output.path={url}/words/vocabulary.txt",
        "output.counts=true",
        "run.num_buckets=3",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "jobs.vocabulary", *words, "--json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [info.path for info in storage.list_files("words")] == [
        f"words/{name}" for name in sorted(FILES)
    ]
    content = storage.read_bytes("words/vocabulary.txt", 1 << 20)
    assert Vocabulary.from_bytes(content, "s3") == Vocabulary.from_counts(plain_counts(news), 3)
