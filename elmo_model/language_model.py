"""A biLM with its output layer, laid out to be run: how likely it finds each word of a text.

The LSTMs and the characters run in the same kernels as embedding does (kernels/selection.py), the
softmax in float32 whatever their arithmetic is. Knows packed text; no words, files or corpora.

Axes: S directions, U distinct words, N packed positions, P projection width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.devices import TF32, select_device, select_dtype
from elmo_model.directory import ModelFiles
from elmo_model.kernels.selection import select_kernels
from elmo_model.losses import Softmax
from elmo_model.options import ElmoOptions
from elmo_model.output_layer import OutputLayer
from elmo_model.packed_layers import to_device
from elmo_model.packed_text import PackedText
from elmo_model.softmax_file import SoftmaxWeights
from elmo_model.state import BiLMState
from elmo_model.weights import StateDict, build


class LanguageModel:
    """Gives the loss of every prediction of packed text; without dropout and gradients."""

    def __init__(
        self,
        files: ModelFiles,
        softmax: SoftmaxWeights,
        *,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        """Take a model's files as they were read.

        Args:
            files: the biLM.
            softmax: its output layer.
            device: as `Encoder.from_files`.
            dtype: arithmetic of the LSTMs, as `Encoder.from_files`.

        Raises:
            DeviceError: the device or its arithmetic is not available.
        """
        self._lay_out(files.options, files.state, softmax, select_device(device), dtype)

    @classmethod
    def of_modules(cls, bilm: BiLM, softmax: Softmax) -> LanguageModel:
        """Measure modules that are being trained, as they are now, where they are, in float32.

        The stacks' weights are copied; other weights may be shared until the next step.
        """
        state = {name: value.cpu() for name, value in bilm.state_dict().items()}
        weights = SoftmaxWeights(softmax.weight.detach(), softmax.bias.detach())
        model = cls.__new__(cls)
        model._lay_out(bilm.options, state, weights, bilm.device, "float32")
        return model

    def _lay_out(
        self,
        options: ElmoOptions,
        state: StateDict,
        softmax: SoftmaxWeights,
        device: torch.device,
        dtype: str,
    ) -> None:
        self.device, self.options = device, options
        arithmetic = select_dtype(dtype, device)
        bilm = build(options, state).requires_grad_(False).eval()
        kernels = select_kernels(
            bilm, device, arithmetic, torch.get_num_threads(), tf32=dtype == TF32
        )
        self.kernel, self._embed = kernels.stack, kernels.embed
        self._output = OutputLayer(softmax, device)

    @torch.no_grad()
    def losses(self, text: PackedText, state: BiLMState | None = None) -> tuple[Tensor, BiLMState]:
        """-ln p of each prediction of a text.

        Args:
            text: as many directions as the model has.
            state: before the first step of each row; None is zero.

        Returns: losses (S, N) float32, natural log, and the state after each row's last step.
        """
        num_rows = len(text.layout.lengths_B)
        if state is None:
            state = BiLMState.zeros(self.options, num_rows, self.device, self.kernel.dtype)
        # Text is spelled as for training, the kernels take ids that are shifted for prediction.
        is_spelled = self.options.char_cnn is not None
        table_UP = self._embed(text.words + 1 if is_spelled else text.words)
        index_SN = to_device(text.index_SN, self.device)
        outputs, final = self.kernel.run(table_UP, index_SN, text.layout, state)
        targets_SN = to_device(text.targets_SN, self.device)
        losses = self._output.negative_log_likelihood(
            outputs[-1].flatten(0, 1), targets_SN.flatten()
        )
        return losses.view(targets_SN.shape), final
