"""`elmo perplexity`: measure how well a language model predicts held-out text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main

if TYPE_CHECKING:
    from pipeline.perplexity import MeasuredModel, PerplexityReport
    from pipeline.perplexity_config import PerplexityConfig
    from pipeline.sources.discover import Discovery


def run(call: Call) -> JobResult:
    """Load the model, stream the corpus through it, and say how likely it found the words.

    Raises:
        ConfigError: the configuration.
        ModelFileError: the model lacks its softmax or vocabulary, or its files do not fit.
        ElmoError: the text does not fill one batch.
        SourceError: the corpus is empty or cannot be read as configured.
        StorageError: a store failed.
    """
    from pipeline.perplexity_config import PerplexityConfig
    from pipeline.sources.discover import discover

    config = call.config(PerplexityConfig)
    discovery = discover(config.source)

    from pipeline.perplexity import load_measured_model, measure
    from pipeline.progress import Progress

    measured = load_measured_model(config)
    if call.dry_run:
        return _planned(config, measured, discovery)
    with Progress(None, unit="documents", quiet=call.quiet) as progress:
        report = measure(config, measured, discovery, progress.update)
    report.rejected.tell(report.num_documents + report.rejected.total)
    return _done(config, measured, report)


def _model_name(config: PerplexityConfig) -> str:
    return str(config.model.directory or config.model.weights_file)


def _planned(config: PerplexityConfig, measured: MeasuredModel, discovery: Discovery) -> JobResult:
    from pipeline.units import format_bytes

    data: dict[str, Any] = {
        "model": _model_name(config),
        "vocabulary": len(measured.vocabulary),
        "files": len(discovery.files),
        "bytes": discovery.size_bytes,
        "files_rejected": discovery.files_rejected,
        "state": config.evaluation.state,
    }
    text = (
        f"Would measure {data['model']} ({len(measured.vocabulary):,} words) on "
        f"{len(discovery.files):,} files ({format_bytes(discovery.size_bytes)}), state "
        f"{config.evaluation.state}"
    )
    return JobResult(data, text)


def _done(config: PerplexityConfig, measured: MeasuredModel, report: PerplexityReport) -> JobResult:
    from pipeline.units import format_duration

    result = report.perplexity
    kernel = measured.model.kernel
    data: dict[str, Any] = {
        "model": _model_name(config),
        "perplexity": {
            "forward": result.forward,
            "backward": result.backward,
            "mean": result.mean,
        },
        "predictions": result.num_predictions,
        "dropped": report.num_dropped,
        "unknown_share": report.unknown_share,
        "documents": report.num_documents,
        "sentences": report.num_sentences,
        "tokens": report.num_tokens,
        "rejected": report.rejected.total,
        "rejected_by_code": report.rejected.by_code,
        "cut_tokens": report.num_cut_tokens,
        "state": config.evaluation.state,
        "batch_size": report.batch_size,
        "unroll_steps": config.evaluation.unroll_steps,
        "seconds": round(report.seconds, 3),
        "tokens_per_s": round(report.tokens_per_s, 1),
        "arithmetic": config.model.dtype,
        "kernel": f"{kernel.name} on {measured.model.device}",
    }
    if report.batch_size is None:
        how = "each sentence from a zero state, nothing dropped"
    else:
        dropped = report.num_dropped / (report.num_dropped + result.num_predictions)
        how = (
            f"state carried, {report.batch_size:,} rows side by side; "
            f"{report.num_dropped:,} more at the end dropped ({dropped:.1%})"
        )
    lines = [
        f"perplexity {result.describe()}",
        f"{result.num_predictions:,} predictions a direction; {how}",
        f"{report.num_tokens:,} tokens in {report.num_sentences:,} sentences of "
        f"{report.num_documents:,} documents ({report.rejected.total:,} rejected); "
        f"{report.unknown_share:.1%} of the targets are <UNK>",
        f"in {format_duration(report.seconds)} ({report.tokens_per_s:,.0f} tokens/s), "
        f"{config.model.dtype}, {kernel.name} kernel on {measured.model.device}",
    ]
    if report.num_cut_tokens:
        lines.append(
            f"{report.num_cut_tokens:,} tokens were not read, since their documents have more than "
            f"text.max_document_tokens ({config.text.max_document_tokens:,})"
        )
    return JobResult(data, "\n".join(lines))


JOB = Job(
    name="perplexity",
    summary="measure how well a language model predicts held-out text",
    run=run,
    examples=(
        "--set model.directory=model --set source.path=held-out.txt",
        "--config held-out.yaml --set evaluation.batch_size=256 --json",
        "--config held-out.yaml --set evaluation.state=zero --set evaluation.max_tokens=100000",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
