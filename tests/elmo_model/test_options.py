"""options.json: every key read, foreign keys kept, wrong values explained."""

import copy
import json

import pytest

from elmo_model.errors import ModelFileError, OptionsError
from elmo_model.options import MAX_OPTIONS_BYTES, ElmoOptions

RELEASED = {
    "lstm": {
        "use_skip_connections": True,
        "projection_dim": 512,
        "cell_clip": 3,
        "proj_clip": 3,
        "dim": 4096,
        "n_layers": 2,
    },
    "char_cnn": {
        "activation": "relu",
        "filters": [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]],
        "n_highway": 2,
        "embedding": {"dim": 16},
        "n_characters": 262,
        "max_characters_per_token": 50,
    },
}
TRAINING = {
    **RELEASED,
    "bidirectional": True,
    "char_cnn": {**RELEASED["char_cnn"], "n_characters": 261},
    "dropout": 0.1,
    "all_clip_norm_val": 10.0,
    "n_tokens_vocab": 793471,
    "n_negative_samples_batch": 8192,
    "batch_size": 128,
    "unroll_steps": 20,
    "n_epochs": 10,
    "n_train_tokens": 768648884,
    "learning_rate": 0.3,
    "sample_softmax": False,
}


def changed(base, *path_and_value):
    values = copy.deepcopy(base)
    *path, last, value = path_and_value
    section = values
    for key in path:
        section = section[key]
    section[last] = value
    return values


def without(base, *path):
    values = copy.deepcopy(base)
    section = values
    for key in path[:-1]:
        section = section[key]
    del section[path[-1]]
    return values


def test_a_released_file_is_read():
    options = ElmoOptions.from_dict(RELEASED)
    assert options.bidirectional
    assert options.num_directions == 2
    assert options.num_layers == 3
    assert options.output_dim == 1024
    assert options.lstm.has_projection
    assert options.lstm.cell_clip == options.lstm.proj_clip == 3
    assert options.char_cnn.num_filters == 2048
    assert options.char_cnn.filters[0] == (1, 32)


def test_a_training_file_is_read():
    training = ElmoOptions.from_dict(TRAINING).training
    assert training.dropout == 0.1
    assert training.all_clip_norm_val == 10.0
    assert training.n_tokens_vocab == 793471
    assert training.n_negative_samples_batch == 8192
    assert (training.batch_size, training.unroll_steps, training.n_epochs) == (128, 20, 10)
    assert training.learning_rate == 0.3
    assert not training.sample_softmax
    assert not training.share_embedding_softmax


def test_absent_keys_have_the_originals_defaults():
    options = ElmoOptions.from_dict({"lstm": {"dim": 8, "projection_dim": 4}})
    assert options.char_cnn is None
    assert options.lstm.n_layers == 1
    assert options.lstm.cell_clip is None
    assert options.lstm.proj_clip is None
    assert not options.lstm.use_skip_connections
    assert options.training.sample_softmax
    assert options.training.n_train_tokens == 768648884
    assert options.training.learning_rate == 0.2


def test_a_clip_of_zero_is_no_clip():
    assert ElmoOptions.from_dict(changed(RELEASED, "lstm", "cell_clip", 0)).lstm.cell_clip is None


def test_an_absent_bidirectional_means_both_for_prediction_and_forward_for_training():
    assert ElmoOptions.from_dict(RELEASED).bidirectional
    assert not ElmoOptions.from_dict(without(TRAINING, "bidirectional")).bidirectional


@pytest.mark.parametrize("values", [RELEASED, TRAINING], ids=["released", "training"])
def test_written_options_are_read_back_equal(values, tmp_path):
    options = ElmoOptions.from_dict(values)
    path = tmp_path / "options.json"
    path.write_text(options.to_json())
    assert ElmoOptions.read(path) == options
    assert ElmoOptions.read(path).to_json() == options.to_json()


def test_written_options_hold_all_that_was_read():
    written = ElmoOptions.from_dict(TRAINING).to_dict(prediction=False)
    # A default need not be written.
    assert written == without(TRAINING, "n_train_tokens")
    assert ElmoOptions.from_dict(TRAINING).to_dict()["char_cnn"]["n_characters"] == 262


