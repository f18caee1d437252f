"""The space in which cosines are taken: as stored, centred, or whitened. Knows arrays only.

N rows, D width.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

# Whitening estimates D variances from the rows, and needs this many rows for each.
ROWS_PER_DIMENSION = 2
WHITENING_FLOOR = 1e-2

Space = Literal["white", "centered", "plain"]
SPACES: tuple[Space, ...] = get_args(Space)


@dataclass(frozen=True)
class Projection:
    """What is done to rows and queries alike before the cosine: x -> (x - mean) @ scale."""

    mean_D: NDArray[np.float32]
    scale_DD: NDArray[np.float32] | None = None

    @classmethod
    def fit(cls, matrices: Iterable[NDArray[np.floating]], dim: int, space: Space) -> Projection:
        """Fit to all rows; memory holds one matrix at a time.

        Args:
            matrices: of (N, D), together all rows; not read for `plain`.
            dim: D.
            space: `plain`: as stored. `centered`: less the mean of all rows, since vectors of a
                language model share a large common part (Mu and Viswanath 2018, section 2).
                `white`: centred, then scaled so that all directions vary alike (Su et al. 2021,
                section 3.2), which needs more rows than dimensions, not all of them equal, and is
                `centered` otherwise.
        """
        count, total_D, products_DD = 0, np.zeros(dim), np.zeros((dim, dim))
        for rows_ND in () if space == "plain" else matrices:
            count += len(rows_ND)
            total_D += rows_ND.sum(axis=0, dtype=np.float64)
            if space == "white":
                products_DD += rows_ND.T @ rows_ND
        mean_D = total_D / max(count, 1)
        if space != "white" or count <= ROWS_PER_DIMENSION * dim:
            return cls(mean_D.astype(np.float32))
        variances_D, axes_DD = np.linalg.eigh(products_DD / count - np.outer(mean_D, mean_D))
        # Directions in which nothing varies, such as a layer that is there twice, stay small.
        floor = WHITENING_FLOOR * variances_D.mean()
        if floor <= 0:  # all rows are equal: there is no direction to scale
            return cls(mean_D.astype(np.float32))
        scale_DD = axes_DD / np.sqrt(np.maximum(variances_D, 0) + floor)
        return cls(mean_D.astype(np.float32), scale_DD.astype(np.float32))

    def to_json(self) -> dict[str, str | None]:
        """As text in base64: `mean` is D float32, `scale` D x D float16, row by row, or null.

        The largest number of the scale becomes 1, which no cosine notices.
        """
        mean = base64.b64encode(self.mean_D.astype("<f4").tobytes()).decode()
        if self.scale_DD is None:
            return {"mean": mean, "scale": None}
        halves_DD = (self.scale_DD / np.abs(self.scale_DD).max()).astype("<f2")
        return {"mean": mean, "scale": base64.b64encode(halves_DD.tobytes()).decode()}

    @classmethod
    def from_json(cls, values: Mapping[str, str | None]) -> Projection:
        """Read what `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        mean_D = np.frombuffer(base64.b64decode(values["mean"] or "", validate=True), "<f4")
        scale = values["scale"]
        if scale is None:
            return cls(mean_D)
        halves = np.frombuffer(base64.b64decode(scale, validate=True), "<f2")
        return cls(mean_D, halves.reshape(len(mean_D), len(mean_D)).astype(np.float32))

    def apply(self, rows_ND: NDArray[np.floating]) -> NDArray[np.floating]:
        """Rows (N, D) in this space."""
        centered_ND: NDArray[np.floating] = rows_ND - self.mean_D
        return centered_ND if self.scale_DD is None else centered_ND @ self.scale_DD
