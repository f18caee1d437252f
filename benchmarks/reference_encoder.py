"""The biLM as a plain program runs it, with what a user of the original libraries gets. Float32.

Sentences come in the order given, in batches of a fixed number of rows. Every position of the
padded batch goes through the character encoder, all columns of it. One direction and one layer
after another, a step at a time, with the input's product inside the step; rows that have ended are
left out, as the original does. All layers are materialised. Written from the description of the
released models; only the spelling of words is shared with `elmo_model`.

Axes: B rows, T positions with sentence marks, C characters, E character width, F filters, P
projection width, D cell width, G = 4 D gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END, CharacterEncoder
from elmo_model.options import ElmoOptions

ROWS_PER_BATCH = 64


class PlainEncoder:
    """A biLM over a state dict of `elmo_model`, which is laid out anew as torch's modules want."""

    def __init__(self, options: ElmoOptions, state: Mapping[str, Tensor]) -> None:
        assert options.char_cnn is not None
        self._options = options
        self._char_cnn = options.char_cnn
        self._spell = CharacterEncoder(options.char_cnn.max_characters_per_token)
        prefix = "token_embedding."
        own = {
            name.removeprefix(prefix): value.float()
            for name, value in state.items()
            if name.startswith(prefix)
        }
        # Row 0 stands for "no token here".
        self._table = F.pad(own["char_embed"], (0, 0, 1, 0))
        self._filters = [
            (
                own[f"conv_weights.{place}"][0].permute(2, 1, 0).contiguous(),
                own[f"conv_biases.{place}"],
            )
            for place in range(len(options.char_cnn.filters))
        ]
        self._highways = [
            tuple(_transposed(own, f"highways.{place}.{gate}") for gate in ("carry", "transform"))
            for place in range(options.char_cnn.n_highway)
        ]
        projects = "projection_weight" in own
        self._projection = _transposed(own, "projection") if projects else None
        self._cells = [
            [
                PlainCell(options, state, f"{stack}.{layer}.")
                for layer in range(options.lstm.n_layers)
            ]
            for stack in ("forward_stack", "backward_stack")[: options.num_directions]
        ]

    def encode(self, sentences: Sequence[Sequence[str]]) -> Iterator[Tensor]:
        """Layers (L+1, B, T, D) of each batch of sentences, marks and padding included.

        The tokens of sentence b stand at positions 1 to its length.
        """
        with torch.no_grad():
            for first in range(0, len(sentences), ROWS_PER_BATCH):
                yield self._layers(sentences[first : first + ROWS_PER_BATCH])

    def _layers(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        marked = [[SENTENCE_BEGIN, *sentence, SENTENCE_END] for sentence in sentences]
        chars_BTC = torch.from_numpy(self._spell.encode_sentences(marked))
        lengths_B = np.array([len(sentence) for sentence in marked])
        words_BTP = self.words(chars_BTC) * (chars_BTC > 0).any(dim=2, keepdim=True)
        directions = []
        for number, cells in enumerate(self._cells):
            inputs_BTP = _reversed(words_BTP, lengths_B) if number else words_BTP
            outputs = [inputs_BTP]
            for place, cell in enumerate(cells):
                result_BTP = cell.run(inputs_BTP, lengths_B)
                if place and self._options.lstm.use_skip_connections:
                    result_BTP = result_BTP + inputs_BTP
                outputs.append(result_BTP)
                inputs_BTP = result_BTP
            if number:
                outputs = [_reversed(output, lengths_B) for output in outputs]
            directions.append(torch.stack(outputs))
        return torch.cat(directions, dim=-1)

    def words(self, chars_BTC: Tensor) -> Tensor:
        """Context-free vectors (B, T, P) of every position of a batch."""
        num_rows, num_times, num_chars = chars_BTC.shape
        chars_NEC = F.embedding(chars_BTC.view(-1, num_chars), self._table).transpose(1, 2)
        activation = torch.relu if self._char_cnn.activation == "relu" else torch.tanh
        hidden_NF = torch.cat(
            [
                activation(torch.conv1d(chars_NEC, weight, bias).amax(dim=2))
                for weight, bias in self._filters
            ],
            dim=1,
        )
        for carry, transform in self._highways:
            gate = torch.sigmoid(F.linear(hidden_NF, *carry))
            new = torch.relu(F.linear(hidden_NF, *transform))
            hidden_NF = gate * new + (1 - gate) * hidden_NF
        if self._projection is not None:
            hidden_NF = F.linear(hidden_NF, *self._projection)
        return hidden_NF.view(num_rows, num_times, -1)


class PlainCell:
    """One LSTM layer of one direction."""

    def __init__(self, options: ElmoOptions, state: Mapping[str, Tensor], prefix: str) -> None:
        width = options.lstm.projection_dim
        kernel = state[prefix + "kernel"].float()
        self._lstm = options.lstm
        self._input_GP = kernel[:width].t().contiguous()
        self._recurrent_GP = kernel[width:].t().contiguous()
        self._bias_G = state[prefix + "bias"].float()
        projection = state.get(prefix + "projection")
        self._projection_PD = None if projection is None else projection.float().t().contiguous()

    def run(self, inputs_BTP: Tensor, lengths_B: np.ndarray) -> Tensor:
        """Outputs (B, T, P) of a padded batch, zero at padding."""
        order = torch.from_numpy(np.argsort(-lengths_B, kind="stable"))
        inputs = inputs_BTP[order]
        num_rows, num_times, width = inputs.shape
        cell_BD = inputs.new_zeros(num_rows, self._lstm.dim)
        output_BP = inputs.new_zeros(num_rows, width)
        outputs = torch.zeros_like(inputs)
        for time in range(num_times):
            live = int((lengths_B > time).sum())
            cell_BD, output_BP = self._step(inputs[:live, time], cell_BD[:live], output_BP[:live])
            outputs[:live, time] = output_BP
        result = torch.empty_like(outputs)
        result[order] = outputs
        return result

    def _step(self, inputs_BP: Tensor, cell_BD: Tensor, output_BP: Tensor) -> tuple[Tensor, Tensor]:
        gates = F.linear(inputs_BP, self._input_GP)
        gates = gates + F.linear(output_BP, self._recurrent_GP, self._bias_G)
        i, j, f, o = gates.chunk(4, dim=1)
        cell = torch.sigmoid(f + 1.0) * cell_BD + torch.sigmoid(i) * torch.tanh(j)
        if self._lstm.cell_clip:
            cell = cell.clamp(-self._lstm.cell_clip, self._lstm.cell_clip)
        output = torch.sigmoid(o) * torch.tanh(cell)
        if self._projection_PD is not None:
            output = F.linear(output, self._projection_PD)
            if self._lstm.proj_clip:
                output = output.clamp(-self._lstm.proj_clip, self._lstm.proj_clip)
        return cell, output


def _transposed(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}_weight"].t().contiguous(), state[f"{name}_bias"]


def _reversed(values_BTP: Tensor, lengths_B: np.ndarray) -> Tensor:
    """Every row turned around within its own length."""
    times_T = np.arange(values_BTP.shape[1])
    lengths = lengths_B[:, None]
    source_BT = np.where(times_T < lengths, lengths - 1 - times_T, times_T)
    return values_BTP[torch.arange(len(values_BTP))[:, None], torch.from_numpy(source_BT)]
