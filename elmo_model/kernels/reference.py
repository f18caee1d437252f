"""The readable reference: the biLM's own modules, one direction and one layer after another."""

from __future__ import annotations

import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState


class ReferenceKernel:
    """Runs `BiLM.run_stacks`, in the element type of its weights."""

    name = "reference"
    advice = ""

    def __init__(self, bilm: BiLM, reason: str) -> None:
        """Take the model whose modules do the work."""
        self.reason = reason
        self.dtype = bilm.dtype
        self.positions_run = 0
        self._bilm = bilm

    def run(
        self, table_UP: Tensor, index_SN: Tensor, layout: PackedLayout, state: BiLMState
    ) -> tuple[list[Tensor], BiLMState]:
        """As in `StackKernel`."""
        self.positions_run += index_SN.shape[1]
        with torch.no_grad():
            return self._bilm.run_stacks(table_UP.to(self.dtype), index_SN, layout, state)
