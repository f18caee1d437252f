"""Training that starts from an older model, or from word vectors."""

import gzip

import numpy as np
import pytest
import torch

from elmo_model.directory import load_directory
from elmo_model.errors import ElmoError
from elmo_model.softmax_file import read_softmax
from pipeline.config import build
from pipeline.errors import ConfigError
from pipeline.pretraining.checkpoints import Checkpoints
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.run import finish, prepare, train_here
from pipeline.storage import open_storage
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def config_of(toy, directory, sections=None, **training):
    values = toy_config(toy, directory, **training)
    for name, section in (sections or {}).items():
        values[name] = values.get(name, {}) | section
    return build(PretrainConfig, values, "test")


def trained(config):
    prepared = prepare(config)
    end = train_here(prepared.task, lambda *progress: None)
    finish(prepared, end)
    return prepared, end


def newest(config):
    return Checkpoints(open_storage(config.output.work_directory), "checkpoints").latest()


def test_training_goes_on_from_a_model_with_another_vocabulary(toy, tmp_path):
    older = config_of(toy, tmp_path / "older", max_steps=150, learning_rate=0.03)
    trained(older)
    # Its shape is the older model's, whatever `architecture` says.
    sections = {
        "start": {"directory": str(tmp_path / "older")},
        "architecture": {"dim": 64},
        "vocabulary": {"max_size": 15},
    }
    config = config_of(toy, tmp_path / "newer", sections, max_steps=10)
    prepared = prepare(config)
    words = prepared.task.words
    assert 3 < len(words) < len(load_vocabulary(tmp_path / "older"))
    assert prepared.resumed_step is None
    start = newest(config).tensors
    state = load_directory(tmp_path / "older").state
    assert all(torch.equal(start["model"][name], value) for name, value in state.items())
    old_words = load_vocabulary(tmp_path / "older")
    old = read_softmax(tmp_path / "older/softmax.safetensors", len(old_words), 8)
    rows = [old_words.index(word) for word in words]
    assert torch.equal(start["softmax"]["weight"], old.weight.detach()[rows])
    end = train_here(prepared.task, lambda *progress: None)
    # It knows what it knew: an untrained model has the perplexity of a guess.
    assert end.curve[0].mean < len(words) / 2
    finish(prepared, end)
    assert load_directory(tmp_path / "newer").options.lstm.dim == 16


def load_vocabulary(folder):
    return (folder / "vocabulary.txt").read_text().splitlines()


@pytest.mark.shared
def test_training_goes_on_from_released_files(shared, toy, tmp_path):
    folder = shared / "golden/bilm-tf"
    start = {
        "options_file": str(folder / "options.json"),
        "weights_file": str(folder / "lm_weights.hdf5"),
    }
    _, end = trained(config_of(toy, tmp_path / "model", {"start": start}, max_steps=3))
    assert end.step == 3
    files = load_directory(tmp_path / "model")
    assert files.options.lstm.dim == 64
    assert files.options.char_cnn.n_highway == 2


@pytest.mark.parametrize("freeze", [False, True])
def test_a_word_model_starts_from_word_vectors(toy, tmp_path, freeze):
    vectors = {"cat": 1.0, "dog": 2.0, "garden": 3.0, "unheard": 4.0}
    text = "".join(f"{word} {' '.join([str(value)] * 8)}\n" for word, value in vectors.items())
    (tmp_path / "vectors.gz").write_bytes(gzip.compress(text.encode()))
    sections = {
        "architecture": {"token_input": "words"},
        "start": {
            "word_vectors_file": str(tmp_path / "vectors.gz"),
            "freeze_word_vectors": freeze,
        },
        "run": {"checkpoint_steps": 2},
    }
    config = config_of(toy, tmp_path / "model", sections, max_steps=4)
    prepared = prepare(config)
    rows = [prepared.task.words.index(word) for word in ("cat", "dog", "garden")]

    def table(tensors):
        return tensors["model"]["token_embedding.embedding"].numpy()

    start = table(newest(config).tensors)
    assert np.array_equal(start[rows], np.repeat([[1.0], [2.0], [3.0]], 8, 1))
    # Interrupted and gone on with, what is fixed stays fixed.
    for steps in (2, 4):
        part = config_of(toy, tmp_path / "model", sections, max_steps=steps)
        train_here(prepare(part).task, lambda *progress: None)
    end = table(newest(config).tensors)
    assert np.array_equal(end[rows], start[rows]) == freeze
    assert not np.array_equal(end, start)


def test_dropout_of_words_is_refused_for_an_older_model_that_reads_characters(toy, tmp_path):
    trained(config_of(toy, tmp_path / "older", max_steps=1))
    sections = {
        "start": {"directory": str(tmp_path / "older")},
        "architecture": {"word_dropout": 0.1},
    }
    with pytest.raises(ElmoError, match="dropout of words .* needs word input"):
        prepare(config_of(toy, tmp_path / "newer", sections))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"start": {"options_file": "o.json"}}, "start.options_file and start.weights_file"),
        ({"start": {"word_vectors_file": "v.txt"}}, "needs architecture.token_input: words"),
        ({"architecture": {"word_dropout": 0.1}}, "word_dropout needs architecture.token_input"),
        ({"start": {"freeze_word_vectors": True}}, "needs start.word_vectors_file"),
        (
            {
                "start": {"word_vectors_file": "v", "freeze_word_vectors": True},
                "architecture": {"token_input": "words"},
                "training": {"weight_decay": 0.1},
            },
            "exclude each other",
        ),
    ],
)
def test_contradictions_are_told_before_anything_is_read(sections, message, toy, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config_of(toy, tmp_path, sections)
