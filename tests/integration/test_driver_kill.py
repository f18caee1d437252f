"""The driver is killed at random and at chosen moments; the next run leaves no trace of that.

Drivers are processes of their own on one Ray; what their models embed is counted in a file.
"""

import random
import signal
import time
from dataclasses import replace

import pytest

from pipeline.config import EmbedConfig, build
from pipeline.run import execute, prepare
from tests.integration import nightly_driver
from tests.integration.history import History, difference
from tests.integration.invariants import Archive, check_feed, check_rows, read_manifest, read_rows
from tests.integration.nightly_driver import FIRST_FILES, Attempt, CountingBackend, num_embedded

NUM_RANDOM_KILLS = 20
KILLS_PER_NIGHT = 5
SECONDS_PER_DOCUMENT = 0.01
DOCUMENTS_PER_TASK = 10
# A killed driver loses what its two actors had in hand, and what they had embedded but not yet
# recorded: a block each of both.
MAX_REDONE_PER_KILL = 4 * DOCUMENTS_PER_TASK
ON_S3 = ("before the commit", "after the commit", "while records are deleted")


@pytest.fixture
def address(ray_cluster):
    return ray_cluster.get_runtime_context().gcs_address


def make_values(corpus, output):
    return {
        "source": {
            "path": str(corpus),
            "id_column": "id",
            "partition_columns": ["lang"],
            "carry_columns": ["title", "text"],
        },
        "model": {"directory": "none"},
        "output": {"path": output},
        "run": {
            "num_actors": 2,
            "documents_per_task": DOCUMENTS_PER_TASK,
            "max_rejected_share": 1.0,
            "max_deleted_share": 1.0,
        },
    }


def run_undisturbed(values, folder, seconds_per_document=0.0):
    """A run in this process; returns its report."""
    backend = CountingBackend(str(folder / "embedded.log"), seconds_per_document)
    return execute(prepare(build(EmbedConfig, values, "test"), backend=backend))


def kill_after(process, seconds):
    """SIGKILL, unless the process has ended by itself; returns whether it had to be killed."""
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed


def wait_for_next_run(folder, process):
    """Wait until a run has recorded its start, so that what follows hits it at work."""
    before = set(folder.glob("_runs/*/run.json"))
    while process.is_alive() and set(folder.glob("_runs/*/run.json")) <= before:
        time.sleep(0.01)


@pytest.mark.timeout(1500)
def test_a_driver_killed_twenty_times_loses_nothing_and_redoes_little(tmp_path, address):
    random_ = random.Random(11)
    history = History(tmp_path / "corpus", seed=11, num_documents=160)
    vectors, log = tmp_path / "vectors", tmp_path / "embedded.log"
    values = make_values(tmp_path / "corpus", str(vectors))
    attempt = Attempt(values, tmp_path, address, SECONDS_PER_DOCUMENT)
    archive = Archive(str(vectors))
    before, needed, num_kills = {}, 0, 0
    while num_kills < NUM_RANDOM_KILLS:
        night = history.next_night(busyness=2.0)
        expected = difference(before, night.documents)
        needed += expected.num_to_embed
        for number in range(KILLS_PER_NIGHT):
            process = nightly_driver.start(attempt)
            if number % 2:
                # At any time: while it starts, plans, or has not begun to embed.
                num_kills += kill_after(process, random_.uniform(0, 3))
            else:
                wait_for_next_run(vectors, process)
                num_kills += kill_after(process, random_.uniform(0, 1))
            archive.check()
        recorded = nightly_driver.recorded_ids(str(vectors))
        report = run_undisturbed(values, tmp_path)
        # What had been written and recorded is not embedded again.
        assert report.accounting.embedded <= len(expected.to_embed - recorded)
        manifest = check_rows(str(vectors), "document", night.documents)
        check_feed(str(vectors), manifest, before, night.documents)
        archive.check()
        before = night.documents
    assert num_embedded(log) - needed <= num_kills * MAX_REDONE_PER_KILL
    scratch = make_values(tmp_path / "corpus", str(tmp_path / "scratch"))
    run_undisturbed(scratch, tmp_path)
    assert read_rows(str(vectors), manifest) == read_rows(
        scratch["output"]["path"], read_manifest(scratch["output"]["path"])
    )


@pytest.mark.timeout(1200)
def test_a_driver_killed_at_any_of_the_chosen_moments_loses_nothing(tmp_path, address):
    history = History(tmp_path / "corpus", seed=12, num_documents=60)
    values = make_values(tmp_path / "corpus", str(tmp_path / "vectors"))
    attempt = Attempt(values, tmp_path, address)
    _check_moments(
        (FIRST_FILES, *nightly_driver.MOMENTS),
        history,
        attempt,
        lambda: run_undisturbed(values, tmp_path),
    )


@pytest.mark.s3
@pytest.mark.timeout(1200)
def test_a_driver_killed_around_its_commit_to_s3_loses_nothing(
    tmp_path, address, moto_server, moto_url
):
    history = History(tmp_path / "corpus", seed=13, num_documents=40)
    values = make_values(tmp_path / "corpus", moto_url)
    attempt = Attempt(values, tmp_path, address, variables=moto_server.variables)

    def run_again():
        result = nightly_driver.finish(attempt, nightly_driver.start(attempt))
        assert "error" not in result, result

    _check_moments(ON_S3, history, attempt, run_again)


def _check_moments(moments, history, attempt, run_again):
    url = attempt.values["output"]["path"]
    before, archive = {}, Archive(url)
    for moment in moments:
        night = history.next_night(busyness=1.0)
        process = nightly_driver.start(replace(attempt, die=moment))
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, moment
        archive.check()
        run_again()
        manifest = check_rows(url, "document", night.documents)
        check_feed(url, manifest, before, night.documents)
        archive.check()
        before = night.documents
