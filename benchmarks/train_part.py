"""One training step of ours cut into its parts, and the same with torch's own LSTM. Knows no files.

The parts' times come from hooks on the gradients between them, so a step is the one that is
trained with. Axes: B rows, T steps, U distinct words, P width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elmo_model.kernels.memory import keep_freed_memory
from elmo_model.kernels.training import embed_for_training, run_for_training
from elmo_model.kernels.workers import workers_instead
from elmo_model.lm_batches import LmBatch
from elmo_model.training import (
    TrainState,
    clip_gradients,
    distinct_parameters,
    draw_masks,
    draw_negatives,
    multiplying,
)

RunStacks = Callable[[list[Tensor]], list[Tensor]]


class TorchStacks(nn.Module):
    """`torch.nn.LSTM(proj_size)` for every layer and direction: it cannot clip."""

    def __init__(self, state: TrainState) -> None:
        super().__init__()
        lstm = state.model.options.lstm
        self._dropout = state.model.options.training.dropout or 0.0
        self._adds_input = lstm.use_skip_connections
        self.layers = nn.ModuleList(
            nn.ModuleList(
                nn.LSTM(lstm.projection_dim, lstm.dim, proj_size=lstm.projection_dim)
                for _ in range(lstm.n_layers)
            )
            for _ in range(state.model.options.num_directions)
        )
        self._states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def run(self, texts: list[Tensor]) -> list[Tensor]:
        """Top layer (B, T, P) of each direction; the state is carried."""
        tops = []
        for direction, layers in enumerate(self.layers):
            inputs_TBP = texts[direction].transpose(0, 1)
            for place, layer in enumerate(layers):
                inputs_TBP = F.dropout(inputs_TBP, self._dropout)
                outputs, (output, cell) = layer(inputs_TBP, self._states.get((direction, place)))
                self._states[direction, place] = (output.detach(), cell.detach())
                inputs_TBP = outputs + inputs_TBP if place and self._adds_input else outputs
            tops.append(F.dropout(inputs_TBP, self._dropout).transpose(0, 1))
        return tops


class StagedStep:
    """`train_step` with a clock in it.

    `seconds` are those of the last step's parts, `cpu_seconds` what the processors spent on them.
    """

    def __init__(self, state: TrainState, stacks: TorchStacks | None = None) -> None:
        """Take a state; `stacks` runs in the place of the model's own LSTMs."""
        self._state, self._stacks = state, stacks
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        modules = [state.model, state.softmax]
        if stacks is not None:
            modules = [state.model.token_embedding, stacks, state.softmax]
            state.optimizer = type(state.optimizer)(
                distinct_parameters(*modules), lr=0.2, initial_accumulator_value=1.0, eps=0.0
            )
        self._parameters = distinct_parameters(*modules)

    def step(self, batch: LmBatch) -> float:
        """Learn from a batch; the mean loss of the directions."""
        keep_freed_memory()
        # torch's own LSTM has only torch's own threads.
        with workers_instead() if self._stacks is None else nullcontext():
            return self._step(batch)

    def _step(self, batch: LmBatch) -> float:
        state, clock = self._state, _Clock()
        state.optimizer.zero_grad(set_to_none=True)
        with multiplying(state):
            table_UP = embed_for_training(state.model, batch.words)
            clock.stop("characters")
            texts = [F.embedding(text.inputs_BT, table_UP) for text in batch.directions]
            tops, carried = self._run(batch, texts)
            clock.stop("lstm")
            targets = [text.targets_BT.flatten() for text in batch.directions]
            hidden = [top.flatten(0, 1) for top in tops]
            losses = self._losses(hidden, targets)
        # Autograd goes back in the order in which the parts were made.
        for top in tops:
            top.register_hook(lambda grad: clock.stop("softmax"))
        table_UP.register_hook(lambda grad: clock.stop("lstm"))
        loss = torch.stack(losses).mean()
        (loss * batch.forward.inputs_BT.shape[1]).backward()
        clock.stop("characters")
        clip_gradients(self._parameters, state.model.options.training.all_clip_norm_val)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            state.optimizer.step()
        clock.stop("optimiser")
        if carried is not None:
            state.carried = carried
        state.step += 1
        state.batch += 1
        self.seconds, self.cpu_seconds = clock.seconds, clock.cpu_seconds
        return loss.item()

    def _run(self, batch: LmBatch, texts: list[Tensor]):
        state = self._state
        if self._stacks is not None:
            return self._stacks.run(texts), None
        masks = draw_masks(state, batch)
        tops, carried = run_for_training(state.model, texts, state.carried, masks)
        return tops, carried.detach()

    def _losses(self, hidden: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
        state = self._state
        if not state.model.options.training.sample_softmax:
            return state.softmax.full_losses(hidden, targets)
        negatives = draw_negatives(state, len(targets))
        return state.softmax.sampled_losses(hidden, targets, negatives, sparse_gradient=True)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def stop(self, part: str) -> None:
        """Give the time since the last stop to a part."""
        now = time.perf_counter(), time.process_time()
        for spent, before, after in zip(
            (self.seconds, self.cpu_seconds), self._last, now, strict=True
        ):
            spent[part] = spent.get(part, 0.0) + after - before
        self._last = now
