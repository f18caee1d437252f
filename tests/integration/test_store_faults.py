"""Whole runs on a store that fails: the usual snapshot, or a clear error and nothing lost."""

import json
import os
import re
import resource
import subprocess

import pytest

from pipeline.config import EmbedConfig, build
from pipeline.errors import PipelineError, StorageError
from pipeline.run import execute, prepare
from pipeline.storage import open_storage
from tests.fault_proxy import Rule
from tests.integration import nightly_driver
from tests.integration.invariants import read_manifest, read_rows
from tests.integration.nightly_driver import Attempt
from tests.integration.stand_in import WordBackend
from tests.s3_servers import BUCKET

NUM_DOCUMENTS = 60
PER_TASK = 10
# Small waits, and attempts enough for all faults that pass by themselves.
PATIENCE = {
    "ELMO_STORE_ATTEMPTS": "6",
    "ELMO_STORE_FIRST_PAUSE_S": "0.02",
    "ELMO_STORE_READ_TIMEOUT_S": "5",
}
NO_PATIENCE = {**PATIENCE, "ELMO_STORE_ATTEMPTS": "2"}


def corpus():
    words = ["red", "green", "blue", "apple", "pear", "plum", "eats", "sees", "a", "the"]
    for number in range(NUM_DOCUMENTS):
        text = " ".join(words[(number * 7 + place * place) % 10] for place in range(3 + number % 9))
        yield {
            "id": f"doc-{number:03}",
            "text": f"Number {number}: {text}.",
            "lang": "ab"[number % 2],
        }


def write_corpus(url):
    rows = list(corpus())
    for part in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in rows[part::3])
        open_storage(url).put(f"corpus/part-{part}.jsonl", lines.encode())


def settings(corpus_url, output_url, **run):
    return {
        "source": {
            "path": f"{corpus_url}/corpus",
            "id_column": "id",
            "partition_columns": ["lang"],
        },
        "model": {"directory": "none"},
        "output": {"path": output_url},
        "run": {"num_actors": 2, "documents_per_task": PER_TASK, **run},
    }


@pytest.fixture
def night(ray_cluster, tmp_path):
    """Runs on S3 in a driver of their own; the workers find the store as the driver does."""
    address = ray_cluster.get_runtime_context().gcs_address

    def run(proxy, url, output="vectors", patience=PATIENCE):
        attempt = Attempt(
            values=settings(url, f"{url}/{output}"),
            folder=tmp_path,
            address=address,
            variables={**proxy.server.variables, **patience},
        )
        return nightly_driver.finish(attempt, nightly_driver.start(attempt))

    run.num_embedded = lambda: nightly_driver.num_embedded(tmp_path / "embedded.log")
    return run


def rows_of(url):
    return read_rows(url, read_manifest(url))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster):
    """The rows that a run on a good disk gives."""
    folder = tmp_path_factory.mktemp("good")
    write_corpus(str(folder))
    config = build(EmbedConfig, settings(str(folder), str(folder / "vectors")), "test")
    execute(prepare(config, backend=WordBackend()))
    return rows_of(str(folder / "vectors"))


@pytest.mark.s3
@pytest.mark.parametrize("server", ["moto", "rgw"])
def test_a_run_with_faults_in_a_tenth_of_all_requests_gives_the_same_snapshot(
    server, request, night, undisturbed
):
    proxy = request.getfixturevalue(f"{server}_proxy")
    url = proxy.new_directory()
    write_corpus(url)
    faults = ("500", "503", "reset", "cut", "truncate", "truncate_fitting")
    proxy.add(*(Rule(fault, probability=0.02) for fault in faults))
    done = night(proxy, url)
    assert done.get("snapshot") == 1, done
    assert proxy.num_faults() >= 5
    proxy.clear()
    assert rows_of(f"{url}/vectors") == undisturbed
    assert night.num_embedded() == NUM_DOCUMENTS
    with proxy.server.client() as client:
        assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("500", "StorageError", "/vectors/_runs/.*tried 2 times in"),
        ("expired", "ConfigError", "credentials have expired .*: renew them and run again"),
    ],
)
def test_a_store_that_fails_for_good_in_the_middle_is_an_error_and_the_next_run_goes_on(
    moto_proxy, night, undisturbed, fault, error, message
):
    url = moto_proxy.new_directory()
    write_corpus(url)
    # One block's data files are written and recorded; from then on none is recorded.
    moto_proxy.add(Rule(fault, "PUT", r"/vectors/_runs/[^/]+/[0-9a-f-]+\.json", after=1))
    done = night(moto_proxy, url, patience=NO_PATIENCE)
    assert done.get("error") in (error, "UnknownOutcomeError"), done
    assert re.search(message, done["message"])
    moto_proxy.clear()
    assert not open_storage(url).list_files("vectors/_snapshots")
    assert 0 < night.num_embedded() <= NUM_DOCUMENTS
    before = night.num_embedded()
    done = night(moto_proxy, url)
    assert done["snapshot"] == 1
    assert rows_of(f"{url}/vectors") == undisturbed
    # What was recorded is not embedded again: at least one task of the first run.
    assert night.num_embedded() - before <= NUM_DOCUMENTS - PER_TASK


