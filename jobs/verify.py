"""`jobs.verify`: check that a snapshot is what its manifest promises. Parses and prints."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from pipeline.verify import Reembedded, VerifyReport

EXIT_BAD = 7
MAX_SHOWN = 50


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="URL of the snapshot directory (output.path of jobs.embed)")
    parser.add_argument("--number", type=int, help="which snapshot; the latest by default")
    parser.add_argument(
        "--threads", type=int, default=4, help="files that are checked at once (default 4)"
    )


def _run(call: Call) -> JobResult:
    from pipeline.errors import ConfigError
    from pipeline.snapshot.read import open_snapshot
    from pipeline.storage import open_storage
    from pipeline.verify import verify_snapshot

    arguments = call.arguments
    if arguments.threads < 1:
        raise ConfigError(f"--threads {arguments.threads}: expected a number from 1 on")
    storage = open_storage(arguments.path)
    snapshot, _ = open_snapshot(arguments.path, arguments.number)
    report = verify_snapshot(storage, snapshot, num_threads=arguments.threads)
    return JobResult(_data(report), _text(report), 0 if report.is_good else EXIT_BAD)


def _data(report: VerifyReport) -> dict[str, Any]:
    return {
        "number": report.number,
        "is_good": report.is_good,
        "files": report.num_files,
        "rows": report.num_rows,
        "documents": report.num_documents,
        "size_bytes": report.size_bytes,
        "problems": [vars(problem) for problem in report.problems],
        "orphans": report.orphans,
        "reembedded": vars(report.reembedded) if report.reembedded else None,
    }


def _text(report: VerifyReport) -> str:
    from pipeline.units import format_bytes

    state = "good" if report.is_good else f"NOT GOOD, problems: {len(report.problems):,}"
    lines = [
        f"snapshot {report.number}: {state}; {report.num_files:,} files, "
        f"{format_bytes(report.size_bytes)}, {report.num_documents:,} documents, "
        f"{report.num_rows:,} rows checked"
    ]
    if report.reembedded:
        lines.append(_sample_line(report.reembedded))
    if report.orphans:
        lines.append(
            f"data files that belong to no snapshot: {len(report.orphans):,} (of a stopped run, or "
            "of one under way; no reader sees them)"
        )
    if report.problems:
        rows = [[p.code, p.path, p.message] for p in report.problems[:MAX_SHOWN]]
        lines.append(format_table(["problem", "file", "what was found"], rows))
        if len(report.problems) > MAX_SHOWN:
            lines.append(f"and {len(report.problems) - MAX_SHOWN:,} more; --json lists them all")
    return "\n".join(lines)


def _sample_line(sample: Reembedded) -> str:
    skipped = f", {sample.num_skipped} changed in the source since" if sample.num_skipped else ""
    return (
        f"{sample.num_compared} documents embedded again{skipped}: the vectors differ by "
        f"{sample.max_difference:.1e} of their length at most (allowed: {sample.tolerance:.0e})"
    )


JOB = Job(
    name="verify",
    summary="check a snapshot's files, hashes, counts, values and ids against its manifest",
    run=_run,
    add_arguments=_add_arguments,
    examples=("s3://bucket/vectors", "s3://bucket/vectors --number 41 --json"),
    takes_config=False,
    has_dry_run=False,
    exit_codes={
        EXIT_BAD: "the snapshot is not what its manifest promises; the problems are listed"
    },
)

if __name__ == "__main__":
    sys.exit(main(JOB))
