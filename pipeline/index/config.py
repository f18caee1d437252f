"""The configuration of `jobs.index` as one frozen tree. Knows no files and no index's package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.projection import Space


class SnapshotSection(Section):
    """What is indexed."""

    path: str = Field(description="URL of the snapshot directory (output.path of elmo embed)")
    number: int | None = Field(None, gt=0, description="which snapshot; null is the latest")
    vector_column: str | None = Field(
        None, description="which of several vector columns; null is the last one: the top layer"
    )
    space: Space = Field(
        "plain",
        description="where cosines are taken: plain: of the vectors as stored; centered: less the "
        "mean of all rows; white: also scaled so that all directions vary alike, as elmo search "
        "does without an index, if there are more than twice as many rows as elements",
    )


class TargetSection(Section):
    """Which index is fed, and where it is."""

    kind: Literal["faiss", "lancedb", "opensearch", "pgvector"] = Field(
        "faiss", description="the index to feed"
    )
    path: str = Field(
        description="faiss, lancedb: directory of the index, a local path or a URL; pgvector: "
        "postgresql://host/database#name, the name being elmo where there is none; opensearch: "
        "https://host:9200#name, or a directory for the requests"
    )
    keep_versions: int = Field(
        2,
        gt=0,
        description="faiss, lancedb, opensearch: published versions that stay, so that who has "
        "opened one can read on",
    )


class FaissSection(Section):
    """What a FAISS index is made of; a change makes the next run build it anew."""

    type: Literal["flat", "hnsw", "ivf", "ivf_pq"] = Field(
        "flat",
        description="flat: looks at every row, exact; hnsw: a graph, fast and large; ivf: the "
        "lists nearest to the query; ivf_pq: the same with rows of few bytes",
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="stored element type; ivf_pq stores codes instead"
    )
    num_links: int = Field(32, gt=1, le=128, description="hnsw: links of a row")
    build_depth: int = Field(
        80, gt=0, description="hnsw: candidates that are looked at when a row is added"
    )
    search_depth: int = Field(
        128, gt=0, description="hnsw: candidates that are looked at when a query is answered"
    )
    num_lists: int | None = Field(
        None,
        gt=0,
        description="ivf, ivf_pq: lists; null is 4 x the root of the number of rows, and no more "
        "than a 40th of the rows that it is trained on",
    )
    num_probes: int = Field(32, gt=0, description="ivf, ivf_pq: lists that a query looks at")
    code_bytes: int | None = Field(
        None,
        gt=0,
        description="ivf_pq: bytes of a row; divides the vector's elements; null is a quarter of "
        "their number",
    )
    max_train_rows: int = Field(
        100_000, gt=0, description="ivf, ivf_pq: rows, drawn from the snapshot, to train on"
    )
    max_dead_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="hnsw: deleted rows stay in the graph, unseen; with a larger share of them the "
        "index is built anew",
    )
    max_growth: float = Field(
        4.0,
        gt=1,
        description="ivf, ivf_pq: with this many times the rows that it was trained for, the index "
        "is built anew",
    )


class LancedbSection(Section):
    """What a LanceDB table is made of; a change makes the next run build it anew."""

    type: Literal["flat", "ivf_pq", "hnsw"] = Field(
        "flat",
        description="flat: looks at every row, exact; ivf_pq: the lists nearest to the query, with "
        "rows of few bytes; hnsw: a graph in each list, with one byte for an element",
    )
    dtype: Literal["float16", "float32"] | None = Field(
        None,
        description="stored element type; null is float16, and float32 for ivf_pq: LanceDB takes "
        "ten times as long to train codes on float16",
    )
    num_lists: int | None = Field(
        None,
        gt=0,
        description="ivf_pq, hnsw: lists; null leaves it to LanceDB; no more than one for 256 rows",
    )
    num_probes: int = Field(32, gt=0, description="ivf_pq, hnsw: lists that a query looks at")
    code_bytes: int | None = Field(
        None,
        gt=0,
        description="ivf_pq: bytes of a row; divides the vector's elements; null is one for 16 of "
        "them, or for 8, 4 or 2 where 16 does not divide; the time to train is in proportion",
    )
    num_links: int = Field(20, gt=1, le=128, description="hnsw: links of a row")
    build_depth: int = Field(
        300, gt=0, description="hnsw: candidates that are looked at when a row is added"
    )
    search_depth: int = Field(
        128, gt=0, description="hnsw: candidates that are looked at when a query is answered"
    )
    refine_factor: int = Field(
        10,
        gt=0,
        description="ivf_pq, hnsw: this many times the wanted rows are compared by their vectors "
        "as stored",
    )
    max_loose_share: float = Field(
        0.2,
        gt=0,
        description="with more rows than this share that came or went since the table was made or "
        "compacted, it is compacted, and the lists take up what came",
    )
    max_growth: float = Field(
        4.0,
        gt=1,
        description="ivf_pq, hnsw: with this many times the rows that they were made of, the lists "
        "are made anew",
    )


class PgvectorSection(Section):
    """What a pgvector index is made of; a change makes the next run build it anew."""

    type: Literal["flat", "hnsw", "ivfflat"] = Field(
        "hnsw", description="flat: no index, exact; hnsw: a graph; ivfflat: lists"
    )
    num_links: int = Field(16, gt=1, le=100, description="hnsw: links of a row (m)")
    build_depth: int = Field(
        64, ge=4, le=1000, description="hnsw: candidates when a row is added (ef_construction)"
    )
    search_depth: int = Field(
        100, gt=0, le=1000, description="hnsw: candidates when a query is answered (ef_search)"
    )
    num_lists: int | None = Field(
        None, gt=0, le=32768, description="ivfflat: lists; null is a thousandth of the rows"
    )
    num_probes: int = Field(32, gt=0, description="ivfflat: lists that a query looks at")
    max_growth: float = Field(
        4.0,
        gt=1,
        description="ivfflat: with this many times the rows that its lists were made for, the "
        "index is built anew",
    )


class OpenSearchSection(Section):
    """What an index in OpenSearch is made of, and what its requests are like."""

    engine: Literal["faiss", "lucene"] = Field(
        "faiss", description="what builds the graph (HNSW) in OpenSearch"
    )
    num_links: int = Field(16, ge=2, le=100, description="links of a row (m)")
    build_depth: int = Field(
        100, gt=0, description="candidates when a row is added (ef_construction)"
    )
    search_depth: int = Field(
        100,
        gt=0,
        le=10_000,
        description="candidates when a query is answered (ef_search; also k in elmo search, since "
        "lucene knows nothing else)",
    )
    num_shards: int = Field(1, gt=0, description="parts of the index (number_of_shards)")
    num_replicas: int = Field(
        1, ge=0, description="copies of each part (number_of_replicas); a single node needs 0"
    )
    max_request_bytes: int = Field(
        10 << 20,
        gt=0,
        le=100 << 20,
        description="bytes of a request with rows, before it is compressed; servers refuse more "
        "than 100 MiB",
    )
    compress: bool = Field(False, description="compress requests with rows (gzip)")


class QualitySection(Section):
    """What an index must be like before it is published."""

    sample: int = Field(
        100,
        ge=0,
        description="queries, drawn from the snapshot's rows, for recall and moved neighbours; 0 "
        "checks neither, and saves reading the snapshot once",
    )
    min_recall: float | None = Field(
        0.9,
        ge=0,
        le=1,
        description="recall@10 against exact search, at least; null publishes with any",
    )
    max_moved_share: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the queries' 10 nearest rows that are others than in the snapshot "
        "that the index holds, at most; null: any",
    )
    max_norm_change: float | None = Field(
        0.25,
        gt=0,
        description="how far the mean length of the new vectors may be from that of the snapshot "
        "that the index holds, as a share of it; null: any",
    )


class IndexConfig(Section):
    """The whole configuration of `jobs.index`."""

    snapshot: SnapshotSection
    index: TargetSection
    faiss: FaissSection = FaissSection()
    lancedb: LancedbSection = LancedbSection()
    pgvector: PgvectorSection = PgvectorSection()
    opensearch: OpenSearchSection = OpenSearchSection()
    quality: QualitySection = QualitySection()
