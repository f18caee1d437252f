"""`elmo doctor` from the command line: what it measures is there, and what is missing is named."""

import json

import pytest

from elmo_model.kernels import native
from jobs.command import main
from jobs.doctor import JOB
from tests.elmo_model.random_models import write_model


@pytest.fixture
def model(tmp_path):
    """A model directory of a tiny model; only its size is read."""
    files = write_model(tmp_path, "like the released models")
    return str(files["options_file"].parent)


@pytest.mark.compiler
def test_every_arithmetic_has_a_kernel_a_reason_and_rates(model, capsys):
    assert main(JOB, [model, "--device", "cpu", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["size"] == {"dim": 12, "projection_dim": 6}
    assert [kernel["arithmetic"] for kernel in result["kernels"]] == ["float32", "bfloat16", "int8"]
    for kernel in result["kernels"]:
        assert kernel["kernel"] == "cpu"
        assert kernel["reason"]
        assert all(rate > 0 for rate in kernel["tokens_per_s"].values())
    assert {"processor", "features", "cores", "torch", "fused cell", "GPUs"} <= set(
        result["machine"]
    )
    assert result["advice"].startswith("advice: model.dtype ")


def test_without_a_compiler_int8_is_missing_and_the_table_says_why(model, capsys, monkeypatch):
    native.load.cache_clear()
    monkeypatch.setenv(native.COMPILER_VARIABLE, "")
    try:
        assert main(JOB, [model, "--device", "cpu", "--quiet"]) == 0
    finally:
        native.load.cache_clear()
    text = capsys.readouterr().out
    assert "fused cell       in torch, no C compiler was found" in text
    (row,) = [line for line in text.splitlines() if line.startswith("int8")]
    assert "none" in row
    assert "int8 is not available: no C compiler was found" in row


def test_a_device_that_is_not_there_is_an_error(capsys):
    assert main(JOB, ["--device", "cuda:77", "--quiet"]) != 0
    assert "cuda:77 is not there" in capsys.readouterr().err
