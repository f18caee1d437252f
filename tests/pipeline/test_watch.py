"""Waiting for tasks ends: with their results, with what one raised, or with a diagnosis."""

import os
import signal
import time

import pytest

from pipeline.errors import ClusterError, SourceError
from pipeline.watch import gather


def double(number):
    return 2 * number


def fail(number):
    raise SourceError(f"{number} is no good")


def hang(number):
    time.sleep(600)


def test_results_come_in_order(ray_cluster):
    task = ray_cluster.remote(num_cpus=0.1)(double)
    assert gather([task.remote(n) for n in range(20)], "doubling", 60) == list(range(0, 40, 2))
    assert gather([], "doubling", 1) == []


def test_what_a_task_raises_comes_out_and_the_others_are_stopped(ray_cluster):
    refs = [ray_cluster.remote(num_cpus=0.1)(function).remote(7) for function in (fail, hang)]
    with pytest.raises(SourceError, match="7 is no good"):
        gather(refs, "doubling", 60)
    with pytest.raises(ray_cluster.exceptions.RayError):
        ray_cluster.get(refs[1], timeout=60)


def test_a_task_that_never_ends_is_an_error_that_says_how_far_the_others_came(ray_cluster):
    functions = [double, double, hang]
    refs = [ray_cluster.remote(num_cpus=0.1)(function).remote(1) for function in functions]
    with pytest.raises(ClusterError, match=r"(?s)comparing: nothing moved.* 2 of 3 tasks.*nodes"):
        gather(refs, "comparing", 3)


class Holder:
    def hold(self):
        return True


def test_a_cluster_without_a_free_cpu_is_named_as_such(ray_cluster):
    # It has all free CPUs from when it answers; another test's actor may be ending beside it.
    free = ray_cluster.available_resources()["CPU"]
    holder = ray_cluster.remote(num_cpus=free)(Holder).remote()
    try:
        assert ray_cluster.get(holder.hold.remote(), timeout=120)
        with pytest.raises(ClusterError, match=r"0 of 1 tasks are done.* 0(\.\d+)? of 4 CPUs free"):
            gather([ray_cluster.remote(double).remote(1)], "indexing", 2)
    finally:
        ray_cluster.kill(holder)


def die(number):
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_task_that_kills_its_process_is_named_by_what_it_worked_on(ray_cluster):
    functions = [double, die, double]
    refs = [ray_cluster.remote(num_cpus=0.1)(function).remote(1) for function in functions]
    names = ["s3://b/a.parquet", "s3://b/b.parquet", "s3://b/c.parquet"]
    with pytest.raises(
        ClusterError, match=r"^reading: the process died each time it worked on s3://b/b.parquet\. "
    ):
        gather(refs, "reading", 120, names)
    with pytest.raises(ClusterError):
        gather([ray_cluster.remote(max_retries=0)(die).remote(1)], "reading", 120)
