"""Read again the documents of a split that the plan selected, and notice when they changed.

Knows the corpus and the plan's tables; no Ray and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import EmbedConfig
from pipeline.errors import SourceError
from pipeline.records import OFFSET_COLUMN, SourceSplit
from pipeline.sources.read import read_documents


def rows_to_embed(selected: pa.Table, split: SourceSplit) -> pa.Table:
    """The rows (SELECTED_SCHEMA) of a split whose vectors have to be computed."""
    return _of_split(selected, split, pc.is_null)


def rows_with_vectors(selected: pa.Table, split: SourceSplit) -> pa.Table:
    """The rows (SELECTED_SCHEMA) of a split of which only the metadata changed."""
    return _of_split(selected, split, pc.is_valid)


def selected_documents(
    config: EmbedConfig, split: SourceSplit, selected: pa.Table
) -> Iterator[tuple[pa.Table, pa.Int32Array]]:
    """Read the selected documents of a split, in batches, each with the selected rows' `file`.

    Args:
        config: the run's configuration.
        split: the part of a file to read; not read at all if nothing is selected.
        selected: SELECTED_SCHEMA, of this split alone.

    Raises:
        SourceError: a selected document is no longer there, or is another.
    """
    offsets = selected["offset"].combine_chunks()
    hashes, files = selected["content_hash"], selected["file"]
    num_found = 0
    if not selected.num_rows:
        return
    for batch in read_documents(split, config.source, config.text):
        documents = batch.documents
        position = pc.index_in(documents[OFFSET_COLUMN], value_set=offsets)
        if position.null_count:
            documents, position = documents.filter(position.is_valid()), position.drop_null()
        if not documents.num_rows:
            continue
        if not pc.all(pc.equal(documents["content_hash"], hashes.take(position))).as_py():
            raise _changed(split)
        num_found += documents.num_rows
        yield documents, files.take(position).combine_chunks()
    if num_found != selected.num_rows:
        raise _changed(split)


def _of_split(
    selected: pa.Table, split: SourceSplit, wanted: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> pa.Table:
    # The table is in the order of the splits.
    numbers = selected["split"].to_numpy()
    first, last = np.searchsorted(numbers, [split.index, split.index + 1]).tolist()
    rows = selected.slice(first, last - first)
    return rows.filter(wanted(rows["file"]))


def _changed(split: SourceSplit) -> SourceError:
    return SourceError(
        f"{split.path}: the file changed while the run was reading it, so what was planned is no "
        "longer there; nothing was committed: run again when the corpus is at rest"
    )
