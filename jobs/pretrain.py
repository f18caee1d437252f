"""`elmo pretrain`: train a biLM on a corpus and write its model directory."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main

if TYPE_CHECKING:
    from pipeline.pretrain import PretrainReport
    from pipeline.pretrain_config import PretrainConfig
    from pipeline.pretrain_text import PretrainText
    from pipeline.sources.discover import Discovery

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model that is at output.directory"
    )


def run(call: Call) -> JobResult:
    """Read the corpus, train, and write the model.

    Raises:
        ConfigError: the configuration, or the output directory is not free.
        SourceError: the corpus cannot be read as configured.
        StorageError: a store failed.
    """
    from pipeline.pretrain_config import PretrainConfig
    from pipeline.sources.discover import discover

    config = call.config(PretrainConfig)
    discovery = discover(config.source)

    from pipeline.pretrain import check_output, pretrain, save_model
    from pipeline.pretrain_text import read_text
    from pipeline.progress import Progress

    check_output(config.output.directory, overwrite=call.arguments.overwrite)
    if call.dry_run:
        return _planned(config, discovery)
    with Progress(None, unit="documents", quiet=call.quiet) as reading:
        text = read_text(config, discovery, reading.update)
    log.info(
        "training on %d documents with %d tokens; %d documents held out; a vocabulary of %d words "
        "covers %.1f %% of the tokens",
        text.num_train_documents,
        text.train.num_tokens,
        text.num_held_out_documents,
        len(text.vocabulary),
        100 * text.covered_share,
    )
    training = config.training
    by_steps = training.max_steps is not None
    total = training.max_steps if by_steps else round(training.max_seconds or 0)
    unit = "steps" if by_steps else "seconds"
    with Progress(total, unit=unit, interval_s=5.0, quiet=call.quiet) as progress:

        def show(steps: int, seconds: float, tokens: int, note: str) -> None:
            if by_steps:
                progress.update(steps, tokens, note)
            else:
                progress.update(int(seconds), tokens, f"step {steps:,}  {note}")

        state, report = pretrain(config, text, show)
    save_model(config, text, state, report)
    return _done(config, text, report)


def _planned(config: PretrainConfig, discovery: Discovery) -> JobResult:
    from pipeline.units import format_bytes, format_duration

    training, shape = config.training, config.architecture
    ends = []
    if training.max_seconds is not None:
        ends.append(format_duration(training.max_seconds))
    if training.max_steps is not None:
        ends.append(f"{training.max_steps:,} steps")
    data: dict[str, Any] = {
        "files": len(discovery.files),
        "bytes": discovery.size_bytes,
        "files_rejected": discovery.files_rejected,
        "max_seconds": training.max_seconds,
        "max_steps": training.max_steps,
        "output": config.output.directory,
    }
    text = (
        f"Would read {len(discovery.files):,} files ({format_bytes(discovery.size_bytes)}), train "
        f"{shape.num_layers} layers of {shape.dim} cells and {shape.projection_dim} outputs a "
        f"direction with {training.optimizer} for {' or '.join(ends)}, and write the model to "
        f"{config.output.directory}"
    )
    return JobResult(data, text)


def _done(config: PretrainConfig, text: PretrainText, report: PretrainReport) -> JobResult:
    from pipeline.pretrain import describe, make_record
    from pipeline.units import format_duration

    record = make_record(config, text, report)
    before, after = report.curve[0], report.curve[-1]
    summary = (
        f"trained {report.num_parameters:,} parameters for {report.steps:,} steps on "
        f"{report.tokens:,} tokens in {format_duration(report.seconds)} "
        f"({report.tokens_per_s:,.0f} tokens/s)\n"
        f"held-out perplexity {describe(before)} before, {describe(after)} after\n"
        f"model: {config.output.directory}"
    )
    return JobResult({**record, "output": config.output.directory}, summary)


JOB = Job(
    name="pretrain",
    summary="train a biLM on a corpus and write its model directory",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "--config configs/demo-pretrain.yaml",
        "--config configs/demo-pretrain.yaml --set training.max_seconds=600 --overwrite",
        "--set source.path=s3://bucket/corpus/ --set output.directory=model --dry-run",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
