"""One step of biLM pretraining, and everything that it changes.

Truncated back-propagation as in the original program: the LSTM state is carried from batch to batch
and never reset, the gradient is that of the loss times the unrolled steps, clipped by its global
norm. Knows no text, files, clock or schedule; a caller feeds batches and decides when to stop.

Shape suffixes: B rows, T unrolled steps, U distinct words of a batch, P projection width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from elmo_model.bilm import BiLM
from elmo_model.errors import ElmoError
from elmo_model.lm_batches import LmBatch
from elmo_model.losses import LogUniformSampler, NegativeSample, Softmax
from elmo_model.options import ElmoOptions
from elmo_model.state import BiLMState
from elmo_model.token_embedding import TokenEmbedding

# Untyped in torch.
_sparse_checks: Any = torch.sparse.check_sparse_tensor_invariants

OptimizerName = Literal["adagrad", "adamw"]

# The original's Adagrad starts from 1.0, which keeps the first updates small; it has no epsilon.
INITIAL_ACCUMULATOR = 1.0


@dataclass(frozen=True)
class StepResult:
    """Losses per direction (S,), natural log, and the gradient's norm before clipping."""

    losses_S: Tensor
    gradient_norm: Tensor

    @property
    def loss(self) -> float:
        """Mean over the directions; of the sampled softmax if the model trains with one."""
        return float(self.losses_S.mean())


@dataclass
class TrainState:
    """What training changes, and what it needs to go on exactly where it stopped.

    Attributes:
        model: the biLM.
        softmax: its output layer, shared by both directions.
        optimizer: over all parameters of both.
        seed: of the weights, of dropout and of the negatives.
        step: steps done. Step k draws its dropout and its negatives from (seed, k) alone.
        carried: LSTM state at the start of the next batch; None is zero.
        reset_share: probability that a row starts a batch from the zero state instead of the
            carried one. 0 is the original; embedding sentences each from a zero state needs a model
            that has seen it.
    """

    model: BiLM
    softmax: Softmax
    optimizer: torch.optim.Optimizer
    seed: int = 0
    step: int = 0
    carried: BiLMState | None = None
    reset_share: float = 0.0

    @classmethod
    def create(
        cls,
        options: ElmoOptions,
        seed: int = 0,
        optimizer: OptimizerName = "adagrad",
        device: torch.device | str = "cpu",
    ) -> TrainState:
        """A model with random weights, ready for its first batch.

        Args:
            options: architecture and the training keys of options.json; `n_tokens_vocab` is needed,
                and `n_negative_samples_batch` unless `sample_softmax` is false.
            seed: equal seeds give equal weights, dropout and negatives.
            optimizer: adagrad as in the original, or adamw without weight decay.
            device: where to train; weights are drawn on the CPU, equal for every device.

        Raises:
            ElmoError: the options lack a key that training needs.
        """
        num_words = options.training.n_tokens_vocab
        if num_words is None:
            raise ElmoError(
                "options: n_tokens_vocab is missing; training needs the vocabulary size"
            )
        generator = torch.Generator().manual_seed(seed)
        model = BiLM(options)
        model.reset_parameters(generator)
        softmax = new_softmax(model, num_words)
        softmax.reset_parameters(generator)
        model.to(device)
        softmax.to(device)
        return cls(model, softmax, new_optimizer(model, softmax, optimizer), seed)


def new_softmax(model: BiLM, num_words: int) -> Softmax:
    """An output layer for `model` with random weights; shares the word table if options say so.

    Raises:
        ElmoError: the options ask to share, but the model has no word table.
    """
    width = model.options.lstm.projection_dim
    if not model.options.training.share_embedding_softmax:
        return Softmax(num_words, width)
    if not isinstance(model.token_embedding, TokenEmbedding):
        raise ElmoError(
            "options: share_embedding_softmax needs word input; a model that reads characters has "
            "no word table to share"
        )
    return Softmax(num_words, width, model.token_embedding.embedding)


def new_optimizer(model: BiLM, softmax: Softmax, name: OptimizerName) -> torch.optim.Optimizer:
    """The optimiser over all parameters, with the learning rate of the model's options."""
    parameters = distinct_parameters(model, softmax)
    rate = model.options.training.learning_rate
    if name == "adagrad":
        return torch.optim.Adagrad(
            parameters, lr=rate, initial_accumulator_value=INITIAL_ACCUMULATOR, eps=0.0
        )
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def distinct_parameters(*modules: nn.Module) -> list[nn.Parameter]:
    """All parameters of the modules, a shared one once."""
    return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))


