"""The frame that makes every job look the same: flags, log, result, exit code. Knows no job.

A job is a module `jobs/<name>.py` with a constant `JOB` and, as its last lines,

    if __name__ == "__main__":
        sys.exit(main(JOB))

It imports torch, Ray, Arrow and pydantic inside `run`, so that `--help` stays quick. What `run`
prints goes to stderr; what it returns is printed on stdout, as text or, with `--json`, as one line
of JSON. Errors of the pipeline end the job with their exit code and one line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.redaction import redact_message, redact_text, redact_values

if TYPE_CHECKING:
    from pydantic import BaseModel

    T = TypeVar("T", bound=BaseModel)

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

log = logging.getLogger("jobs")


@dataclass(frozen=True)
class JobResult:
    """What a job found out or did.

    `data` is the machine's view (plain JSON types; other values become strings, numbers that are
    not finite become null), `text` the reader's view of the same. `exit_code` is not 0 where the
    job did its work and the answer is bad news, such as a snapshot that fails verification.
    """

    data: Mapping[str, Any]
    text: str
    exit_code: int = 0


@dataclass(frozen=True)
class Call:
    """One invocation of a job: its parsed flags and what the frame offers to `run`."""

    job: str
    arguments: argparse.Namespace

    @property
    def dry_run(self) -> bool:
        """True when the job must only say what it would do."""
        return bool(getattr(self.arguments, "dry_run", False))

    @property
    def quiet(self) -> bool:
        """True when neither progress nor information should be logged."""
        return bool(self.arguments.quiet)

    def config(self, model: type[T]) -> T:
        """Build `model` from `--config` and `--set`.

        Raises:
            ConfigError: see `jobs.configuration.load_config`.
        """
        from jobs.configuration import load_config

        return load_config(model, self.arguments.config, self.arguments.overrides)


@dataclass(frozen=True)
class Job:
    """A job as `elmo` lists and runs it.

    Attributes:
        name: the module's name under `jobs`, with - for _.
        summary: one line, as a verb phrase without a full stop.
        run: does the work; raises PipelineError or ElmoError for what the user can mend.
        add_arguments: adds the job's own flags; choose among actions by a positional argument with
            `choices`, not by subparsers, so that the common flags may stand anywhere.
        examples: command lines for `--help`, without `elmo <name>`.
        takes_config: adds `--config` and `--set`.
        has_dry_run: adds `--dry-run`.
        exit_codes: what other codes than those of `pipeline.errors` mean.
    """

    name: str
    summary: str
    run: Callable[[Call], JobResult]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    examples: tuple[str, ...] = ()
    takes_config: bool = True
    has_dry_run: bool = True
    exit_codes: Mapping[int, str] = field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are errors like all others, also under `--json`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; '{self.prog} --help' lists the flags")


def main(job: Job, argv: Sequence[str] | None = None) -> int:
    """Run `job` with the command line `argv` (default: the process's own) and return its exit code.

    Raises:
        SystemExit: code 0 after `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    started = time.time()
    frame = _frame_flags().parse_known_args([w for w in words if w not in ("-h", "--help")])[0]
    _set_up_log(quiet=frame.quiet, debug=frame.debug)
    status: dict[str, Any] = {"job": job.name, "status": "running", "started_at": _iso(started)}
    stdout = sys.stdout
    with contextlib.ExitStack() as until_end:
        text = ""
        try:
            # Flags may stand between positional arguments: `elmo search URL --hits 3 QUERY`.
            arguments = build_parser(job).parse_intermixed_args(words)
            _write_result(frame.result, status)
            # Until the end: Ray's threads print on when the job is done.
            until_end.enter_context(contextlib.redirect_stdout(sys.stderr))
            with _sigterm_unwinds():
                result = job.run(Call(job.name, arguments))
            text = result.text
            status |= {"status": "failed" if result.exit_code else "ok"}
            status |= {"exit_code": result.exit_code, "result": dict(result.data)}
        except KeyboardInterrupt:
            status |= _failure(
                "interrupted", EXIT_INTERRUPTED, "KeyboardInterrupt", "stopped by Ctrl-C"
            )
        except SystemExit as stop:
            if not stop.code:  # --help
                raise
            status |= _failure("interrupted", EXIT_TERMINATED, "SIGTERM", "stopped by a signal")
        except Exception as error:
            status |= _explain(error, debug=frame.debug)
        status["elapsed_s"] = round(time.time() - started, 3)
        if "error" in status:
            log.error("%s: %s", job.name, status["error"])
        try:
            _write_result(frame.result, status)
        except PipelineError as error:
            log.error("%s: the status was not written: %s", job.name, error)
            status["exit_code"] = status["exit_code"] or error.exit_code
        _print(to_json(status) if frame.json else redact_text(text), stdout)
        if status["status"] == "interrupted":
            _leave_cluster(int(status["exit_code"]))
    return int(status["exit_code"])


def build_parser(job: Job) -> argparse.ArgumentParser:
    """Return the parser of one job: its own flags first, then those that every job has."""
    parser = _Parser(
        prog=f"elmo {job.name}",
        description=f"{job.summary[:1].upper()}{job.summary[1:]}.",
        epilog=_epilog(job),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[_frame_flags()],
    )
    if job.takes_config:
        group = parser.add_argument_group("configuration (docs/CONFIGURATION.md has every key)")
        group.add_argument("--config", metavar="FILE", help="YAML file, a local path or a URL")
        group.add_argument(
            "--set",
            dest="overrides",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="override one dotted key, the value read as YAML; repeatable, wins over --config",
        )
    if job.has_dry_run:
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )
    job.add_arguments(parser)
    return parser


def exit_codes() -> dict[int, str]:
    """Exit codes that every job may end with, and what each means."""
    codes = {0: "done"}
    for error in _descendants(PipelineError):
        meaning = (error.__doc__ or "").splitlines()[0].rstrip(".")
        codes.setdefault(error.exit_code, meaning[:1].lower() + meaning[1:])
    codes[1] = "a failure that no other code names; the log has the details"
    codes[2] += "; or a model file is not what it should be"
    codes[EXIT_INTERRUPTED] = "stopped by Ctrl-C"
    codes[EXIT_TERMINATED] = "stopped by SIGTERM, as by 'ray job stop'"
    return dict(sorted(codes.items()))


def to_json(values: Mapping[str, Any]) -> str:
    """Return one line of strict JSON without secrets.

    NaN and infinities become null, values of unknown types strings.
    """
    # Before they are JSON: escapes would hide a secret with a quotation mark in it.
    redacted = redact_values(_plain(values))
    return json.dumps(redacted, ensure_ascii=False, allow_nan=False)


def _frame_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("flags of every job")
    group.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    group.add_argument(
        "--result",
        metavar="FILE_OR_URL",
        help="also write the status as JSON here: 'running' at the start, the outcome at the end",
    )
    group.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    group.add_argument("--debug", action="store_true", help="log details, and tracebacks of errors")
    return parser


def _epilog(job: Job) -> str:
    blocks = []
    if job.examples:
        lines = "\n".join(f"  elmo {job.name} {example}".rstrip() for example in job.examples)
        blocks.append(f"examples:\n{lines}")
    codes = dict(sorted({**exit_codes(), **job.exit_codes}.items()))
    rows = [
        textwrap.fill(text, 94, initial_indent=f"  {code:<5}", subsequent_indent=" " * 7)
        for code, text in codes.items()
    ]
    blocks.append("exit codes:\n" + "\n".join(rows))
    blocks.append(
        f"'python -m jobs.{job.name.replace('-', '_')}' is the same command. "
        "The result is printed on stdout, the log on stderr."
    )
    return "\n\n".join(blocks)


def _descendants(error: type[PipelineError]) -> Iterator[type[PipelineError]]:
    for child in error.__subclasses__():
        yield child
        yield from _descendants(child)


def _explain(error: Exception, *, debug: bool) -> dict[str, Any]:
    """Turn an exception into status fields; log a traceback where the cause is not the user's."""
    known = _known_error(error)
    if known is not None:
        if debug:
            log.error("details", exc_info=error)
        name, code = type(known).__name__, int(getattr(known, "exit_code", ConfigError.exit_code))
        return _failure("failed", code, name, str(known))
    if isinstance(error, OSError):
        log.debug("details", exc_info=error)
        return _failure("failed", StorageError.exit_code, type(error).__name__, str(error))
    log.error("unexpected error", exc_info=error)
    return _failure("failed", 1, type(error).__name__, str(error) or repr(error))


def _known_error(error: BaseException) -> BaseException | None:
    """Find the error of ours that `error` is or carries.

    Ray wraps an exception of a task in a class of its own that keeps the original as `cause`, and
    whose message is the remote traceback.
    """
    # elmo_model may bring torch: if its errors were never imported, this is none of them.
    model_errors = sys.modules.get("elmo_model.errors")
    ours: tuple[type[BaseException], ...] = (
        PipelineError,
        *([model_errors.ElmoError] if model_errors else []),
    )
    current: BaseException | None = error
    while current is not None:
        remote = getattr(current, "cause", None)
        if isinstance(remote, BaseException):
            current = remote
        elif isinstance(current, ours):
            return current
        else:
            current = current.__cause__
    return None


def _failure(status: str, code: int, kind: str, message: str) -> dict[str, Any]:
    line = " ".join(redact_message(message).split())
    return {"status": status, "exit_code": code, "error_type": kind, "error": line}


def _write_result(target: str | None, status: Mapping[str, Any]) -> None:
    """Write the status to a file or URL, whole or not at all.

    Raises:
        StorageError: the target cannot be written.
    """
    if target is None:
        return
    content = (to_json(status) + "\n").encode()
    if "://" in target:
        from pipeline.storage import open_storage

        directory, _, name = target.rpartition("/")
        open_storage(directory).put(name, content)
        return
    path = Path(target)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():  # a device or pipe is written to, never replaced
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(content)
        staged.replace(path)
    except OSError as error:
        raise StorageError(f"--result {target}: {error.strerror}") from None


def _print(text: str, stdout: TextIO) -> None:
    try:
        if text:
            stdout.write(text.rstrip("\n") + "\n")
        stdout.flush()
    except BrokenPipeError:
        # The reader (such as `head`) left; the work is done. Python flushes stdout once more at
        # exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


class _LogFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _iso(record.created)

    def format(self, record: logging.LogRecord) -> str:
        return redact_message(super().format(record))


def _set_up_log(*, quiet: bool, debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, _LogFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    for name in ("jobs", "pipeline", "elmo_model"):
        logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the status is written; Ray sets the same on its own."""
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    except ValueError:  # not the main thread: signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _leave_cluster(exit_code: int) -> None:
    """End the process here if it is a driver of Ray's, which does not stop quickly by itself."""
    cluster = sys.modules.get("pipeline.cluster")  # if it was never imported, there is none
    if cluster is not None:
        cluster.leave(exit_code)


def _iso(timestamp_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp_s))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    item = getattr(value, "item", None)  # numpy and torch scalars
    return _plain(item()) if callable(item) else str(value)
