"""Pretraining from a corpus to a model directory."""

import json
import math

import pytest
import torch

from elmo_model.bilm import BiLM
from elmo_model.directory import load_directory
from elmo_model.encoder import Encoder
from elmo_model.softmax_file import read_softmax
from elmo_model.training import TrainState
from elmo_model.vocabulary import Vocabulary
from pipeline.config import build
from pipeline.errors import ConfigError
from pipeline.pretrain import (
    check_output,
    held_out_perplexity,
    learning_rate,
    make_options,
    pretrain,
    save_model,
)
from pipeline.pretrain_config import PretrainConfig
from pipeline.pretrain_text import read_text
from pipeline.sources.discover import discover
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def config_of(toy, directory="unused", **training):
    return build(PretrainConfig, toy_config(toy, directory, **training), "test")


def train(config, on_progress=lambda *progress: None):
    text = read_text(config, discover(config.source))
    return text, *pretrain(config, text, on_progress)


def test_held_out_perplexity_falls_and_the_saved_model_has_it(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=120, learning_rate=0.03)
    text, state, report = train(config)
    before, after = report.curve[0], report.curve[-1]
    # Untrained, every word is as likely as any other.
    assert before.mean == pytest.approx(len(text.vocabulary), rel=0.05)
    assert after.forward < 8
    assert after.backward < 8
    save_model(config, text, state, report)
    files = load_directory(tmp_path / "model")
    model = BiLM(files.options)
    model.load_state_dict(files.state)
    vocabulary = Vocabulary.read(tmp_path / "model/vocabulary.txt")
    assert vocabulary == text.vocabulary
    softmax = read_softmax(tmp_path / "model/softmax.safetensors", len(vocabulary), 8)
    loaded = TrainState(model, softmax, state.optimizer)
    again = held_out_perplexity(loaded, text, config.training.max_held_out_tokens)
    assert again.mean == pytest.approx(after.mean)


def test_the_model_directory_is_for_prediction_and_says_how_it_came_about(toy, tmp_path):
    config = config_of(toy, tmp_path / "model")
    text, state, report = train(config)
    save_model(config, text, state, report)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "options.json",
        "weights.safetensors",
        "vocabulary.txt",
        "softmax.safetensors",
        "training.json",
    }
    options = json.loads((tmp_path / "model/options.json").read_text())
    assert options["char_cnn"]["n_characters"] == 262
    record = json.loads((tmp_path / "model/training.json").read_text())
    assert record["seed"] == 1
    assert record["steps"] == 20
    assert record["tokens"] == 20 * 8 * 10
    assert record["train"]["documents"] + record["held_out"]["documents"] == 300
    assert [point["step"] for point in record["perplexity"]] == [0, 10, 20]
    assert PretrainConfig.model_validate(record["config"]) == config
    layers = Encoder.from_directory(tmp_path / "model").encode([["the", "cat"], ["river"]]).layers
    assert layers.shape == (3, 2, 2, 16)
    assert torch.isfinite(layers).all()


def test_equal_seeds_and_steps_give_equal_models(toy):
    states = [train(config_of(toy, max_steps=6, state_reset_share=0.5))[1] for _ in range(2)]
    other = train(config_of(toy, max_steps=6, seed=2))[1]
    weights, same, different = (s.model.state_dict() for s in (*states, other))
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    assert any(not torch.equal(value, different[name]) for name, value in weights.items())


def test_training_ends_when_its_time_is_used_up(toy):
    config = config_of(toy, max_steps=10**9, max_seconds=0.5, num_evaluations=3)
    _, _, report = train(config)
    assert report.steps < 10**6
    assert report.train_seconds >= 0.5
    assert report.curve[-1].step == report.steps
    assert report.tokens_per_s == pytest.approx(report.tokens / report.train_seconds)


def test_progress_tells_steps_time_tokens_loss_and_perplexity(toy):
    seen = []
    train(config_of(toy, max_steps=4), lambda *progress: seen.append(progress))
    steps, seconds, tokens, notes = zip(*seen, strict=True)
    assert steps[0] == 0
    assert steps[-1] == 4
    assert list(seconds) == sorted(seconds)
    assert tokens[-1] == 4 * 8 * 10
    assert "held-out forward" in notes[0]
    assert "loss" in notes[1]


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
def test_either_optimiser_and_the_full_softmax_learn(toy, optimizer):
    config = config_of(toy, optimizer=optimizer, num_negative_samples=None, max_steps=30)
    _, state, report = train(config)
    assert not state.model.options.training.sample_softmax
    assert report.curve[-1].mean < report.curve[0].mean


def test_the_number_of_threads_is_put_back(toy):
    before = torch.get_num_threads()
    train(config_of(toy, max_steps=1, num_threads=before + 1))
    assert torch.get_num_threads() == before


def test_a_small_vocabulary_gets_the_full_softmax():
    config = config_of("nowhere", num_negative_samples=8)
    assert make_options(config, 17).training.sample_softmax
    assert make_options(config, 17).training.n_negative_samples_batch == 8
    assert not make_options(config, 16).training.sample_softmax


def test_the_learning_rate_rises_then_falls_to_a_fiftieth():
    training = config_of("nowhere", learning_rate=1.0, warmup_steps=4).training
    assert [learning_rate(training, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert learning_rate(training, 10, 0.5) == pytest.approx(0.51)
    assert learning_rate(training, 10, 1.0) == pytest.approx(0.02)
    constant = config_of("nowhere", learning_rate_decay="none", warmup_steps=0).training
    assert learning_rate(constant, 0, 0.7) == constant.initial_learning_rate


def test_a_short_held_out_text_is_measured_in_smaller_batches(toy):
    _, _, report = train(config_of(toy, held_out_share=1e-9, max_steps=1))
    assert math.isfinite(report.curve[-1].mean)


def test_an_older_model_is_replaced_whole_and_only_when_asked(toy, tmp_path):
    directory = tmp_path / "model"
    config = config_of(toy, directory, max_steps=1)
    check_output(str(directory), overwrite=False)
    trained = train(config)
    save_model(config, *trained)
    (directory / "left.txt").write_text("of an older version")
    with pytest.raises(ConfigError, match="holds a model already; give --overwrite"):
        check_output(str(directory), overwrite=False)
    check_output(str(directory), overwrite=True)
    save_model(config, *trained)
    assert not (directory / "left.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_older_model_and_no_scraps(toy, tmp_path, monkeypatch):
    config = config_of(toy, tmp_path / "model", max_steps=1)
    trained = train(config)
    save_model(config, *trained)
    before = (tmp_path / "model/weights.safetensors").read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.pretrain.write_softmax", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(config, *trained)
    assert (tmp_path / "model/weights.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_of_other_files_and_a_url_are_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"no pretrained model, such as letter\.txt"):
        check_output(str(tmp_path), overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        check_output(str(tmp_path / "letter.txt"), overwrite=True)
    with pytest.raises(ConfigError, match="expected a local directory"):
        check_output("s3://bucket/model", overwrite=False)
