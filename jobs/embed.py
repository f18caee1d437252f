"""`jobs.embed`: embed a corpus and commit a snapshot of its vectors. Parses, runs and prints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.run_report import add_run_flags, describe_run, preparation, run_with_progress

if TYPE_CHECKING:
    from pipeline.estimate import Estimate


def _run(call: Call) -> JobResult:
    _, prepare_run = preparation(call)
    if call.dry_run:
        from pipeline.estimate import estimate

        return planned(estimate(prepare_run()))
    return describe_run(*run_with_progress(call, prepare_run))


def planned(estimated: Estimate) -> JobResult:
    """The result of a dry run."""
    data: dict[str, Any] = {"status": "planned", **estimated.to_json()}
    return JobResult(data, estimated.describe())


JOB = Job(
    name="embed",
    summary="embed a corpus and commit the vectors as a snapshot",
    run=_run,
    add_arguments=add_run_flags,
    examples=(
        "--config configs/demo.yaml",
        "--config nightly.yaml --set source.path=s3://bucket/corpus/ --dry-run",
        "--config nightly.yaml --set vectors.level=sentence --set model.layers=top",
        "--config nightly.yaml --reembed --mix mix.json",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
