"""`jobs.doctor`: say what this machine runs the biLM with, and how fast. Parses and prints."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table

if TYPE_CHECKING:
    from elmo_model.kernels.diagnosis import KernelReport
    from elmo_model.options import ElmoOptions


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="model directory whose size is measured; default: the original's"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )


def _run(call: Call) -> JobResult:
    from elmo_model.devices import select_device
    from elmo_model.kernels.diagnosis import (
        CPU_ARITHMETICS,
        GPU_ARITHMETICS,
        default_threads,
        describe_machine,
        measure_kernel,
    )

    arguments = call.arguments
    options = _options(arguments.model)
    on_gpu = select_device(arguments.device).type == "cuda"
    facts = describe_machine()
    names = GPU_ARITHMETICS if on_gpu else CPU_ARITHMETICS
    threads = [1] if on_gpu else sorted({1, default_threads()})
    reports = {
        number: [measure_kernel(options, arguments.device, name, number) for name in names]
        for number in threads
    }
    kernels = reports[threads[-1]]
    advice = _advice(kernels, on_gpu=on_gpu)
    data = {
        "machine": facts,
        "size": {"dim": options.lstm.dim, "projection_dim": options.lstm.projection_dim},
        "kernels": [
            {
                "arithmetic": report.arithmetic,
                "kernel": report.kernel,
                "reason": report.reason,
                "tokens_per_s": {str(n): reports[n][place].tokens_per_s for n in threads},
            }
            for place, report in enumerate(kernels)
        ],
        "advice": advice,
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    headers = ["model.dtype", "kernel", *_thread_headers(threads, on_gpu=on_gpu), "why"]
    rows = [
        [
            report.arithmetic,
            report.kernel or "none",
            *(_rate(reports[number][place]) for number in threads),
            report.reason,
        ]
        for place, report in enumerate(kernels)
    ]
    size = f"LSTMs of {options.lstm.dim} cells, {options.lstm.projection_dim} projected"
    note = f"tokens/s of the {size}, measured for a moment; characters and files come on top:"
    return JobResult(data, "\n".join([*lines, "", note, format_table(headers, rows), "", advice]))


def _options(model: str | None) -> ElmoOptions:
    from elmo_model.directory import OPTIONS_NAME
    from elmo_model.kernels.diagnosis import original_options
    from elmo_model.options import ElmoOptions
    from pipeline.model_files import local_copy

    if model is None:
        return original_options()
    return ElmoOptions.read(f"{local_copy(model)}/{OPTIONS_NAME}")


def _thread_headers(threads: list[int], *, on_gpu: bool) -> list[str]:
    if on_gpu:
        return ["tokens/s"]
    return [f"{number} thread{'s' * (number > 1)}" for number in threads]


def _rate(report: KernelReport) -> int | None:
    return None if report.tokens_per_s is None else round(report.tokens_per_s)


def _advice(kernels: list[KernelReport], *, on_gpu: bool) -> str:
    """What to set `model.dtype` to, by the rates; int8 is never advised unasked."""
    wanted = ("float32", "float16") if on_gpu else ("float32", "bfloat16")
    rates = {
        report.arithmetic: report.tokens_per_s
        for report in kernels
        if report.arithmetic in wanted and report.tokens_per_s
    }
    best = max(rates, key=lambda name: rates[name] or 0.0)
    if best == "float32" or rates[best] < 1.2 * rates["float32"]:
        return "advice: model.dtype float32; nothing else is much faster here"
    return (
        f"advice: model.dtype {best} is {rates[best] / rates['float32']:.1f} times as fast as "
        "float32 (docs/SPEED.md says what it costs). It is part of the fingerprint: a corpus that "
        "was embedded with another one is embedded anew"
    )


JOB = Job(
    name="doctor",
    summary="say what this machine runs the model with, why, and how fast",
    run=_run,
    add_arguments=_add_arguments,
    examples=("", "s3://bucket/model", "--device cpu --json"),
    takes_config=False,
    has_dry_run=False,
)

if __name__ == "__main__":
    sys.exit(main(JOB))