def train_step(
    state: TrainState, batch: LmBatch, samples: Sequence[NegativeSample] | None = None
) -> StepResult:
    """Learn from one batch: changes the weights, the optimiser, the carried state and the step.

    Args:
        state: as left by the step before.
        batch: text of each direction of the model, as many rows as the batch before.
        samples: negatives per direction, to reproduce a recorded step; None draws them.

    Raises:
        ElmoError: the gradient is not finite; the weights are as before.
    """
    training = state.model.options.training
    device = state.model.device
    hidden, carried = _run_with_dropout(state, batch, _initial_state(state))
    targets = [text.targets_BT.flatten().to(device) for text in batch.directions]
    if training.sample_softmax:
        # Only Adagrad takes sparse gradients; it leaves rows alone that no step touched.
        is_sparse = isinstance(state.optimizer, torch.optim.Adagrad)
        losses = state.softmax.sampled_losses(
            hidden,
            targets,
            samples or draw_negatives(state, len(targets)),
            sparse_gradient=is_sparse and not training.share_embedding_softmax,
        )
    else:
        losses = [
            state.softmax.full_loss(top, wanted)
            for top, wanted in zip(hidden, targets, strict=True)
        ]
    losses_S = torch.stack(losses)
    unroll_steps = batch.forward.inputs_BT.shape[1]
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward([losses_S.mean() * unroll_steps])
    norm = clip_gradients(
        distinct_parameters(state.model, state.softmax), training.all_clip_norm_val
    )
    if not torch.isfinite(norm):
        state.optimizer.zero_grad(set_to_none=True)
        raise ElmoError(
            f"step {state.step}: the gradient's norm is {float(norm)}, the losses "
            f"{losses_S.tolist()}; training diverged, lower the learning rate or the clip norm"
        )
    # Says that unchecked sparse gradients are meant; torch warns otherwise.
    with _sparse_checks(enable=False):
        state.optimizer.step()
    state.carried = carried.detach()
    state.step += 1
    return StepResult(losses_S.detach(), norm)


def run_directions(
    model: BiLM, batch: LmBatch, carried: BiLMState | None, dropout: float = 0.0
) -> tuple[list[Tensor], BiLMState]:
    """Top layer of each direction, (B T, P), and the LSTM state after the batch.

    The batch's distinct words pass the token embedding once, for both directions.
    """
    table_UP = model.token_embedding(batch.words.to(model.device), shifted=False)
    texts = [
        functional.embedding(text.inputs_BT.to(model.device), table_UP) for text in batch.directions
    ]
    output = model.language_model(
        texts[0], texts[1] if len(texts) > 1 else None, carried, dropout=dropout
    )
    tops = [output.forward_BTP]
    if output.backward_BTP is not None:
        tops.append(output.backward_BTP)
    return [top.flatten(0, 1) for top in tops], output.state


def draw_negatives(state: TrainState, num_directions: int) -> list[NegativeSample]:
    """The negatives of the state's next step, a set for each direction.

    Raises:
        ElmoError: the options do not say how many.
    """
    training = state.model.options.training
    num_samples = training.n_negative_samples_batch
    if num_samples is None:
        raise ElmoError(
            "options: n_negative_samples_batch is missing; set it, or sample_softmax to false"
        )
    return [
        LogUniformSampler(
            state.softmax.vocabulary_size, num_samples, seed=(state.seed, state.step, direction)
        ).sample()
        for direction in range(num_directions)
    ]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale all gradients together so that their global norm is at most `max_norm`.

    Returns: the norm before. A sparse gradient counts each row once.
    """
    values: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            gradient = parameter.grad = gradient.coalesce()
            values.append(gradient.values())
        else:
            values.append(gradient)
    norm: Tensor = torch.stack([value.norm() for value in values]).norm()
    if max_norm is not None and norm > max_norm:
        for value in values:
            value.mul_(max_norm / norm)
    return norm


def _initial_state(state: TrainState) -> BiLMState | None:
    """The carried state, zero in a random share of the rows."""
    carried = state.carried
    if carried is None or not state.reset_share:
        return carried
    draws_B = np.random.default_rng((state.seed, state.step)).random(carried.num_rows)
    keep_B1 = torch.from_numpy(draws_B >= state.reset_share)[:, None].to(carried.cells_SLBD.device)
    return BiLMState(carried.cells_SLBD * keep_B1, carried.outputs_SLBP * keep_B1)


def _run_with_dropout(
    state: TrainState, batch: LmBatch, initial: BiLMState | None
) -> tuple[list[Tensor], BiLMState]:
    rate = state.model.options.training.dropout or 0.0
    if not rate:
        return run_directions(state.model, batch, initial)
    device = state.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_step_seed(state))
        return run_directions(state.model, batch, initial, dropout=rate)


def _step_seed(state: TrainState) -> int:
    """A seed for torch out of (seed, step); splitmix64's constants keep nearby pairs apart."""
    mixed = (state.seed * 0x9E3779B97F4A7C15 + (state.step + 1) * 0xBF58476D1CE4E5B9) % (1 << 63)
    return mixed ^ (mixed >> 31)
