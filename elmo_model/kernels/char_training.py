"""The character encoder in training on the CPU: `CharCnn` with a gradient that knows the maximum.

Of all windows of a word, a filter's score comes from one; so the convolutions' gradient is that of
one window for each word and filter, and the others' products, which autograd makes, are all zeros.
Needs the C code; without it, and elsewhere, `CharCnn` itself is run.

Axes: N words, C characters of a word, K columns that are looked at, E character width, F filters
of all widths, P output width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from elmo_model.char_cnn import CharCnn, Highway, deciding_columns, used_columns
from elmo_model.characters import PAD_ID
from elmo_model.kernels.native import Convolution, load
from elmo_model.kernels.packed_linear import padded_rows
from elmo_model.kernels.products import Product, linear, product_dtype, stored
from elmo_model.kernels.workers import run_without_gradient, shared_workers

# The widest filters' scores of so many words stay within the processor's cache.
_CHUNK_WORDS = 32
# Columns come in few numbers, since each is a product of its own.
_COLUMNS_STEP = 8
# The gradient's work is cut into so many parts for each thread, which evens out their sizes.
_PARTS_PER_THREAD = 4


def can_train(model: CharCnn) -> bool:
    """Whether `embed_words` can run this model here."""
    weight = model.char_embed
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and load().library is not None
    )


def embed_words(model: CharCnn, chars_NC: Tensor) -> Tensor:
    """The context-free vectors (N, P) of words, given as ids that are not shifted; with gradient.

    Products are made in autocast's element type, if it is on; all else is float32.
    """
    num_words = chars_NC.shape[0]
    dtype = product_dtype(model.char_embed)
    used_N = used_columns(chars_NC, PAD_ID)
    order_N = torch.argsort(used_N, stable=True)
    # Products come in few sizes: the last word is repeated, and its repetitions are left out.
    missing = padded_rows(num_words) - num_words
    padded_N = torch.cat([order_N, order_N[-1:].expand(missing)])
    ends = used_N[padded_N][_CHUNK_WORDS - 1 :: _CHUNK_WORDS].tolist()
    ends.append(int(used_N.max()))
    columns = [_columns(end, model) for end in ends]
    pooled_NF = _LargestScores.apply(  # type: ignore[no-untyped-call]
        dtype, columns, chars_NC[padded_N], model.char_embed, *model.conv_weights
    )
    activation = torch.relu if model.options.activation == "relu" else torch.tanh
    hidden_NF = activation(pooled_NF + torch.cat(list(model.conv_biases)))
    for highway in model.highways:
        assert isinstance(highway, Highway)
        carry = linear(hidden_NF, highway.carry_weight, highway.carry_bias, dtype)
        transform = linear(hidden_NF, highway.transform_weight, highway.transform_bias, dtype)
        hidden_NF = torch.lerp(hidden_NF, torch.relu(transform), torch.sigmoid(carry))
    if model.projection_weight is not None and model.projection_bias is not None:
        hidden_NF = linear(hidden_NF, model.projection_weight, model.projection_bias, dtype)
    return hidden_NF[torch.argsort(order_N)]


def _columns(used: int, model: CharCnn) -> int:
    needed = deciding_columns(used, model.options)
    rounded = -(-needed // _COLUMNS_STEP) * _COLUMNS_STEP
    return min(rounded, model.options.max_characters_per_token)


class _LargestScores(torch.autograd.Function):
    """Every filter's largest score in every word, (N, F), without bias."""

    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        columns: Sequence[int],
        chars_NC: Tensor,
        table: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        num_filters = sum(weight.shape[3] for weight in weights)
        best_NF = torch.empty(chars_NC.shape[0], num_filters)
        place_NF = torch.empty(best_NF.shape, dtype=torch.int32)
        rounded = table.to(dtype)
        products = [
            (weight.shape[1], weight.shape[3], stored(weight.detach().flatten(0, 2).to(dtype)))
            for weight in weights
        ]
        chunks = zip(
            columns,
            torch.split(chars_NC, _CHUNK_WORDS),
            torch.split(best_NF, _CHUNK_WORDS),
            torch.split(place_NF, _CHUNK_WORDS),
            strict=False,
        )
        # The last words are the longest: they first, so that no thread ends late.
        run_without_gradient(
            shared_workers(),
            [
                partial(_score, F.embedding(chars[:, :count], rounded), products, best, place)
                for count, chars, best, place in reversed(list(chunks))
            ],
        )
        ctx.save_for_backward(chars_NC, place_NF, table, *weights)
        return best_NF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor | None, ...]:
        chars_NC, place_NF, table, *weights = ctx.saved_tensors
        gradient = _ScoreGradient(chars_NC, place_NF, table, weights, grad_NF.contiguous())
        workers = shared_workers()
        run_without_gradient(workers, gradient.calls(_PARTS_PER_THREAD * workers.num_threads))
        return None, None, None, gradient.table(), *gradient.weights


