"""`elmo export`: write a model as the files that the original programs read."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jobs.command import Call, Job, JobResult, main
from jobs.table import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this job."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an export that is at output.path"
    )


def run(call: Call) -> JobResult:
    """Read the model, write it, and say what AllenNLP and bilm-tf will not take of it.

    Raises:
        ConfigError: the configuration, or the output directory is not free.
        ModelFileError: a model file is missing, wrong, or not of this model.
        StorageError: a store failed.
    """
    from pipeline.export_config import ExportConfig

    config = call.config(ExportConfig)

    from elmo_model.compatibility import limits
    from elmo_model.weights import weights_sha256
    from pipeline.export import check_output, read_model, write_model
    from pipeline.units import format_bytes

    output = config.output.path
    overwrite = call.arguments.overwrite
    check_output(output, overwrite=overwrite)
    model = read_model(config)
    warnings = limits(model.options, model.words)
    data: dict[str, Any] = {
        "output": output,
        "parameters": sum(value.numel() for value in model.state.values()),
        "weights_sha256": weights_sha256(model.state),
        "vocabulary": None if model.words is None else len(model.words),
        "warnings": warnings,
    }
    notes = [f"note: {warning}" for warning in warnings]
    if call.dry_run:
        text = f"Would write {', '.join(model.names)} to {output}"
        return JobResult({**data, "files": list(model.names)}, "\n".join([text, *notes]))
    files = write_model(model, output, overwrite=overwrite)
    table = format_table(
        ("file", "size"), [(name, format_bytes(size)) for name, size in files.items()]
    )
    text = f"{data['parameters']:,} parameters: {output}"
    return JobResult({**data, "files": files}, "\n".join([table, "", text, *notes]))


JOB = Job(
    name="export",
    summary="write a model as the files that AllenNLP and bilm-tf read",
    run=run,
    add_arguments=add_arguments,
    examples=(
        "--set model.directory=model --set output.path=exported",
        "--set model.directory=model --set output.path=s3://bucket/elmo/ --overwrite",
        "--config export.yaml --set output.softmax=true --set output.token_embeddings=true",
    ),
)

if __name__ == "__main__":
    sys.exit(main(JOB))
