"""The records that flow through the pipeline, and their Arrow schemas. Knows no files or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.excerpt import bounded, excerpt
from pipeline.redaction import redact_messages
from pipeline.storage_urls import redact_url

SOURCE_COLUMN = "_source"
OFFSET_COLUMN = "_offset"

# What every reader produces, followed by the partition columns (string) and the carried columns.
DOCUMENT_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("content_hash", pa.binary(16), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field(SOURCE_COLUMN, pa.string(), nullable=False),
    pa.field(OFFSET_COLUMN, pa.int64(), nullable=False),
)

# What tokenisation puts in the place of `text`. Sentences are runs of `tokens`; starts and ends
# are code-point offsets into the normalised text.
TOKEN_FIELDS = (
    pa.field("tokens", pa.list_(pa.string()), nullable=False),
    pa.field("sentence_lengths", pa.list_(pa.int32()), nullable=False),
    pa.field("token_starts", pa.list_(pa.int32()), nullable=False),
    pa.field("token_ends", pa.list_(pa.int32()), nullable=False),
    pa.field("num_cut_tokens", pa.int32(), nullable=False),
    pa.field("num_split_sentences", pa.int32(), nullable=False),
)

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("excerpt", pa.string()),
        pa.field("kept_source", pa.string()),
    ]
)


@dataclass(frozen=True)
class SourceSplit:
    """A part of one input file that one task reads.

    `start` and `end` count in the format's own unit: row groups (parquet), record batches (arrow),
    bytes (uncompressed jsonl and text by line); a file that cannot be split has `end` None.
    `first_row` is the row number of its first row where rows are numbered. `version` is the file's
    when it was listed; `columns` are the types of the partition and carried columns that all files
    agreed on. A split knows all that reading it takes, beside the configuration.
    """

    index: int
    path: str
    format: str
    start: int
    end: int | None
    size_bytes: int
    hive_keys: tuple[tuple[str, str | None], ...] = ()
    first_row: int = 0
    version: str = ""
    columns: pa.Schema | None = None


@dataclass(frozen=True)
class RejectedRow:
    """Input that could not be embedded, and why.

    `offset` is the row number (parquet, arrow, csv) or byte offset (jsonl, text) in `source`, None
    for a whole file. `stage` is read, parse, validate, plan, tokenise or embed. `excerpt` shows
    what was found (`pipeline.excerpt.excerpt` makes it), None where there is nothing to show.
    `kept_source` is set on duplicates: the file with the row that is kept.
    """

    source: str
    offset: int | None
    id: str | None
    stage: str
    code: str
    message: str
    excerpt: str | None = None
    kept_source: str | None = None


class RejectedRows:
    """Rejected rows as a table (REJECTED_SCHEMA); an object is made of a row only when asked for.

    A broken file may reject millions of rows: what counts or stores them takes `table`.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[RejectedRow]:
        return (RejectedRow(**row) for row in self.table.to_pylist())


NO_REJECTED_ROWS = RejectedRows(REJECTED_SCHEMA.empty_table())


@dataclass(frozen=True)
class DocumentBatch:
    """Documents of one part of a split (DOCUMENT_FIELDS and more), and the rows that are not."""

    documents: pa.Table
    rejected: RejectedRows = NO_REJECTED_ROWS


def rejected_table(rows: Sequence[RejectedRow]) -> pa.Table:
    """Rejected rows as a table of `REJECTED_SCHEMA`, in the given order.

    Messages and excerpts that are too long are cut, and what cannot be printed is escaped: they may
    quote anything that was found in the input.
    """
    columns = {
        "source": [redact_url(row.source) for row in rows],
        "offset": [row.offset for row in rows],
        "id": [row.id for row in rows],
        "stage": [row.stage for row in rows],
        "code": [row.code for row in rows],
        "message": [bounded(text) for text in redact_messages([row.message for row in rows])],
        "excerpt": [excerpt(row.excerpt) for row in rows],
        "kept_source": [row.kept_source for row in rows],
    }
    return pa.table(columns, schema=REJECTED_SCHEMA)
