"""`elmo tune-mix`: learn how to mix a model's layers for a labelled set, for `elmo embed --mix`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.evaluate import add_model_flags, measured_model, need_packages, need_target
from jobs.table import format_table

if TYPE_CHECKING:
    from pipeline.evaluation.tune import LabelledSet, Tuned

DEFAULT_L2 = 0.001


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument("labelled", help="labelled table: .jsonl, .csv or .tsv, also .xz or .gz")
    parser.add_argument(
        "--text", nargs="+", default=["text"], metavar="COLUMN", help="its text, or two for pairs"
    )
    parser.add_argument("--label", default="label", metavar="COLUMN", help="its label (label)")
    parser.add_argument(
        "--target",
        choices=("class", "score"),
        default="class",
        help="what a label is: a class (default), or a score that is to be predicted",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--snapshot",
        metavar="URL",
        help="take the vectors of this snapshot of all layers instead of making them",
    )
    parser.add_argument(
        "--id",
        nargs="+",
        default=["id"],
        metavar="COLUMN",
        help="with --snapshot: the table's document ids, or two columns for pairs (id)",
    )
    parser.add_argument(
        "--tokenizer",
        choices=("words", "chinese", "pretokenized"),
        default="words",
        help="how texts become tokens (default words)",
    )
    parser.add_argument(
        "--l2",
        type=float,
        default=DEFAULT_L2,
        help="lambda of Peters et al.: draws the weights to equal shares (default %(default)s)",
    )
    parser.add_argument("--output", metavar="FILE_OR_URL", help="write the mix here")
    parser.add_argument("--chart", metavar="FILE_OR_URL", help="draw the mix here, as PNG")


def run(call: Call) -> JobResult:
    """Learn the mix on four fifths of the set and compare it on the last one.

    Raises:
        ConfigError: the flags, or a package is missing.
        SourceError: the labelled set.
        ModelFileError: the model's files.
        StorageError: a store failed.
    """
    from pipeline.errors import ConfigError

    need_packages("scipy")
    flags = call.arguments
    if not flags.l2 >= 0:
        raise ConfigError(f"--l2 {flags.l2}: expected 0 or more")
    if flags.snapshot and (flags.model or flags.options or flags.weights):
        raise ConfigError("give --snapshot, or a model to make the vectors with, not both")
    for url in filter(None, (flags.output, flags.chart)):
        need_target(url)
    if flags.chart:
        from pipeline.evaluation.mix_chart import need_matplotlib

        need_matplotlib()

    from pipeline.evaluation.tune import LabelledSet, tune

    keys = flags.id if flags.snapshot else flags.text
    labelled = LabelledSet.read(Path(flags.labelled), keys, flags.label, flags.target)
    if call.dry_run:
        text = f"Would learn a mix from {len(labelled.labels):,} rows of {flags.labelled}"
        return JobResult({"rows": len(labelled.labels)}, text)
    labelled, parts, weights_sha256 = _vectors(flags, labelled)
    tuned = tune(labelled, parts, flags.l2)
    if flags.output:
        from pipeline.mix_file import MixFile

        learned = {
            "from": flags.labelled,
            "label": flags.label,
            "l2": flags.l2,
            "items": tuned.num_train,
            tuned.metric: tuned.scores[0].value,
        }
        MixFile(tuned.mix.weights, tuned.mix.gamma, weights_sha256, learned).write(flags.output)
    if flags.chart:
        from pipeline.evaluation.mix_chart import draw_mix

        draw_mix(tuned, Path(flags.labelled).name, flags.chart)
    return _described(flags, tuned, weights_sha256)


def _vectors(
    flags: argparse.Namespace, labelled: LabelledSet
) -> tuple[LabelledSet, list[Any], str]:
    from pipeline.config import TextConfig
    from pipeline.evaluation.run import open_measured
    from pipeline.evaluation.tune import embedded, from_snapshot

    if flags.snapshot:
        return from_snapshot(labelled, flags.snapshot)
    measured = open_measured(measured_model(flags))
    text = TextConfig(tokenizer=flags.tokenizer)
    parts = embedded(labelled, measured.vectors, text)
    return labelled, parts, measured.encoder.weights_sha256


def _described(flags: argparse.Namespace, tuned: Tuned, weights_sha256: str) -> JobResult:
    from dataclasses import asdict

    from pipeline.evaluation.bilms import layer_name

    mix = tuned.mix
    data: dict[str, Any] = {
        "mix_weights": mix.weights,
        "mix_gamma": mix.gamma,
        "shares": mix.shares,
        "l2": mix.l2,
        "weights_sha256": weights_sha256,
        "metric": tuned.metric,
        "learned_from": tuned.num_train,
        "held_out": tuned.num_test,
        "scores": [asdict(score) for score in tuned.scores],
        "output": flags.output,
        "chart": flags.chart,
    }
    shares = [
        [layer_name(place), f"{weight:+.3f}", f"{share:.3f}", "#" * round(40 * share)]
        for place, (weight, share) in enumerate(zip(mix.weights, mix.shares, strict=True))
    ]
    rows = []
    for score in tuned.scores:
        against = score.differences[0] if score.differences else None
        told = "" if against is None else f"{against.value:+.3f} {against.verdict}"
        rows.append(
            [score.name, f"{score.value:.3f}", f"{score.low:.3f} .. {score.high:.3f}", told]
        )
    headers = [tuned.metric, "held out", "95 % interval", "against the average"]
    lines = [
        format_table(["layer", "weight", "share", ""], shares),
        f"gamma {mix.gamma:.3f}; learned from {tuned.num_train:,} items with l2 {mix.l2:g}",
        "",
        format_table(headers, rows),
        f"{tuned.num_test:,} items held out",
    ]
    if flags.output:
        lines.append(f"written: {flags.output}; use it with 'elmo embed --mix {flags.output}'")
    return JobResult(data, "\n".join(lines))


JOB = Job(
    name="tune-mix",
    summary="learn how to mix a model's layers for a labelled set",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "reviews.csv --model model --output mix.json --chart mix.png",
        "pairs.tsv --text sentence1 sentence2 --label score --target score --model model",
        "labels.csv --snapshot s3://bucket/all-layers --id doc_id --output s3://bucket/mix.json",
    ),
    takes_config=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
