"""`elmo export` from the command line."""

import json

import pytest

from elmo_model import Encoder
from elmo_model.directory import load_directory, save_directory
from elmo_model.options import ElmoOptions
from elmo_model.weights import read_weights, weights_sha256
from jobs.command import main
from jobs.export import JOB
from pipeline.config import build
from pipeline.errors import ConfigError
from pipeline.export_config import ExportConfig
from tests.elmo_model.random_models import VOCABULARY, write_model


@pytest.fixture
def model(tmp_path):
    """Makes a model directory of ours of some shape."""

    def make(shape="like the released models", words=VOCABULARY):
        folder = tmp_path / "released"
        folder.mkdir()
        released = write_model(folder, shape)
        options = ElmoOptions.read(released["options_file"])
        save_directory(
            tmp_path / "model", options, read_weights(released["weights_file"], options), words
        )
        return tmp_path / "model"

    return make


def flags(**values):
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    return [word for pair in pairs for word in ("--set", pair)]


def test_the_result_names_the_files_and_the_weights(model, tmp_path, capsys):
    out = tmp_path / "out"
    words = flags(model__directory=model(), output__path=out, output__token_embeddings="true")
    assert main(JOB, [*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert result["files"] == sizes
    assert set(sizes) == {"options.json", "weights.hdf5", "vocab.txt", "token_embeddings.hdf5"}
    files = load_directory(tmp_path / "model")
    assert result["weights_sha256"] == weights_sha256(files.state)
    assert result["vocabulary"] == len(VOCABULARY)
    encoder = Encoder.from_files(out / "options.json", out / "weights.hdf5")
    assert encoder.weights_sha256 == result["weights_sha256"]


def test_what_the_originals_will_not_take_is_a_note(model, tmp_path, capsys):
    words = flags(
        model__directory=model("three layers without skip connections"),
        output__path=tmp_path / "out",
    )
    assert main(JOB, [*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "note: AllenNLP refuses models without skip connections" in said
    assert "note: AllenNLP's indexers and batch_to_ids spell words in 50 characters" in said


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(model, tmp_path, capsys):
    words = flags(model__directory=model(), output__path=tmp_path / "out")
    assert main(JOB, [*words, "--dry-run"]) == 0
    assert "Would write options.json, weights.hdf5, vocab.txt to" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_export_is_replaced_only_when_asked(model, tmp_path, capsys):
    words = flags(model__directory=model(), output__path=tmp_path / "out")
    assert main(JOB, words) == 0
    assert main(JOB, words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(JOB, [*words, "--overwrite"]) == 0


def test_what_is_asked_for_and_missing_is_named(model, tmp_path, capsys):
    words = flags(model__directory=model(words=None), output__path=tmp_path / "out")
    assert main(JOB, [*words, *flags(output__token_embeddings="true")]) == 2
    assert "vocabulary.txt is missing" in capsys.readouterr().err
    assert main(JOB, [*words, *flags(output__softmax="true")]) == 2
    assert "softmax.safetensors is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(JOB, words) == 0
    assert not (tmp_path / "out/vocab.txt").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {}, "output": {"path": "x"}}, "give either model.directory or both"),
        ({"model": {"directory": "m"}, "output": {}}, "output.path is missing"),
        (
            {"model": {"directory": "m"}, "output": {"path": "x", "format": "hdf5"}},
            "output.format is not a known key; known here: path",
        ),
    ],
)
def test_a_wrong_value_names_its_key(values, message):
    with pytest.raises(ConfigError, match=message):
        build(ExportConfig, values, "test")
