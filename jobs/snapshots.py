"""`jobs.snapshots`: list, show and compare the snapshots of a directory. Parses and prints."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from pipeline.snapshot.commit import SnapshotStore
    from pipeline.snapshot.compare import IdSet, SnapshotDiff
    from pipeline.snapshot.metadata import Snapshot

MAX_FILES_SHOWN = 100
ACTIONS = ("list", "show", "diff")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, help="list all, show one, or compare two")
    parser.add_argument("path", help="URL of the snapshot directory (output.path of jobs.embed)")
    parser.add_argument(
        "numbers",
        nargs="*",
        type=int,
        help="show: the snapshot (the latest by default); diff: the older and the newer one "
        "(the last two by default)",
    )
    parser.add_argument(
        "--ids", type=int, default=10, help="diff: ids to name of each kind (default 10)"
    )


def _run(call: Call) -> JobResult:
    from pipeline.errors import ConfigError
    from pipeline.snapshot.commit import SnapshotStore
    from pipeline.storage import open_storage

    arguments = call.arguments
    allowed = {"list": (0,), "show": (0, 1), "diff": (0, 2)}[arguments.action]
    if len(arguments.numbers) not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ConfigError(
            f"{arguments.action}: expected {expected} snapshot numbers, found "
            f"{len(arguments.numbers)}"
        )
    if arguments.ids < 0:
        raise ConfigError(f"--ids {arguments.ids}: expected a number from 0 on")
    store = SnapshotStore(open_storage(arguments.path))
    numbers = store.numbers()
    if arguments.action == "list":
        return _list([store.load(number) for number in numbers], store.url)
    if not numbers:
        raise ConfigError(f"{store.url}: there is no snapshot here")
    if arguments.action == "show":
        return _show(store, store.load(arguments.numbers[0] if arguments.numbers else numbers[-1]))
    if not arguments.numbers and len(numbers) < 2:
        raise ConfigError(f"{store.url}: there is only snapshot {numbers[0]}, nothing to compare")
    old, new = arguments.numbers or numbers[-2:]
    return _diff(store, old, new, arguments.ids)


def _list(snapshots: list[Snapshot], url: str) -> JobResult:
    from pipeline.units import format_bytes

    data = {"url": url, "snapshots": [_summary(snapshot) for snapshot in snapshots]}
    if not snapshots:
        return JobResult(data, f"{url}: there is no snapshot here")
    headers = ["number", "created", "operation", "documents", "added", "changed", "deleted"]
    rows = [
        [
            item.number,
            item.created_at,
            item.operation,
            item.num_documents,
            *(item.counts.get(key) for key in ("added", "changed", "deleted")),
            len(item.files),
            format_bytes(item.size_bytes),
            item.fingerprint[:12],
        ]
        for item in snapshots
    ]
    return JobResult(data, format_table([*headers, "files", "size", "fingerprint"], rows))


def _show(store: SnapshotStore, snapshot: Snapshot) -> JobResult:
    from pipeline.snapshot.commit import manifest_path
    from pipeline.units import format_bytes

    manifest = store.storage.url_of(manifest_path(snapshot.number))
    pairs = [
        ("number", snapshot.number),
        ("parent", snapshot.parent),
        ("created", snapshot.created_at),
        ("operation", snapshot.operation),
        ("run", snapshot.run_id),
        ("fingerprint", snapshot.fingerprint),
        ("manifest", manifest),
        *((f"counts: {key}", value) for key, value in snapshot.counts.items()),
        ("files", len(snapshot.files)),
        ("size", format_bytes(snapshot.size_bytes)),
        *((f"encoder: {key}", value) for key, value in snapshot.encoder.items()),
        *((f"lineage: {key}", value) for key, value in snapshot.lineage.items()),
        *(("rejected rows", path) for path in snapshot.rejected_files),
    ]
    width = max(len(name) for name, _ in pairs)
    lines = [f"{name:<{width}}  {_shown(value)}" for name, value in pairs]
    columns = format_table(
        ["column", "type", "stored in"],
        [
            [item.name, item.type, "path" if item.name in snapshot.partition_columns else "file"]
            for item in snapshot.schema
        ],
    )
    files = format_table(
        ["file", "partition", "rows", "documents", "size", "sha256"],
        [
            [
                file.path,
                ", ".join(f"{key}={value}" for key, value in file.partition.items()) or None,
                file.num_rows,
                file.num_documents,
                format_bytes(file.size_bytes),
                file.sha256[:12],
            ]
            for file in snapshot.files[:MAX_FILES_SHOWN]
        ],
    )
    if len(snapshot.files) > MAX_FILES_SHOWN:
        files += f"\nand {len(snapshot.files) - MAX_FILES_SHOWN:,} more; --json lists them all"
    data = {
        **_summary(snapshot),
        "parent": snapshot.parent,
        "run_id": snapshot.run_id,
        "idempotency_key": snapshot.idempotency_key,
        "manifest": manifest,
        "encoder": snapshot.encoder,
        "config": snapshot.config,
        "lineage": snapshot.lineage,
        "schema": [
            {"name": item.name, "type": str(item.type), "nullable": item.nullable}
            for item in snapshot.schema
        ],
        "partition_columns": snapshot.partition_columns,
        "files": [file.to_json() for file in snapshot.files],
        "rejected_files": snapshot.rejected_files,
    }
    return JobResult(data, "\n\n".join(["\n".join(lines), columns, files]))


def _diff(store: SnapshotStore, old: int, new: int, num_ids: int) -> JobResult:
    from pipeline.snapshot.compare import compare_snapshots

    diff = compare_snapshots(store.storage, store.load(old), store.load(new), num_ids=num_ids)
    kinds = {"added": diff.added, "changed": diff.changed, "deleted": diff.deleted}
    data: dict[str, Any] = {
        "old": diff.old,
        "new": diff.new,
        **{name: {"count": found.count, "ids": found.first_ids} for name, found in kinds.items()},
        "unchanged": diff.num_unchanged,
        "same_fingerprint": diff.same_fingerprint,
        "same_schema": diff.same_schema,
        "added_files": diff.added_files,
        "removed_files": diff.removed_files,
    }
    return JobResult(data, "\n".join(_diff_lines(diff, kinds)))


def _diff_lines(diff: SnapshotDiff, kinds: dict[str, IdSet]) -> list[str]:
    rows: list[list[Any]] = [[name, found.count, _ids(found)] for name, found in kinds.items()]
    rows.append(["unchanged", diff.num_unchanged, None])
    lines = [
        f"from snapshot {diff.old} to {diff.new}",
        format_table(["documents", "count", "ids"], rows),
        f"files: {len(diff.added_files)} added, {len(diff.removed_files)} removed",
    ]
    if not diff.same_fingerprint:
        lines.append(
            "The encoders differ: the vectors of all documents are others, and those of the two "
            "snapshots may not be compared with one another."
        )
    if not diff.same_schema:
        lines.append("The columns differ; 'show' lists them.")
    return lines


def _ids(found: IdSet) -> str | None:
    if not found.first_ids:
        return None
    more = ", ..." if found.count > len(found.first_ids) else ""
    return ", ".join(id_ if len(id_) <= 60 else id_[:57] + "..." for id_ in found.first_ids) + more


def _summary(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "number": snapshot.number,
        "created_at": snapshot.created_at,
        "operation": snapshot.operation,
        "documents": snapshot.num_documents,
        "counts": snapshot.counts,
        "num_files": len(snapshot.files),
        "size_bytes": snapshot.size_bytes,
        "fingerprint": snapshot.fingerprint,
    }


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)


JOB = Job(
    name="snapshots",
    summary="list, show and compare the snapshots of a directory",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "list s3://bucket/vectors",
        "show s3://bucket/vectors",
        "show s3://bucket/vectors 41 --json",
        "diff s3://bucket/vectors 41 42 --ids 20",
    ),
    takes_config=False,
    has_dry_run=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
