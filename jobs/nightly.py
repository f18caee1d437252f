"""`jobs.nightly`: bring a snapshot up to date with its corpus, then keep house. Parses and prints.

The same run as `jobs.embed`, followed by the upkeep that the section `nightly` of the configuration
asks for. A failure of the upkeep does not undo the commit: it is reported, with its exit code.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.embed import planned
from jobs.run_report import add_run_flags, describe_run, preparation, run_with_progress

if TYPE_CHECKING:
    from pipeline.upkeep import UpkeepReport

log = logging.getLogger(__name__)


def _run(call: Call) -> JobResult:
    from pipeline.errors import PipelineError
    from pipeline.upkeep import keep_up

    config, prepare_run = preparation(call)
    if call.dry_run:
        from pipeline.estimate import estimate

        return planned(estimate(prepare_run()))
    prepared, report = run_with_progress(call, prepare_run)
    result = describe_run(prepared, report)
    try:
        upkeep, lines = _described(keep_up(prepared.store, config))
        exit_code = 0
    except PipelineError as error:
        log.error("the run is done, but the upkeep after it failed: %s", error)
        upkeep, lines = {"error": str(error)}, [f"upkeep failed: {error}"]
        exit_code = error.exit_code
    data = {**result.data, "upkeep": upkeep}
    return JobResult(data, "\n".join([result.text, *lines]), exit_code)


def _described(report: UpkeepReport) -> tuple[dict[str, Any], list[str]]:
    from pipeline.units import format_bytes

    data: dict[str, Any] = {}
    lines: list[str] = []
    if report.compacted is not None:
        data["compacted_snapshot"] = report.compacted.number
        files = len(report.compacted.files)
        lines.append(f"merged small files: snapshot {report.compacted.number} has {files:,} files")
    if report.expired is not None:
        data["expired_snapshots"] = report.expired.expired
        if report.expired.expired:
            lines.append(f"expired {len(report.expired.expired):,} snapshots")
    if report.garbage is not None:
        data["garbage_files"] = len(report.garbage.paths)
        data["garbage_bytes"] = report.garbage.size_bytes
        if report.garbage.paths:
            size = format_bytes(report.garbage.size_bytes)
            lines.append(f"removed {len(report.garbage.paths):,} files of no snapshot, {size}")
    return data, lines


JOB = Job(
    name="nightly",
    summary="embed what changed since the last snapshot, commit, and remove what is old",
    run=_run,
    add_arguments=add_run_flags,
    examples=(
        "--config nightly.yaml",
        "--config nightly.yaml --dry-run",
        "--config nightly.yaml --set nightly.keep_snapshots=14 --result s3://bucket/last-night.json",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
