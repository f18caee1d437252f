"""`elmo evaluate`: what a model's vectors are worth on labelled sets, beside baselines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import ModelConfig
    from pipeline.evaluation.run import JudgedTable, Measured, TaskReport
    from pipeline.evaluation.scores import Score
    from pipeline.evaluation.task import Task


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a model and its device."""
    parser.add_argument("--model", metavar="DIR", help="model directory")
    parser.add_argument("--options", metavar="FILE", help="options.json of a released model")
    parser.add_argument("--weights", metavar="FILE", help="weights of a released model")
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="words of a released model with word input"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    add_model_flags(parser)
    parser.add_argument(
        "--against",
        metavar="NAME=URL",
        action="append",
        default=[],
        help="also show this model directory (its average), or this snapshot (the model and layers "
        "that it was made with); may be repeated",
    )
    parser.add_argument("--data", metavar="DIR", help="folder of public sets (docs/EVALUATION.md)")
    parser.add_argument(
        "--tasks", metavar="NAME", nargs="+", help="only these of the public sets; default: all"
    )
    parser.add_argument(
        "--own",
        metavar="KIND=PATH[,PATH]",
        action="append",
        default=[],
        help="a task of your own files, such as classification=reviews.csv; may be repeated",
    )
    parser.add_argument(
        "--text",
        metavar="COLUMN",
        nargs="+",
        help="the texts' columns in tables of --own (text; for similarity sentence1 sentence2)",
    )
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help="the column of labels in tables of --own, or of scores (label; for similarity score)",
    )
    parser.add_argument(
        "--tokenizer",
        choices=("words", "chinese", "pretokenized"),
        default="words",
        help="how the texts of --own become tokens (default words)",
    )
    parser.add_argument(
        "--max-items",
        metavar="N",
        type=int,
        help="at most N items to test and N to learn from in each task: quicker, wider intervals",
    )
    parser.add_argument(
        "--page",
        metavar="FILE_OR_URL",
        help="also write everything as one HTML page, with maps of words in their senses",
    )


def run(call: Call) -> JobResult:
    """Read the tasks, take vectors of all systems, and say which differences there are.

    Raises:
        ConfigError: the flags, a set that is missing, or the extra `evaluation` is not installed.
        SourceError: a file is not what its task reads.
        ModelFileError: the model's files.
        StorageError: a store failed.
    """
    need_packages("sklearn", "bm25s", "Stemmer")
    flags = call.arguments
    model, others = measured_model(flags), _others(flags)
    if flags.page:
        need_target(flags.page)
    tasks = _tasks(flags)
    if call.dry_run:
        text = f"Would measure {model.directory or model.weights_file} on {', '.join(tasks)}"
        return JobResult({"tasks": list(tasks)}, text)

    from pipeline.evaluation.run import all_systems, open_measured, run_tasks
    from pipeline.progress import Progress

    measured = open_measured(model)
    systems = all_systems(measured, others)
    with Progress(len(tasks), unit="tasks", quiet=call.quiet) as progress:
        reports = run_tasks(tasks, systems, lambda done, name: progress.update(done, note=name))
    work = measured.work
    filled = work.real_tokens / max(work.padded_tokens, 1)
    data: dict[str, Any] = {
        "model": measured.name,
        "weights_sha256": measured.encoder.weights_sha256,
        "layers": measured.encoder.num_layers,
        "dim": measured.encoder.dim,
        "max_items": flags.max_items,
        "against": others,
        "tasks": [report.to_json() for report in reports],
        "tokens": work.real_tokens,
        "padding_share": 1 - filled,
        "tokens_per_s": work.real_tokens / max(work.seconds, 1e-9),
    }
    if flags.page:
        _write_page(flags.page, measured, data)
    lines = [_described(report) for report in reports]
    lines.append(
        f"{measured.name}: {work.real_tokens:,} tokens, {data['tokens_per_s']:,.0f} tokens/s, "
        f"{1 - filled:.1%} of the positions padding"
    )
    return JobResult(data, "\n\n".join(lines))


def _write_page(url: str, measured: Measured, data: dict[str, Any]) -> None:
    """Add the maps of words to the result, and write the page."""
    from dataclasses import asdict

    from pipeline.evaluation.page import page
    from pipeline.evaluation.senses import map_words
    from pipeline.storage import open_storage, split_pattern

    data["words"] = [asdict(found) for found in map_words(measured.vectors)]
    data["page"] = url
    directory, name = split_pattern(url)
    open_storage(directory).put(name, page(data).encode())


