"""`jobs.embed`: embed a corpus and commit a snapshot of its vectors. Parses, runs and prints."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pipeline.estimate import Estimate
    from pipeline.run import PreparedRun, RunReport


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reembed",
        action="store_true",
        help="embed all documents anew when the encoder or the columns differ from the snapshot's",
    )
    parser.add_argument(
        "--allow-mass-delete",
        action="store_true",
        help="commit even if more documents are gone than run.max_deleted_share",
    )


def _run(call: Call) -> JobResult:
    from pipeline.config import EmbedConfig
    from pipeline.run import documents_per_task, execute, prepare

    config = call.config(EmbedConfig)
    prepared = prepare(
        config,
        reembed=call.arguments.reembed,
        allow_mass_delete=call.arguments.allow_mass_delete,
    )
    if call.dry_run:
        from pipeline.estimate import estimate

        return _planned(prepared, estimate(prepared))
    total = 0 if prepared.plan is None else prepared.plan.num_selected
    if total and prepared.allocation is not None:
        tasks = -(-total // documents_per_task(prepared))
        actors = prepared.allocation.describe()
        log.info("embedding %d documents in %d tasks, with up to %s", total, tasks, actors)
    from pipeline.progress import Progress

    with Progress(total, quiet=call.quiet or not total) as progress:
        report = execute(prepared, progress.update)
    return _done(prepared, report)


def _planned(prepared: PreparedRun, estimated: Estimate) -> JobResult:
    data: dict[str, Any] = {"status": "planned", **estimated.to_json()}
    return JobResult(data, estimated.describe())


def _done(prepared: PreparedRun, report: RunReport) -> JobResult:
    from pipeline.units import format_bytes, format_duration

    counts, rejected = report.counts, sum(report.rejected_by_code.values())
    data: dict[str, Any] = {
        "status": "unchanged" if report.snapshot is None else "committed",
        "snapshot": report.snapshot.number if report.snapshot else None,
        "output": prepared.store.url,
        "new": report.num_new,
        "changed": report.num_changed,
        "unchanged": report.num_unchanged,
        "deleted": report.num_deleted,
        "rejected": report.rejected_by_code,
        "rejected_files": list(report.rejected_files),
        "embedded_documents": counts.documents,
        "embedded_sentences": counts.sentences,
        "embedded_tokens": counts.tokens,
        "tokens_per_s": counts.tokens / report.seconds if report.seconds else 0.0,
        "padding_share": counts.padding_share,
        "cut_tokens": counts.cut_tokens,
        "split_sentences": counts.split_sentences,
        "files_written": report.num_files_written,
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
        "fingerprint": prepared.encoder.fingerprint,
    }
    lines = _rejected_lines(prepared, report) if rejected else []
    if report.snapshot is None:
        number = prepared.parent.number if prepared.parent else None
        what = f"snapshot {number} is up to date" if number else "there is nothing to commit"
        return JobResult(data, "\n".join([f"nothing changed: {what}", *lines]))
    head = (
        f"committed snapshot {report.snapshot.number} at {prepared.store.url}: "
        f"{report.snapshot.counts['documents']:,} documents "
        f"({report.num_new:,} new, {report.num_changed:,} changed, "
        f"{report.num_unchanged:,} unchanged, {report.num_deleted:,} deleted)"
    )
    work = (
        f"embedded {counts.documents:,} documents, {counts.tokens:,} tokens in "
        f"{format_duration(report.seconds)} ({data['tokens_per_s']:,.0f} tokens/s, padding "
        f"{counts.padding_share:.1%}); wrote {report.num_files_written} files, "
        f"{format_bytes(report.bytes_written)}"
    )
    if counts.cut_tokens or counts.split_sentences:
        lines.append(
            f"limits: {counts.split_sentences:,} sentences were split at text.max_sentence_tokens, "
            f"{counts.cut_tokens:,} tokens were cut at text.max_document_tokens"
        )
    return JobResult(data, "\n".join([head, work, *lines]))


def _rejected_lines(prepared: PreparedRun, report: RunReport) -> list[str]:
    codes = ", ".join(f"{count:,} {code}" for code, count in report.rejected_by_code.items())
    where = report.rejected_files[0].rsplit("/", 1)[0] if report.rejected_files else ""
    return [f"rejected rows: {codes}; reasons in {prepared.store.url}/{where}"]


JOB = Job(
    name="embed",
    summary="embed a corpus and commit the vectors as a snapshot",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "--config configs/demo.yaml",
        "--config nightly.yaml --set source.path=s3://bucket/corpus/ --dry-run",
        "--config nightly.yaml --set vectors.level=sentence --set model.layers=top",
        "--config nightly.yaml --reembed",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
