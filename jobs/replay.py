"""`jobs.replay`: try the rejected rows of an earlier run again, after a fix. Parses and prints."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.run_report import describe_run, run_with_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.backend import Backend
    from pipeline.config import EmbedConfig
    from pipeline.prepare import PreparedRun
    from pipeline.replay import ReplayPlan

log = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        metavar="RUN_ID",
        help="the run whose rejected rows are tried again, a directory of _rejected/ (by default "
        "the last one that committed)",
    )


def _run(call: Call) -> JobResult:
    from pipeline.config import EmbedConfig

    return replay(call, call.config(EmbedConfig))


def replay(call: Call, config: EmbedConfig, backend: Backend | None = None) -> JobResult:
    """Plan and run the replay that the command line asks for.

    Args:
        call: the parsed command line.
        config: the configuration of the run.
        backend: what embeds; ELMo by default.

    Raises:
        PipelineError: the run's checks, or the run itself, failed.
    """
    from functools import partial

    from pipeline.prepare import prepare
    from pipeline.replay import fates, lenient, plan_replay, rejected_run
    from pipeline.snapshot.commit import SnapshotStore
    from pipeline.storage import open_storage

    storage = open_storage(config.output.path)
    plan = plan_replay(storage, rejected_run(SnapshotStore(storage), call.arguments.run), config)
    log.info("%s", _tried(plan))
    if not plan.files:
        what = "nothing to replay" if not plan.num_rows else "nothing can be mended"
        lines = [f"{what}: {_tried(plan)}"]
        return JobResult(_data(plan, {"no_longer_in_source": plan.num_rows}), "\n".join(lines))
    prepare_run = partial(
        prepare,
        lenient(config),
        backend=backend,
        # Nothing counts as gone in a replay: files that are empty now are no danger.
        allow_empty_source=True,
        only_files=plan.files,
    )
    if call.dry_run:
        return _planned(plan, prepare_run)
    prepared, report = run_with_progress(call, prepare_run)
    found = fates(storage, plan, report.rejected_files, report.snapshot)
    done = describe_run(prepared, report)
    counts = {
        "embedded_now": found.embedded,
        "still_rejected": found.still_rejected,
        "no_longer_in_source": found.gone,
    }
    lines = [found.describe(), done.text]
    if report.snapshot is None:
        lines[1:1] = ["nothing could be mended"]
    return JobResult({**done.data, **_data(plan, counts)}, "\n".join(lines))


def _tried(plan: ReplayPlan) -> str:
    if not plan.num_rows:
        run = f"run {plan.run.run_id}" if plan.run.run_id else "no run of this snapshot"
        return f"{run} rejected nothing that could be mended"
    codes = ", ".join(f"{count:,} {code}" for code, count in sorted(plan.by_code.items()))
    gone = f"; {len(plan.gone):,} of their files have gone" if plan.gone else ""
    return (
        f"run {plan.run.run_id} rejected {plan.num_rows:,} rows ({codes}); "
        f"{len(plan.files):,} source files are read again{gone}"
    )


def _data(plan: ReplayPlan, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "replayed_run": plan.run.run_id,
        "rejected_before": plan.by_code,
        "source_files": len(plan.files),
        **counts,
    }


def _planned(plan: ReplayPlan, prepare_run: Callable[[], PreparedRun]) -> JobResult:
    from jobs.embed import planned
    from pipeline.estimate import estimate

    result = planned(estimate(prepare_run()))
    return JobResult({**result.data, **_data(plan, {})}, f"{_tried(plan)}\n{result.text}")


JOB = Job(
    name="replay",
    summary="try the rejected rows of an earlier run again, after a fix",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "--config nightly.yaml --dry-run",
        "--config nightly.yaml",
        "--config nightly.yaml --run 20261121T031415Z-5f0c9b2e",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
