"""Checkpoints: whole or not there, damage is seen, and the right ones stay."""

import pytest
import torch

from pipeline.errors import CorruptFileError
from pipeline.pretraining.checkpoints import Checkpoints
from pipeline.storage import open_storage


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path))


@pytest.fixture
def checkpoints(storage):
    return Checkpoints(storage, "checkpoints")


def tensors_of(step):
    return {
        "model": {"weight": torch.full((3, 2), float(step))},
        "optimizer": {"0.step": torch.tensor(step), "0.sum": torch.ones(2, dtype=torch.float64)},
    }


def test_what_was_written_is_read_back(checkpoints):
    checkpoints.write(7, {"tokens": 12, "words": ["a", "ü"]}, tensors_of(7))
    found = checkpoints.latest()
    assert found.step == 7
    assert found.record == {"tokens": 12, "words": ["a", "ü"]}
    assert torch.equal(found.tensors["model"]["weight"], torch.full((3, 2), 7.0))
    assert found.tensors["optimizer"]["0.sum"].dtype == torch.float64
    assert found.tensors["optimizer"]["0.step"].item() == 7


def test_without_any_there_is_none(checkpoints):
    assert checkpoints.latest() is None
    assert checkpoints.steps() == []


@pytest.mark.parametrize("stop_after", range(3))
def test_a_write_that_is_cut_short_leaves_the_one_before(
    checkpoints, storage, monkeypatch, stop_after
):
    checkpoints.write(1, {}, tensors_of(1))
    written = []
    open_output, put = type(storage).open_output, type(storage).put

    def count(name):
        if len(written) == stop_after:
            raise OSError("killed")
        written.append(name)

    def open_until(self, path):
        count(path)
        return open_output(self, path)

    def put_until(self, path, data):
        count(path)
        return put(self, path, data)

    monkeypatch.setattr(type(storage), "open_output", open_until)
    monkeypatch.setattr(type(storage), "put", put_until)
    with pytest.raises(OSError, match="killed"):
        checkpoints.write(2, {}, tensors_of(2))
    monkeypatch.undo()
    assert checkpoints.steps() == [1]
    assert checkpoints.latest().step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    checkpoints, tmp_path, caplog, name, damage
):
    for step in (1, 2):
        checkpoints.write(step, {}, tensors_of(step))
    path = tmp_path / "checkpoints/step-000000002" / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = data[:-1] if damage == "truncated" else data[:-3] + b"\x01" + data[-2:]
        path.write_bytes(changed)
    assert checkpoints.latest().step == 1
    # Without its record it is no checkpoint, and there is nothing to say.
    if not (damage == "gone" and name == "checkpoint.json"):
        assert "step-000000002" in caplog.text


def test_if_none_is_sound_it_is_an_error_that_says_what_to_do(checkpoints, tmp_path):
    checkpoints.write(3, {}, tensors_of(3))
    (tmp_path / "checkpoints/step-000000003/model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"step-000000003/model.*--overwrite"):
        checkpoints.latest()


def test_only_the_chosen_ones_are_kept(checkpoints, tmp_path):
    for step in range(5):
        checkpoints.write(step, {}, tensors_of(step))
    # A writer that was killed leaves a hidden file.
    (tmp_path / "checkpoints/step-000000003/.model.partial").write_bytes(b"x")
    checkpoints.keep({1, 4})
    assert checkpoints.steps() == [1, 4]
    assert checkpoints.read(1).step == 1
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert len(files) == 2 * 3
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"step-000000001", "step-000000004"}
    checkpoints.keep(set())
    assert not (tmp_path / "checkpoints").exists()
    assert checkpoints.latest() is None
