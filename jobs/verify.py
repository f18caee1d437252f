"""`jobs.verify`: check that a snapshot is what its manifest promises. Parses and prints."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from pipeline.reembed import SampleEmbedder
    from pipeline.snapshot.metadata import Snapshot
    from pipeline.storage import Storage
    from pipeline.verify import Reembedded, VerifyReport

EXIT_BAD = 7
MAX_SHOWN = 50
DEFAULT_SAMPLE = 16


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="URL of the snapshot directory (output.path of jobs.embed)")
    parser.add_argument("--number", type=int, help="which snapshot; the latest by default")
    parser.add_argument(
        "--threads", type=int, default=4, help="files that are checked at once (default 4)"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="documents that are embedded again and compared, 0 for none (default "
        f"{DEFAULT_SAMPLE}, and none where the model or the text cannot be reached)",
    )


def _run(call: Call) -> JobResult:
    from pipeline.errors import ConfigError
    from pipeline.snapshot.read import open_snapshot
    from pipeline.storage import open_storage
    from pipeline.verify import verify_snapshot

    arguments = call.arguments
    if arguments.threads < 1:
        raise ConfigError(f"--threads {arguments.threads}: expected a number from 1 on")
    if arguments.sample is not None and arguments.sample < 0:
        raise ConfigError(f"--sample {arguments.sample}: expected a number from 0 on")
    storage = open_storage(arguments.path)
    snapshot, _ = open_snapshot(arguments.path, arguments.number)
    sample = _Sample(storage, snapshot, arguments.threads, arguments.sample)
    report = verify_snapshot(
        storage,
        snapshot,
        reembed=sample if sample.embedder is not None else None,
        sample_documents=sample.num_documents,
        num_threads=arguments.threads,
    )
    if sample.missing is not None:
        report = replace(report, reembedded=None)
    data = {**_data(report), "sample_missing": sample.missing}
    return JobResult(data, _text(report, sample.missing), 0 if report.is_good else EXIT_BAD)


class _Sample:
    """Embeds documents again; says in `missing` why it cannot, unless the user insists on it."""

    def __init__(
        self, storage: Storage, snapshot: Snapshot, num_threads: int, wanted: int | None
    ) -> None:
        from elmo_model.errors import ElmoError
        from pipeline.errors import PipelineError
        from pipeline.reembed import SampleEmbedder

        self.num_documents = DEFAULT_SAMPLE if wanted is None else wanted
        self.embedder: SampleEmbedder | None = None
        self.missing: str | None = None
        self._is_required = wanted is not None
        self._schema = snapshot.schema
        if self.num_documents and snapshot.files:
            try:
                self.embedder = SampleEmbedder(storage, snapshot, num_threads)
            except (PipelineError, ElmoError) as error:
                self._give_up(error)

    def __call__(self, ids: Sequence[str]) -> pa.Table:
        from pipeline.errors import SourceError

        assert self.embedder is not None
        try:
            return self.embedder(ids)
        except SourceError as error:
            self._give_up(error)
            return self._schema.empty_table()

    def _give_up(self, error: Exception) -> None:
        if self._is_required:
            raise error
        self.missing = str(error)


def _data(report: VerifyReport) -> dict[str, Any]:
    return {
        "number": report.number,
        "is_good": report.is_good,
        "files": report.num_files,
        "rows": report.num_rows,
        "documents": report.num_documents,
        "size_bytes": report.size_bytes,
        "problems": [vars(problem) for problem in report.problems],
        "orphans": report.orphans,
        "feed_missing": report.feed_missing,
        "reembedded": vars(report.reembedded) if report.reembedded else None,
    }


def _text(report: VerifyReport, missing: str | None) -> str:
    from pipeline.units import format_bytes

    state = "good" if report.is_good else f"NOT GOOD, problems: {len(report.problems):,}"
    lines = [
        f"snapshot {report.number}: {state}; {report.num_files:,} files, "
        f"{format_bytes(report.size_bytes)}, {report.num_documents:,} documents, "
        f"{report.num_rows:,} rows checked"
    ]
    if report.reembedded:
        lines.append(_sample_line(report.reembedded))
    if missing:
        lines.append(f"no documents were embedded again: {missing}")
    if report.feed_missing:
        lines.append(f"the change feed was not checked: {report.feed_missing}")
    if report.orphans:
        lines.append(
            f"data files that belong to no snapshot: {len(report.orphans):,} (of a stopped run, or "
            "of one under way; no reader sees them)"
        )
    if report.problems:
        rows = [[p.code, p.path, p.message] for p in report.problems[:MAX_SHOWN]]
        lines.append(format_table(["problem", "file", "what was found"], rows))
        if len(report.problems) > MAX_SHOWN:
            lines.append(f"and {len(report.problems) - MAX_SHOWN:,} more; --json lists them all")
    return "\n".join(lines)


def _sample_line(sample: Reembedded) -> str:
    skipped = f", {sample.num_skipped} changed in the source since" if sample.num_skipped else ""
    return (
        f"{sample.num_compared} documents embedded again{skipped}: the vectors differ by "
        f"{sample.max_difference:.1e} of their length at most (allowed: {sample.tolerance:.0e})"
    )


JOB = Job(
    name="verify",
    summary="check a snapshot's files, hashes, counts, values and ids, and embed a sample again",
    run=_run,
    add_arguments=_add_arguments,
    examples=(
        "s3://bucket/vectors",
        "s3://bucket/vectors --number 41 --json",
        "s3://bucket/vectors --sample 200 --threads 8",
    ),
    takes_config=False,
    has_dry_run=False,
    exit_codes={
        EXIT_BAD: "the snapshot is not what its manifest promises; the problems are listed"
    },
)

if __name__ == "__main__":
    sys.exit(main(JOB))
