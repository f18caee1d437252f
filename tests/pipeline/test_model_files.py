"""Model files are used where they lie, or copied once to this machine."""

import pytest

from pipeline.errors import ConfigError
from pipeline.model_files import CACHE_VARIABLE, local_copy
from pipeline.storage import open_storage


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote():
    storage = open_storage("memory://models")
    for name in ("elmo/options.json", "elmo/weights.safetensors", "single.hdf5"):
        storage.put(name, name.encode())
    yield storage
    for info in storage.list_files():
        storage.delete(info.path)


def test_local_files_are_used_where_they_lie(tmp_path, cache):
    (tmp_path / "options.json").write_text("{}")
    assert local_copy(str(tmp_path / "options.json")) == tmp_path / "options.json"
    assert local_copy(f"file://{tmp_path}/") == tmp_path
    assert not cache.exists()


def test_a_remote_directory_is_copied_whole_and_only_once(cache, remote):
    path = local_copy("memory://models/elmo/")
    assert sorted(p.name for p in path.iterdir()) == ["options.json", "weights.safetensors"]
    assert (path / "options.json").read_bytes() == b"elmo/options.json"
    assert local_copy("memory://models/elmo") == path
    assert len(list(cache.iterdir())) == 1


def test_a_remote_file_is_copied(cache, remote):
    assert local_copy("memory://models/single.hdf5").read_bytes() == b"single.hdf5"


def test_a_changed_model_is_copied_again(cache, remote):
    before = local_copy("memory://models/single.hdf5")
    remote.put("single.hdf5", b"new weights")
    after = local_copy("memory://models/single.hdf5")
    assert after.read_bytes() == b"new weights"
    assert before.read_bytes() == b"single.hdf5"


@pytest.mark.parametrize("url", ["/no/such/model", "memory://models/nothing"])
def test_a_missing_model_is_an_error_that_names_it(url, cache, remote):
    with pytest.raises(ConfigError, match="there is no such model"):
        local_copy(url)
