"""One step of biLM pretraining, and everything that it changes.

Truncated back-propagation as in the original program: the LSTM state is carried from batch to batch
and never reset, the gradient is that of the loss times the unrolled steps, clipped by its global
norm. Knows no text, files, clock or schedule; a caller feeds batches and decides when to stop.

Shape suffixes: B rows, T unrolled steps, U distinct words of a batch, P projection width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from elmo_model.adagrad import Adagrad
from elmo_model.bilm import BiLM
from elmo_model.dropout import NO_DROPOUT, Dropout, DropoutMasks
from elmo_model.errors import ElmoError
from elmo_model.kernels.memory import keep_freed_memory
from elmo_model.kernels.selection import takes_reference
from elmo_model.kernels.training import embed_for_training, run_for_training
from elmo_model.kernels.workers import workers_instead
from elmo_model.lm_batches import LmBatch
from elmo_model.losses import LogUniformSampler, NegativeSample, Softmax
from elmo_model.options import ElmoOptions
from elmo_model.state import BiLMState
from elmo_model.token_embedding import TokenEmbedding

# Untyped in torch.
_sparse_checks: Any = torch.sparse.check_sparse_tensor_invariants
_ignore_in_ddp: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model

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
        step: steps done.
        batch: batches done; batch k draws its dropout and its negatives from (seed, k) alone.
        carried: LSTM state at the start of the next batch; None is zero.
        reset_share: probability that a row starts a batch from the zero state instead of the
            carried one. 0 is the original; embedding sentences each from a zero state needs a model
            that has seen it.
        dropout: its kinds and rates; None is the rate of the options for each element, as in the
            original.
        arithmetic: element type of what is multiplied, float32 or bfloat16. Weights, their
            gradients, sums, cells and the optimiser are float32 with either. The reference always
            multiplies float32.
        parallel: the losses of this worker's rows, wrapped so that the gradients of all workers
            are averaged; None for one worker.
        first_row: of the rows of all workers, this one's first.
        num_rows: rows of all workers; 0 is those of the batch.
        row_weight: this worker's rows over the mean number of rows of a worker.
    """

    model: BiLM
    softmax: Softmax
    optimizer: torch.optim.Optimizer
    seed: int = 0
    step: int = 0
    batch: int = 0
    carried: BiLMState | None = None
    reset_share: float = 0.0
    dropout: Dropout | None = None
    arithmetic: torch.dtype = torch.float32
    parallel: DistributedDataParallel | None = None
    first_row: int = 0
    num_rows: int = 0
    row_weight: float = 1.0

    def __post_init__(self) -> None:
        self.losses = BatchLosses(self.model, self.softmax)

    @property
    def has_sparse_gradient(self) -> bool:
        """Whether the softmax's gradient holds only the rows that a batch touches.

        Only Adagrad takes such gradients, which leaves all other rows alone; and workers with GPUs
        cannot add them up.
        """
        training = self.model.options.training
        return (
            training.sample_softmax
            and not training.share_embedding_softmax
            and isinstance(self.optimizer, torch.optim.Adagrad)
            and (self.parallel is None or self.model.device.type == "cpu")
        )

    def work_together(self) -> None:
        """Average the gradients with those of the other workers of torch's process group."""
        device = self.model.device
        if self.has_sparse_gradient and device.type == "cpu":
            # The wrapper takes no sparse gradients; that one is averaged in `train_step`.
            _ignore_in_ddp(self.losses, ["softmax.weight"])
        ids = [device.index] if device.type == "cuda" else None
        self.parallel = DistributedDataParallel(self.losses, device_ids=ids)

    @classmethod
    def create(
        cls,
        options: ElmoOptions,
        seed: int = 0,
        optimizer: OptimizerName = "adagrad",
        device: torch.device | str = "cpu",
        weight_decay: float = 0.0,
    ) -> TrainState:
        """A model with random weights, ready for its first batch.

        Args:
            options: architecture and the training keys of options.json; `n_tokens_vocab` is needed,
                and `n_negative_samples_batch` unless `sample_softmax` is false.
            seed: equal seeds give equal weights, dropout and negatives.
            optimizer: adagrad as in the original, or adamw.
            device: where to train; weights are drawn on the CPU, equal for every device.
            weight_decay: of adamw.

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
        return cls(model, softmax, new_optimizer(model, softmax, optimizer, weight_decay), seed)


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


def new_optimizer(
    model: BiLM, softmax: Softmax, name: OptimizerName, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimiser over all parameters, with the learning rate of the model's options.

    `weight_decay` is of adamw alone.
    """
    parameters = distinct_parameters(model, softmax)
    rate = model.options.training.learning_rate
    if name == "adagrad":
        return Adagrad(parameters, lr=rate, initial_accumulator_value=INITIAL_ACCUMULATOR, eps=0.0)
    return torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )


