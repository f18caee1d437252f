"""The encoder: weights, device and arithmetic together. Tokenised sentences in, layers out.

This is what a corpus is embedded with. It knows words and sentences, but no documents, pooling,
files other than the model's, or Ray. For training through ELMo see elmo.py.

Axes: U words, B sentences, T tokens of the longest sentence (marks not counted), L LSTM layers,
D width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END, CharacterEncoder
from elmo_model.devices import TF32, select_device, select_dtype
from elmo_model.directory import ModelFiles, load_directory, read_files
from elmo_model.kernels.processor import processor_features, processor_name
from elmo_model.kernels.selection import select_kernels
from elmo_model.layer_choice import LAYER_NAMES, LayerChoice
from elmo_model.packed_layers import PackedLayers, packed_index
from elmo_model.packing import PackedLayout
from elmo_model.source_hash import source_sha256
from elmo_model.state import BiLMState
from elmo_model.upload import upload
from elmo_model.warm_start import WARM_START_TEXT
from elmo_model.weights import build, weights_sha256
from elmo_model.word_cache import WordCache
from elmo_model.word_ids import WordIds
from elmo_model.word_table import shared_word_table

__all__ = ["LAYER_NAMES", "Encoder", "InitialState", "LayerActivations", "LayerChoice"]

InitialState = Literal["zero", "warm"]

_MARKS = (SENTENCE_BEGIN, SENTENCE_END)
_CACHE_BYTES = 256 << 20
# What `encode` gives the biLM at once, so that a long list of sentences needs no more memory than
# its result; callers that batch for themselves use `encode_word_ids`.
_MAX_BATCH_POSITIONS = 8192
# Kernels fill up the rows of a step to such a number, so batches had better have it.
_ROWS_MULTIPLE = 32


@dataclass(frozen=True)
class LayerActivations:
    """The layers of a batch of sentences.

    `layers` (L+1, B, T, D) in the encoder's dtype: layer 0 is the context-free vector, once for
    each direction; then the LSTM layers, the forward half first. Exact zeros beyond a sentence.
    `mask` (B, T) is True on tokens. `state` is the state after each sentence and its end mark.
    """

    layers: Tensor
    mask: Tensor
    state: BiLMState


class Encoder:
    """A biLM ready to embed; make one with `from_files` or `from_directory`.

    Every call starts from the same state, so a sentence's vectors depend on the sentence alone.
    What comes out takes no gradients but, unlike tensors of torch's inference mode, may be the
    input of something that does.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: str = "auto",
        dtype: str = "float32",
        initial_state: InitialState = "zero",
    ) -> None:
        """Take a model's files as they were read; see `from_files`."""
        if initial_state not in ("zero", "warm"):
            raise ValueError(f"initial_state must be zero or warm, got {initial_state!r}")
        self.device = select_device(device)
        self._arithmetic = select_dtype(dtype, self.device)
        self.options = files.options
        self.weights_sha256 = weights_sha256(files.state)
        self._word_ids = WordIds(files.words) if files.words is not None else None
        bilm = build(files.options, files.state).requires_grad_(False).eval()
        kernels = select_kernels(
            bilm, self.device, self._arithmetic, torch.get_num_threads(), tf32=dtype == TF32
        )
        self.kernel, self._embed_ids = kernels.stack, kernels.embed
        self.dtype = self.kernel.dtype
        char_cnn = files.options.char_cnn
        self._spell = CharacterEncoder(char_cnn.max_characters_per_token) if char_cnn else None
        max_words = _CACHE_BYTES // (4 * files.options.lstm.projection_dim)
        self._cache = WordCache(self._embed, max_words)
        self._start = self._warm_state() if initial_state == "warm" else None

    @classmethod
    def from_files(
        cls,
        options_file: str | Path,
        weights_file: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        initial_state: InitialState = "zero",
        vocabulary_file: str | Path | None = None,
        token_embeddings_file: str | Path | None = None,
    ) -> Encoder:
        """Load a released model.

        Args:
            options_file: options.json.
            weights_file: its weights: HDF5, or safetensors of ours or of AllenNLP's module.
            device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
            dtype: arithmetic of the LSTMs: `float32`, `bfloat16`, `float16`, `tf32` (on a GPU),
                `int8` (weights and what they are multiplied with, on the CPU) or `float64` (to
                judge the others). The cell state is never less than float32.
            initial_state: `zero`, or `warm` for the state after `warm_start.WARM_START_TEXT`.
            vocabulary_file: words of a word-input model, or of `token_embeddings_file`.
            token_embeddings_file: context-free vectors dumped from a character model, in the place
                of its character encoder; words outside the vocabulary are then `<UNK>`.

        Raises:
            ModelFileError: a file is wrong, or they are not of one model.
            DeviceError: the device or its arithmetic is not available.
        """
        files = read_files(options_file, weights_file, vocabulary_file, token_embeddings_file)
        return cls(files, device=device, dtype=dtype, initial_state=initial_state)

    @classmethod
    def from_directory(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        initial_state: InitialState = "zero",
    ) -> Encoder:
        """Load a model directory (directory.py); arguments and errors as in `from_files`."""
        return cls(load_directory(path), device=device, dtype=dtype, initial_state=initial_state)

    def precompute(self, words: Sequence[str], folder: str | Path) -> None:
        """Share the context-free vectors of a vocabulary with this machine's other processes.

        They are made once, by the first process that asks, and mapped into memory from a file in
        `folder`. No vector changes by it. Does nothing for a model with word input.

        Args:
            words: those to expect; others are spelled when they are met.
            folder: a directory of this machine that only this user can write to.

        Raises:
            OSError: the folder cannot be written to.
        """
        if self._spell is None:
            return
        # Everything that could change a bit, the code included.
        made_by = "\n".join(
            [
                source_sha256(),
                self.weights_sha256,
                self.options.to_json(),
                f"{self.kernel.name} {self._arithmetic}",
                torch.__version__,
                processor_name(),
                *processor_features(),
                torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "",
            ]
        )
        width = self.options.lstm.projection_dim
        table = shared_word_table(Path(folder), words, width, made_by, self._embed)
        self._cache.precompute(table)

    @property
    def num_layers(self) -> int:
        """Layers that come out, L + 1: the context-free one and every LSTM layer."""
        return self.options.num_layers

    @property
    def num_words_made(self) -> int:
        """Words that went through the character encoder so far; all others were remembered."""
        return self._cache.num_made

    @property
    def dim(self) -> int:
        """Width of a layer: twice the projection width, or once for a model of one direction."""
        return self.options.output_dim

    def encode(
        self, sentences: Sequence[Sequence[str]], state: BiLMState | None = None
    ) -> LayerActivations:
        """Run the biLM over tokenised sentences.

        Any number of sentences may be given: they go through the biLM in batches of like length.

        Args:
            sentences: lists of tokens, without sentence marks; may be empty.
            state: where each sentence starts from; the default is the encoder's initial state.

        Returns: layers (L+1, B, T, D), mask (B, T), and the final state; T is the longest sentence.

        Raises:
            TypeError: a sentence is a string, which would be taken for a list of letters.
            ValueError: `state` has another number of rows.
        """
        if any(isinstance(sentence, str) for sentence in sentences):
            raise TypeError("a sentence must be a list of tokens, got a string; split it first")
        number: dict[str, int] = {}
        ids_N = np.fromiter(
            (number.setdefault(word, len(number)) for words in sentences for word in words),
            np.int32,
        )
        lengths_B = np.fromiter(map(len, sentences), np.int64, len(sentences))
        ids_BT = np.full((len(sentences), int(lengths_B.max(initial=0))), -1, np.int32)
        ids_BT[np.arange(ids_BT.shape[1]) < lengths_B[:, None]] = ids_N
        words = list(number)
        batches = _batches(lengths_B + len(_MARKS))
        if len(batches) < 2:
            return self.encode_word_ids(words, ids_BT, lengths_B, state)
        return self._encode_batches(words, ids_BT, lengths_B, state, batches)

    def encode_word_ids(
        self,
        words: Sequence[str],
        word_ids_BT: NDArray[np.integer],
        lengths_B: NDArray[np.integer],
        state: BiLMState | None = None,
    ) -> LayerActivations:
        """Run the biLM over one batch of sentences that are given as ids of their words.

        Only words that occur in the batch are looked at, so `words` may be those of many batches.

        Args:
            words: what the ids stand for.
            word_ids_BT: int32 (or wider) positions in `words`; -1 beyond a sentence's end.
            lengths_B: tokens of each sentence, marks not counted.
            state: where each sentence starts from; the default is the encoder's initial state.

        Returns: layers (L+1, B, T, D), mask (B, T), and the final state.

        Raises:
            ValueError: ids, lengths and state do not fit together.
        """
        packed, final = self.encode_packed(words, word_ids_BT, lengths_B, state)
        num_times = word_ids_BT.shape[1]
        layers = packed.unpack(num_times, keep_marks=False)
        mask = torch.from_numpy(np.arange(num_times) < np.asarray(lengths_B)[:, None])
        return LayerActivations(layers, upload(mask, self.device), final)

    def encode_packed(
        self,
        words: Sequence[str],
        word_ids_BT: NDArray[np.integer],
        lengths_B: NDArray[np.integer],
        state: BiLMState | None = None,
    ) -> tuple[PackedLayers, BiLMState]:
        """Run the biLM as `encode_word_ids`, and leave its layers as the kernel made them.

        For whoever takes some of the layers, mixes or pools them: nothing is copied or padded.
        """
        num_rows, num_times = word_ids_BT.shape
        lengths_B = np.asarray(lengths_B, np.int64)
        start = self._start_of(num_rows, state)
        if lengths_B.shape != (num_rows,) or lengths_B.max(initial=0) > num_times:
            raise ValueError(
                f"lengths {lengths_B.shape} up to {lengths_B.max(initial=0)} do not fit "
                f"word ids of shape {word_ids_BT.shape}"
            )
        real_BT = np.arange(num_times) < lengths_B[:, None]
        used_U, place_N = np.unique(word_ids_BT[real_BT], return_inverse=True)
        if used_U.size and not 0 <= used_U[0] <= used_U[-1] < len(words):
            raise ValueError(
                f"word ids run from {used_U[0]} to {used_U[-1]}, there are {len(words)} words"
            )
        marked_BT = np.zeros((num_rows, num_times + len(_MARKS)), np.int64)
        marked_BT[:, 1:-1][real_BT] = place_N + len(_MARKS)
        marked_BT[np.arange(num_rows), lengths_B + 1] = _MARKS.index(SENTENCE_END)
        with torch.no_grad():
            table_UP = self._vectors([*_MARKS, *(words[index] for index in used_U.tolist())])
            layout = PackedLayout.of(lengths_B + len(_MARKS))
            index_SN = packed_index(marked_BT, layout, self.options.num_directions, self.device)
            outputs, final = self.kernel.run(table_UP, index_SN, layout, start)
            packed = PackedLayers(layout, table_UP.to(self.dtype), index_SN, outputs)
        return packed, final

    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Context-free vectors (U, P) float32 of words, in their order; layer 0 of any sentence."""
        with torch.no_grad():
            return self._vectors(words)

    def _vectors(self, words: Sequence[str]) -> Tensor:
        return self._embed(words) if self._spell is None else self._cache.vectors(words)

    def _embed(self, words: Sequence[str]) -> Tensor:
        if not words:
            return torch.empty(0, self.options.lstm.projection_dim, device=self.device)
        if self._spell is not None:
            ids = self._spell.encode(words)
        else:
            assert self._word_ids is not None
            ids = self._word_ids.of(words)
        return self._embed_ids(torch.from_numpy(ids))

    def _start_of(self, num_rows: int, state: BiLMState | None) -> BiLMState:
        if state is not None:
            if state.num_rows != num_rows:
                raise ValueError(f"the state has {state.num_rows} rows, the batch {num_rows}")
            return state
        if self._start is None:
            return BiLMState.zeros(self.options, num_rows, self.device, self.dtype)
        return self._start.rows(torch.zeros(num_rows, dtype=torch.int64, device=self.device))

    def _warm_state(self) -> BiLMState:
        state = BiLMState.zeros(self.options, 1, self.device, self.dtype)
        for sentence in WARM_START_TEXT:
            state = self.encode([sentence.split(" ")], state).state
        return state

    def _encode_batches(
        self,
        words: Sequence[str],
        word_ids_BT: NDArray[np.int32],
        lengths_B: NDArray[np.int64],
        state: BiLMState | None,
        batches: list[NDArray[np.int64]],
    ) -> LayerActivations:
        shape = (self.num_layers, *word_ids_BT.shape, self.dim)
        layers = torch.zeros(shape, dtype=self.dtype, device=self.device)
        mask = np.arange(word_ids_BT.shape[1]) < lengths_B[:, None]
        finals = []
        for rows in batches:
            longest = int(lengths_B[rows].max())
            index = upload(torch.from_numpy(rows), self.device)
            before = None if state is None else state.rows(index)
            batch = self.encode_word_ids(
                words, word_ids_BT[rows, :longest], lengths_B[rows], before
            )
            layers[:, index, :longest] = batch.layers
            finals.append(batch.state)
        back = upload(torch.from_numpy(np.argsort(np.concatenate(batches))), self.device)
        final = BiLMState(
            torch.cat([part.cells_SLBD for part in finals], 2),
            torch.cat([part.outputs_SLBP for part in finals], 2),
        ).rows(back)
        return LayerActivations(layers, upload(torch.from_numpy(mask), self.device), final)


def _batches(lengths_B: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rows, longest first, into batches of at most `_MAX_BATCH_POSITIONS` padded positions."""
    order = np.argsort(-lengths_B, kind="stable")
    batches = []
    start = 0
    while start < order.size:
        num_rows = max(1, _MAX_BATCH_POSITIONS // int(lengths_B[order[start]]))
        if num_rows >= 2 * _ROWS_MULTIPLE:
            num_rows -= num_rows % _ROWS_MULTIPLE
        batches.append(order[start : start + num_rows])
        start += num_rows
    return batches