def need_packages(*names: str) -> None:
    """Make sure that these packages of the extra `evaluation` are installed.

    Raises:
        ConfigError: names what is missing.
    """
    from importlib.util import find_spec

    from pipeline.errors import ConfigError

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not installed: install the extra 'evaluation' "
            "(pip install elmo-nightly[evaluation])"
        )


def need_target(url: str) -> None:
    """Make sure, before the work, that a file of this name can be asked of a store.

    Raises:
        ConfigError: no such protocol, or no name of a file behind the directory.
    """
    from pipeline.errors import ConfigError
    from pipeline.storage import open_storage, split_pattern

    directory, name = split_pattern(url)
    open_storage(directory)
    if not name:
        raise ConfigError(f"{url}: names a directory; expected the file to write")


def measured_model(flags: argparse.Namespace) -> ModelConfig:
    """The model that the flags of `add_model_flags` name.

    Raises:
        ConfigError: they name none, or two.
    """
    from pipeline.config import ModelConfig, build

    values = {
        "directory": flags.model,
        "options_file": flags.options,
        "weights_file": flags.weights,
        "vocabulary_file": flags.vocabulary,
        "device": flags.device,
    }
    return build(ModelConfig, values, "--model, --options and --weights")


def _others(flags: argparse.Namespace) -> dict[str, str]:
    from pipeline.errors import ConfigError

    others: dict[str, str] = {}
    for value in flags.against:
        name, url = _pair("--against", value)
        if name in others:
            raise ConfigError(f"--against {name}: given twice; each needs a name of its own")
        others[name] = url
    return others


def _tasks(flags: argparse.Namespace) -> dict[str, Task]:
    from pipeline.config import TextConfig
    from pipeline.errors import ConfigError
    from pipeline.evaluation.catalogue import Columns, found_in, own

    if flags.max_items is not None and flags.max_items < 1:
        raise ConfigError(f"--max-items {flags.max_items}: expected 1 or more")
    if flags.tasks and flags.data is None:
        raise ConfigError("--tasks chooses among the public sets: give --data DIR too")
    tasks: dict[str, Task] = {}
    if flags.data is not None:
        tasks |= found_in(Path(flags.data), flags.tasks, flags.max_items)
    text = TextConfig(tokenizer=flags.tokenizer)
    columns = Columns(tuple(flags.text) if flags.text else None, flags.label)
    for value in flags.own:
        kind, paths = _pair("--own", value)
        files = [Path(path) for path in paths.split(",")]
        name = f"{kind} {files[-1].name}"
        if name in tasks:
            raise ConfigError(
                f"--own {value}: there is a task '{name}' already; rename one of the files"
            )
        tasks[name] = own(kind, files, text, flags.max_items, columns)
    if not tasks:
        raise ConfigError("nothing to measure on: give --data DIR, or --own KIND=PATH")
    return tasks


def _pair(flag: str, value: str) -> tuple[str, str]:
    from pipeline.errors import ConfigError

    name, equals, rest = value.partition("=")
    if not (name and equals and rest):
        raise ConfigError(f"{flag} {value}: expected two parts with = between them")
    return name, rest


def _described(report: TaskReport) -> str:
    blocks = [f"{report.name}: {report.kind}, {report.num_items:,} items"]
    blocks += [_table(table) for table in report.tables]
    if report.mix is not None:
        shares = "  ".join(f"{share:.3f}" for share in report.mix.shares)
        blocks.append(f"learned mix: shares of the layers {shares}, gamma {report.mix.gamma:.3f}")
    return "\n".join([*blocks, *report.notes])


def _table(table: JudgedTable) -> str:
    references = table.references
    headers = [table.metric, "score", "95 % interval", *(f"against {name}" for name in references)]
    return format_table(headers, [_row(score, references) for score in table.scores])


def _row(score: Score, references: Sequence[str]) -> list[str]:
    found = {item.against: item for item in score.differences}
    cells = []
    for name in references:
        item = found.get(name)
        cells.append("" if item is None else f"{item.value:+.3f} {item.verdict}")
    mark = "  " if score.group == "baseline" else "* "
    interval = f"{score.low:.3f} .. {score.high:.3f}"
    return [f"{mark}{score.name}", f"{score.value:.3f}", interval, *cells]


JOB = Job(
    name="evaluate",
    summary="measure what a model's vectors are worth on labelled sets, beside baselines",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "--model model --data sets --page worth.html",
        "--options options.json --weights weights.hdf5 --data sets --tasks sts-b wic",
        "--model model --own classification=reviews.csv --against older=s3://bucket/vectors",
    ),
    takes_config=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
