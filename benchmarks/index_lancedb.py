"""LanceDB's own way to make a table of a snapshot's files: what `elmo index` is measured against.

A plain program with the client's bulk call: the files are streamed into `create_table`, and the
index is made as the section says. Vectors keep their length: LanceDB compares by cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.dataset as pads
from lancedb.index import HnswSq, IvfPq

from pipeline.index.config import LancedbSection
from pipeline.index.lance_table import code_bytes, element_type


def own_lancedb(paths: Sequence[str], folder: Path, section: LancedbSection) -> None:
    """Make the table `own` in a folder.

    Args:
        paths: local Parquet files with the columns id and vector.
        folder: for the table; one that is there is replaced.
        section: what to make.
    """
    files = pads.dataset(list(paths))
    dim = files.schema.field("vector").type.list_size
    type_ = pa.list_(element_type(section), dim)
    columns = {"id": pads.field("id"), "vector": pads.field("vector").cast(type_)}
    reader = files.scanner(columns=columns).to_reader()
    table = lancedb.connect(folder).create_table("own", data=reader, mode="overwrite")
    if section.type == "ivf_pq":
        num_bytes = code_bytes(section, dim)
        config = IvfPq("cosine", num_partitions=section.num_lists, num_sub_vectors=num_bytes)
        table.create_index("vector", config=config)
    elif section.type == "hnsw":
        graph = HnswSq(
            "cosine",
            num_partitions=section.num_lists,
            m=section.num_links,
            ef_construction=section.build_depth,
        )
        table.create_index("vector", config=graph)
