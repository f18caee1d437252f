"""What the tests of all formats share: read a corpus whole, as a run would."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from pipeline.config import SourceConfig, TextConfig
from pipeline.records import RejectedRow
from pipeline.sources.discover import Discovery, discover
from pipeline.sources.read import read_documents


@dataclass
class Corpus:
    """All that was read of a source."""

    discovery: Discovery
    documents: pa.Table
    rejected: list[RejectedRow] = field(default_factory=list)
    batch_rows: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return self.documents["id"].to_pylist()

    @property
    def texts(self) -> list[str]:
        return self.documents["text"].to_pylist()

    @property
    def codes(self) -> list[str]:
        return [row.code for row in self.rejected]


def _read(path, text: TextConfig | None = None, **config) -> Corpus:
    source = SourceConfig(path=str(path) if not isinstance(path, tuple) else path, **config)
    discovery = discover(source)
    tables, rejected, batch_rows = [], [], []
    for split in discovery.splits:
        for batch in read_documents(split, source, text or TextConfig()):
            batch.documents.validate(full=True)
            tables.append(batch.documents)
            rejected += batch.rejected
            batch_rows.append(batch.documents.num_rows)
    documents = pa.concat_tables(tables) if tables else None
    return Corpus(discovery, documents, rejected, batch_rows)


@pytest.fixture
def read():
    """Discover and read a corpus: `read(path, id_column="id", ...)`."""
    return _read
