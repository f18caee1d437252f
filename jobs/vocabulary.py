"""`elmo vocabulary`: count the words of a corpus and write the vocabulary of the frequent ones."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main

if TYPE_CHECKING:
    from pipeline.count_words import CountedWords
    from pipeline.sources.discover import Discovery
    from pipeline.vocabulary_config import VocabularyConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a vocabulary that is at output.path"
    )


def run(call: Call) -> JobResult:
    """Count the words and write the vocabulary.

    Raises:
        ConfigError: the configuration, or the output is not free, or no word is frequent enough.
        SourceError: the corpus cannot be read as configured, or is empty.
        StorageError: a store failed.
    """
    from pipeline.sources.discover import discover
    from pipeline.vocabulary_config import VocabularyConfig
    from pipeline.vocabulary_file import check_output, write_vocabulary

    config = call.config(VocabularyConfig)
    output, overwrite = config.output, call.arguments.overwrite
    check_output(output.path, with_counts=output.counts, overwrite=overwrite)
    discovery = discover(config.source)

    from pipeline.count_words import count_words
    from pipeline.progress import Progress

    if call.dry_run:
        return _planned(config, discovery)
    started = time.monotonic()
    with Progress(None, unit="documents", quiet=call.quiet) as progress:
        counted = count_words(config, discovery, progress.update)
    report = _report(config, counted, time.monotonic() - started)
    # Counting may take hours, in which another job may have written there.
    check_output(output.path, with_counts=output.counts, overwrite=overwrite)
    write_vocabulary(output.path, counted.kept, report if output.counts else None)
    return JobResult(report, _describe(report))


def _planned(config: VocabularyConfig, discovery: Discovery) -> JobResult:
    from pipeline.count_words import plan_counting
    from pipeline.units import format_bytes

    plan, limits = plan_counting(config, discovery), config.vocabulary
    data: dict[str, Any] = {
        "files": len(discovery.files),
        "bytes": discovery.size_bytes,
        "files_rejected": discovery.files_rejected,
        "tasks": len(plan.groups),
        "buckets": plan.num_buckets,
        "min_count": limits.min_count,
        "max_size": limits.max_size,
        "output": config.output.path,
    }
    most = "all words" if limits.room is None else f"at most {limits.room:,} words"
    text = (
        f"Would count the words of {len(discovery.files):,} files "
        f"({format_bytes(discovery.size_bytes)}) in {len(plan.groups):,} tasks and "
        f"{plan.num_buckets:,} buckets, keep {most} that occur at least {limits.min_count:,} "
        f"times, and write them to {config.output.path}"
    )
    return JobResult(data, text)


def _report(config: VocabularyConfig, counted: CountedWords, seconds: float) -> dict[str, Any]:
    from pipeline.vocabulary_file import companions

    read, words, path = counted.read, counted.words, config.output.path
    return {
        "output": path,
        "files": [path, *(companions(path) if config.output.counts else ())],
        "documents": read.documents,
        "tokens": read.tokens,
        "cut_tokens": read.cut_tokens,
        "distinct_words": words.num_distinct,
        "kept_words": counted.kept.num_rows,
        "frequent_words": words.num_kept,
        "rarest_kept_count": counted.kept["count"][-1].as_py(),
        "covered_share": counted.covered_share,
        "faulty_words": words.num_faulty,
        "faulty_tokens": words.num_faulty_tokens,
        "rejected": dict(sorted(read.rejected.by_code.items())),
        "seconds": round(seconds, 3),
        "tokens_per_s": read.tokens / seconds,
    }


def _describe(report: dict[str, Any]) -> str:
    from pipeline.units import format_duration

    lines = [
        f"kept {report['kept_words']:,} of {report['distinct_words']:,} words, each at least "
        f"{report['rarest_kept_count']:,} times; they are {report['covered_share']:.2%} of "
        f"{report['tokens']:,} tokens in {report['documents']:,} documents",
        f"counted in {format_duration(report['seconds'])} ({report['tokens_per_s']:,.0f} tokens/s)",
    ]
    if report["frequent_words"] > report["kept_words"]:
        more = report["frequent_words"] - report["kept_words"]
        lines.append(f"vocabulary.max_size left out {more:,} words that min_count would keep")
    if report["faulty_words"]:
        lines.append(
            f"{report['faulty_words']:,} words ({report['faulty_tokens']:,} tokens) were left out "
            "because a vocabulary file cannot hold them"
        )
    if report["cut_tokens"]:
        lines.append(
            f"{report['cut_tokens']:,} tokens were cut at text.max_document_tokens and not counted"
        )
    if report["rejected"]:
        codes = ", ".join(f"{count:,} {code}" for code, count in report["rejected"].items())
        lines.append(f"rejected rows: {codes}; the log has the first of each")
    lines.append(f"vocabulary: {', '.join(report['files'])}")
    return "\n".join(lines)


JOB = Job(
    name="vocabulary",
    summary="count the words of a corpus and write the vocabulary of the frequent ones",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "--set source.path=s3://bucket/corpus/ --set output.path=s3://bucket/vocabulary.txt",
        "--config vocabulary.yaml --set vocabulary.max_size=50000 --set output.counts=true",
        "--config vocabulary.yaml --overwrite --dry-run",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
