"""The kinds of index that are measured: how each is fed, by us and by its own client.

Another kind is an entry in `KINDS`. Knows no clock.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index_corpus import ALL, Corpus
from index_faiss import own_faiss, threads_of_faiss
from index_lancedb import own_lancedb
from index_pgvector import own_pgvector, postgres_server

from pipeline.config import build
from pipeline.index.config import IndexConfig
from pipeline.index.kinds import open_feeder
from pipeline.index.update import plan_update, update_index

# Training codes takes a minute of a core for each 20,000 rows of 1,024 elements.
MAX_TRAIN_ROWS = {"ivf": 20_000, "ivf_pq": 2_560}


@dataclass(frozen=True)
class Kind:
    """One kind of index.

    Attributes:
        sections: of the configuration of `elmo index`.
        own: feeds an index of its own to a folder, by the client's own bulk tool alone.
        url: where an index of this name is, and nothing is there yet.
        server_cpu_s: processor seconds so far of processes that are not this one.
        threads: what sets the number of threads of a search; none where it has no say.
    """

    sections: Mapping[str, Any]
    own: Callable[[Corpus, Path, IndexConfig], None]
    url: Callable[[Path, str], str] = field(default=lambda folder, name: _fresh(folder / name))
    server_cpu_s: Callable[[], float] = field(default=lambda: 0.0)
    threads: Callable[[], Mapping[str, Callable[[], None]]] = field(
        default=lambda: {"as it comes": lambda: None}
    )

    def configuration(self, corpus: Corpus, url: str, number: int) -> IndexConfig:
        """Of an index of one of the snapshots, which is published without a check."""
        sections = {name: dict(section) for name, section in self.sections.items()}
        values = {
            "snapshot": {"path": corpus.store.url, "number": number},
            "quality": {"sample": 0},
            **sections,
            "index": {"path": url, **sections.get("index", {})},
        }
        return build(IndexConfig, values, "benchmark")


def feed(config: IndexConfig) -> str:
    """What `elmo index` does; returns full or delta."""
    feeder = open_feeder(config)
    return update_index(config, feeder, plan_update(config, feeder, rebuild=False)).action


def _fresh(path: Path) -> str:
    shutil.rmtree(path, ignore_errors=True)
    return str(path)


def _faiss(type_: str) -> Kind:
    section = {"type": type_, "max_train_rows": MAX_TRAIN_ROWS.get(type_, 1)}
    return Kind({"faiss": section}, own_faiss, threads=threads_of_faiss)


def _pgvector(type_: str) -> Kind:
    return Kind(
        {"index": {"kind": "pgvector"}, "pgvector": {"type": type_}},
        own_pgvector,
        url=lambda _, name: postgres_server().fresh_url(name),
        server_cpu_s=lambda: postgres_server().cpu_s(),
    )


def _lancedb(type_: str) -> Kind:
    def own(corpus: Corpus, folder: Path, config: IndexConfig) -> None:
        own_lancedb(corpus.paths(ALL), folder, config.lancedb)

    return Kind({"index": {"kind": "lancedb"}, "lancedb": {"type": type_}}, own)


KINDS = {
    **{f"faiss-{type_}": _faiss(type_) for type_ in ("flat", "ivf", "ivf_pq", "hnsw")},
    **{f"lancedb-{type_}": _lancedb(type_) for type_ in ("flat", "ivf_pq", "hnsw")},
    **{f"pgvector-{type_}": _pgvector(type_) for type_ in ("flat", "ivfflat", "hnsw")},
}