def test_foreign_keys_are_kept_and_written_back():
    values = changed(TRAINING, "char_cnn", "projection_after_highway", True)
    values = changed(values, "char_cnn", "embedding", "kind", "x")
    values = changed(changed(values, "lstm", "note", [1]), "reverse", False)
    written = ElmoOptions.from_dict(values).to_dict()
    assert written["char_cnn"]["projection_after_highway"] is True
    assert written["char_cnn"]["embedding"] == {"dim": 16, "kind": "x"}
    assert written["lstm"]["note"] == [1]
    assert written["reverse"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "file.json: the file must be an object, found []"),
        (without(RELEASED, "lstm"), "file.json: lstm is missing; expected an object"),
        (changed(RELEASED, "lstm", 3), "file.json: lstm must be an object, found 3"),
        (without(RELEASED, "lstm", "dim"), "lstm.dim is missing; expected an integer of at least"),
        (
            changed(RELEASED, "lstm", "dim", "4096"),
            'file.json: lstm.dim: expected an integer of at least 1, found "4096"',
        ),
        (changed(RELEASED, "lstm", "dim", True), "lstm.dim: expected an integer"),
        (
            changed(RELEASED, "lstm", "n_layers", 0),
            "lstm.n_layers: expected an integer of",
        ),
        (changed(RELEASED, "lstm", "projection_dim", 5000), "at most lstm.dim (4096), found 5000"),
        (changed(RELEASED, "lstm", "cell_clip", -1), "lstm.cell_clip: expected a number of at"),
        (changed(RELEASED, "lstm", "use_skip_connections", 1), "expected true or false, found 1"),
        (
            changed(RELEASED, "char_cnn", "n_characters", 260),
            "char_cnn.n_characters: expected 261 (training) or 262 (prediction), found 260",
        ),
        (changed(RELEASED, "char_cnn", "activation", "gelu"), "expected relu or tanh, found"),
        (changed(RELEASED, "char_cnn", "filters", []), "char_cnn.filters: expected a list of"),
        (changed(RELEASED, "char_cnn", "filters", [[1, 2], [3]]), "found [3]"),
        (changed(RELEASED, "char_cnn", "filters", [[51, 2]]), "with width 1..50"),
        (changed(RELEASED, "char_cnn", "n_highway", -1), "n_highway: expected an integer"),
        (changed(RELEASED, "char_cnn", "max_characters_per_token", 2), "at least 3, found 2"),
        (without(RELEASED, "char_cnn", "embedding"), "char_cnn.embedding is missing"),
        (without(RELEASED, "char_cnn", "embedding", "dim"), "char_cnn.embedding.dim is missing"),
        (
            changed(TRAINING, "bidirectional", "yes"),
            "bidirectional: expected true or false",
        ),
        (changed(TRAINING, "batch_size", 1.5), "batch_size: expected an integer of at least 1"),
        (changed(TRAINING, "learning_rate", "fast"), "learning_rate: expected a number"),
        (
            changed(TRAINING, "share_embedding_softmax", True),
            "share_embedding_softmax: expected false beside char_cnn, found true",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(values, message):
    with pytest.raises(OptionsError) as raised:
        ElmoOptions.from_dict(values, where="file.json")
    assert message in str(raised.value)
    assert str(raised.value).startswith("file.json: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one JSON object"),
        (b"{", "expected one JSON object"),
        (b"\xff\xfe", "expected one JSON object"),
        (b'{"lstm": {"dim": NaN}}', "NaN is not a JSON number"),
        (b"[" * 100_000, "expected one JSON object"),
        (b" " * (MAX_OPTIONS_BYTES + 1), "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_options_file_is_refused(content, message, tmp_path):
    path = tmp_path / "options.json"
    path.write_bytes(content)
    with pytest.raises(OptionsError, match=message):
        ElmoOptions.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="No such file"):
        ElmoOptions.read(tmp_path / "options.json")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "options.json"
    path.write_text(json.dumps(RELEASED), "utf-8-sig")
    assert ElmoOptions.read(path) == ElmoOptions.from_dict(RELEASED)


def test_the_published_fixture_is_read(shared):
    options = ElmoOptions.read(shared / "golden" / "bilm-tf" / "options.json")
    assert options.lstm.dim == 64
    assert not options.lstm.use_skip_connections
    for path in (shared / "golden" / "tf-training").glob("*/options.json"):
        assert ElmoOptions.read(path).bidirectional == ("unidirectional" not in str(path))
