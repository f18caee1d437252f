"""The scalar mix: gamma * sum over layers of softmax(w) * layer. Knows no biLM.

Axes: L layers, B rows, T positions, D width. Source: Peters et al. 2018, equation 1; the layer norm
and the regulariser as in the two original programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

LayerNorm = Literal["allennlp", "bilm-tf"]

_EPSILON = {"allennlp": 1e-13, "bilm-tf": 1e-12}


class ScalarMix(nn.Module):
    """Mixes layers with weights that can be trained: `weights_L` (raw, start 0), `gamma` (start 1).

    With `layer_norm` every layer is first brought to mean 0 and variance 1 over all positions of
    the batch and all dimensions together. That makes a sentence's vector depend on its batch mates;
    it is there for compatibility. The variants differ in epsilon, and in whether their authors took
    sentence marks into the statistics (AllenNLP did): that is decided by the mask given.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        layer_norm: LayerNorm | None = None,
        use_top_only: bool = False,
        initial_weights: Sequence[float] | None = None,
        gamma: float = 1.0,
        trainable: bool = True,
    ) -> None:
        """Make a mix.

        Args:
            num_layers: L + 1 layers that will be mixed.
            layer_norm: which original's layer normalisation; None for none, as released.
            use_top_only: gamma times the top layer; `weights_L` is then without effect.
            initial_weights: raw weights (before the softmax); the default is all 0, equal shares.
            gamma: factor of the mix.
            trainable: whether weights and gamma take gradients.

        Raises:
            ValueError: not one initial weight for each layer.
        """
        super().__init__()
        weights = torch.zeros(num_layers) if initial_weights is None else initial_weights
        weights = torch.as_tensor(weights, dtype=torch.float32)
        if weights.shape != (num_layers,):
            raise ValueError(f"expected {num_layers} weights, one a layer, got {len(weights)}")
        self._layer_norm = layer_norm
        self._use_top_only = use_top_only
        self.weights_L = nn.Parameter(weights.clone(), requires_grad=trainable)
        self.gamma = nn.Parameter(torch.tensor(float(gamma)), requires_grad=trainable)

    def forward(self, layers_LBTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Mix layers.

        Args:
            layers_LBTD: the layers.
            mask_BT: bool; positions that the layer norm's statistics are taken from. Positions
                outside are mixed like the others: mask what comes out.

        Returns: (B, T, D) in the layers' dtype.
        """
        if self._use_top_only:
            top = layers_LBTD[-1:]
            return self.gamma.to(top.dtype) * self._normalised(top, mask_BT)[0]
        layers = self._normalised(layers_LBTD, mask_BT)
        share_L = torch.softmax(self.weights_L, dim=0) * self.gamma
        return torch.einsum("l,lbtd->btd", share_L.to(layers.dtype), layers)

    def l2_term(self, coefficient: float) -> Tensor:
        """bilm-tf's regulariser: coefficient times the sum of the squared raw weights; no gamma."""
        if self._use_top_only:
            return self.weights_L.new_zeros(())
        return coefficient * self.weights_L.square().sum()

    def _normalised(self, layers_LBTD: Tensor, mask_BT: Tensor) -> Tensor:
        if self._layer_norm is None:
            return layers_LBTD
        # In 16 bits the sums would overflow and the epsilon would vanish.
        wide = layers_LBTD.to(torch.promote_types(layers_LBTD.dtype, torch.float32))
        counted = mask_BT[None, :, :, None].to(wide.dtype)
        count = (counted.sum() * wide.shape[-1]).clamp(min=1)
        mean = (wide * counted).sum(dim=(1, 2, 3), keepdim=True) / count
        variance = ((wide - mean) * counted).square().sum(dim=(1, 2, 3), keepdim=True) / count
        epsilon = _EPSILON[self._layer_norm]
        return ((wide - mean) * torch.rsqrt(variance + epsilon)).to(layers_LBTD.dtype)
