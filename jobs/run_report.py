"""Run a configuration to a commit and say what was done: shared by the jobs that embed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from jobs.command import Call, JobResult

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable

    from pipeline.config import EmbedConfig
    from pipeline.run import PreparedRun, RunReport

log = logging.getLogger(__name__)


def add_run_flags(parser: ArgumentParser) -> None:
    """Add `--mix`, and the flags for what could wipe an index if it were not meant."""
    parser.add_argument(
        "--mix",
        metavar="FILE_OR_URL",
        help="mix the layers as 'elmo tune-mix' learned it: sets model.layers, model.mix_weights, "
        "model.mix_gamma and model.weights_sha256",
    )
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
    parser.add_argument(
        "--allow-empty-source",
        action="store_true",
        help="take a source that is missing or has no documents for one from which all are gone",
    )


def preparation(call: Call) -> tuple[EmbedConfig, Callable[[], PreparedRun]]:
    """The configuration, and what prepares a run of it, with the flags of `add_run_flags`.

    Raises:
        ConfigError: the configuration, or the file of `--mix`.
    """
    from functools import partial

    from pipeline.config import EmbedConfig
    from pipeline.mix_file import MixFile
    from pipeline.prepare import prepare

    flags = call.arguments
    if flags.mix is not None:
        flags.overrides += MixFile.read(flags.mix).overrides()
    config = call.config(EmbedConfig)
    prepare_run = partial(
        prepare,
        config,
        reembed=flags.reembed,
        allow_mass_delete=flags.allow_mass_delete,
        allow_empty_source=flags.allow_empty_source,
    )
    return config, prepare_run


def run_with_progress(
    call: Call, prepare_run: Callable[[], PreparedRun]
) -> tuple[PreparedRun, RunReport]:
    """Run to a commit with a log line of the plan and a progress line.

    Raises:
        PipelineError: what `pipeline.run.run_to_commit` raises.
    """
    from pipeline.progress import Progress
    from pipeline.run import documents_per_task, execute, run_to_commit

    def execute_run(prepared: PreparedRun) -> RunReport:
        total = 0 if prepared.plan is None else prepared.plan.num_selected
        if prepared.plan is not None and prepared.plan.num_resumed:
            log.info(
                "%d documents were embedded by a run that was interrupted; they are taken over",
                prepared.plan.num_resumed,
            )
        if total and prepared.allocation is not None:
            tasks = -(-total // documents_per_task(prepared))
            actors = prepared.allocation.describe()
            log.info("embedding %d documents in %d tasks, with up to %s", total, tasks, actors)
        with Progress(total, quiet=call.quiet or not total) as progress:
            return execute(prepared, progress.update)

    return run_to_commit(prepare_run, execute_run)


def describe_run(prepared: PreparedRun, report: RunReport) -> JobResult:
    """The result of a job that embedded."""
    from pipeline.units import format_bytes, format_duration

    counts = report.counts
    data: dict[str, Any] = {
        "status": "unchanged" if report.snapshot is None else "committed",
        "snapshot": report.snapshot.number if report.snapshot else None,
        "output": prepared.store.url,
        "new": report.num_new,
        "changed": report.num_changed,
        "unchanged": report.num_unchanged,
        "deleted": report.num_deleted,
        "rows": vars(report.accounting),
        "rejected": report.rejected_by_code,
        "rejected_files": list(report.rejected_files),
        "embedded_documents": counts.documents,
        "embedded_sentences": counts.sentences,
        "embedded_tokens": counts.tokens,
        "tokens_per_s": counts.tokens / report.seconds if report.seconds else 0.0,
        "padding_share": counts.padding_share,
        "made_words": counts.made_words,
        "kernels": list(report.kernels),
        "cut_tokens": counts.cut_tokens,
        "split_sentences": counts.split_sentences,
        "oom_splits": counts.num_oom_splits,
        "safe_tokens": counts.safe_tokens,
        "retried_blocks": counts.num_retries,
        "isolated_blocks": counts.num_isolated,
        "files_written": report.num_files_written,
        "files_rewritten": report.num_files_rewritten,
        "bytes_written": report.bytes_written,
        "bytes_rewritten": report.bytes_rewritten,
        "seconds": report.seconds,
        "fingerprint": prepared.encoder.fingerprint,
    }
    lines = _rejected_lines(prepared, report)
    if not prepared.is_repeat:
        lines.insert(0, report.accounting.describe())
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
        f"{counts.padding_share:.1%}, {counts.made_words:,} words spelled); wrote "
        f"{report.num_files_written} files, {format_bytes(report.bytes_written)}"
    )
    if report.num_files_rewritten:
        work += f"; rewrote {report.num_files_rewritten}, {format_bytes(report.bytes_rewritten)}"
    if counts.cut_tokens or counts.split_sentences:
        lines.append(
            f"limits: {counts.split_sentences:,} sentences were split at text.max_sentence_tokens, "
            f"{counts.cut_tokens:,} tokens were cut at text.max_document_tokens"
        )
    lines += [f"embedded by the {kernel}" for kernel in report.kernels]
    lines += _trouble_lines(report)
    return JobResult(data, "\n".join([head, work, *lines]))


def _trouble_lines(report: RunReport) -> list[str]:
    counts = report.counts
    lines = [f"slower than it could be: {advice}" for advice in report.advice]
    if counts.num_oom_splits:
        lines.append(
            f"memory: {counts.num_oom_splits:,} batches did not fit and were halved; "
            f"batch.max_tokens = {counts.safe_tokens} would have fitted"
        )
    if counts.num_retries:
        lines.append(
            f"workers died: {counts.num_retries:,} blocks were tried again, "
            f"{counts.num_isolated:,} of them in processes of their own"
        )
    return lines


def _rejected_lines(prepared: PreparedRun, report: RunReport) -> list[str]:
    if not any(report.rejected_by_code.values()):
        return []
    codes = ", ".join(f"{count:,} {code}" for code, count in report.rejected_by_code.items())
    where = report.rejected_files[0].rsplit("/", 1)[0] if report.rejected_files else ""
    return [f"rejected rows: {codes}; reasons in {prepared.store.url}/{where}"]
