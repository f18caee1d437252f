"""`jobs.index`: make a search index hold a snapshot. Parses and prints."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main

if TYPE_CHECKING:
    from pipeline.index.quality import Quality
    from pipeline.index.update import IndexPlan, IndexReport

EXIT_REFUSED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="build the index as a whole, also where it holds vectors of another encoder",
    )


def run(call: Call) -> JobResult:
    """Feed the index what changed, or everything, and publish it if it is good enough.

    Raises:
        CompatibilityError: the index holds vectors of another encoder.
        ConfigError: the configuration, no such snapshot, or the index's package is missing.
        CommitConflictError: another feeder published meanwhile.
        StorageError: a store failed.
    """
    from pipeline.index.config import IndexConfig

    config = call.config(IndexConfig)

    from pipeline.index.kinds import open_feeder
    from pipeline.index.update import plan_update, update_index

    feeder = open_feeder(config)
    plan = plan_update(config, feeder, rebuild=call.arguments.rebuild)
    if call.dry_run:
        return _planned(plan, config.index.path)
    report = update_index(config, feeder, plan)
    is_refused = report.action != "none" and not report.is_published
    return JobResult(
        _data(report), _text(report, config.index.path), EXIT_REFUSED if is_refused else 0
    )


def _planned(plan: IndexPlan, url: str) -> JobResult:
    number = plan.rows.snapshot.number
    data = {
        "action": plan.action,
        "reason": plan.reason,
        "snapshot": number,
        "held": None if plan.held is None else plan.held.snapshot,
        "rows": plan.rows.num_rows,
    }
    if plan.action == "none":
        return JobResult(data, f"{url}: nothing to do: {plan.reason}")
    if plan.action == "full":
        what = f"Would build {url} from snapshot {number}, {plan.rows.num_rows:,} rows"
        return JobResult(data, f"{what}: {plan.reason}")
    return JobResult(data, f"Would feed {url} from snapshot {data['held']} to {number}")


def _data(report: IndexReport) -> dict[str, Any]:
    quality = report.quality
    return {
        "action": report.action,
        "reason": report.reason,
        "is_published": report.is_published,
        "snapshot": report.snapshot,
        "held": report.held,
        "documents_named": report.num_documents_named,
        "rows_fed": report.num_rows_in,
        "rows": report.num_rows,
        "quality": None if quality is None else vars(quality),
    }


def _text(report: IndexReport, url: str) -> str:
    if report.action == "none":
        return f"{url}: nothing to do: {report.reason}"
    lines = []
    if report.action == "full":
        lines.append(
            f"built from snapshot {report.snapshot}, {report.num_rows:,} rows: {report.reason}"
        )
    else:
        lines.append(
            f"fed from snapshot {report.held} to {report.snapshot}: "
            f"{report.num_documents_named:,} documents changed, {report.num_rows_in:,} rows came, "
            f"{report.num_rows:,} are there"
        )
    if report.quality is not None:
        lines += _quality_lines(report.quality)
    state = "published" if report.is_published else "NOT PUBLISHED, the index is as it was"
    return "\n".join([*lines, f"{url}: {state}"])


def _quality_lines(quality: Quality) -> list[str]:
    parts = []
    if quality.recall is not None:
        parts.append(f"recall@10 {quality.recall:.3f}")
    if quality.moved_share is not None:
        parts.append(f"moved neighbours {quality.moved_share:.1%}")
    if quality.norm_change is not None:
        parts.append(f"length of the new vectors {quality.norm_change:+.1%}")
    lines = [f"{', '.join(parts)} ({quality.num_queries} queries)"] if parts else []
    return [*lines, *quality.notes, *(f"problem: {problem}" for problem in quality.problems)]


JOB = Job(
    name="index",
    summary="make a search index hold a snapshot: feed it what changed, or build it",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "--set snapshot.path=s3://bucket/vectors --set index.path=s3://bucket/index",
        "--set snapshot.path=vectors --set index.path=index --set faiss.type=hnsw",
        "--set snapshot.path=vectors --set index.path=index --set index.kind=lancedb",
        "--config index.yaml --dry-run",
        "--config index.yaml --rebuild --json",
    ),
    exit_codes={
        EXIT_REFUSED: "the index would be worse than the configuration allows and was not "
        "published; what was found is listed"
    },
)

if __name__ == "__main__":
    sys.exit(main(JOB))
