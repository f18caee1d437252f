"""The pure core: tokenised documents in, record batches of vectors out. Knows no files and no Ray.

A table of documents is sorted by its partition columns and cut into windows; each window goes
through the vector model; its rows come back as one record batch a partition, in which a document's
rows are never divided. Tokens travel as Arrow arrays and ids, vectors as shared memory: neither
passes through Python objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.bucketing import windows
from pipeline.errors import ClusterError, PipelineError
from pipeline.excerpt import MAX_EXCERPT_CHARS, excerpt
from pipeline.records import OFFSET_COLUMN, SOURCE_COLUMN, RejectedRow
from pipeline.token_window import (
    OUT_OF_MEMORY,
    StartingModel,
    TokenWindow,
    VectorModel,
    WindowError,
)

Partition = tuple[str | None, ...]
Finish = Callable[[], NDArray[np.floating]]


@dataclass(frozen=True)
class EmbeddedBatch:
    """Rows of whole documents of one partition, or documents that could not be embedded."""

    partition: Partition
    rows: pa.RecordBatch
    num_documents: int


@dataclass(frozen=True)
class Embedder:
    """How tables of documents become record batches.

    `schema` is that of the data files; `level` says what a row stands for; `window_tokens` bounds
    how many tokens are in flight at once (a larger document is in flight alone).
    """

    model: VectorModel
    schema: pa.Schema
    partition_columns: tuple[str, ...]
    level: str
    window_tokens: int

    def embed(self, documents: pa.Table) -> Iterator[EmbeddedBatch | RejectedRow]:
        """Embed a table of tokenised documents (TOKEN_FIELDS), partition by partition.

        A document that the model fails on, or whose vectors are not finite, is yielded as a
        rejected row; the others of its window are embedded all the same. When all documents of a
        window fail alike, the model is broken and the error is raised.
        """
        documents = documents.combine_chunks()
        tokens_per_document = _list_lengths(documents, "tokens")
        if not tokens_per_document.all():
            for index in np.flatnonzero(tokens_per_document == 0).tolist():
                message = "the text has no tokens, only blanks or control characters"
                yield _reject(documents, index, "no_tokens", message, stage="tokenise")
            documents = documents.filter(pa.array(tokens_per_document > 0))
        if self.partition_columns:
            documents = documents.sort_by([(name, "ascending") for name in self.partition_columns])
        ahead = self.model.windows_ahead if isinstance(self.model, StartingModel) else 0
        started: deque[tuple[pa.Table, Finish]] = deque()
        for window in windows(_list_lengths(documents, "tokens"), self.window_tokens):
            part = documents.slice(window.start, window.stop - window.start)
            started.append((part, self._start(part)))
            if len(started) > ahead:
                yield from self._embed_window(*started.popleft())
        while started:
            yield from self._embed_window(*started.popleft())

    def _start(self, part: pa.Table) -> Finish:
        """Start a window on a model that works by itself; what is returned gives its vectors."""
        window = token_window(part)
        if not isinstance(self.model, StartingModel):
            return lambda: self.model.vectors(window)
        try:
            return self.model.start(window)
        except Exception as error:
            # Told when it is this window's turn, after those that were started before it.
            return partial(_raise, error)

    def _embed_window(
        self, part: pa.Table, finish: Finish
    ) -> Iterator[EmbeddedBatch | RejectedRow]:
        try:
            vectors = finish()
        except PipelineError:
            raise
        except Exception as error:
            results = list(self._embed_smaller(part, error))
            if part.num_rows > 1 and all(isinstance(result, RejectedRow) for result in results):
                _raise_if_broken(part, error)
            yield from results
            return
        yield from self._to_batches(part, vectors)

    def _embed_smaller(
        self, part: pa.Table, error: Exception
    ) -> Iterator[EmbeddedBatch | RejectedRow]:
        """Embed the halves of what the model failed on; a single document is rejected."""
        if part.num_rows == 1:
            if isinstance(error, WindowError):
                yield _reject(part, 0, error.code, str(error))
            else:
                yield _reject(part, 0, "embed_failed", f"{type(error).__name__}: {error}")
            return
        middle = part.num_rows // 2
        for half in (part.slice(0, middle), part.slice(middle)):
            try:
                vectors = self.model.vectors(token_window(half))
            except PipelineError:
                raise
            except Exception as smaller:
                yield from self._embed_smaller(half, smaller)
            else:
                yield from self._to_batches(half, vectors)

    def _to_batches(
        self, part: pa.Table, vectors: NDArray[np.floating]
    ) -> Iterator[EmbeddedBatch | RejectedRow]:
        rows_per_document = _rows_per_document(part, self.level)
        starts = np.cumsum(rows_per_document) - rows_per_document
        finite = np.isfinite(vectors).all(axis=(1, 2)) if len(vectors) else np.ones(0, bool)
        if not finite.all():
            good = np.logical_and.reduceat(finite, starts)
            message = f"the vector has elements that {vectors.dtype} cannot hold"
            for index in np.flatnonzero(~good).tolist():
                yield _reject(part, index, "non_finite_vector", message)
            vectors = vectors[np.repeat(good, rows_per_document)]
            part = part.filter(pa.array(good))
            rows_per_document = rows_per_document[good]
        batch = self._record_batch(part, rows_per_document, vectors)
        for partition, first, last in _partition_runs(part, self.partition_columns):
            first_row = int(rows_per_document[:first].sum())
            num_rows = int(rows_per_document[first:last].sum())
            yield EmbeddedBatch(partition, batch.slice(first_row, num_rows), last - first)

    def _record_batch(
        self, part: pa.Table, rows_per_document: NDArray[np.int64], vectors: NDArray[np.floating]
    ) -> pa.RecordBatch:
        of_level = _level_columns(part, self.level)
        document_of_row = None
        if self.level != "document":
            document_of_row = pa.array(np.repeat(np.arange(part.num_rows), rows_per_document))
        columns: list[pa.Array] = []
        for field in self.schema:
            if field.name == "vector" or field.name.startswith("vector_"):
                layer = 0 if field.name == "vector" else int(field.name.removeprefix("vector_"))
                flat = np.ascontiguousarray(vectors[:, layer]).reshape(-1)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type))
            elif field.name in of_level:
                columns.append(of_level[field.name])
            else:
                column = part[field.name].combine_chunks()
                columns.append(column.take(document_of_row) if document_of_row else column)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _raise(error: Exception) -> NDArray[np.floating]:
    raise error


def _raise_if_broken(part: pa.Table, error: Exception) -> None:
    """A model that fails on all documents of a window is broken, unless it counts for itself."""
    if not isinstance(error, WindowError):
        raise error
    if error.code == OUT_OF_MEMORY:
        raise ClusterError(
            f"none of {part.num_rows} documents could be embedded: {error}. Another process may "
            "hold the memory, or it is too small for the model: lower batch.max_tokens, run fewer "
            "actors on a node, or take a larger one"
        ) from error


def token_window(part: pa.Table) -> TokenWindow:
    """The tokens of some documents as ids into their distinct words, in order of appearance."""
    encoded = _flat(part, "tokens").dictionary_encode()
    return TokenWindow(
        words=encoded.dictionary.to_pylist(),
        word_ids=encoded.indices.to_numpy(),
        sentence_lengths=_flat(part, "sentence_lengths").to_numpy().astype(np.int64),
        sentences_per_document=_list_lengths(part, "sentence_lengths"),
    )


def _flat(part: pa.Table, name: str) -> pa.Array:
    return part[name].combine_chunks().flatten()


def _list_lengths(part: pa.Table, name: str) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.list_value_length(part[name]).to_numpy().astype(np.int64)
    return lengths


def _rows_per_document(part: pa.Table, level: str) -> NDArray[np.int64]:
    if level == "document":
        return np.ones(part.num_rows, np.int64)
    return _list_lengths(part, "sentence_lengths" if level == "sentence" else "tokens")


def _level_columns(part: pa.Table, level: str) -> dict[str, pa.Array]:
    if level == "document":
        return {}
    starts, ends = _flat(part, "token_starts"), _flat(part, "token_ends")
    lengths = _flat(part, "sentence_lengths").to_numpy().astype(np.int64)
    sentence_index = _count_within(_list_lengths(part, "sentence_lengths"))
    if level == "sentence":
        last = np.cumsum(lengths) - 1
        return {
            "sentence_index": pa.array(sentence_index),
            "start": starts.take(pa.array(last + 1 - lengths)),
            "end": ends.take(pa.array(last)),
        }
    return {
        "sentence_index": pa.array(np.repeat(sentence_index, lengths)),
        "token_index": pa.array(_count_within(_list_lengths(part, "tokens"))),
        "token": _flat(part, "tokens"),
        "start": starts,
        "end": ends,
    }


def _count_within(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """0, 1, 2, ... anew for each length."""
    starts = np.cumsum(lengths) - lengths
    return (np.arange(lengths.sum()) - np.repeat(starts, lengths)).astype(np.int32)


def _partition_runs(part: pa.Table, columns: Sequence[str]) -> Iterator[tuple[Partition, int, int]]:
    """(partition values, first, past-last document) of each run of equal partition values."""
    if not part.num_rows:
        return
    if not columns:
        yield (), 0, part.num_rows
        return
    values = list(zip(*(part[name].to_pylist() for name in columns), strict=True))
    first = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[first]:
            yield values[first], first, index
            first = index


def _reject(
    part: pa.Table, index: int, code: str, message: str, stage: str = "embed"
) -> RejectedRow:
    return RejectedRow(
        source=part[SOURCE_COLUMN][index].as_py(),
        offset=part[OFFSET_COLUMN][index].as_py(),
        id=part["id"][index].as_py(),
        stage=stage,
        code=code,
        message=message,
        excerpt=excerpt(" ".join(_first_tokens(part, index))),
    )


def _first_tokens(part: pa.Table, index: int) -> list[str]:
    tokens: list[str] = part["tokens"][index].values.slice(0, MAX_EXCERPT_CHARS).to_pylist()
    return tokens
