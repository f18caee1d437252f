"""Actors are fitted to the cluster before anything starts, with room left to read."""

import signal
import subprocess
import sys

import pytest

from pipeline.cluster import MAX_STARTS, NodeResources, allocate, start_here
from pipeline.config import RunConfig
from pipeline.errors import ClusterError
from pipeline.pretraining.room import capacity


def node(cpus, gpus=0.0):
    return NodeResources(float(cpus), float(gpus))


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
def test_all_cores_embed_and_a_reading_task_still_fits(cores):
    found = allocate(RunConfig(cpus_per_actor=1), [node(cores)])
    assert found.num_actors == cores
    assert found.num_actors * found.actor_cpus + 0.5 <= cores
    assert found.num_readers == 4
    assert found.threads_per_actor == 1


@pytest.mark.parametrize(
    ("cores", "actors", "threads"),
    [(1, 1, 1), (2, 1, 2), (3, 3, 1), (4, 2, 2), (6, 3, 2), (16, 8, 2), (64, 32, 2)],
)
def test_by_default_few_actors_of_several_threads_take_all_cores(cores, actors, threads):
    found = allocate(RunConfig(), [node(cores), node(cores)])
    assert (found.num_actors, found.threads_per_actor) == (2 * actors, threads)


@pytest.mark.parametrize("cores", [2, 4, 6, 16, 64])
def test_by_default_two_runs_at_once_find_a_place(cores):
    found = allocate(RunConfig(), [node(cores)])
    assert 2 * found.num_actors * found.actor_cpus <= cores - 0.5


def test_the_cores_are_shared_out_among_as_many_actors_as_are_asked_for():
    assert allocate(RunConfig(num_actors=2), [node(4)]).threads_per_actor == 2
    assert allocate(RunConfig(num_actors=3), [node(4)]).threads_per_actor == 1
    assert allocate(RunConfig(num_actors=1), [node(64)]).threads_per_actor == 2
    assert allocate(RunConfig(num_actors=4), [node(4), node(4)]).threads_per_actor == 2
    assert allocate(RunConfig(num_actors=5), [node(4), node(4)]).threads_per_actor == 1


def test_actors_with_several_threads_share_the_cores():
    found = allocate(RunConfig(cpus_per_actor=4), [node(16), node(16)])
    assert (found.num_actors, found.threads_per_actor) == (8, 4)
    assert 4 * found.actor_cpus < 16
    assert found.num_readers == 8


def test_a_gpu_cluster_gets_one_actor_a_gpu():
    found = allocate(RunConfig(gpus_per_actor=1), [node(4), node(8, 2), node(8, 2)])
    assert (found.num_actors, found.actor_gpus) == (4, 1.0)
    assert found.num_readers == 4 + 8 + 8 - 4


@pytest.mark.parametrize(("share", "number"), [(0.1, 10), (0.2, 5), (0.3, 3), (1 / 3, 3), (1.0, 1)])
def test_a_gpu_is_shared_by_as_many_as_fit(share, number):
    found = allocate(RunConfig(gpus_per_actor=share), [node(32, 1)])
    assert found.num_actors == number
    assert capacity({"CPU": 1.0, "GPU": share}, [node(32, 1), node(2)]) == number


def test_a_head_without_cpus_is_no_place_for_actors():
    for head in (0, 1):
        found = allocate(RunConfig(), [node(head), node(8)])
        assert (found.num_actors, found.threads_per_actor) == (4, 2)


@pytest.mark.parametrize(
    ("config", "cluster", "message"),
    [
        (RunConfig(num_actors=5), [node(4)], "hold 4"),
        (RunConfig(cpus_per_actor=8), [node(4)], "largest node has 4"),
        (RunConfig(gpus_per_actor=1), [node(4)], "run.gpus_per_actor to 0"),
        (RunConfig(gpus_per_actor=1, num_actors=3), [node(8, 2)], "hold 2"),
        (RunConfig(gpus_per_actor=0.5), [node(2, 1)], "none to read"),
        (RunConfig(), [], "largest node has 0"),
        (RunConfig(num_actors=9), [node(4), node(4)], "actors of 1 CPUs do not fit"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_to_change(config, cluster, message):
    with pytest.raises(ClusterError, match=message):
        allocate(config, cluster)


class LateRay:
    """A start of Ray that fails so often, as on a machine that is too busy."""

    def __init__(self, failures):
        self.failures, self.starts = failures, 0

    def __call__(self):
        self.starts += 1
        if self.starts <= self.failures:
            raise RuntimeError("The current node timed out\nduring startup.")


def test_a_ray_that_starts_late_is_started_again_and_said(caplog):
    late = LateRay(MAX_STARTS - 1)
    start_here(late, pause_s=0)
    assert late.starts == MAX_STARTS
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"Ray did not start (The current node timed out during startup.); try {start} of 3"
        for start in (2, 3)
    ]


def test_a_ray_that_never_starts_is_an_error_that_says_what_to_do():
    late = LateRay(MAX_STARTS)
    message = "in 3 tries, the last time with: The current node timed out.*run again"
    with pytest.raises(ClusterError, match=message):
        start_here(late, pause_s=0)
    assert late.starts == MAX_STARTS


def test_what_came_up_half_is_ended_before_the_next_try():
    processes = []

    def half_started():
        processes.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        if len(processes) == 1:
            raise RuntimeError("late")

    start_here(half_started, pause_s=0)
    first, second = processes
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    assert second.poll() is None
    second.communicate(b"\n", timeout=60)


def test_ctrl_c_is_no_reason_to_start_ray_again():
    starts = []

    def interrupted():
        starts.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_here(interrupted, pause_s=0)
    assert len(starts) == 1