def distinct_parameters(*modules: nn.Module) -> list[nn.Parameter]:
    """All parameters of the modules, a shared one once."""
    return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))


def train_step(
    state: TrainState,
    batches: LmBatch | Sequence[LmBatch],
    samples: Sequence[NegativeSample] | None = None,
) -> StepResult:
    """Learn from a batch, or from several whose mean gradient makes one step.

    Changes the weights, the optimiser, the carried state and the step.

    Args:
        state: as left by the step before.
        batches: text of each direction of the model, as many rows as before; where several workers
            learn together, this worker's rows of them.
        samples: negatives per direction, to reproduce a recorded step; None draws them.

    Raises:
        ElmoError: the gradient is not finite; the weights are as before.
    """
    batches = [batches] if isinstance(batches, LmBatch) else list(batches)
    if state.model.device.type != "cpu" or takes_reference():
        return _train_step(state, batches, samples)
    keep_freed_memory()
    with workers_instead():
        return _train_step(state, batches, samples)


def _train_step(
    state: TrainState, batches: Sequence[LmBatch], samples: Sequence[NegativeSample] | None
) -> StepResult:
    training = state.model.options.training
    state.optimizer.zero_grad(set_to_none=True)
    total_S: Tensor | None = None
    for number, batch in enumerate(batches):
        # Workers' gradients are averaged once, with those of the last batch.
        is_last = number == len(batches) - 1
        waits = nullcontext() if is_last or state.parallel is None else state.parallel.no_sync()
        with waits:
            losses_S = _accumulate(state, batch, samples, state.row_weight / len(batches))
        total_S = losses_S if total_S is None else total_S + losses_S
    assert total_S is not None, "a step needs a batch"
    if state.parallel is not None and state.has_sparse_gradient:
        _average_rows(state.softmax.weight)
    norm = clip_gradients(
        distinct_parameters(state.model, state.softmax), training.all_clip_norm_val
    )
    mean_S = total_S / len(batches)
    if not torch.isfinite(norm):
        state.optimizer.zero_grad(set_to_none=True)
        raise ElmoError(
            f"step {state.step}: the gradient's norm is {float(norm)}, the losses "
            f"{mean_S.tolist()}; training diverged, lower the learning rate or the clip norm"
        )
    # Says that unchecked sparse gradients are meant; torch warns otherwise.
    with _sparse_checks(enable=False):
        state.optimizer.step()
    state.step += 1
    return StepResult(mean_S, norm)


def _accumulate(
    state: TrainState, batch: LmBatch, samples: Sequence[NegativeSample] | None, weight: float
) -> Tensor:
    """Add a batch's gradient; returns the losses (S,) and carries the LSTM state on."""
    training = state.model.options.training
    if training.sample_softmax and samples is None:
        samples = draw_negatives(state, len(batch.directions))
    initial = _initial_state(state)
    masks = draw_masks(state, batch)
    run = state.losses if state.parallel is None else state.parallel
    with multiplying(state):
        losses_S, cells, outputs = run(
            batch,
            initial,
            masks,
            samples if training.sample_softmax else None,
            state.has_sparse_gradient,
        )
    unroll_steps = batch.forward.inputs_BT.shape[1]
    torch.autograd.backward([losses_S.mean() * (unroll_steps * weight)])
    state.carried = BiLMState(cells, outputs).detach()
    state.batch += 1
    total_S: Tensor = losses_S.detach()
    return total_S


