"""The bidirectional language model: context-free vectors in, layer activations out.

Knows no text, files or devices: words come as rows of a table, sentences as row numbers. One module
serves prediction (`forward`) and pretraining (`language_model`).

Axes: U distinct words, B rows, T positions, N packed positions, L LSTM layers, P projection width,
D cell width, K = L + 1 layers that come out, S directions. Source: Peters et al. 2018, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elmo_model.char_cnn import CharCnn
from elmo_model.dropout import NO_DROPOUT, DropoutMasks
from elmo_model.lstm import LstmLayer
from elmo_model.options import ElmoOptions
from elmo_model.packed_layers import PackedLayers, packed_index, to_device
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from elmo_model.token_embedding import TokenEmbedding


@dataclass(frozen=True)
class LanguageModelOutput:
    """What pretraining needs: the top layer of each direction, and the state to carry on.

    `forward_BTP` and `backward_BTP` lie in the order in which each direction read its own text;
    `backward_BTP` is None for a model of one direction. The state is not detached.
    """

    forward_BTP: Tensor
    backward_BTP: Tensor | None
    state: BiLMState


class BiLM(nn.Module):
    """Both LSTM stacks over one token embedding.

    A new module holds random weights to start a training from; draw them again with
    `reset_parameters(generator)`, or load weights with `weights.build`.
    """

    token_embedding: CharCnn | TokenEmbedding
    backward_stack: nn.ModuleList | None

    def __init__(self, options: ElmoOptions, num_words: int | None = None) -> None:
        """Build the modules.

        Args:
            options: the model's options.
            num_words: rows of the word table of a word-input model; the default is
                `options.training.n_tokens_vocab`. Ignored for character input.

        Raises:
            ValueError: a word-input model without a number of words.
        """
        super().__init__()
        self.options = options
        lstm = options.lstm
        if options.char_cnn is not None:
            self.token_embedding = CharCnn(options.char_cnn, lstm.projection_dim)
        else:
            num_words = num_words or options.training.n_tokens_vocab
            if num_words is None:
                raise ValueError("a word-input model needs num_words or options n_tokens_vocab")
            self.token_embedding = TokenEmbedding(
                num_words,
                lstm.projection_dim,
                is_output=options.training.share_embedding_softmax,
            )
        self.forward_stack = nn.ModuleList(LstmLayer(lstm) for _ in range(lstm.n_layers))
        self.backward_stack = (
            nn.ModuleList(LstmLayer(lstm) for _ in range(lstm.n_layers))
            if options.bidirectional
            else None
        )
        # On the meta device there is nothing to draw, and torch would load its compiler to do it.
        if self.device.type != "meta":
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as the original starts its training but for a shared table."""
        self.token_embedding.reset_parameters(generator)
        for layer in (*self.forward_stack, *(self.backward_stack or ())):
            assert isinstance(layer, LstmLayer)
            layer.reset_parameters(generator)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the LSTMs' weights, and of all layers that come out."""
        return self._layer(0, 0).kernel.dtype

    @property
    def device(self) -> torch.device:
        """Where the LSTMs' weights are."""
        return self._layer(0, 0).kernel.device

    def zero_state(self, num_rows: int) -> BiLMState:
        """The state before any text, for a batch of `num_rows` rows."""
        return BiLMState.zeros(self.options, num_rows, self.device, self.dtype)

    def forward(
        self,
        table_UP: Tensor,
        ids_BT: NDArray[np.integer],
        lengths_B: NDArray[np.integer],
        state: BiLMState | None = None,
        *,
        keep_marks: bool = True,
    ) -> tuple[Tensor, BiLMState]:
        """All layers of a batch of sentences.

        Args:
            table_UP: context-free vectors, as `token_embedding` returns them.
            ids_BT: row of `table_UP` at each position, sentence marks included; entries at and
                after a row's length are not read.
            lengths_B: positions of each row, sentence marks included; at least 2 unless
                `keep_marks`, and 0 leaves a row's state alone.
            state: state before the first step; None is zero.
            keep_marks: else the first and last position of every row are run and left out.

        Returns: layers (L+1, B, T, S P), layer 0 being the context-free vector once for each
            direction, forward half first, exact zeros at padding; T is that of `ids_BT`, less 2
            without marks. And the state after each row's last step.
        """
        layout = PackedLayout.of(lengths_B)
        state = self.zero_state(len(layout.lengths_B)) if state is None else state
        table_UP = table_UP.to(self.dtype)
        index_SN = packed_index(ids_BT, layout, self.options.num_directions, self.device)
        outputs, final = self.run_stacks(table_UP, index_SN, layout, state)
        packed = PackedLayers(layout, table_UP, index_SN, outputs)
        num_times = ids_BT.shape[1] - (0 if keep_marks else 2)
        return packed.unpack(num_times, keep_marks=keep_marks), final

    def run_stacks(
        self, table_UP: Tensor, index_SN: Tensor, layout: PackedLayout, state: BiLMState
    ) -> tuple[list[Tensor], BiLMState]:
        """All directions' stacks over a packed batch, as `kernels.protocol.StackKernel.run`."""
        outputs, states = [], []
        for direction, index_N in enumerate(index_SN):
            packed, final = self._run(direction, table_UP, index_N, layout, state)
            outputs.append(packed)
            states.append(final)
        layers = [torch.stack(parts) for parts in zip(*outputs, strict=True)]
        return layers, _join(states)

    def language_model(
        self,
        forward_BTP: Tensor,
        backward_BTP: Tensor | None,
        state: BiLMState | None = None,
        masks: DropoutMasks = NO_DROPOUT,
    ) -> LanguageModelOutput:
        """Run each direction over its own text, without padding, as in pretraining.

        Args:
            forward_BTP: context-free vectors of the forward text.
            backward_BTP: those of the backward text, in reading order (`</S>` before `<S>`), which
                may be other text; None for a model of one direction.
            state: carried state of B rows; None is zero.
            masks: dropout; none for evaluation.

        Raises:
            ValueError: a text for each direction of the model is needed.
        """
        texts = [forward_BTP] if backward_BTP is None else [forward_BTP, backward_BTP]
        if len(texts) != self.options.num_directions:
            raise ValueError(
                f"the model has {self.options.num_directions} directions, got {len(texts)} texts"
            )
        num_rows, num_times = forward_BTP.shape[:2]
        state = self.zero_state(num_rows) if state is None else state
        layout = PackedLayout.of(np.full(num_rows, num_times))
        tops, states = [], []
        for direction, text_BTP in enumerate(texts):
            packed = text_BTP.transpose(0, 1).flatten(0, 1).to(self.dtype)
            outputs, final = self._run(direction, packed, None, layout, state, masks)
            states.append(final)
            top_TBP = outputs[-1].view(num_times, num_rows, -1)
            top_TBP = masks.dropped(direction, len(outputs), top_TBP)
            tops.append(top_TBP.transpose(0, 1))
        return LanguageModelOutput(tops[0], tops[1] if len(tops) > 1 else None, _join(states))

    def _run(
        self,
        direction: int,
        inputs_UP: Tensor,
        index_N: Tensor | None,
        layout: PackedLayout,
        state: BiLMState,
        masks: DropoutMasks = NO_DROPOUT,
    ) -> tuple[list[Tensor], BiLMState]:
        """One direction's stack: every layer's packed output (N, P), and the final state.

        With dropout, the text must be of equal length in all rows, and `index_N` None.
        """
        order = to_device(layout.order_B, self.device)
        back = to_device(layout.inverse_order_B, self.device)
        cells, lasts, outputs = [], [], []
        for place in range(self.options.lstm.n_layers):
            if masks.places:
                inputs_TBP = inputs_UP.view(-1, len(layout.lengths_B), inputs_UP.shape[1])
                inputs_UP = masks.dropped(direction, place, inputs_TBP).flatten(0, 1)
            layer = self._layer(direction, place)
            before = (
                state.cells_SLBD[direction, place][order],
                state.outputs_SLBP[direction, place][order],
            )
            recurrent_PG = masks.recurrent(direction, place, layer.kernel[layer.width :])
            packed_NP, (cell, last) = layer(inputs_UP, index_N, layout, before, recurrent_PG)
            cells.append(cell[back])
            lasts.append(last[back])
            if place and self.options.lstm.use_skip_connections:
                packed_NP = packed_NP + inputs_UP
            outputs.append(packed_NP)
            inputs_UP, index_N = packed_NP, None
        return outputs, BiLMState(torch.stack(cells)[None], torch.stack(lasts)[None])

    def _layer(self, direction: int, place: int) -> LstmLayer:
        stack = self.backward_stack if direction else self.forward_stack
        assert stack is not None
        layer = stack[place]
        assert isinstance(layer, LstmLayer)
        return layer


def _join(states: list[BiLMState]) -> BiLMState:
    return BiLMState(
        torch.cat([state.cells_SLBD for state in states]),
        torch.cat([state.outputs_SLBP for state in states]),
    )