def _score(
    chars_NKE: Tensor, products: Sequence[tuple[int, int, Product]], best: Tensor, place: Tensor
) -> None:
    """Fill the rows of some words."""
    library = load().library
    assert library is not None
    maximum = getattr(library, f"elmo_max_windows_{str(chars_NKE.dtype).removeprefix('torch.')}")
    num_words, _, dim = chars_NKE.shape
    offset = 0
    for width, count, multiply in products:
        windows = chars_NKE.unfold(1, width, 1).transpose(2, 3)
        scores = multiply(windows.reshape(-1, width * dim))
        maximum(
            num_words, windows.shape[1], count, scores.data_ptr(), best.shape[1],
            best[:, offset:].data_ptr(), place[:, offset:].data_ptr(),
        )  # fmt: skip
        offset += count


class _ScoreGradient:
    """Gradients of the weights and of the characters' table; filters are shared out."""

    def __init__(
        self,
        chars_NC: Tensor,
        place_NF: Tensor,
        table: Tensor,
        weights: Sequence[Tensor],
        grad_NF: Tensor,
    ) -> None:
        self._chars, self._places, self._table = chars_NC.contiguous(), place_NF, table
        self._given, self._grad = weights, grad_NF
        self.weights = [torch.empty_like(weight) for weight in weights]
        self._tables: dict[int, Tensor] = {}

    def calls(self, num_parts: int) -> list[partial[None]]:
        """Calls that do it all, each some filters of one width."""
        work = sum(weight.numel() for weight in self._given)
        calls, offset = [], 0
        for number, weight in enumerate(self._given):
            count = weight.shape[3]
            pieces = min(count, -(-weight.numel() * num_parts // work))
            bounds = [count * piece // pieces for piece in range(pieces + 1)]
            calls += [
                partial(self._add, number, slice(start, stop), offset)
                for start, stop in zip(bounds, bounds[1:], strict=False)
            ]
            offset += count
        return calls

    def table(self) -> Tensor:
        """The table's gradient, summed in a fixed order."""
        return torch.stack([part for _, part in sorted(self._tables.items())]).sum(0)

    def _add(self, number: int, filters: slice, offset: int) -> None:
        library = load().library
        assert library is not None
        _, width, dim, _ = self._given[number].shape
        first = offset + filters.start
        weight = self._given[number][0, :, :, filters].permute(2, 0, 1).contiguous()
        grad_weight = torch.zeros_like(weight)
        grad_table = self._tables[first] = torch.zeros_like(self._table)
        library.elmo_convolution_gradient(
            ctypes.byref(
                Convolution(
                    words=self._chars.shape[0],
                    columns=self._chars.shape[1],
                    dim=dim,
                    width=width,
                    filters=len(weight),
                    stride=self._grad.shape[1],
                    chars=self._chars.data_ptr(),
                    table=self._table.data_ptr(),
                    weight=weight.data_ptr(),
                    grad=self._grad[:, first:].data_ptr(),
                    place=self._places[:, first:].data_ptr(),
                    grad_weight=grad_weight.data_ptr(),
                    grad_table=grad_table.data_ptr(),
                )
            )
        )
        self.weights[number][0, :, :, filters] = grad_weight.permute(1, 2, 0)
