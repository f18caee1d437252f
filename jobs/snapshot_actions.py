"""What `jobs.snapshots` does to a directory: tag, rollback, expire, gc, compact. Prints nothing.

Each function takes the parsed flags and the snapshots, and returns what is to be printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.command import Call, JobResult
from jobs.table import format_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.snapshot.commit import SnapshotStore

MAX_PATHS_SHOWN = 100


def resolve(store: SnapshotStore, word: str) -> int:
    """The number that a word stands for: itself, or what the tag of this name says.

    Raises:
        ConfigError: there is no such tag.
    """
    from pipeline.errors import ConfigError
    from pipeline.snapshot.tags import find_tag

    if word.isascii() and word.isdigit():
        return int(word)
    tag = find_tag(store.storage, word)
    if tag is None:
        raise ConfigError(f"{store.url}: {word!r} is neither a snapshot number nor a tag")
    return tag.number


def tag(call: Call, store: SnapshotStore) -> JobResult:
    """List the tags, or set or delete one."""
    from pipeline.errors import ConfigError
    from pipeline.snapshot.tags import check_name, delete_tag, find_tag, put_tag, read_tags

    words = call.arguments.names
    if not words:
        if call.arguments.delete:
            raise ConfigError("tag --delete: say the name of the tag")
        tags = read_tags(store.storage)
        text = format_table(
            ["tag", "snapshot", "since"], [[t.name, t.number, t.created_at] for t in tags]
        )
        data: dict[str, Any] = {"url": store.url, "tags": [vars(item) for item in tags]}
        return JobResult(data, text if tags else f"{store.url}: there is no tag here")
    name = words[0]
    if call.arguments.delete:
        if len(words) > 1:
            raise ConfigError("tag --delete: expected the name of the tag and no snapshot")
        found = find_tag(store.storage, name) if call.dry_run else delete_tag(store.storage, name)
        if found is None:
            raise ConfigError(f"{store.url}: there is no tag {name!r}")
        done = f"tag {name} {_would(call, 'deleted')}; it named snapshot {found.number}"
        return JobResult({**vars(found), "deleted": True, "dry_run": call.dry_run}, done)
    check_name(name)
    number = resolve(store, words[1]) if len(words) > 1 else store.latest_number()
    if number is None:
        raise ConfigError(f"{store.url}: there is no snapshot here")
    if call.dry_run:
        store.load(number)
        data = {"name": name, "number": number, "dry_run": True}
        return JobResult(data, f"snapshot {number} would be tagged {name}")
    made = put_tag(store, name, number, move=call.arguments.force)
    return JobResult({**vars(made), "dry_run": False}, f"snapshot {number} is tagged {name}")


def rollback(call: Call, store: SnapshotStore) -> JobResult:
    """Commit a snapshot that equals an old one."""
    from pipeline.snapshot.rollback import rollback as roll_back

    report = roll_back(store, resolve(store, call.arguments.names[0]), dry_run=call.dry_run)
    number = report.snapshot.number if report.snapshot else None
    data = {**vars(report), "snapshot": number, "dry_run": call.dry_run}
    counts = (
        f"{report.num_added:,} documents added, {report.num_changed:,} changed, "
        f"{report.num_deleted:,} deleted, {report.num_unchanged:,} unchanged"
    )
    if call.dry_run:
        text = f"a rollback from {report.parent} to {report.target} would mean: {counts}"
    elif number is None:
        text = f"snapshot {report.parent} equals {report.target} already; nothing was committed"
    else:
        text = f"snapshot {number} equals {report.target}; against {report.parent}: {counts}"
    return JobResult(data, text)


def expire(call: Call, store: SnapshotStore) -> JobResult:
    """Remove old snapshots."""
    from pipeline.snapshot.expire import expire as expire_snapshots

    arguments = call.arguments
    report = expire_snapshots(
        store, keep=arguments.keep, keep_days=arguments.keep_days, dry_run=call.dry_run
    )
    lines = [
        f"{_would(call, 'expired')}: {_ranges(report.expired) or 'none'}; "
        f"files of change feeds: {report.num_change_files:,}",
        f"kept: {_ranges(report.kept) or 'none'}"
        + (f" (because of tags: {_ranges(report.tagged)})" if report.tagged else ""),
    ]
    if report.expired and not call.dry_run:
        lines.append("their data files stay until 'snapshots gc' removes them")
    return JobResult(vars(report), "\n".join(lines))


def collect(call: Call, store: SnapshotStore) -> JobResult:
    """Remove what no snapshot names."""
    from pipeline.snapshot.garbage import DEFAULT_HOURS, collect_garbage
    from pipeline.units import format_bytes

    arguments = call.arguments
    hours = DEFAULT_HOURS if arguments.older_than is None else arguments.older_than
    report = collect_garbage(
        store, older_than_hours=hours, dry_run=call.dry_run, force=arguments.force
    )
    lines = [
        f"{_would(call, 'removed')}: {len(report.paths):,} files, "
        f"{format_bytes(report.size_bytes)}, that no snapshot names and that are older than "
        f"{hours:g} hours",
        f"left: {report.num_young:,} more that are younger, or of a run that may be at work",
    ]
    if report.num_by_kind:
        lines.append(format_table(["kind", "files"], list(report.num_by_kind.items())))
    if call.dry_run and report.paths:
        lines += ["", *_shortened(report.paths)]
    return JobResult(
        {**vars(report), "url": store.url, "older_than_hours": hours}, "\n".join(lines)
    )


def compact(call: Call, store: SnapshotStore) -> JobResult:
    """Merge small files."""
    from pipeline.errors import ConfigError
    from pipeline.snapshot.compact import latest_or_error, plan_merges
    from pipeline.units import format_bytes

    below, target = call.arguments.below, call.arguments.target
    if below is None:
        raise ConfigError("compact: say --below BYTES: smaller files are merged")
    if call.dry_run:
        latest = latest_or_error(store)
        merges = plan_merges(latest, below, target)
        num_files = sum(len(merge.files) for merge in merges)
        size_bytes = sum(merge.size_bytes for merge in merges)
        data = {"parent": latest.number, "snapshot": None, "dry_run": True}
        data |= {"num_merged": num_files, "num_files": len(latest.files)}
        data |= {"num_new": len(merges), "size_bytes": size_bytes}
        return JobResult(
            data,
            f"{num_files:,} of {len(latest.files):,} files ({format_bytes(size_bytes)}) would "
            f"become {len(merges):,}",
        )
    from pipeline.maintenance import compact as compact_files

    made = compact_files(store, below_bytes=below, target_file_bytes=target)
    if made is None:
        data = {"snapshot": None, "num_merged": 0, "num_new": 0, "dry_run": False}
        return JobResult(data, f"{store.url}: there is nothing to merge; nothing was committed")
    new = set(made.rewritten.values())
    size_bytes = sum(file.size_bytes for file in made.files if file.path in new)
    data = {"parent": made.parent, "snapshot": made.number, "dry_run": False}
    data |= {"num_merged": len(made.rewritten), "num_files": len(made.files)}
    data |= {"num_new": len(new), "size_bytes": size_bytes}
    return JobResult(
        data,
        f"snapshot {made.number}: {len(made.rewritten):,} files became {len(new):,} "
        f"({format_bytes(size_bytes)}); the rows are those of {made.parent}",
    )


def _would(call: Call, done: str) -> str:
    return f"would be {done}" if call.dry_run else done


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them: 1 to 4, 7, 9 to 12."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


def _shortened(paths: Sequence[str]) -> Iterable[Any]:
    yield from paths[:MAX_PATHS_SHOWN]
    if len(paths) > MAX_PATHS_SHOWN:
        yield f"and {len(paths) - MAX_PATHS_SHOWN:,} more; --json lists them all"
