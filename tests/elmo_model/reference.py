"""The biLM once more, in float64 numpy, a sentence, a word and a step at a time.

Written from the description of the released models alone: it reads the raw options and the raw
datasets of a weight file, and shares no code with `elmo_model`. Slow and plain on purpose.
"""

from __future__ import annotations

import numpy as np


class Reference:
    """A model from the content of an options.json and `{dataset name: array}`."""

    def __init__(self, options, weights, vocabulary=None):
        self.options = options
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.vocabulary = vocabulary
        self.lstm = options["lstm"]
        self.num_directions = 2 if options.get("bidirectional", True) else 1

    def zero_state(self):
        """(cell, output) by direction and layer."""
        shape = self.lstm["dim"], self.lstm["projection_dim"]
        return [
            [tuple(np.zeros(size) for size in shape) for _ in range(self.lstm.get("n_layers", 1))]
            for _ in range(self.num_directions)
        ]

    def layers(self, tokens, state=None):
        """Layers (L+1, n, D) of one sentence, and the state after it."""
        state = state or self.zero_state()
        words = [self.word(token) for token in ["<S>", *tokens, "</S>"]]
        directions, after = [], []
        for direction in range(self.num_directions):
            sequence = words[::-1] if direction else words
            outputs, final = self.stack(direction, sequence, state[direction])
            directions.append([layer[::-1] if direction else layer for layer in outputs])
            after.append(final)
        whole = [np.concatenate(parts, axis=1) for parts in zip(*directions, strict=True)]
        return np.stack(whole)[:, 1:-1], after

    def stack(self, direction, words, state):
        outputs, final = [np.stack(words)], []
        for layer in range(self.lstm.get("n_layers", 1)):
            cell, output = state[layer]
            steps = []
            for x in outputs[-1]:
                cell, output = self.step(direction, layer, x, cell, output)
                steps.append(output)
            final.append((cell, output))
            result = np.stack(steps)
            if layer > 0 and self.lstm.get("use_skip_connections", False):
                result = result + outputs[-1]
            outputs.append(result)
        return outputs, final

    def step(self, direction, layer, x, cell, output):
        prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
        gates = np.concatenate([x, output]) @ self.weights[prefix + "W_0"]
        i, j, f, o = np.split(gates + self.weights[prefix + "B"], 4)
        cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(j)
        if self.lstm.get("cell_clip"):
            cell = np.clip(cell, -self.lstm["cell_clip"], self.lstm["cell_clip"])
        output = sigmoid(o) * np.tanh(cell)
        if prefix + "W_P_0" in self.weights:
            output = output @ self.weights[prefix + "W_P_0"]
            if self.lstm.get("proj_clip"):
                output = np.clip(output, -self.lstm["proj_clip"], self.lstm["proj_clip"])
        return cell, output

    def word(self, token):
        """The context-free vector of one word."""
        if "char_cnn" not in self.options:
            unknown = self.vocabulary.index("<UNK>")
            row = self.vocabulary.index(token) if token in self.vocabulary else unknown
            return self.weights["embedding"][row]
        options = self.options["char_cnn"]
        x = self.weights["char_embed"][char_ids(token, options["max_characters_per_token"])]
        parts = []
        for number, (width, _) in enumerate(options["filters"]):
            kernel = self.weights[f"CNN/W_cnn_{number}"][0]
            windows = [
                sum(x[start + k] @ kernel[k] for k in range(width))
                for start in range(len(x) - width + 1)
            ]
            best = np.max(windows, axis=0) + self.weights[f"CNN/b_cnn_{number}"]
            parts.append(np.tanh(best) if options["activation"] == "tanh" else np.maximum(best, 0))
        h = np.concatenate(parts)
        for number in range(options.get("n_highway") or 0):
            prefix = f"CNN_high_{number}/"
            gate = sigmoid(h @ self.weights[prefix + "W_carry"] + self.weights[prefix + "b_carry"])
            new = h @ self.weights[prefix + "W_transform"] + self.weights[prefix + "b_transform"]
            h = gate * np.maximum(new, 0) + (1 - gate) * h
        if "CNN_proj/W_proj" in self.weights:
            h = h @ self.weights["CNN_proj/W_proj"] + self.weights["CNN_proj/b_proj"]
        return h


def char_ids(token, width):
    """Ids of one word, counted from 0."""
    middle = {"<S>": [256], "</S>": [257]}.get(token)
    if middle is None:
        middle = list(token.encode("utf-8", errors="ignore"))[: width - 2]
    ids = [258, *middle, 259]
    return ids + [260] * (width - len(ids))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
