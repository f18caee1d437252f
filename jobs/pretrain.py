"""`elmo pretrain`: train a biLM on a corpus and write its model directory."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main

if TYPE_CHECKING:
    from pipeline.pretraining.config import PretrainConfig
    from pipeline.pretraining.loop import TrainingEnd
    from pipeline.pretraining.run import Prepared
    from pipeline.sources.discover import Discovery

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew: drop an interrupted training's checkpoints, and replace a model that is "
        "at output.directory",
    )


def run(call: Call) -> JobResult:
    """Read the corpus, train, and write the model; or go on where a run before stopped.

    Raises:
        ConfigError: the configuration, or the output directory is not free.
        SourceError: the corpus cannot be read as configured.
        StorageError: a store failed.
        ClusterError: there is no room for the workers, or they died too often.
        ElmoError: the training diverged.
    """
    from pipeline.pretraining.config import PretrainConfig
    from pipeline.sources.discover import discover

    config = call.config(PretrainConfig)
    if call.dry_run:
        return _planned(config, discover(config.source))

    from pipeline.pretraining.model_output import check_output
    from pipeline.pretraining.prepare import local
    from pipeline.pretraining.run import finish, prepare
    from pipeline.progress import Progress

    overwrite = call.arguments.overwrite
    check_output(config.output.directory, overwrite=overwrite)
    run_tasks = local
    if config.run.num_workers:
        from pipeline.cluster import connect
        from pipeline.pretraining.ray_text import check_shared, on_ray

        connect()
        check_shared(config.output.work_directory)
        run_tasks = on_ray
    with Progress(None, unit="documents", quiet=call.quiet) as reading:
        prepared = prepare(config, run_tasks, reading.update, begin_anew=overwrite)
    _tell(prepared)
    end = _train(prepared, quiet=call.quiet)
    record = finish(prepared, end)
    return _done(config, end, record)


def _tell(prepared: Prepared) -> None:
    from pipeline.storage import open_storage

    text = prepared.task.text
    log.info(
        "training on %d documents with %d tokens; %d documents held out; a vocabulary of %d words "
        "covers %.1f %% of the tokens",
        text.num_train_documents,
        sum(shard.num_tokens for shard in text.train),
        text.num_held_out_documents,
        len(prepared.task.words),
        100 * prepared.covered_share,
    )
    storage = open_storage(prepared.task.work)
    folders = ", ".join(storage.url_of(folder) for folder in text.rejected_folders)
    text.rejected.tell(text.num_rows, folders)


def _train(prepared: Prepared, *, quiet: bool) -> TrainingEnd:
    from pipeline.pretraining.run import train_here
    from pipeline.progress import Progress

    training = prepared.task.config.training
    by_steps = training.max_steps is not None
    total = training.max_steps if by_steps else round(training.max_seconds or 0)
    unit = "steps" if by_steps else "seconds"
    with Progress(total, unit=unit, interval_s=5.0, quiet=quiet, with_rate=False) as progress:

        def show(steps: int, seconds: float, tokens: int, note: str) -> None:
            if by_steps:
                progress.update(steps, tokens, note)
            else:
                progress.update(int(seconds), tokens, f"step {steps:,}  {note}")

        if prepared.task.config.run.num_workers:
            from pipeline.pretraining.ray_train import train_on_ray

            return train_on_ray(prepared.task, show)
        return train_here(prepared.task, show)


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
        "workers": config.run.num_workers,
        "output": config.output.directory,
        **_expected(config, discovery),
    }
    text = (
        f"Would read {len(discovery.files):,} files ({format_bytes(discovery.size_bytes)}), train "
        f"{shape.num_layers} layers of {shape.dim} cells and {shape.projection_dim} outputs a "
        f"direction with {training.optimizer} for {' or '.join(ends)}, and write the model to "
        f"{config.output.directory}"
    )
    if data["tokens_to_train"] is not None:
        text += f"\n{training.max_steps:,} steps read {data['tokens_to_train']:,} tokens"
    if data["tokens"] is not None:
        text += (
            f"\nThe text is prepared already: {data['documents']:,} documents with "
            f"{data['tokens']:,} tokens to train on"
        )
        if data["passes"] is not None:
            text += f", read {data['passes']:.2f} times"
    return JobResult(data, text)


def _expected(config: PretrainConfig, discovery: Discovery) -> dict[str, Any]:
    """What is known without reading the corpus; None is not known."""
    from pipeline.pretraining.run import find_prepared

    training = config.training
    to_train = training.max_steps and training.max_steps * training.tokens_per_step
    text = find_prepared(config, discovery)
    if text is None:
        return {"tokens_to_train": to_train, "documents": None, "tokens": None, "passes": None}
    tokens = sum(shard.num_tokens for shard in text.train)
    # Each sentence has one prediction more than it has tokens.
    predictions = tokens + sum(shard.num_sentences for shard in text.train)
    return {
        "tokens_to_train": to_train,
        "documents": text.num_train_documents,
        "tokens": tokens,
        "passes": to_train and to_train / predictions,
    }


def _done(config: PretrainConfig, end: TrainingEnd, record: dict[str, Any]) -> JobResult:
    from pipeline.pretraining.metrics import describe
    from pipeline.units import format_duration

    summary = (
        f"trained {end.num_parameters:,} parameters for {end.step:,} steps on "
        f"{end.tokens:,} tokens in {format_duration(end.train_seconds)} "
        f"({record['tokens_per_s']:,.0f} tokens/s)\n"
        f"held-out perplexity {describe(end.curve[0])} before, {describe(end.curve[-1])} after\n"
        f"model of step {record['step_of_the_model']:,}: {config.output.directory}"
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
