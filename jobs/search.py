"""`jobs.search`: search a snapshot or its index by text, word or document. Prints hits only."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pyarrow.compute as pc
    from numpy.typing import NDArray

    from pipeline.hits import Hit
    from pipeline.search import SnapshotEncoder
    from pipeline.snapshot.metadata import Snapshot


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", help="URL of the snapshot directory")
    parser.add_argument("queries", nargs="*", help="texts to search for")
    parser.add_argument("--number", type=int, help="snapshot number; the latest by default")
    parser.add_argument("--hits", type=int, default=5, help="rows per query (default 5)")
    parser.add_argument(
        "--index",
        metavar="URL",
        help="ask this index (index.path of elmo index), which was fed from the snapshots, instead "
        "of reading all vectors",
    )
    parser.add_argument(
        "--like",
        action="append",
        default=[],
        metavar="ID",
        help="search for what is like this document; may be repeated, and stand beside texts",
    )
    parser.add_argument(
        "--word", help="find uses of this word instead; each query is a sentence that contains it"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows with this value, for example a partition; may be repeated",
    )
    parser.add_argument(
        "--layer", type=int, help="which layer of a snapshot with several (default: the top one)"
    )
    parser.add_argument(
        "--space",
        choices=("white", "centered", "plain"),
        help="where the cosine is taken: all directions scaled to vary alike (white, the "
        "default), less the mean vector only, or as stored (an index knows this one only)",
    )
    parser.add_argument("--model", help="directory of the model, where it has moved")


def _run(call: Call) -> JobResult:
    from pipeline.errors import ConfigError

    arguments = call.arguments
    if not arguments.queries and not arguments.like:
        raise ConfigError("jobs.search: expected at least one text to search for, found none")
    if arguments.hits < 1:
        raise ConfigError(f"--hits {arguments.hits}: expected a number from 1 on")
    if arguments.word and (arguments.index or arguments.like):
        raise ConfigError("--word: a word's uses are embedded anew; leave out --index and --like")
    if arguments.index:
        others = {"number": arguments.number, "layer": arguments.layer, "space": arguments.space}
        given = [f"--{name}" for name, value in others.items() if value not in (None, "plain")]
        if given:
            raise ConfigError(f"--index: the index settles this itself; leave out {given[0]}")
        number, hits = _ask_index(arguments)
    else:
        number, hits = _read_snapshot(arguments)
    queries = [*arguments.queries, *(f"like {id_}" for id_ in arguments.like)]
    data: dict[str, Any] = {
        "snapshot": number,
        "index": arguments.index,
        "queries": [
            {"query": query, "hits": [vars(hit) for hit in found]}
            for query, found in zip(queries, hits, strict=True)
        ],
    }
    return JobResult(data, _tables(queries, hits, arguments.word))


def _ask_index(arguments: argparse.Namespace) -> tuple[int, list[list[Hit]]]:
    from pipeline.index.kinds import open_index
    from pipeline.index.query import layer_of, nearest_in_index, snapshot_of
    from pipeline.storage import open_storage

    reader = open_index(arguments.index)
    where = dict(_conditions(arguments.where, reader.state.columns))
    snapshot = snapshot_of(open_storage(arguments.snapshot), reader.state)
    layer = layer_of(snapshot, reader.state)
    queries_QD = _vectors(arguments, snapshot, layer, reader.state.vector_column)
    left_out = [*(None for _ in arguments.queries), *arguments.like]
    hits = nearest_in_index(reader, queries_QD, arguments.hits, where, left_out)
    return reader.state.snapshot, hits


def _read_snapshot(arguments: argparse.Namespace) -> tuple[int, list[list[Hit]]]:
    import pyarrow.dataset as pads

    from pipeline.errors import ConfigError
    from pipeline.search import nearest, word_uses
    from pipeline.snapshot.read import open_snapshot

    snapshot, dataset = open_snapshot(arguments.snapshot, arguments.number)
    if arguments.word:
        encoder = _encoder(arguments, snapshot)
        words = (arguments.word, arguments.queries, arguments.hits)
        return snapshot.number, word_uses(dataset, encoder, *words)
    columns = [name for name in dataset.schema.names if name.startswith("vector")]
    layer = len(columns) - 1 if arguments.layer is None else arguments.layer
    if not 0 <= layer < len(columns):
        raise ConfigError(f"--layer {layer}: the snapshot has layers 0 to {len(columns) - 1}")
    row_filter = _filter(arguments.where, dataset.schema.names)
    vectors = _vectors(arguments, snapshot, layer, columns[layer])
    count = len(arguments.queries)

    def search(queries_QD: NDArray[np.floating], only: pc.Expression | None) -> list[list[Hit]]:
        return nearest(
            dataset,
            queries_QD,
            arguments.hits,
            vector_column=columns[layer],
            row_filter=only,
            space=arguments.space or "white",
        )

    hits = search(vectors[:count], row_filter) if count else []
    for id_, query_D in zip(arguments.like, vectors[count:], strict=True):
        others = pads.field("id") != id_
        hits += search(query_D[None], others if row_filter is None else others & row_filter)
    return snapshot.number, hits


def _vectors(
    arguments: argparse.Namespace, snapshot: Snapshot, layer: int, column: str
) -> NDArray[np.floating]:
    """One vector for each text, then for each document to be like (Q, D)."""
    import numpy as np

    from pipeline.index.query import vectors_like
    from pipeline.storage import open_storage

    parts: list[NDArray[np.floating]] = []
    if arguments.queries:
        parts.append(_encoder(arguments, snapshot).encode(arguments.queries)[:, layer])
    if arguments.like:
        storage = open_storage(arguments.snapshot)
        parts.append(vectors_like(storage, snapshot, column, arguments.like))
    return np.concatenate(parts)


def _encoder(arguments: argparse.Namespace, snapshot: Snapshot) -> SnapshotEncoder:
    from pipeline.search import SnapshotEncoder

    files = ("options_file", "weights_file", "vocabulary_file")
    moved = {"directory": arguments.model, **dict.fromkeys(files)}
    return SnapshotEncoder(snapshot, moved if arguments.model else None)


def _filter(conditions: Sequence[str], names: Sequence[str]) -> pc.Expression | None:
    import pyarrow.dataset as pads

    combined = None
    for name, value in _conditions(conditions, names):
        expression = pads.field(name).cast("string") == value
        combined = expression if combined is None else combined & expression
    return combined


def _conditions(conditions: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    from pipeline.errors import ConfigError

    found = []
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or name not in names:
            raise ConfigError(
                f"--where {condition}: expected COLUMN=VALUE with one of {', '.join(names)}"
            )
        found.append((name, value))
    return found


def _tables(queries: Sequence[str], hits: Sequence[Sequence[Hit]], word: str | None) -> str:
    parts = []
    for query, found in zip(queries, hits, strict=True):
        title = f"{word} as in: {query}" if word else f"query: {query}"
        rows = [
            [f"{hit.score:.3f}", hit.id if len(hit.id) <= 48 else hit.id[:45] + "...", hit.excerpt]
            for hit in found
        ]
        parts.append(f"{title}\n{format_table(['cosine', 'id', 'text'], rows)}")
    return "\n\n".join(parts)


JOB = Job(
    name="search",
    summary="find the rows of a snapshot nearest to a text or a document, or a word's uses",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "s3://bucket/vectors 'how to read a compressed file'",
        "s3://bucket/vectors 'parse a date' --where package=pandas --hits 10",
        "s3://bucket/vectors 'parse a date' --index s3://bucket/index --where package=pandas",
        "s3://bucket/vectors --index s3://bucket/index --like pandas.read_csv --json",
        "s3://bucket/vectors --word key 'look up the key in the mapping' 'sign with a private key'",
    ),
    takes_config=False,
    has_dry_run=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
