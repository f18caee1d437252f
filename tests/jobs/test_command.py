"""The frame of the jobs, run as a user runs it."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from elmo_model.errors import ModelFileError
from jobs.__main__ import find_jobs
from jobs.__main__ import main as elmo
from jobs.command import Call, Job, JobResult, build_parser, exit_codes, main
from pipeline.config import OutputConfig
from pipeline.errors import CommitUnknownError, SourceError

ROOT = Path(__file__).parents[2]
# A quiet machine takes 0.1 s; this leaves room for a busy one and none for torch (2 s).
MAX_HELP_S = 1.0
HEAVY = ("torch", "ray", "pyarrow", "pydantic", "numpy", "fsspec", "yaml")


def job(run, **options) -> Job:
    return Job(name="trial", summary="try the frame", run=run, **options)


def succeed(call: Call) -> JobResult:
    return JobResult({"answer": 42, "loss": float("nan")}, "the answer is 42")


def fail_with(error: BaseException):
    def run(call: Call) -> JobResult:
        raise error

    return run


def read_config(call: Call) -> JobResult:
    config = call.config(OutputConfig)
    return JobResult(config.model_dump(), config.path)


def run_program(program: str, *words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_the_result_is_on_stdout_and_the_rest_on_stderr(capsys):
    def run(call: Call) -> JobResult:
        sys.stdout.write("noise\n")
        return succeed(call)

    assert main(job(run), []) == 0
    out, err = capsys.readouterr()
    assert out == "the answer is 42\n"
    assert "noise" in err


def test_json_is_one_strict_line(capsys):
    assert main(job(succeed), ["--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    status = json.loads(out)
    assert status["job"] == "trial"
    assert status["status"] == "ok"
    assert status["exit_code"] == 0
    assert status["result"] == {"answer": 42, "loss": None}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("s3://bucket/corpus: nothing there"), 3),
        (CommitUnknownError("look first"), 6),
        (ModelFileError("weights.h5: wrong shape"), 2),
        (PermissionError(13, "Permission denied", "x"), 4),
        (RuntimeError("a defect"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_ends_with_its_exit_code_and_one_line(capsys, error, code):
    assert main(job(fail_with(error)), ["--json"]) == code
    out, err = capsys.readouterr()
    status = json.loads(out)
    assert status["exit_code"] == code
    assert status["error_type"] == type(error).__name__
    message = str(error) or "stopped by Ctrl-C"
    assert status["error"] == message
    last_line = err.splitlines()[-1]
    assert last_line.endswith(f"ERROR jobs: trial: {message}")
    assert ("Traceback" in err) == (code == 1)


def test_debug_adds_the_traceback(capsys):
    assert main(job(fail_with(SourceError("no"))), ["--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_a_remote_task_is_found_inside_its_wrapper(capsys):
    class RemoteError(SourceError):
        """As Ray makes them: of the original's class, with a remote traceback as message."""

        def __init__(self, cause: Exception) -> None:
            super().__init__("ray::task() (pid=1)\n  File ...")
            self.cause = cause

    error = RemoteError(SourceError("part-0.parquet: damaged"))
    assert main(job(fail_with(error)), []) == 3
    assert "part-0.parquet: damaged" in capsys.readouterr().err.splitlines()[-1]


def test_bad_news_is_a_result_with_an_exit_code(capsys):
    def run(call: Call) -> JobResult:
        return JobResult({"damaged": 1}, "1 file is damaged", exit_code=7)

    assert main(job(run), ["--json"]) == 7
    status = json.loads(capsys.readouterr().out)
    assert status["status"] == "failed"
    assert status["result"] == {"damaged": 1}


@pytest.mark.parametrize("words", [["--no-such-flag"], ["--json", "--hits", "x"], ["too", "many"]])
def test_a_wrong_flag_is_an_error_like_others(capsys, words):
    def add(parser) -> None:
        parser.add_argument("--hits", type=int)

    assert main(job(succeed, add_arguments=add), words) == 2
    out, err = capsys.readouterr()
    assert "elmo trial --help" in err
    assert ("--json" in words) == ('"exit_code": 2' in out)


def test_the_status_is_written_at_the_start_and_at_the_end(tmp_path, capsys):
    target = tmp_path / "new" / "status.json"
    seen = []

    def run(call: Call) -> JobResult:
        seen.append(json.loads(target.read_text()))
        return succeed(call)

    assert main(job(run), ["--result", str(target)]) == 0
    assert seen[0]["status"] == "running"
    assert json.loads(target.read_text())["result"]["answer"] == 42
    assert [path.name for path in target.parent.iterdir()] == ["status.json"]


