"""Words that a configuration names are spelled once on a machine, by the process that is first."""

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.model import load_encoder
from pipeline.model_files import CACHE_VARIABLE
from tests.elmo_model.random_models import write_model

SENTENCES = [["the", "cat", "sat"], ["the", "dog"]]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Configuration of a model with a list of two words."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache" / "models"))
    (tmp_path / "words.txt").write_text("the\ncat\n", "utf-8")
    files = write_model(tmp_path, "like the released models")
    return ModelConfig(
        device="cpu",
        precomputed_words_file=str(tmp_path / "words.txt"),
        **{name: str(path) for name, path in files.items()},
    )


def test_the_words_of_the_file_are_not_spelled_again(model, tmp_path):
    expected = load_encoder(model.model_copy(update={"precomputed_words_file": None}))
    for _ in range(2):
        encoder = load_encoder(model)
        layers = encoder.encode(SENTENCES).layers
        assert torch.equal(layers, expected.encode(SENTENCES).layers)
        # The two sentence marks, "sat" and "dog".
        assert encoder.num_words_made == 4
    assert len(list((tmp_path / "cache" / "words").glob("*.safetensors"))) == 1


def test_where_nothing_can_be_kept_it_works_without_and_says_so(model, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder would be")
    encoder = load_encoder(model)
    assert "model.precomputed_words_file is not used: " in caplog.text
    encoder.encode(SENTENCES)
    assert encoder.num_words_made == 6


def test_a_file_that_is_not_there_is_an_error(model):
    with pytest.raises(ConfigError, match="there is no such model file"):
        load_encoder(model.model_copy(update={"precomputed_words_file": "/no/such/words.txt"}))
