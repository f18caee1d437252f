"""Small models of many shapes with random weights, as files in the released format."""

from __future__ import annotations

import json

import h5py
import numpy as np

LSTM = {
    "dim": 12,
    "projection_dim": 6,
    "n_layers": 2,
    "cell_clip": 3,
    "proj_clip": 3,
    "use_skip_connections": True,
}
CHAR_CNN = {
    "activation": "relu",
    "embedding": {"dim": 4},
    "filters": [[1, 4], [2, 8], [3, 5]],
    "max_characters_per_token": 20,
    "n_characters": 262,
    "n_highway": 2,
}
VOCABULARY = ["<S>", "</S>", "<UNK>", "the", "cat", "sat", ".", "über"]

SHAPES = {
    "like the released models": {},
    "no projection in the LSTM": {"lstm": {"dim": 6, "proj_clip": 0.01}},
    "one layer": {"lstm": {"n_layers": 1}},
    "three layers": {"lstm": {"n_layers": 3}},
    "three layers without skip connections": {
        "lstm": {"n_layers": 3, "use_skip_connections": False}
    },
    "no highway": {"char_cnn": {"n_highway": None}},
    "no projection of the CNN": {"char_cnn": {"filters": [[1, 2], [4, 4]]}},
    "more projection than filters": {"char_cnn": {"filters": [[2, 3]]}},
    "tanh": {"char_cnn": {"activation": "tanh", "n_highway": 1}},
    "clips active": {"lstm": {"cell_clip": 0.3, "proj_clip": 0.1}},
    "no clips": {"lstm": {"cell_clip": None, "proj_clip": 0}},
    "a filter as wide as the word": {
        "char_cnn": {"filters": [[5, 9]], "max_characters_per_token": 5}
    },
    "one direction": {"bidirectional": False},
    "one direction, one layer": {"bidirectional": False, "lstm": {"n_layers": 1}},
    "word input": {"char_cnn": None},
}


def options_of(shape):
    """Content of the options.json of one of `SHAPES`."""
    changes = SHAPES[shape]
    options = {"lstm": {**LSTM, **changes.get("lstm", {})}}
    if changes.get("char_cnn", {}) is not None:
        options["char_cnn"] = {**CHAR_CNN, **changes.get("char_cnn", {})}
    if "bidirectional" in changes:
        options["bidirectional"] = changes["bidirectional"]
    return options


def weights_of(options, seed=0):
    """Random datasets in the released names and shapes, large enough that every part matters."""
    random = np.random.default_rng(seed)
    lstm = options["lstm"]
    dim, width = lstm["dim"], lstm["projection_dim"]
    weights = {}

    def draw(name, *shape, scale=0.5):
        weights[name] = (random.standard_normal(shape) * scale).astype(np.float32)

    if "char_cnn" in options:
        char_cnn = options["char_cnn"]
        size = char_cnn["embedding"]["dim"]
        total = sum(count for _, count in char_cnn["filters"])
        draw("char_embed", 261, size, scale=1.0)
        for number, (filter_width, count) in enumerate(char_cnn["filters"]):
            draw(f"CNN/W_cnn_{number}", 1, filter_width, size, count)
            draw(f"CNN/b_cnn_{number}", count)
        for number in range(char_cnn["n_highway"] or 0):
            for gate in ("carry", "transform"):
                draw(f"CNN_high_{number}/W_{gate}", total, total, scale=0.3)
                draw(f"CNN_high_{number}/b_{gate}", total)
        if total != width:
            draw("CNN_proj/W_proj", total, width, scale=0.3)
            draw("CNN_proj/b_proj", width)
    else:
        draw("embedding", len(VOCABULARY), width, scale=1.0)
    for direction in range(2 if options.get("bidirectional", True) else 1):
        for layer in range(lstm["n_layers"]):
            prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
            draw(prefix + "W_0", 2 * width, 4 * dim)
            draw(prefix + "B", 4 * dim)
            if dim > width:
                draw(prefix + "W_P_0", dim, width)
    return weights


def as_dumped(options, weights):
    """The names that `dump_weights` gives the same datasets in its odd cases."""
    longer = {"W_0": "kernel", "B": "bias", "W_P_0": "projection/kernel"}
    renamed = {}
    for old, value in weights.items():
        name = old
        if name.startswith("RNN_"):
            if not options.get("bidirectional", True):
                stem, _, last = name.removeprefix("RNN_0/RNN/").rpartition("/")
                name = f"rnn/{stem}/{longer[last]}"
            if options["lstm"]["n_layers"] == 1:
                name = name.replace("MultiRNNCell/Cell0/", "")
        renamed[name] = value
    return renamed


def write_hdf5(path, weights):
    with h5py.File(path, "w") as file:
        for name, value in weights.items():
            file[name] = value


def write_model(directory, shape="like the released models", seed=0):
    """Write options.json, weights.hdf5 and, for word input, vocabulary.txt; returns keywords."""
    options = options_of(shape)
    weights = weights_of(options, seed)
    (directory / "options.json").write_text(json.dumps(options))
    write_hdf5(directory / "weights.hdf5", as_dumped(options, weights))
    files = {
        "options_file": directory / "options.json",
        "weights_file": directory / "weights.hdf5",
    }
    if "char_cnn" not in options:
        files["vocabulary_file"] = directory / "vocabulary.txt"
        files["vocabulary_file"].write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    return files
