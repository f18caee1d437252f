"""`elmo corpus`: gather the documentation installed here as a corpus in Parquet."""

from __future__ import annotations

import argparse
import os
import sys
import time

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

MAX_PROCESSES = 8
_ROWS_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument(
        "--output",
        metavar="URL",
        required=True,
        help="directory to write, a local path or a URL such as s3://bucket/corpus",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a corpus that is already at --output"
    )
    parser.add_argument(
        "--packages",
        metavar="NAME",
        nargs="+",
        help="take these top-level packages only; stdlib is the standard library",
    )
    parser.add_argument(
        "--max-documents",
        metavar="N",
        type=_positive,
        help="take a sample of N documents, spread over all packages and always the same",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=_positive,
        help=f"processes that parse source files; a core each by default, at most {MAX_PROCESSES}",
    )


def run(call: Call) -> JobResult:
    """Gather and write the corpus.

    Raises:
        ConfigError: the output directory is not free.
        SourceError: a package is not installed, or has no documentation.
        StorageError: the store failed.
    """
    from pipeline.corpus import check_output, sample_entries, write_corpus
    from pipeline.documentation import find_source_files, read_entries, unique_entries
    from pipeline.errors import SourceError
    from pipeline.progress import Progress
    from pipeline.units import format_bytes, format_duration

    started = time.monotonic()
    flags = call.arguments
    check_output(flags.output, overwrite=flags.overwrite)
    files = find_source_files(flags.packages)
    num_processes = flags.processes or min(os.cpu_count() or 1, MAX_PROCESSES)
    source_bytes = sum(file.size_bytes for file in files)
    if call.dry_run:
        packages = {file.package for file in files}
        text = (
            f"Would parse {len(files):,} source files ({format_bytes(source_bytes)}) of "
            f"{len(packages):,} packages with {num_processes} processes, and write one file a "
            f"package to {flags.output}"
        )
        data = {"source_files": len(files), "source_bytes": source_bytes, "output": flags.output}
        return JobResult({**data, "packages": len(packages)}, text)

    found = []
    with Progress(len(files), unit="source files", quiet=call.quiet) as progress:
        for done, entries in read_entries(files, num_processes):
            found += entries
            progress.update(done, note=f"{len(found):,} documents")
    documents = unique_entries(found)
    if not documents:
        raise SourceError(
            f"packages: {', '.join(flags.packages or [])} has no English documentation; "
            "choose others"
        )
    if flags.max_documents:
        documents = sample_entries(documents, flags.max_documents)
    stats = write_corpus(documents, flags.output, overwrite=flags.overwrite)

    elapsed_s = time.monotonic() - started
    text_bytes = sum(item.text_bytes for item in stats)
    largest = sorted(stats, key=lambda item: -item.text_bytes)
    rows = [(s.package, s.num_documents, format_bytes(s.text_bytes)) for s in largest[:_ROWS_SHOWN]]
    rest = largest[_ROWS_SHOWN:]
    if rest:
        rest_bytes = format_bytes(sum(item.text_bytes for item in rest))
        rows.append((f"{len(rest)} more", sum(item.num_documents for item in rest), rest_bytes))
    summary = (
        f"{len(documents):,} documents of {len(stats):,} packages, {format_bytes(text_bytes)} of "
        f"text, in {format_duration(elapsed_s)}: {flags.output}"
    )
    return JobResult(
        {
            "output": flags.output,
            "documents": len(documents),
            "text_bytes": text_bytes,
            "source_files": len(files),
            "packages": {item.package: item.num_documents for item in stats},
        },
        f"{format_table(('package', 'documents', 'text'), rows)}\n\n{summary}",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


JOB = Job(
    name="corpus",
    summary="gather the documentation of the installed packages as a corpus",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "--output corpus",
        "--output s3://bucket/corpus --overwrite",
        "--output corpus --packages stdlib numpy torch --max-documents 5000",
    ),
    takes_config=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
