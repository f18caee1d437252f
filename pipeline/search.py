"""Exact search over a snapshot: nearest rows by cosine, and a word's uses nearest in meaning.

Reads the snapshot as a stream, so memory is bounded by one batch and the hits. Queries go through
the snapshot's own tokeniser, encoder and mix; another encoder is refused. Knows no Ray.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from pipeline.batch_sizes import batch_sizes
from pipeline.config import EmbedConfig, VectorConfig, build
from pipeline.elmo_vectors import ElmoVectors
from pipeline.embed import token_window
from pipeline.errors import ConfigError
from pipeline.hits import Hit, around, matrix_of, shorten, unit
from pipeline.model import layer_choice, open_model
from pipeline.projection import Projection, Space
from pipeline.records import OFFSET_COLUMN, SOURCE_COLUMN
from pipeline.snapshot.metadata import Snapshot
from pipeline.text import tokenise

BATCH_ROWS = 8192
# Documents with the word that are embedded on the fly to find its uses.
MAX_WORD_DOCUMENTS = 400


class SnapshotEncoder:
    """Embeds queries exactly as the snapshot's documents were embedded."""

    def __init__(self, snapshot: Snapshot, overrides: dict[str, Any] | None = None) -> None:
        """Load the encoder that the snapshot names.

        Args:
            snapshot: the snapshot to be searched.
            overrides: model keys to replace, such as a directory that has moved.

        Raises:
            ConfigError: the model files give another fingerprint than the snapshot's.
        """
        values = dict(snapshot.config)
        if overrides:
            values["model"] = {**values["model"], **overrides}
        self.config = build(EmbedConfig, values, f"snapshot {snapshot.number}")
        self._encoder = open_model(snapshot, self.config)

    def encode(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """One vector a text, pooled over all its tokens as configured.

        Returns: (num_texts, K, D) float32.

        Raises:
            ConfigError: a text has no tokens.
        """
        tokens = self._tokenise(texts)
        counts = pc.list_value_length(tokens["tokens"]).to_pylist()
        for text, count in zip(texts, counts, strict=True):
            if not count:
                raise ConfigError(f"the query {text!r} has no words to search for")
        return self._vectors("document").vectors(token_window(tokens))

    def encode_tokens(self, texts: Sequence[str]) -> tuple[pa.Table, NDArray[np.floating]]:
        """The tokenised texts, and one vector a token (num_tokens, K, D) float32, in order."""
        tokens = self._tokenise(texts)
        return tokens, self._vectors("token").vectors(token_window(tokens))

    def _vectors(self, level: str) -> ElmoVectors:
        vectors = VectorConfig(
            level="token" if level == "token" else "document",
            pooling=self.config.vectors.pooling,
            dtype="float32",
        )
        choice = layer_choice(self.config.model, self._encoder)
        sizes = batch_sizes(self.config.batch, 1, on_gpu=self._encoder.device.type != "cpu")
        return ElmoVectors(self._encoder, choice, vectors, sizes.max_tokens)

    def _tokenise(self, texts: Sequence[str]) -> pa.Table:
        form = self.config.text.unicode_form
        normal = [unicodedata.normalize(form, text) if form else text for text in texts]
        documents = pa.table(
            {
                "id": [str(number) for number in range(len(normal))],
                "text": normal,
                SOURCE_COLUMN: ["query"] * len(normal),
                OFFSET_COLUMN: pa.array(range(len(normal)), pa.int64()),
            }
        )
        return tokenise(documents, self.config.text, keep_text=True)


def nearest(
    dataset: pads.Dataset,
    queries_QD: NDArray[np.floating],
    num_hits: int,
    *,
    vector_column: str = "vector",
    row_filter: pc.Expression | None = None,
    space: Space = "white",
) -> list[list[Hit]]:
    """The rows of highest cosine with each query, by looking at every row.

    Args:
        dataset: a snapshot as `open_snapshot` gives it.
        queries_QD: one vector a query.
        num_hits: rows wanted per query; fewer come back from a smaller snapshot.
        vector_column: which of several layers.
        row_filter: only rows for which this holds.
        space: where the cosine is taken (`projection`).

    Returns: hits in falling order of score, one list a query.
    """
    dim = dataset.schema.field(vector_column).type.list_size
    batches = dataset.to_batches(columns=[vector_column], filter=row_filter)
    matrices = (matrix_of(batch[vector_column]) for batch in batches)
    projection = Projection.fit(matrices, dim, space)
    queries_QD = unit(projection.apply(queries_QD.astype(np.float32)))
    hits: list[list[Hit]] = [[] for _ in queries_QD]
    for batch in dataset.to_batches(filter=row_filter, batch_size=BATCH_ROWS):
        if not batch.num_rows:
            continue
        scores_QN = queries_QD @ unit(projection.apply(matrix_of(batch[vector_column]))).T
        for query, scores_N in enumerate(scores_QN):
            for row in np.argsort(-scores_N, kind="stable")[:num_hits].tolist():
                hits[query].append(_hit(batch, row, float(scores_N[row]), vector_column))
            hits[query] = sorted(hits[query], key=lambda hit: (-hit.score, hit.id))[:num_hits]
    return hits


def word_uses(
    dataset: pads.Dataset,
    encoder: SnapshotEncoder,
    word: str,
    contexts: Sequence[str],
    num_hits: int,
) -> list[list[Hit]]:
    """For each context, the uses of the same word in the corpus that are nearest to it.

    The documents that contain the word are embedded again token by token from their text, which
    the snapshot must carry; the vector of the word in its sentence is compared, centred on the mean
    of all uses found.

    Args:
        dataset: a snapshot with a `text` column.
        encoder: the snapshot's encoder.
        word: the word, as a token of the contexts and of the corpus.
        contexts: sentences that each contain the word.
        num_hits: uses wanted per context.

    Raises:
        ConfigError: the snapshot has no text, a context lacks the word, or the corpus does.
    """
    if "text" not in dataset.schema.names:
        raise ConfigError(
            "the snapshot does not carry the text, so a word's uses cannot be shown: embed with "
            "source.carry_columns = [text]"
        )
    documents = _documents_with(dataset, word)
    corpus, vectors = _uses(encoder, word, [text for _, text in documents])
    if not corpus:
        raise ConfigError(f"the corpus has no token {word!r}; the spelling must be the same")
    queries: list[NDArray[np.floating]] = []
    for context in contexts:
        found, context_vectors = _uses(encoder, word, [context])
        if not found:
            raise ConfigError(f"the sentence {context!r} has no token {word!r}")
        queries.append(context_vectors[0])
    mean_D = vectors.mean(axis=0)
    scores_QN = unit(np.stack(queries) - mean_D) @ unit(vectors - mean_D).T
    hits = []
    for scores_N in scores_QN:
        order = np.argsort(-scores_N, kind="stable")
        best: dict[str, Hit] = {}
        for use in order.tolist():
            number, start, end = corpus[use]
            name, text = documents[number]
            excerpt = around(text, start, end)
            # The same sentence is often inherited by several documents; once is enough.
            best.setdefault(excerpt, Hit(float(scores_N[use]), name, {}, excerpt))
            if len(best) == num_hits:
                break
        hits.append(list(best.values()))
    return hits


def _documents_with(dataset: pads.Dataset, word: str) -> list[tuple[str, str]]:
    pattern = rf"(^|[^\pL\pN_]){re.escape(word)}($|[^\pL\pN_])"
    condition = pc.match_substring_regex(pads.field("text"), pattern)
    found: dict[str, str] = {}
    for batch in dataset.to_batches(columns=["id", "text"], filter=condition):
        ids, texts = batch["id"].to_pylist(), batch["text"].to_pylist()
        found.update(zip(ids, texts, strict=True))
        if len(found) >= MAX_WORD_DOCUMENTS:
            break
    return list(found.items())[:MAX_WORD_DOCUMENTS]


def _uses(
    encoder: SnapshotEncoder, word: str, texts: Sequence[str]
) -> tuple[list[tuple[int, int, int]], NDArray[np.floating]]:
    """(text number, start, end) of each use of `word`, and its vectors (num_uses, D)."""
    if not texts:
        return [], np.empty((0, 0), np.float32)
    tokens, vectors = encoder.encode_tokens(texts)
    flat = tokens["tokens"].combine_chunks().flatten()
    positions = np.flatnonzero(pc.equal(flat, word).to_numpy(zero_copy_only=False))
    lengths = pc.list_value_length(tokens["tokens"]).to_numpy()
    text_of_token = np.repeat(np.arange(len(lengths)), lengths)
    starts = tokens["token_starts"].combine_chunks().flatten()
    ends = tokens["token_ends"].combine_chunks().flatten()
    uses = [
        (int(text_of_token[position]), starts[position].as_py(), ends[position].as_py())
        for position in positions.tolist()
    ]
    return uses, vectors[positions, -1]


def _hit(batch: pa.RecordBatch, row: int, score: float, vector_column: str) -> Hit:
    columns = {
        name: batch[name][row].as_py()
        for name in batch.schema.names
        if name not in ("id", "content_hash") and not name.startswith("vector")
    }
    text = columns.pop("text", None) or ""
    if "start" in columns:
        excerpt = around(text, columns["start"], columns["end"])
    else:
        excerpt = shorten(text)
    return Hit(score, batch["id"][row].as_py(), columns, excerpt)
