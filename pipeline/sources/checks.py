"""Which rows of a batch failed a check, and why. Knows no columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.records import RejectedRow
from pipeline.sources.reasons import Reason

MAX_ID_BYTES = 1024


class Checks:
    """The first failure of each row."""

    def __init__(self, num_rows: int) -> None:
        self._reason_of_row = np.zeros(num_rows, np.int16)
        self._failures: list[tuple[Reason, str | Callable[[int], str]]] = []

    @property
    def passed(self) -> NDArray[np.bool_]:
        """True on rows without a failure."""
        passed: NDArray[np.bool_] = self._reason_of_row == 0
        return passed

    def mark(
        self,
        failed: NDArray[np.bool_] | pa.BooleanArray,
        reason: Reason,
        message: str | Callable[[int], str],
    ) -> None:
        """Note a failure on rows that have none yet."""
        if isinstance(failed, pa.BooleanArray):
            if not failed.true_count:
                return
            failed = failed.to_numpy(zero_copy_only=False)
        if failed.any():
            self._failures.append((reason, message))
            self._reason_of_row[failed & self.passed] = len(self._failures)

    def rejected_rows(
        self, path: str, offsets: NDArray[np.int64], ids: pa.StringArray | None
    ) -> tuple[RejectedRow, ...]:
        """The failed rows, in order."""
        rows = []
        for row in np.flatnonzero(self._reason_of_row).tolist():
            reason, message = self._failures[self._reason_of_row[row] - 1]
            known = None if ids is None else ids[row].as_py()
            rows.append(
                RejectedRow(
                    source=path,
                    offset=int(offsets[row]),
                    id=None if known is None else known[:MAX_ID_BYTES],
                    stage=reason.stage,
                    code=reason.value,
                    message=message if isinstance(message, str) else message(row),
                )
            )
        return tuple(rows)