class BatchLosses(nn.Module):
    """The losses of a batch as one module, so that workers can wrap it to average gradients."""

    def __init__(self, model: BiLM, softmax: Softmax) -> None:
        super().__init__()
        self.model, self.softmax = model, softmax

    def forward(
        self,
        batch: LmBatch,
        carried: BiLMState | None,
        masks: DropoutMasks,
        samples: Sequence[NegativeSample] | None,
        sparse_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (S,) of the directions, and the cells and outputs of the state after the batch.

        Args:
            batch: text of each direction.
            carried: state before it.
            masks: dropout.
            samples: negatives per direction; None takes the full softmax.
            sparse_gradient: let the gradient of the softmax be sparse.
        """
        device = self.model.device
        hidden, after = run_directions(self.model, batch, carried, masks)
        targets = [text.targets_BT.flatten().to(device) for text in batch.directions]
        if samples is not None:
            losses = self.softmax.sampled_losses(
                hidden, targets, samples, sparse_gradient=sparse_gradient
            )
        else:
            losses = self.softmax.full_losses(hidden, targets)
        return torch.stack(losses), after.cells_SLBD, after.outputs_SLBP


def run_directions(
    model: BiLM,
    batch: LmBatch,
    carried: BiLMState | None,
    masks: DropoutMasks = NO_DROPOUT,
) -> tuple[list[Tensor], BiLMState]:
    """Top layer of each direction, (B T, P), and the LSTM state after the batch.

    The batch's distinct words pass the token embedding once, for both directions.
    """
    words = batch.words.to(model.device)
    table_UP = masks.words(words, embed_for_training(model, words))
    texts = [
        functional.embedding(text.inputs_BT.to(model.device), table_UP) for text in batch.directions
    ]
    tops, state = run_for_training(model, texts, carried, masks)
    return [top.flatten(0, 1) for top in tops], state


def multiplying(state: TrainState) -> AbstractContextManager[Any]:
    """What sets the element type of products, for the forward pass of a step."""
    if state.arithmetic == torch.float32 or takes_reference():
        return nullcontext()
    return torch.autocast(state.model.device.type, state.arithmetic)


def draw_masks(state: TrainState, batch: LmBatch) -> DropoutMasks:
    """The dropout of the state's next batch."""
    dropout = state.dropout or Dropout(state.model.options.training.dropout or 0.0)
    num_rows, num_steps = batch.forward.inputs_BT.shape
    rows = range(state.first_row, state.first_row + num_rows)
    return dropout.draw(
        state.model.options,
        num_steps,
        rows,
        state.num_rows or num_rows,
        (state.seed, state.batch),
        state.model.device,
    )


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
            state.softmax.vocabulary_size, num_samples, seed=(state.seed, state.batch, direction)
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
    # Drawn for all rows of all workers, so that it does not matter who has which.
    num_rows = state.num_rows or carried.num_rows
    draws_B = np.random.default_rng((state.seed, state.batch)).random(num_rows)
    draws_B = draws_B[state.first_row : state.first_row + carried.num_rows]
    keep_B1 = torch.from_numpy(draws_B >= state.reset_share)[:, None].to(carried.cells_SLBD.device)
    return BiLMState(carried.cells_SLBD * keep_B1, carried.outputs_SLBP * keep_B1)


def _average_rows(weight: nn.Parameter) -> None:
    """Average a sparse gradient over all workers; each knows the rows that its batch touched."""
    distributed: Any = torch.distributed
    assert weight.grad is not None
    with _sparse_checks(enable=False):
        gradient = weight.grad.coalesce()
        distributed.all_reduce(gradient)
        weight.grad = gradient.coalesce() / distributed.get_world_size()
