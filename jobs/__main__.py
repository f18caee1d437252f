"""The console command `elmo <job>`: list the jobs and run one. Knows their names only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from jobs.command import Job
from jobs.command import main as run_job


def find_jobs() -> dict[str, Job]:
    """Return all jobs by name: the modules of this package that define `JOB`."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    modules = ((name.replace("_", "-"), import_module(f"jobs.{name}")) for name in names)
    return {name: module.JOB for name, module in modules if hasattr(module, "JOB")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `elmo` with `argv` (default: the process's own arguments); return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"elmo {version('elmo-nightly')}\n")
        return 0
    jobs = find_jobs()
    if words[0] not in jobs:
        sys.stderr.write(_unknown(words[0], jobs))
        return 2
    return run_job(jobs[words[0]], words[1:])


def _overview() -> str:
    jobs = find_jobs()
    width = max(map(len, jobs), default=0)
    lines = [f"  {name:<{width}}  {job.summary}" for name, job in jobs.items()]
    return (
        "usage: elmo JOB [flags]\n\n"
        "ELMo embeddings of a whole corpus, written as Arrow snapshots on object storage.\n\n"
        "jobs:\n" + "\n".join(lines) + "\n\n"
        "'elmo JOB --help' shows a job's flags, examples and exit codes.\n"
    )


def _unknown(name: str, jobs: dict[str, Job]) -> str:
    import difflib

    near = difflib.get_close_matches(name, jobs, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"elmo: {name} is not a job{hint} jobs: {', '.join(jobs)}\n"


if __name__ == "__main__":
    sys.exit(main())
