"""`elmo pretrain` from the command line."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jobs.command import main
from jobs.pretrain import JOB
from pipeline.config import build
from pipeline.errors import ConfigError
from pipeline.pretraining.config import PretrainConfig
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus


@pytest.fixture
def config_file(tmp_path):
    source = write_toy_corpus(tmp_path / "corpus.jsonl")
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(toy_config(source, tmp_path / "model")))
    return path


def test_a_model_is_trained_and_the_result_says_how_good_it_is(config_file, tmp_path, capsys):
    assert main(JOB, ["--config", str(config_file), "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)["result"]
    assert result["steps"] == 20
    assert result["output"] == str(tmp_path / "model")
    first, last = result["perplexity"][0], result["perplexity"][-1]
    assert last["mean"] < first["mean"]
    assert (tmp_path / "model/weights.safetensors").is_file()
    assert "step 20: held-out perplexity forward" in output.err
    assert "20/20 steps" in output.err


def test_the_text_result_is_for_people(config_file, tmp_path, capsys):
    assert main(JOB, ["--config", str(config_file), "--quiet"]) == 0
    output = capsys.readouterr()
    assert "held-out perplexity forward" in output.out
    assert f"model of step 20: {tmp_path / 'model'}" in output.out
    assert output.err == ""


def test_a_run_by_time_counts_seconds(config_file, capsys):
    words = ["training.max_steps=", "training.max_seconds=1"]
    flags = [word for value in words for word in ("--set", value)]
    assert main(JOB, ["--config", str(config_file), *flags]) == 0
    assert "1/1 seconds" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(config_file, tmp_path, capsys):
    assert main(JOB, ["--config", str(config_file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Would read 1 files" in said
    assert "20 steps" in said
    assert "20 steps read 1,600 tokens" in said
    assert "prepared already" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.jsonl", "pretrain.yaml"}


def test_a_dry_run_over_prepared_text_says_how_often_it_is_read(config_file, tmp_path, capsys):
    flags = ["--config", str(config_file), "--quiet", "--json", "--set"]
    assert main(JOB, [*flags, "training.max_steps=1"]) == 0
    record = json.loads(capsys.readouterr().out)["result"]
    assert main(JOB, [*flags, "training.max_steps=400", "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)["result"]
    train = record["train"]
    assert (planned["documents"], planned["tokens"]) == (train["documents"], train["tokens"])
    assert planned["passes"] == 400 * 80 / (train["tokens"] + train["sentences"])


def test_a_model_is_replaced_only_when_asked(config_file, tmp_path, capsys):
    command = ["--config", str(config_file), "--set", "training.max_steps=1", "--quiet"]
    assert main(JOB, command) == 0
    assert main(JOB, command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(JOB, [*command, "--overwrite"]) == 0


def test_a_training_that_is_stopped_goes_on_with_the_same_command(config_file, tmp_path):
    command = [sys.executable, "-m", "jobs", "pretrain", "--config", str(config_file), "--json"]
    # The first run never ends by itself, however late the signal comes.
    endless = [*command, "--set", "training.max_steps=1000000"]
    endless += ["--set", "run.checkpoint_interval_s=0.2"]
    with subprocess.Popen(endless, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        while not list((tmp_path / "model.training/checkpoints").glob("*/checkpoint.json")):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        output, told = running.communicate(timeout=240)
    assert running.returncode == 143
    assert json.loads(output)["status"] == "interrupted"
    assert b"the same command goes on from there" in told
    assert not (tmp_path / "model").exists()
    step = int(re.search(rb"stopped after step (\d+);", told)[1])
    again = [*command, "--set", f"training.max_steps={step + 5}"]
    done = subprocess.run(again, capture_output=True, timeout=240, check=True)
    assert f"going on from step {step}, " in done.stderr.decode()
    assert json.loads(done.stdout)["result"]["steps"] == step + 5


def test_a_missing_corpus_is_an_error_of_the_source(config_file, capsys):
    command = ["--config", str(config_file), "--set", "source.path=/no/such/place"]
    assert main(JOB, command) in (2, 3)
    assert "/no/such/place" in capsys.readouterr().err


def test_a_training_that_diverges_says_what_to_do(config_file, tmp_path, capsys):
    flags = ["--set", "training.learning_rate=1e30", "--set", "training.clip_norm="]
    assert main(JOB, ["--config", str(config_file), "--quiet", *flags]) != 0
    assert "lower the learning rate" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"max_seconds": None, "max_steps": None}, "training must end"),
        ("training", {"held_out_share": 0}, "training.held_out_share"),
        ("training", {"steps": 3}, "training.steps is not a known key; known here: max_seconds"),
        ("architecture", {"projection_dim": 512}, r"must be at most architecture.dim \(16\)"),
        ("architecture", {"filters": [[13, 4]]}, r"\[13, 4\] must be a width of 1 to 12"),
        ("output", {"directory": None}, "output.directory"),
    ],
)
def test_a_wrong_value_names_its_key(section, values, message, tmp_path):
    config = toy_config(tmp_path / "corpus.jsonl", tmp_path / "model")
    config[section] |= values
    with pytest.raises(ConfigError, match=message):
        build(PretrainConfig, config, "test")


def test_the_demo_configuration_is_valid():
    path = Path(__file__).resolve().parents[2] / "configs/demo-pretrain.yaml"
    config = build(PretrainConfig, yaml.safe_load(path.read_text()), str(path))
    assert config.training.max_seconds is not None
