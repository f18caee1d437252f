"""Which rows of a batch failed a check, why, and what was found there. Knows no columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from pipeline.excerpt import MAX_EXCERPT_CHARS, bounded, excerpt
from pipeline.records import REJECTED_SCHEMA
from pipeline.sources.reasons import Reason

MAX_ID_BYTES = 1024
_MAX_CHAR_BYTES = 4


@dataclass(frozen=True)
class _Failure:
    reason: Reason
    message: str | Callable[[int], str]
    found: pa.Array | None


class Checks:
    """The first failure of each row."""

    def __init__(self, num_rows: int) -> None:
        self._failure_of_row = np.zeros(num_rows, np.int16)
        self._failures: list[_Failure] = []

    @property
    def passed(self) -> NDArray[np.bool_]:
        """True on rows without a failure."""
        passed: NDArray[np.bool_] = self._failure_of_row == 0
        return passed

    def mark(
        self,
        failed: NDArray[np.bool_] | pa.BooleanArray,
        reason: Reason,
        message: str | Callable[[int], str],
        found: pa.Array | None = None,
    ) -> None:
        """Note a failure on rows that have none yet.

        Args:
            failed: True on the rows that failed.
            reason: why.
            message: for all of them, or what makes one from the row's number.
            found: what the rows hold (strings, bytes or any type that casts to them), to show.
        """
        if isinstance(failed, pa.BooleanArray):
            if not failed.true_count:
                return
            failed = failed.to_numpy(zero_copy_only=False)
        if failed.any():
            self._failures.append(_Failure(reason, message, found))
            self._failure_of_row[failed & self.passed] = len(self._failures)

    def rejected_table(
        self, path: str, offsets: NDArray[np.int64], ids: pa.StringArray | None
    ) -> pa.Table:
        """The failed rows as a table of REJECTED_SCHEMA, in order."""
        rows = np.flatnonzero(self._failure_of_row)
        if not len(rows):
            return REJECTED_SCHEMA.empty_table()
        numbers = self._failure_of_row[rows] - 1
        messages: list[str] = [""] * len(rows)
        excerpts: list[str | None] = [None] * len(rows)
        for number, failure in enumerate(self._failures):
            places = np.flatnonzero(numbers == number).tolist()
            shown = _excerpts(failure.found, rows[places])
            for place, text in zip(places, shown, strict=True):
                message = failure.message
                messages[place] = bounded(
                    message if isinstance(message, str) else message(int(rows[place]))
                )
                excerpts[place] = text
        reasons = [self._failures[number].reason for number in numbers.tolist()]
        known = pa.nulls(len(rows), pa.string())
        if ids is not None:
            known = pc.utf8_slice_codeunits(ids.take(pa.array(rows)), 0, MAX_ID_BYTES)
        return pa.table(
            [
                pa.repeat(pa.scalar(path, pa.string()), len(rows)),
                pa.array(offsets[rows]),
                known,
                pa.array([reason.stage for reason in reasons], pa.string()),
                pa.array([reason.value for reason in reasons], pa.string()),
                pa.array(messages, pa.string()),
                pa.array(excerpts, pa.string()),
                pa.nulls(len(rows), pa.string()),
            ],
            schema=REJECTED_SCHEMA,
        )


def _excerpts(found: pa.Array | None, rows: NDArray[np.int64]) -> list[str | None]:
    """Excerpts of some rows' values; only the start of a long value becomes an object."""
    if found is None:
        return [None] * len(rows)
    values = found.take(pa.array(rows))
    if pt.is_large_string(values.type):
        values = values.cast(pa.large_binary())
    elif not (pt.is_binary(values.type) or pt.is_large_binary(values.type)):
        values = values.cast(pa.string()).cast(pa.binary())
    starts = pc.binary_slice(values, 0, (MAX_EXCERPT_CHARS + 1) * _MAX_CHAR_BYTES)
    return [excerpt(value) for value in starts.to_pylist()]
