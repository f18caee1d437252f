"""The table of a biLM's parameters: their names in weight files, and their shapes. Knows no files.

Parameters keep the layout of released files (one kernel for input and recurrence, gate order i, j,
f, o, multiplication from the right), so nothing is transposed.
Source: files written by bilm-tf's `dump_weights` and `dump_token_embeddings`.
"""

from __future__ import annotations

from dataclasses import dataclass

from elmo_model.options import NUM_STORED_CHARACTERS, CharCnnOptions, ElmoOptions

Shape = tuple[int, ...]

WORD_TABLE = "token_embedding.embedding"


@dataclass(frozen=True)
class Dataset:
    """A row of the table: a parameter, its names in HDF5 files (the first is written), its shape.

    The number of rows of the word table is None until a file has said it.
    """

    parameter: str
    names: tuple[str, ...]
    shape: tuple[int | None, ...]


def datasets(options: ElmoOptions) -> list[Dataset]:
    """Every dataset that the weight file of a model with these options holds."""
    width = options.lstm.projection_dim
    if options.char_cnn is not None:
        rows = _char_cnn_rows(options.char_cnn, width)
    else:
        rows = [Dataset(WORD_TABLE, ("embedding",), (options.training.n_tokens_vocab, width))]
    for direction in range(options.num_directions):
        for layer in range(options.lstm.n_layers):
            rows += _lstm_rows(options, direction, layer)
    return rows


def _char_cnn_rows(char_cnn: CharCnnOptions, width: int) -> list[Dataset]:
    dim, num_filters = char_cnn.embedding_dim, char_cnn.num_filters
    rows: list[tuple[str, str, Shape]] = [
        ("char_embed", "char_embed", (NUM_STORED_CHARACTERS, dim))
    ]
    for place, (filter_width, count) in enumerate(char_cnn.filters):
        shape = (1, filter_width, dim, count)
        rows += [
            (f"conv_weights.{place}", f"CNN/W_cnn_{place}", shape),
            (f"conv_biases.{place}", f"CNN/b_cnn_{place}", (count,)),
        ]
    for place in range(char_cnn.n_highway):
        ours, theirs = f"highways.{place}", f"CNN_high_{place}"
        for gate in ("carry", "transform"):
            rows += [
                (f"{ours}.{gate}_weight", f"{theirs}/W_{gate}", (num_filters, num_filters)),
                (f"{ours}.{gate}_bias", f"{theirs}/b_{gate}", (num_filters,)),
            ]
    if num_filters != width:
        rows += [
            ("projection_weight", "CNN_proj/W_proj", (num_filters, width)),
            ("projection_bias", "CNN_proj/b_proj", (width,)),
        ]
    return [Dataset(f"token_embedding.{ours}", (theirs,), shape) for ours, theirs, shape in rows]


def _lstm_rows(options: ElmoOptions, direction: int, layer: int) -> list[Dataset]:
    """Kernel, bias and projection of one LSTM, under all the names that bilm-tf gives them.

    Its reader wants `RNN_d/RNN/MultiRNNCell/Cell{l}`. Its writer leaves the cell's level out for
    one layer, and leaves most names as TensorFlow made them for one direction.
    """
    lstm, stack = options.lstm, "backward_stack" if direction else "forward_stack"
    released = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
    uncut = f"rnn/MultiRNNCell/Cell{layer}/LSTMCell"
    graph = f"rnn/multi_rnn_cell/cell_{layer}/lstm_cell"
    tables = {
        "kernel": ("W_0", "kernel", (2 * lstm.projection_dim, 4 * lstm.dim)),
        "bias": ("B", "bias", (4 * lstm.dim,)),
        "projection": ("W_P_0", "projection/kernel", (lstm.dim, lstm.projection_dim)),
    }
    rows = []
    for ours, (short, long, shape) in tables.items():
        if ours == "projection" and not lstm.has_projection:
            continue
        names = [f"{released}/{short}", f"RNN_{direction}/{graph}/{long}"]
        if lstm.n_layers == 1:
            names += [
                f"RNN_{direction}/RNN/LSTMCell/{short}",
                f"RNN_{direction}/rnn/lstm_cell/{long}",
            ]
        if not options.bidirectional:
            names = [f"{uncut}/{long}", f"{graph}/{long}", *names]
            if lstm.n_layers == 1:
                names += [f"rnn/LSTMCell/{long}", f"rnn/lstm_cell/{long}"]
        rows.append(Dataset(f"{stack}.{layer}.{ours}", tuple(names), shape))
    return rows