def test_the_status_is_written_to_a_url_also_after_a_failure(capsys):
    from pipeline.storage import open_storage

    url = "memory://results/run/status.json"
    assert main(job(fail_with(SourceError("gone"))), ["--result", url]) == 3
    content = open_storage("memory://results/run").read_bytes("status.json", 10_000)
    assert json.loads(content)["error"] == "gone"


def test_an_unwritable_status_fails_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    ran = []

    def run(call: Call) -> JobResult:
        ran.append(call)
        return succeed(call)

    assert main(job(run), ["--result", str(tmp_path / "file" / "status.json")]) == 4
    assert not ran


def test_a_status_for_a_pipe_is_written_into_it(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    both_ends = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert main(job(succeed), ["--result", str(pipe)]) == 0
        lines = os.read(both_ends, 10_000).decode().splitlines()
    finally:
        os.close(both_ends)
    assert [json.loads(line)["status"] for line in lines] == ["running", "ok"]
    assert pipe.is_fifo()


def test_config_file_and_overrides_are_merged(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("path: a\nformat: arrow\n")
    words = ["--config", str(file), "--set", "path=s3://bucket/b", "--json"]
    assert main(job(read_config), words) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["path"] == "s3://bucket/b"
    assert found["format"] == "arrow"


def test_a_config_may_be_read_from_a_url(capsys):
    from pipeline.storage import open_storage

    open_storage("memory://settings").put("c.yaml", b"path: out\n")
    assert main(job(read_config), ["--config", "memory://settings/c.yaml"]) == 0
    assert capsys.readouterr().out == "out\n"
    assert main(job(read_config), ["--config", "memory://settings/d.yaml"]) == 2


def test_secrets_are_kept_out_of_log_and_result(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretvalue")
    error = SourceError("s3://user:pass@host/x?X-Amz-Signature=abc123&y=1: verysecretvalue")
    target = tmp_path / "status.json"
    assert main(job(fail_with(error)), ["--json", "--debug", "--result", str(target)]) == 3
    out, err = capsys.readouterr()
    for text in (out, err, target.read_text()):
        assert "verysecretvalue" not in text
        assert "pass" not in text
        assert "abc123" not in text
        assert "y=1" in text


def test_help_has_flags_examples_and_every_exit_code(capsys):
    with pytest.raises(SystemExit) as stop:
        main(job(succeed, examples=("--hits 3",), exit_codes={9: "not enough hits"}), ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for expected in ("--config", "--set", "--dry-run", "--json", "--result", "elmo trial --hits 3"):
        assert expected in text
    for code in (*exit_codes(), 9):
        assert f"\n  {code} " in text


def test_elmo_lists_every_job_and_nothing_else(capsys):
    assert elmo([]) == 0
    text = capsys.readouterr().out
    assert {"corpus", "embed", "search"} <= set(find_jobs())
    for name, found in find_jobs().items():
        assert found.name == name
        assert f"  {name} " in text
        assert found.summary in text
        assert len(found.summary) < 100


def test_elmo_suggests_the_job_that_was_meant(capsys):
    assert elmo(["embd"]) == 2
    assert "did you mean embed?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in find_jobs())])
def test_help_is_quick_and_imports_nothing_heavy(words):
    program = f"""
        import sys
        from jobs.__main__ import main
        try:
            main({words})
        except SystemExit:
            pass
        heavy = [name for name in {HEAVY} if name in sys.modules]
        sys.exit(f"imported: {{heavy}}" if heavy else 0)
    """
    # Of the processor, since a busy machine makes everything wait.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_program(program)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert used_s < MAX_HELP_S
    assert done.stdout.startswith("usage: elmo")


def test_every_job_has_examples_that_its_parser_accepts():
    for found in find_jobs().values():
        assert found.examples, found.name
        for example in found.examples:
            build_parser(found).parse_intermixed_args(shlex.split(example))


TRIAL = """
    import sys, time
    from jobs.command import Job, JobResult, main
    def run(call):
        print("started", flush=True)
        time.sleep({sleep_s})
        return JobResult({{}}, "line\\n" * 100_000)
    sys.exit(main(Job(name="trial", summary="s", run=run)))
"""


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -c '{textwrap.dedent(TRIAL.format(sleep_s=0))}' | head -n 1"
    script = f"set -o pipefail; {command}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "line\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 0


def test_signals_are_handled_as_before_once_a_job_is_done(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(job(succeed), []) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_unwinds_the_job_and_its_status_says_so(tmp_path):
    target = tmp_path / "status.json"
    command = [sys.executable, "-c", textwrap.dedent(TRIAL.format(sleep_s=60))]
    with subprocess.Popen(
        [*command, "--result", str(target)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(10) == 143
    status = json.loads(target.read_text())
    assert status["status"] == "interrupted"
    assert status["exit_code"] == 143
