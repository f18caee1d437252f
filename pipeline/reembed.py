"""Embed a few documents of a snapshot again, as they were embedded then. Knows no Ray.

The text comes from the snapshot where it is carried, else from the corpus that the snapshot names,
which is read until the documents are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch_sizes import batch_sizes
from pipeline.config import EmbedConfig, build
from pipeline.embed import EmbeddedBatch, Embedder
from pipeline.model import ElmoLoader, open_model
from pipeline.records import OFFSET_COLUMN, SOURCE_COLUMN
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.read import snapshot_dataset
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.storage import Storage
from pipeline.text import tokenise


class SampleEmbedder:
    """Embeds documents of one snapshot again; call it with their ids."""

    def __init__(self, storage: Storage, snapshot: Snapshot, num_threads: int = 1) -> None:
        """Load the snapshot's encoder.

        Args:
            storage: the snapshot directory.
            snapshot: whose documents are to be embedded.
            num_threads: threads of torch.

        Raises:
            ConfigError: the model files are gone, or give another fingerprint.
            ModelFileError: they are damaged.
        """
        self._storage = storage
        self._snapshot = snapshot
        self._config = build(EmbedConfig, snapshot.config, f"snapshot {snapshot.number}")
        open_model(snapshot, self._config)
        self._model = ElmoLoader(self._config, num_threads)()
        sizes = batch_sizes(self._config.batch, num_threads, on_gpu=False)
        self._window_tokens = sizes.window_tokens

    def __call__(self, ids: Sequence[str]) -> pa.Table:
        """Embed the documents of these ids.

        Returns: their rows with the columns of a data file, `text` and other carried columns left
            out. Documents that are not found are left out.

        Raises:
            SourceError: the corpus is needed and cannot be read.
        """
        config = self._config
        carried = {*config.source.carry_columns, *config.source.partition_columns}
        schema = pa.schema([field for field in self._snapshot.schema if field.name not in carried])
        embedder = Embedder(self._model, schema, (), config.vectors.level, self._window_tokens)
        batches = [
            result.rows
            for documents in self._documents(ids)
            for result in embedder.embed(tokenise(documents, config.text))
            if isinstance(result, EmbeddedBatch)
        ]
        return pa.Table.from_batches(batches, schema)

    def _documents(self, ids: Sequence[str]) -> Iterator[pa.Table]:
        if "text" in self._config.source.carry_columns:
            yield self._stored_documents(ids)
            return
        wanted = pa.array(sorted(ids), pa.string())
        num_missing = len(wanted)
        source = self._config.source
        for split in discover(source).splits:
            for batch in read_documents(split, source, self._config.text):
                found = batch.documents.filter(pc.is_in(batch.documents["id"], wanted))
                if found.num_rows:
                    yield found
                num_missing -= found.num_rows
                if num_missing <= 0:
                    return

    def _stored_documents(self, ids: Sequence[str]) -> pa.Table:
        dataset = snapshot_dataset(self._storage, self._snapshot)
        columns = ["id", "content_hash", "text"]
        rows = dataset.to_table(columns, filter=pc.field("id").isin(list(ids)))
        first = {id_: row for row, id_ in reversed(list(enumerate(rows["id"].to_pylist())))}
        documents = rows.take(pa.array(sorted(first.values()), pa.int64()))
        source = pa.repeat(pa.scalar(self._storage.url), documents.num_rows)
        documents = documents.append_column(SOURCE_COLUMN, source)
        offsets = pa.array(range(documents.num_rows), pa.int64())
        return documents.append_column(OFFSET_COLUMN, offsets)
