"""Run a biLM for training: the fast way where there is one, else its own readable modules.

| part | where | how |
|---|---|---|
| LSTM layers | any | lstm_training.py: both directions of a layer at once |
| characters | CPU with a compiler | char_training.py |
| characters | else | `CharCnn` |

`ELMO_KERNEL=reference` takes the model's modules for all of it, to compare with.
Axes: U distinct words, B rows, T steps, N = T B positions, P width, S directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.char_cnn import CharCnn
from elmo_model.dropout import NO_DROPOUT, DropoutMasks
from elmo_model.kernels.char_training import can_train, embed_words
from elmo_model.kernels.lstm_training import LayerInput, LayerRule, run_layer
from elmo_model.kernels.native import load
from elmo_model.kernels.packed_linear import can_pack
from elmo_model.kernels.products import product_dtype
from elmo_model.kernels.selection import KERNEL_VARIABLE, takes_reference
from elmo_model.lstm import LstmLayer
from elmo_model.state import BiLMState


def embed_for_training(model: BiLM, words: Tensor) -> Tensor:
    """Context-free vectors (U, P) of a batch's distinct words, with gradient.

    Args:
        model: the biLM.
        words: what it reads of them, as `LmBatch.words`, where the model is.
    """
    embedding = model.token_embedding
    if (
        isinstance(embedding, CharCnn)
        and len(words)
        and not takes_reference()
        and can_train(embedding)
    ):
        return embed_words(embedding, words)
    vectors: Tensor = embedding(words, shifted=False)
    return vectors


def run_for_training(
    model: BiLM,
    texts: Sequence[Tensor],
    state: BiLMState | None,
    masks: DropoutMasks = NO_DROPOUT,
) -> tuple[list[Tensor], BiLMState]:
    """Run each direction over its own text; equal to `BiLM.language_model`, dropout included.

    Args:
        model: the biLM.
        texts: context-free vectors (B, T, P) of each direction, in reading order.
        state: carried state; None is zero.
        masks: dropout.

    Returns: the top layer (B, T, P) of each direction, and the state after the last step.
    """
    if takes_reference():
        backward = texts[1] if len(texts) > 1 else None
        output = model.language_model(texts[0], backward, state, masks)
        both = (output.forward_BTP, output.backward_BTP)
        return [top for top in both if top is not None], output.state
    stacks = _stacks(model)
    state = model.zero_state(texts[0].shape[0]) if state is None else state
    inputs = [text.transpose(0, 1).to(model.dtype) for text in texts]
    cells, lasts = [], []
    for place, layers in enumerate(zip(*stacks, strict=True)):
        inputs = _dropped(masks, place, inputs)
        first = layers[0]
        rule = LayerRule(first.cell_clip, first.proj_clip, product_dtype(first.kernel))
        results = run_layer(
            rule,
            [
                LayerInput(
                    inputs[direction],
                    state.cells_SLBD[direction, place],
                    state.outputs_SLBP[direction, place],
                    _kernel(layer, masks, direction, place),
                    layer.bias,
                    layer.projection,
                )
                for direction, layer in enumerate(layers)
            ],
        )
        adds_input = place and model.options.lstm.use_skip_connections
        inputs = [
            result.outputs_TBP + text if adds_input else result.outputs_TBP
            for result, text in zip(results, inputs, strict=True)
        ]
        cells.append(torch.stack([result.cell_BD for result in results]))
        lasts.append(torch.stack([result.output_BP for result in results]))
    tops = [text.transpose(0, 1) for text in _dropped(masks, len(stacks[0]), inputs)]
    return tops, BiLMState(torch.stack(cells, 1), torch.stack(lasts, 1))


def training_kernel(model: BiLM) -> str:
    """What runs this model's training here, and why; for people to read."""
    if takes_reference():
        return f"reference: {KERNEL_VARIABLE} says so"
    if model.device.type != "cpu":
        return "layers at once; products and cell in torch"
    native = load()
    where = "C" if native.library is not None else "torch"
    products = "oneDNN products" if can_pack(model.dtype) else "torch's products"
    return (
        f"layers at once; {products}; cell, characters and softmax in {where} ({native.reason}); "
        f"{torch.get_num_threads()} threads"
    )


def _stacks(model: BiLM) -> list[list[LstmLayer]]:
    stacks = [stack for stack in (model.forward_stack, model.backward_stack) if stack is not None]
    return [[layer for layer in stack if isinstance(layer, LstmLayer)] for stack in stacks]


def _dropped(masks: DropoutMasks, place: int, texts: Sequence[Tensor]) -> list[Tensor]:
    return [masks.dropped(direction, place, text) for direction, text in enumerate(texts)]


def _kernel(layer: LstmLayer, masks: DropoutMasks, direction: int, place: int) -> Tensor:
    if not masks.kernels:
        return layer.kernel
    input_PG, recurrent_PG = layer.kernel[: layer.width], layer.kernel[layer.width :]
    return torch.cat([input_PG, masks.recurrent(direction, place, recurrent_PG)])
