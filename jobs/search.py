"""`jobs.search`: exact search over a snapshot by text or by a word in context. Prints hits only."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow.compute as pc

    from pipeline.search import Hit


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", help="URL of the snapshot directory")
    parser.add_argument("queries", nargs="*", help="texts to search for")
    parser.add_argument("--number", type=int, help="snapshot number; the latest by default")
    parser.add_argument("--hits", type=int, default=5, help="rows per query (default 5)")
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
        default="white",
        help="where the cosine is taken: all directions scaled to vary alike (white, the "
        "default), less the mean vector only, or as stored",
    )
    parser.add_argument("--model", help="directory of the model, where it has moved")


def _run(call: Call) -> JobResult:
    from pipeline.errors import ConfigError
    from pipeline.search import SnapshotEncoder, nearest, word_uses
    from pipeline.snapshot.read import open_snapshot

    arguments = call.arguments
    if not arguments.queries:
        raise ConfigError("jobs.search: expected at least one text to search for, found none")
    snapshot, dataset = open_snapshot(arguments.snapshot, arguments.number)
    files = ("options_file", "weights_file", "vocabulary_file")
    moved = {"directory": arguments.model, **dict.fromkeys(files)}
    encoder = SnapshotEncoder(snapshot, moved if arguments.model else None)
    if arguments.word:
        hits = word_uses(dataset, encoder, arguments.word, arguments.queries, arguments.hits)
    else:
        columns = [name for name in dataset.schema.names if name.startswith("vector")]
        layer = len(columns) - 1 if arguments.layer is None else arguments.layer
        if not 0 <= layer < len(columns):
            raise ConfigError(f"--layer {layer}: the snapshot has layers 0 to {len(columns) - 1}")
        hits = nearest(
            dataset,
            encoder.encode(arguments.queries)[:, layer],
            arguments.hits,
            vector_column=columns[layer],
            row_filter=_filter(arguments.where, dataset.schema.names),
            space=arguments.space,
        )
    data: dict[str, Any] = {
        "snapshot": snapshot.number,
        "queries": [
            {"query": query, "hits": [vars(hit) for hit in found]}
            for query, found in zip(arguments.queries, hits, strict=True)
        ],
    }
    return JobResult(data, _tables(arguments.queries, hits, arguments.word))


def _filter(conditions: Sequence[str], names: Sequence[str]) -> pc.Expression | None:
    import pyarrow.dataset as pads

    from pipeline.errors import ConfigError

    combined = None
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or name not in names:
            raise ConfigError(
                f"--where {condition}: expected COLUMN=VALUE with one of {', '.join(names)}"
            )
        expression = pads.field(name).cast("string") == value
        combined = expression if combined is None else combined & expression
    return combined


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
    summary="find the rows of a snapshot nearest to a text, or a word's uses nearest to one of its",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "s3://bucket/vectors 'how to read a compressed file'",
        "s3://bucket/vectors 'parse a date' --where package=pandas --hits 10",
        "s3://bucket/vectors --word key 'look up the key in the mapping' 'sign with a private key'",
    ),
    takes_config=False,
    has_dry_run=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
