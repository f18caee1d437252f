"""`jobs.snapshots`: look at the snapshots of a directory, and keep house. Parses and prints."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from jobs import snapshot_actions
from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.snapshot.commit import SnapshotStore
    from pipeline.snapshot.compare import IdSet, SnapshotDiff
    from pipeline.snapshot.metadata import Snapshot
    from pipeline.snapshot.tags import Tag

MAX_FILES_SHOWN = 100
# How many names each action takes.
NUM_NAMES = {
    "list": (0,),
    "show": (0, 1),
    "diff": (0, 2),
    "rollback": (1,),
    "tag": (0, 1, 2),
    "expire": (0,),
    "gc": (0,),
    "compact": (0,),
}
# The flags that only some actions take.
FLAGS = {
    "ids": ("diff",),
    "keep": ("expire",),
    "keep_days": ("expire",),
    "older_than": ("gc",),
    "below": ("compact",),
    "target": ("compact",),
    "delete": ("tag",),
    "force": ("gc", "tag"),
}
DEFAULT_IDS = 10
_UNITS = {"": 1} | {
    f"{prefix}{binary}B": (1024 if binary else 1000) ** power
    for power, prefix in enumerate(("", "k", "M", "G", "T"))
    for binary in ("", "i")
    if prefix or not binary
}


def _size_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w*)", text)
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size: expected bytes, or a number with kB, MB, GB, kiB, MiB or GiB"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=tuple(NUM_NAMES),
        help="list all, show one, or compare two (diff); make an old one current again (rollback); "
        "name one that must stay (tag); remove old ones (expire) and files that none names (gc); "
        "merge small files (compact)",
    )
    parser.add_argument("path", help="URL of the snapshot directory (output.path of jobs.embed)")
    parser.add_argument(
        "names",
        nargs="*",
        help="snapshots by number or tag. show: one (the latest by default); diff: the older and "
        "the newer one (the last two by default); rollback: the one to return to; tag: the name "
        "and the snapshot (the latest by default), or nothing to list the tags",
    )
    parser.add_argument(
        "--ids", type=int, help=f"diff: ids to name of each kind (default {DEFAULT_IDS})"
    )
    parser.add_argument("--keep", type=int, metavar="N", help="expire: keep the newest N snapshots")
    parser.add_argument(
        "--keep-days",
        type=float,
        metavar="DAYS",
        help="expire: keep a snapshot this long after a newer one replaced it; together with "
        "--keep, either keeps it",
    )
    parser.add_argument(
        "--older-than",
        type=float,
        metavar="HOURS",
        help="gc: remove only files that are older (default 72; below 24 only with --force)",
    )
    parser.add_argument(
        "--below",
        type=_size_bytes,
        metavar="BYTES",
        help="compact: merge data files that are smaller, such as 64MiB",
    )
    parser.add_argument(
        "--target",
        type=_size_bytes,
        metavar="BYTES",
        help="compact: size of merged files (default: output.target_file_bytes of the snapshot)",
    )
    parser.add_argument("--delete", action="store_true", help="tag: delete the tag")
    parser.add_argument(
        "--force",
        action="store_true",
        help="tag: move a tag that names another snapshot; gc: allow --older-than below 24",
    )


def _run(call: Call) -> JobResult:
    from pipeline.errors import ConfigError
    from pipeline.snapshot.commit import SnapshotStore
    from pipeline.snapshot.tags import read_tags
    from pipeline.storage import open_storage

    arguments = call.arguments
    _check(arguments)
    store = SnapshotStore(open_storage(arguments.path))
    numbers = store.numbers()
    if arguments.action == "list":
        tags = read_tags(store.storage)
        return _list([store.load(number) for number in numbers], tags, store.url)
    if not numbers and arguments.action != "gc":
        raise ConfigError(f"{store.url}: there is no snapshot here")
    changing = {
        "tag": snapshot_actions.tag,
        "rollback": snapshot_actions.rollback,
        "expire": snapshot_actions.expire,
        "gc": snapshot_actions.collect,
        "compact": snapshot_actions.compact,
    }
    if arguments.action in changing:
        return changing[arguments.action](call, store)
    chosen = [snapshot_actions.resolve(store, word) for word in arguments.names]
    if arguments.action == "show":
        return _show(store, store.load(chosen[0] if chosen else numbers[-1]))
    if not chosen and len(numbers) < 2:
        raise ConfigError(f"{store.url}: there is only snapshot {numbers[0]}, nothing to compare")
    old, new = chosen or numbers[-2:]
    return _diff(store, old, new, DEFAULT_IDS if arguments.ids is None else arguments.ids)


def _check(arguments: argparse.Namespace) -> None:
    """Make sure that the action was given what it takes and nothing else."""
    from pipeline.errors import ConfigError

    allowed = NUM_NAMES[arguments.action]
    if len(arguments.names) not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ConfigError(
            f"{arguments.action}: expected {expected} snapshot numbers or names, found "
            f"{len(arguments.names)}"
        )
    for flag, actions in FLAGS.items():
        if getattr(arguments, flag) not in (None, False) and arguments.action not in actions:
            raise ConfigError(
                f"{arguments.action}: --{flag.replace('_', '-')} goes with {' and '.join(actions)}"
            )
    if arguments.ids is not None and arguments.ids < 0:
        raise ConfigError(f"--ids {arguments.ids}: expected a number from 0 on")


def _list(snapshots: list[Snapshot], tags: Sequence[Tag], url: str) -> JobResult:
    from pipeline.units import format_bytes

    names: dict[int, list[str]] = {}
    for tag in tags:
        names.setdefault(tag.number, []).append(tag.name)
    data = {
        "url": url,
        "snapshots": [
            {**_summary(snapshot), "tags": names.get(snapshot.number, [])} for snapshot in snapshots
        ],
    }
    if not snapshots:
        return JobResult(data, f"{url}: there is no snapshot here")
    headers = ["number", "created", "operation", "documents", "added", "changed", "deleted"]
    headers += ["files", "size", "fingerprint"] + (["tags"] if names else [])
    rows = []
    for item in snapshots:
        row: list[Any] = [item.number, item.created_at, item.operation, item.num_documents]
        row += [item.counts.get(key) for key in ("added", "changed", "deleted")]
        row += [len(item.files), format_bytes(item.size_bytes), item.fingerprint[:12]]
        rows.append([*row, ", ".join(names.get(item.number, []))] if names else row)
    return JobResult(data, format_table(headers, rows))


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
        ("change feed", "none" if snapshot.changes is None else len(snapshot.changes)),
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
        "changes": snapshot.changes,
        "rewritten": snapshot.rewritten,
        "moved": snapshot.moved,
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
    summary="list, show and compare snapshots; roll back, tag, expire, collect garbage, compact",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "list s3://bucket/vectors",
        "show s3://bucket/vectors 41 --json",
        "diff s3://bucket/vectors 41 42 --ids 20",
        "rollback s3://bucket/vectors 41 --dry-run",
        "tag s3://bucket/vectors release-7 41",
        "tag s3://bucket/vectors release-7 --delete",
        "expire s3://bucket/vectors --keep 14",
        "gc s3://bucket/vectors --older-than 72 --dry-run",
        "compact s3://bucket/vectors --below 64MiB",
    ),
    takes_config=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
