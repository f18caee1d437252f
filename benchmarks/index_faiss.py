"""A plain program with FAISS: read all, train, add in one call, write. Knows none of our code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from index_corpus import ALL, read_whole

if TYPE_CHECKING:
    from index_corpus import Corpus

    from pipeline.index.config import IndexConfig


def own_faiss(corpus: Corpus, folder: Path, config: IndexConfig) -> None:
    """Make the same index with the same settings, of the first snapshot."""
    section = config.faiss
    ids, vectors_ND = read_whole(corpus.paths(ALL))
    count, dim = vectors_ND.shape
    lists = max(1, min(4 * int(count**0.5), min(count, section.max_train_rows) // 40))
    spec = {
        "flat": "IDMap,SQfp16",
        "hnsw": f"IDMap,HNSW{section.num_links}_SQfp16",
        "ivf": f"IVF{lists},SQfp16",
        "ivf_pq": f"IVF{lists},PQ{dim // 4}",
    }[section.type]
    index = faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
    if section.type == "hnsw":
        faiss.downcast_index(index.index).hnsw.efConstruction = section.build_depth
    if section.type == "ivf":
        index.by_residual = False
    if section.type == "ivf_pq":
        index.do_polysemous_training = False
    if not index.is_trained:
        drawn = np.random.default_rng(0).permutation(count)[: section.max_train_rows]
        index.train(vectors_ND[drawn])
    index.add_with_ids(vectors_ND, np.arange(count))
    faiss.write_index(index, str(folder / "own.faiss"))
    pq.write_table(pa.table({"id": ids}), folder / "own.parquet")


def set_threads(num_threads: int) -> None:
    """Of everything that FAISS does from now on, in this process and those that it starts."""
    faiss.omp_set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)


def threads_of_faiss() -> Mapping[str, Callable[[], None]]:
    """One thread and all of them."""
    return {
        "one thread": lambda: faiss.omp_set_num_threads(1),
        "all threads": lambda: faiss.omp_set_num_threads(len(os.sched_getaffinity(0))),
    }