def test_a_store_that_is_silent_ends_the_run_in_bounded_time(moto_proxy, night):
    url = moto_proxy.new_directory()
    write_corpus(url)
    moto_proxy.add(Rule("stall", path="/vectors/data", seconds=600))
    done = night(moto_proxy, url, patience={**NO_PATIENCE, "ELMO_STORE_READ_TIMEOUT_S": "0.5"})
    assert done.get("error") == "StorageError", done
    assert f"{url}/vectors/data/" in done["message"]


class SmallDisk:
    """A file system of its own that is too small, and can be made larger or read-only."""

    message = "No space left on device"
    backend = WordBackend()

    def __init__(self, path):
        self.path = str(path)
        path.mkdir()
        self._mount("mount", "-t", "tmpfs", "-o", "size=64k", "none")

    def grow(self):
        self._mount("mount", "-o", "remount,size=8m")

    def forbid(self):
        """Make it read-only; returns a path on it."""
        self._mount("mount", "-o", "remount,ro")
        return f"{self.path}/vectors"

    def remove(self):
        self._mount("umount", "--lazy")

    def _mount(self, *command):
        subprocess.run([*command, self.path], check=True, capture_output=True)


class SmallFilesBackend(WordBackend):
    """Its actors are not allowed to write large files."""

    def loader(self, config, num_threads):
        load = super().loader(config, num_threads)

        def load_and_limit():
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
            return load()

        return load_and_limit


class SmallFiles:
    """For where nothing can be mounted: files may not grow, and what the kernel keeps is given."""

    message = "File too large"

    def __init__(self, path):
        self.path = str(path)
        self.backend = SmallFilesBackend()

    def grow(self):
        self.backend = WordBackend()

    def forbid(self):
        return "/sys/elmo-vectors"

    def remove(self):
        pass


@pytest.fixture
def small_disk(tmp_path):
    try:
        disk = SmallDisk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        disk = SmallFiles(tmp_path / "disk")
    yield disk
    disk.remove()


def test_a_full_disk_is_an_error_that_names_the_file_and_the_next_run_goes_on(
    small_disk, undisturbed, tmp_path
):
    write_corpus(str(tmp_path))
    output = f"{small_disk.path}/vectors"
    config = build(EmbedConfig, settings(str(tmp_path), output), "test")
    with pytest.raises(StorageError, match=rf"{output}/.*{small_disk.message}") as caught:
        execute(prepare(config, backend=small_disk.backend))
    assert caught.value.exit_code == 4
    assert not os.path.exists(f"{output}/_snapshots")
    assert not [name for _, _, files in os.walk(output) for name in files if "partial" in name]
    small_disk.grow()
    report = execute(prepare(config, backend=small_disk.backend))
    assert report.snapshot.number == 1
    assert rows_of(output) == undisturbed


def test_a_read_only_target_is_refused_before_any_work(small_disk, ray_cluster, tmp_path):
    write_corpus(str(tmp_path))
    output = small_disk.forbid()
    config = build(EmbedConfig, settings(str(tmp_path), output), "test")
    with pytest.raises(PipelineError, match="Read-only file system|not allowed to") as caught:
        prepare(config, backend=WordBackend())
    assert output in str(caught.value)
    assert caught.value.exit_code in (2, 4)
