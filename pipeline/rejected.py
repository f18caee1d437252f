"""Write rejected rows where a person or a later run finds them, and tell of them. Knows no Ray.

`_rejected/<run>/<uuid>.parquet` in the output's storage, one row (REJECTED_SCHEMA) for each piece
of input that was not embedded. The files are ordinary Parquet; no reader of vectors lists them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.errors import TooManyRejectsError
from pipeline.records import REJECTED_SCHEMA, RejectedRow, RejectedRows, rejected_table
from pipeline.storage import OutputFile, Storage

log = logging.getLogger(__name__)

# Equal texts without ids of their own are one document: a row that says so is no fault of the input
# and counts for no limit.
HARMLESS_CODES = frozenset({"duplicate_text"})
# So many rows of each code are shown.
NUM_SHOWN = 3


@dataclass
class RejectedTally:
    """How many rows were rejected for each reason, and the first NUM_SHOWN of each."""

    by_code: dict[str, int] = field(default_factory=dict)
    shown: list[RejectedRow] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RejectedTally:
        """Of what `dataclasses.asdict` made of one."""
        return cls(dict(values["by_code"]), [RejectedRow(**row) for row in values["shown"]])

    @property
    def total(self) -> int:
        """Rejected rows."""
        return sum(self.by_code.values())

    def reject(self, table: pa.Table) -> None:
        """Count rejected rows (REJECTED_SCHEMA)."""
        if not table.num_rows:
            return
        codes = table["code"].combine_chunks()
        shown: list[RejectedRow] = []
        for code in codes.unique().to_pylist():
            places = pc.indices_nonzero(pc.equal(codes, code)).slice(0, NUM_SHOWN)
            shown += RejectedRows(table.take(places))
        self.add(RejectedTally(count_by_code(table), shown))

    def add(self, other: RejectedTally) -> None:
        """Add another tally to this one."""
        for code, count in other.by_code.items():
            self.by_code[code] = self.by_code.get(code, 0) + count
        num_shown = Counter(row.code for row in self.shown)
        for row in other.shown:
            num_shown[row.code] += 1
            if num_shown[row.code] <= NUM_SHOWN:
                self.shown.append(row)

    def describe(self) -> str:
        """Reasons and counts, most first: `12 empty_text, 1 bad_json`."""
        most_first = sorted(self.by_code.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count:,} {code}" for code, count in most_first if count)

    def tell(self, num_rows: int, where: str | None = None) -> None:
        """Log what was rejected, if anything was.

        Args:
            num_rows: of the input, rejected ones included.
            where: the file or directory that has all of them.
        """
        if not self.total:
            return
        all_of_them = "" if where is None else f"; all of them with place and reason: {where}"
        log.warning(
            "%s of %s rows were rejected: %s%s",
            f"{self.total:,}",
            f"{num_rows:,}",
            self.describe(),
            all_of_them,
        )
        for row in self.shown:
            log.warning("rejected as %s", describe_row(row))


def describe_row(row: RejectedRow) -> str:
    """Reason, place and message of a rejected row, for people."""
    place = row.source if row.offset is None else f"{row.source}, offset {row.offset}"
    return f"{row.code}: {place}: {row.message}"


class RejectedFile:
    """One Parquet file of rejected rows, written as they come; without rows there is none.

    Use as a context manager: after an exception there is no file, either.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        """Write to `path`, replacing what is there."""
        self._storage, self._path = storage, path
        self._output: OutputFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> RejectedFile:
        """Return itself."""
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows (REJECTED_SCHEMA)."""
        if not table.num_rows:
            return
        if self._writer is None:
            self._output = self._storage.create_output(self._path)
            self._writer = pq.ParquetWriter(self._output, REJECTED_SCHEMA, compression="zstd")
        self._writer.write_table(table.cast(REJECTED_SCHEMA))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the file, or leave none."""
        if self._output is None or self._writer is None:
            return
        if error is not None:
            self._output.abort()
            # It would write its footer when it is collected.
            with contextlib.suppress(ValueError, OSError):
                self._writer.close()
            return
        try:
            self._writer.close()
            self._output.close()
        finally:
            self._output.abort()


def write_rejected(storage: Storage, run_id: str, rows: Sequence[RejectedRow] | pa.Table) -> str:
    """Write rejected rows as one new file.

    Args:
        storage: the output's storage.
        run_id: names the directory.
        rows: at least one row; a table has REJECTED_SCHEMA.

    Returns: the file's path in the storage.

    Raises:
        StorageError: the store failed.
        ValueError: there are no rows.
    """
    table = rows if isinstance(rows, pa.Table) else rejected_table(rows)
    if not table.num_rows:
        raise ValueError("there are no rejected rows to write")
    path = f"_rejected/{run_id}/{uuid.uuid4().hex}.parquet"
    buffer = io.BytesIO()
    pq.write_table(table.cast(REJECTED_SCHEMA), buffer, compression="zstd")
    storage.put_if_absent(path, buffer.getvalue())
    return path


def count_by_code(rows: Sequence[RejectedRow] | pa.Table) -> dict[str, int]:
    """How many rows were rejected for each reason, most first, then by name."""
    if isinstance(rows, pa.Table):
        counted = pc.value_counts(rows["code"].combine_chunks())
        counts = {item["values"].as_py(): item["counts"].as_py() for item in counted}
    else:
        counts = dict(Counter(row.code for row in rows))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_rejected(
    by_code: Mapping[str, int],
    total_rows: int,
    run: RunConfig,
    where: str,
    files: Sequence[str] = (),
) -> None:
    """Make sure that no more was rejected than the configuration allows.

    Args:
        by_code: rejected rows by their code; HARMLESS_CODES do not count.
        total_rows: rows of the corpus, rejected ones included.
        run: has `max_rejected` and `max_rejected_share`; each is a limit of its own.
        where: the corpus, for the message.
        files: URLs of the files that hold the rejected rows, for the message.

    Raises:
        TooManyRejectsError: names the limit, the counts by code and where the reasons are.
    """
    rejected = sum(count for code, count in by_code.items() if code not in HARMLESS_CODES)
    limits = []
    if run.max_rejected is not None and rejected > run.max_rejected:
        limits.append(f"run.max_rejected = {run.max_rejected:,}")
    if rejected > run.max_rejected_share * total_rows:
        limits.append(f"run.max_rejected_share = {run.max_rejected_share:.2%}")
    if not limits:
        return
    codes = RejectedTally(dict(by_code)).describe()
    reasons = f" Source, offset and reason of each: {files[0]}" if files else ""
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    raise TooManyRejectsError(
        f"{where}: {rejected:,} of {total_rows:,} rows were rejected ({codes}), more than "
        f"{' and '.join(limits)}; nothing was committed. Mend the input, or raise the limit."
        f"{reasons}{more}"
    )
