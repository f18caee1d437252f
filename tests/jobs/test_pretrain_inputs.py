"""`elmo pretrain` with inputs that are wrong, odd or damaged: what it says, and what it keeps."""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.command import main
from jobs.pretrain import JOB
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus

MARKS = "<S>\n</S>\n<UNK>\n"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture
def pretrain(tmp_path, capsys):
    """Runs the job; gives its exit code, its status and its log."""

    def run(source, *flags, name="model", **training):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(toy_config(source, tmp_path / name, **training)))
        words = [word for value in flags for word in ("--set", value)]
        code = main(JOB, ["--config", str(path), "--json", *words])
        output = capsys.readouterr()
        return code, json.loads(output.out), output.err

    return run


def write_documents(path, texts):
    rows = [{"id": f"d{k}", "text": text} for k, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_names_the_file_and_what_is_needed(pretrain, tmp_path, content):
    source = tmp_path / "empty.jsonl"
    source.write_text(content)
    code, status, _ = pretrain(source)
    assert code == 3
    assert f"{source}: expected at least two different documents" in status["error"]
    assert not (tmp_path / "model").exists()


def test_a_wrong_path_is_said(pretrain, tmp_path):
    code, status, _ = pretrain(tmp_path / "no-such-place")
    assert code == 3
    assert "no-such-place" in status["error"]
    assert list(tmp_path.glob("model*")) == [tmp_path / "model.yaml"]


def test_unreadable_rows_are_told_kept_and_do_not_stop_the_training(pretrain, toy, tmp_path):
    source = tmp_path / "c.jsonl"
    bad = ["{", '{"id": "x", "text": ""}', '{"id": "y", "text": 7}']
    source.write_bytes(toy.read_bytes() + b"\xff\n" + "\n".join(bad).encode() + b"\n")
    code, status, log = pretrain(source, max_steps=1)
    assert code == 0, status
    codes = status["result"]["rejected_by_code"]
    assert sum(codes.values()) == 4
    assert {"empty_text", "wrong_type", "bad_json"} <= codes.keys()
    assert "4 of 304 rows were rejected: " in log
    assert f"empty_text: {source}, offset " in log
    (file,) = (tmp_path / "model.training/text").glob("*/rejected/*.parquet")
    assert str(file.parent) in log
    assert sorted(pq.read_table(file)["code"].to_pylist()) == sorted(
        code for code, count in codes.items() for _ in range(count)
    )


def test_a_corpus_of_which_all_rows_are_rejected_says_why(pretrain, tmp_path):
    source = write_documents(tmp_path / "c.jsonl", ["", " "])
    code, status, _ = pretrain(source)
    assert code == 3
    assert "2 of 2 rows were rejected (" in status["error"]
    assert f"the first as empty_text: {source}, offset 0: " in status["error"]
    assert "All rejected rows: " in status["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the\ncat\n", "<S>, </S>, <UNK> missing among 2 words"),
        (MARKS + "cat\ndog\ncat\n", "'cat' is both word 3 and word 5"),
        (MARKS + "cat\n\ndog\n", "word 4, '', is empty"),
        (MARKS + "zyzzyva\n", "give one that was made for this text"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(pretrain, toy, tmp_path, content, message):
    path = tmp_path / "words.txt"
    path.write_text(content)
    code, status, _ = pretrain(toy, f"vocabulary.file={path}")
    assert code in (2, 3)
    assert str(path) in status["error"]
    assert message in status["error"]


def test_a_corpus_of_one_word_is_learned(pretrain, tmp_path):
    texts = ["\n\n".join(["buffalo " * 5] * length) for length in range(1, 120)]
    code, status, _ = pretrain(write_documents(tmp_path / "c.jsonl", texts), max_steps=4)
    assert code == 0, status
    assert status["result"]["vocabulary"]["words"] == 4
    assert status["result"]["vocabulary"]["covered_share"] == 1
    assert math.isfinite(status["result"]["perplexity"][-1]["mean"])


def test_words_longer_than_the_model_reads_are_learned(pretrain, tmp_path):
    long = ["x" * 51, "é" * 26, "y" * 400]
    texts = [" ".join(f"{word} is in story {number}." for word in long) for number in range(200)]
    source = write_documents(tmp_path / "c.jsonl", texts)
    code, status, _ = pretrain(source, "architecture.max_characters=50", max_steps=4)
    assert code == 0, status
    assert math.isfinite(status["result"]["perplexity"][-1]["mean"])
    words = (tmp_path / "model/vocabulary.txt").read_text().split("\n")
    assert set(long) <= set(words)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """The folder of a training of 4 steps, with a checkpoint at 2 and at 4."""
    folder = tmp_path_factory.mktemp("trained")
    config = toy_config(toy, folder / "model", max_steps=4)
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    assert main(JOB, ["--config", str(folder / "model.yaml"), "--quiet"]) == 0
    return folder


def begun(trained, tmp_path):
    """A copy of the training without its model, as if it had been interrupted at step 4."""
    shutil.copytree(trained / "model.training", tmp_path / "model.training")
    return tmp_path / "model.training/checkpoints"


def test_a_truncated_checkpoint_is_told_and_the_one_before_is_taken(
    pretrain, toy, trained, tmp_path
):
    path = begun(trained, tmp_path) / "step-000000004/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, status, log = pretrain(toy, max_steps=6)
    assert code == 0, status
    assert f"{path}: expected the " in log
    assert "the checkpoint before it is taken" in log
    assert "going on from step 2" in log
    assert status["result"]["steps"] == 6


def test_if_no_checkpoint_is_sound_the_training_does_not_begin_anew_by_itself(
    pretrain, toy, trained, tmp_path
):
    for path in begun(trained, tmp_path).glob("*/model.safetensors"):
        path.write_bytes(b"")
    code, status, _ = pretrain(toy, max_steps=6)
    assert code not in (0, 1)
    assert "no other checkpoint of this training can be read" in status["error"]
    assert "--overwrite" in status["error"]
    assert not (tmp_path / "model").exists()


def test_the_checkpoint_of_another_model_is_refused_with_both_shapes(
    pretrain, toy, trained, tmp_path
):
    begun(trained, tmp_path)
    path = tmp_path / "model.training/run.json"
    record = json.loads(path.read_text())
    record["options"]["lstm"]["dim"] = 32
    record["settings"]["architecture"]["dim"] = 32
    path.write_text(json.dumps(record))
    code, status, _ = pretrain(toy, "architecture.dim=32", max_steps=6)
    assert code not in (0, 1)
    assert "expected the weights of a model with 2 layers of 32 cells" in status["error"]
    assert "--overwrite" in status["error"]


def test_after_a_loss_that_is_no_number_the_last_checkpoint_is_gone_on_with(
    pretrain, toy, trained, tmp_path
):
    checkpoints = begun(trained, tmp_path)
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    code, status, _ = pretrain(toy, "training.learning_rate=1e38", max_steps=9)
    assert code not in (0, 1)
    assert "step " in status["error"]
    assert "training diverged" in status["error"]
    assert "the checkpoint of step " in status["error"]
    assert f"in {tmp_path / 'model.training'}" in status["error"]
    assert "a lower training.learning_rate goes on from there" in status["error"]
    assert not (tmp_path / "model").exists()
    assert all(path.read_bytes() == content for path, content in before.items())
    code, status, log = pretrain(toy, "training.learning_rate=0.001", max_steps=9)
    assert code == 0, status
    assert "going on from step 4" in log


def test_text_prepared_by_an_older_version_says_what_to_do(pretrain, toy, trained, tmp_path):
    begun(trained, tmp_path)
    path = tmp_path / "model.training/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    code, status, _ = pretrain(toy, max_steps=6)
    assert code not in (0, 1)
    assert "version 1" in status["error"]
    assert "--overwrite" in status["error"]
