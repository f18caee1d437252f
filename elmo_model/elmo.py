"""ELMo as a torch module, for training through it; who knows AllenNLP's `Elmo` knows this one.

    elmo = Elmo.from_files("options.json", "weights.hdf5", num_output_representations=2)
    result = elmo(batch_to_ids([["First", "sentence", "."], ["Another", "."]]))
    first, second = result["elmo_representations"]      # (B, T, 2P) each
    mask = result["mask"]                               # (B, T) bool

Unlike AllenNLP's, it carries no state from call to call unless asked to. Knows characters and
layers; no vocabulary, and no files beyond loading. To embed without training see encoder.py.

Axes: B sentences, T tokens of the longest, C characters, N tokens in all, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elmo_model.bilm import BiLM
from elmo_model.characters import (
    DEFAULT_MAX_CHARACTERS,
    SENTENCE_BEGIN,
    SENTENCE_END,
    CharacterEncoder,
)
from elmo_model.errors import ModelFileError
from elmo_model.options import ElmoOptions
from elmo_model.scalar_mix import LayerNorm, ScalarMix
from elmo_model.state import BiLMState
from elmo_model.weights import build, read_weights

_NUM_MARKS = 2


class ElmoSettings(TypedDict, total=False):
    """The keyword arguments of `Elmo`, which describes them."""

    requires_grad: bool
    do_layer_norm: bool | LayerNorm
    dropout: float
    keep_sentence_boundaries: bool
    scalar_mix_parameters: Sequence[float] | None
    use_top_only: bool
    stateful: bool


class ElmoOutput(TypedDict):
    """What `Elmo` returns: a tensor (B, T, D) for each mix, and the mask (B, T) bool of tokens."""

    elmo_representations: list[Tensor]
    mask: Tensor


def batch_to_ids(
    sentences: Sequence[Sequence[str]], max_characters_per_token: int = DEFAULT_MAX_CHARACTERS
) -> Tensor:
    """Spell tokenised sentences for `Elmo`.

    Returns: ids (B, T, C) int64, 0 beyond a sentence's end; sentence marks are not included.
    """
    return torch.from_numpy(CharacterEncoder(max_characters_per_token).encode_sentences(sentences))


class Elmo(nn.Module):
    """One biLM and several scalar mixes of its layers, each with weights of its own."""

    # Named settings of AllenNLP's class; a settings object would hide them from its users.
    def __init__(  # noqa: PLR0913
        self,
        bilm: BiLM,
        num_output_representations: int = 1,
        *,
        requires_grad: bool = False,
        do_layer_norm: bool | LayerNorm = False,
        dropout: float = 0.5,
        keep_sentence_boundaries: bool = False,
        scalar_mix_parameters: Sequence[float] | None = None,
        use_top_only: bool = False,
        stateful: bool = False,
    ) -> None:
        """Mix the layers of a biLM.

        Args:
            bilm: a character model; its parameters become part of this module.
            num_output_representations: how many mixes to make.
            requires_grad: whether the biLM itself is trained.
            do_layer_norm: normalise the layers before they are mixed; True is "allennlp", whose
                statistics count sentence marks, those of "bilm-tf" do not. Makes a sentence's
                vectors depend on its batch mates.
            dropout: rate on what comes out, in training mode only.
            keep_sentence_boundaries: leave the vectors of `<S>` and `</S>` in.
            scalar_mix_parameters: raw mix weights, one a layer, that are then not trained.
            use_top_only: every mix is gamma times the top layer.
            stateful: start row k from where the last call left row k, as both originals did. The
                result then depends on the history of calls; `reset_states` forgets it.

        Raises:
            ModelFileError: a word-input model.
        """
        super().__init__()
        if bilm.options.char_cnn is None:
            raise ModelFileError("Elmo spells words, the model has word input: use Encoder")
        if do_layer_norm is True:
            do_layer_norm = "allennlp"
        self.bilm = bilm.requires_grad_(requires_grad)
        self.scalar_mixes = nn.ModuleList(
            ScalarMix(
                bilm.options.num_layers,
                layer_norm=do_layer_norm or None,
                use_top_only=use_top_only,
                initial_weights=scalar_mix_parameters,
                trainable=scalar_mix_parameters is None,
            )
            for _ in range(num_output_representations)
        )
        self.dropout = nn.Dropout(dropout)
        self._keep_marks = keep_sentence_boundaries
        self._norm_counts_marks = do_layer_norm != "bilm-tf"
        self._stateful = stateful
        self._state: BiLMState | None = None
        spell = CharacterEncoder(bilm.options.char_cnn.max_characters_per_token)
        marks = torch.from_numpy(spell.encode([SENTENCE_BEGIN, SENTENCE_END]))
        self.register_buffer("_marks", marks, persistent=False)

    @classmethod
    def from_files(
        cls,
        options_file: str | Path,
        weight_file: str | Path,
        num_output_representations: int = 1,
        **settings: Unpack[ElmoSettings],
    ) -> Elmo:
        """Load a released model.

        Args:
            options_file: options.json.
            weight_file: its weights: HDF5, or safetensors of ours or of AllenNLP's module.
            num_output_representations: how many mixes to make.
            **settings: the keyword arguments of the class.

        Raises:
            ModelFileError: a file is wrong, or the two are not of one model.
        """
        options = ElmoOptions.read(options_file)
        bilm = build(options, read_weights(weight_file, options))
        return cls(bilm, num_output_representations, **settings)

    @property
    def output_dim(self) -> int:
        """Width D of what comes out."""
        return self.bilm.options.output_dim

    def get_output_dim(self) -> int:
        """AllenNLP's name for `output_dim`."""
        return self.output_dim

    def reset_states(self) -> None:
        """Forget the carried state of a stateful module."""
        self._state = None

    def forward(self, inputs: Tensor) -> ElmoOutput:
        """Embed a batch.

        Args:
            inputs: character ids (B, T, C) or (..., B, T, C) as `batch_to_ids` gives them, without
                sentence marks, on the module's device.

        Returns: for each mix (..., B, T, D), exact zeros beyond a sentence; and the mask of tokens.
            With `keep_sentence_boundaries` T counts the two marks.

        Raises:
            ValueError: another number of characters than the model's, ids that are out of range, or
                padding in front of a token.
        """
        chars_BTC = self._checked(inputs)
        mask_BT = (chars_BTC > 0).any(dim=2)
        lengths_B = mask_BT.sum(dim=1)
        marked_BT = _up_to(lengths_B + _NUM_MARKS, chars_BTC.shape[1] + _NUM_MARKS)
        if not torch.equal(mask_BT, _up_to(lengths_B, chars_BTC.shape[1])):
            raise ValueError("a token comes after padding; ids of 0 may only end a sentence")
        layers_LBTD = self._layers(chars_BTC, mask_BT, lengths_B.cpu().numpy())
        counted_BT = marked_BT
        if not self._norm_counts_marks:
            counted_BT = marked_BT.clone()
            counted_BT[:, 0] = False
            counted_BT.scatter_(1, (lengths_B + 1)[:, None], False)
        if self._keep_marks:
            mask_BT = marked_BT
        lead = inputs.shape[:-2]
        representations = []
        for mix in self.scalar_mixes:
            mixed_BTD = mix(layers_LBTD, counted_BT)
            if not self._keep_marks:
                mixed_BTD = mixed_BTD[:, 1:-1]
            mixed_BTD = self.dropout(mixed_BTD * mask_BT[:, :, None])
            representations.append(mixed_BTD.reshape(*lead, *mixed_BTD.shape[1:]))
        return {
            "elmo_representations": representations,
            "mask": mask_BT.reshape(*lead, mask_BT.shape[1]),
        }

    def _layers(self, chars_BTC: Tensor, mask_BT: Tensor, lengths_B: NDArray[np.int64]) -> Tensor:
        """All layers with sentence marks: (L, B, T + 2, D)."""
        num_rows, num_times = mask_BT.shape
        distinct_UC, place_N = torch.unique(chars_BTC[mask_BT], dim=0, return_inverse=True)
        table_UP = self.bilm.token_embedding(torch.cat([self.get_buffer("_marks"), distinct_UC]))
        ids_BT = np.zeros((num_rows, num_times + _NUM_MARKS), np.int64)
        ids_BT[:, 1:-1][mask_BT.cpu().numpy()] = place_N.cpu().numpy() + _NUM_MARKS
        ids_BT[np.arange(num_rows), lengths_B + 1] = 1
        carried = self._state if self._stateful else None
        state = None if carried is None else carried.first_rows(num_rows)
        layers: Tensor
        final: BiLMState
        layers, final = self.bilm(table_UP, ids_BT, lengths_B + _NUM_MARKS, state)
        if self._stateful:
            final = final.detach()
            self._state = final if carried is None else carried.updated(final)
        return layers

    def _checked(self, inputs: Tensor) -> Tensor:
        assert self.bilm.options.char_cnn is not None
        width = self.bilm.options.char_cnn.max_characters_per_token
        if inputs.dim() < 3 or inputs.shape[-1] != width:
            raise ValueError(
                f"expected character ids (sentences, tokens, {width}), got {tuple(inputs.shape)}; "
                f"make them with batch_to_ids(sentences, {width})"
            )
        chars_BTC = inputs.flatten(0, -3)
        if chars_BTC.numel():
            low, high = (int(value) for value in torch.aminmax(chars_BTC))
            if low < 0 or high > 261:
                raise ValueError(f"character ids must be 0..261, found {low}..{high}")
        return chars_BTC


def _up_to(lengths_B: Tensor, num_times: int) -> Tensor:
    """Mask (B, T) of positions before each length."""
    return torch.arange(num_times, device=lengths_B.device) < lengths_B[:, None]
