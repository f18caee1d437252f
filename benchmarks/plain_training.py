"""One step of pretraining as a plain program makes it, with what the original's graph computes.

Every position's characters go through the character encoder, all columns of them, for each
direction; one layer after another, a step at a time, with the input's product inside the step; the
logits of a batch are made whole. Autograd does the rest. Float32, torch's own Adagrad. Written from
the description of the released models.

Axes: B rows, T steps, N = B T predictions, C characters, E character width, F filters, P projection
width, D cell width, S negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elmo_model.lm_batches import DirectionBatch, LmBatch
from elmo_model.losses import LogUniformSampler, log_expected_count
from elmo_model.options import ElmoOptions

FORGET_BIAS = 1.0


class PlainTrainer:
    """A biLM with its softmax and optimiser; `step` learns from a batch."""

    def __init__(self, options: ElmoOptions, seed: int) -> None:
        torch.manual_seed(seed)
        self._options = options
        self._chars = PlainCharacters(options)
        width = options.lstm.projection_dim
        self._layers = nn.ModuleList(
            nn.ModuleList(PlainLayer(options) for _ in range(options.lstm.n_layers)) for _ in "fb"
        )
        num_words = options.training.n_tokens_vocab
        assert num_words is not None
        self._weight_VP = nn.Parameter(torch.randn(num_words, width) * width**-0.5)
        self._bias_V = nn.Parameter(torch.zeros(num_words))
        self._parameters = [
            *self._chars.parameters(),
            *self._layers.parameters(),
            self._weight_VP,
            self._bias_V,
        ]
        self._optimizer = torch.optim.Adagrad(
            self._parameters, lr=0.2, initial_accumulator_value=1.0, eps=0.0
        )
        self._steps = 0
        self._states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def step(self, batch: LmBatch) -> float:
        """Learn from a batch; the mean loss of the directions."""
        self._optimizer.zero_grad(set_to_none=True)
        unroll_steps = batch.forward.inputs_BT.shape[1]
        losses = []
        # One direction after the other, so that the graph of one is in memory only.
        for direction, text in enumerate(batch.directions):
            chars_BTC = batch.words[text.inputs_BT]
            loss = self._loss(self._run(direction, self._chars(chars_BTC)), text, direction)
            (loss * unroll_steps / 2).backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(self._parameters, 10.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        return sum(losses) / len(losses)

    def _run(self, direction: int, inputs_BTP: Tensor) -> Tensor:
        rate = self._options.training.dropout or 0.0
        for place, layer in enumerate(self._layers[direction]):
            inputs_BTP = F.dropout(inputs_BTP, rate)
            state = self._states.get((direction, place))
            outputs_BTP, self._states[direction, place] = layer(inputs_BTP, state)
            inputs_BTP = outputs_BTP + inputs_BTP if place else outputs_BTP
        return F.dropout(inputs_BTP, rate).flatten(0, 1)

    def _loss(self, hidden_NP: Tensor, text: DirectionBatch, direction: int) -> Tensor:
        targets_N = text.targets_BT.flatten()
        training, num_words = self._options.training, len(self._bias_V)
        if not training.sample_softmax:
            return F.cross_entropy(F.linear(hidden_NP, self._weight_VP, self._bias_V), targets_N)
        assert training.n_negative_samples_batch is not None
        sample = LogUniformSampler(
            num_words, training.n_negative_samples_batch, (self._steps, direction)
        ).sample()
        ids = torch.cat([targets_N, sample.ids_S])
        counts = log_expected_count(ids, num_words, len(sample.ids_S), sample.num_draws).float()
        rows, offsets = F.embedding(ids, self._weight_VP), self._bias_V[ids] - counts
        num_targets = len(targets_N)
        target_N1 = (hidden_NP * rows[:num_targets]).sum(1) + offsets[:num_targets]
        logits_NS = F.linear(hidden_NP, rows[num_targets:], offsets[num_targets:])
        logits_NS = logits_NS.masked_fill(targets_N[:, None] == sample.ids_S, -3.4e38)
        logits = torch.cat([target_N1[:, None], logits_NS], 1)
        return F.cross_entropy(logits, torch.zeros_like(targets_N))


class PlainCharacters(nn.Module):
    """Characters (B, T, C), not shifted, to vectors (B, T, P)."""

    def __init__(self, options: ElmoOptions) -> None:
        super().__init__()
        char_cnn = options.char_cnn
        assert char_cnn is not None
        dim, num_filters = char_cnn.embedding_dim, char_cnn.num_filters
        self.table = nn.Embedding(261, dim)
        self.filters = nn.ModuleList(nn.Conv1d(dim, count, w) for w, count in char_cnn.filters)
        self.highways = nn.ModuleList(
            nn.Linear(num_filters, 2 * num_filters) for _ in range(char_cnn.n_highway)
        )
        self.projection = nn.Linear(num_filters, options.lstm.projection_dim)

    def forward(self, chars_BTC: Tensor) -> Tensor:
        """Of every position, whether its word has come before or not."""
        num_rows, num_times, num_chars = chars_BTC.shape
        chars_NEC = self.table(chars_BTC.view(-1, num_chars)).transpose(1, 2)
        hidden_NF = torch.cat(
            [torch.relu(convolve(chars_NEC).amax(2)) for convolve in self.filters], 1
        )
        for highway in self.highways:
            carry, transform = highway(hidden_NF).chunk(2, 1)
            gate = torch.sigmoid(carry)
            hidden_NF = gate * torch.relu(transform) + (1 - gate) * hidden_NF
        return self.projection(hidden_NF).view(num_rows, num_times, -1)


class PlainLayer(nn.Module):
    """One LSTM layer of one direction."""

    def __init__(self, options: ElmoOptions) -> None:
        super().__init__()
        self._lstm = options.lstm
        width, dim = options.lstm.projection_dim, options.lstm.dim
        self.gates = nn.Linear(2 * width, 4 * dim)
        self.projection = nn.Linear(dim, width, bias=False)

    def forward(
        self, inputs_BTP: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (B, T, P), and the cell and output to carry on."""
        num_rows, num_times, width = inputs_BTP.shape
        clip, proj_clip = self._lstm.cell_clip, self._lstm.proj_clip
        cell_BD, output_BP = state or (
            inputs_BTP.new_zeros(num_rows, self._lstm.dim),
            inputs_BTP.new_zeros(num_rows, width),
        )
        outputs = []
        for time in range(num_times):
            gates = self.gates(torch.cat([inputs_BTP[:, time], output_BP], 1))
            i, j, f, o = gates.chunk(4, 1)
            cell_BD = torch.sigmoid(f + FORGET_BIAS) * cell_BD + torch.sigmoid(i) * torch.tanh(j)
            if clip:
                cell_BD = cell_BD.clamp(-clip, clip)
            output_BP = self.projection(torch.sigmoid(o) * torch.tanh(cell_BD))
            if proj_clip:
                output_BP = output_BP.clamp(-proj_clip, proj_clip)
            outputs.append(output_BP)
        return torch.stack(outputs, 1), (cell_BD.detach(), output_BP.detach())
