"""Write rejected rows beside the snapshot, where a person or a later run finds them. Knows no Ray.

`_rejected/<run>/<uuid>.parquet` in the output's storage, one row (REJECTED_SCHEMA) for each piece
of input that was not embedded. The files are ordinary Parquet; no reader of vectors lists them.
"""

from __future__ import annotations

import io
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.errors import TooManyRejectsError
from pipeline.records import REJECTED_SCHEMA, RejectedRow, rejected_table
from pipeline.storage import Storage

# Equal texts without ids of their own are one document: a row that says so is no fault of the input
# and counts for no limit.
HARMLESS_CODES = frozenset({"duplicate_text"})


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
    most_first = sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    codes = ", ".join(f"{count:,} {code}" for code, count in most_first if count)
    reasons = f" Source, offset and reason of each: {files[0]}" if files else ""
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    raise TooManyRejectsError(
        f"{where}: {rejected:,} of {total_rows:,} rows were rejected ({codes}), more than "
        f"{' and '.join(limits)}; nothing was committed. Mend the input, or raise the limit."
        f"{reasons}{more}"
    )
