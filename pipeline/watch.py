"""Wait for Ray's tasks without waiting for ever: when nothing moves, say what waits for what.

Knows refs, stages' names and the cluster's state; nothing of what the tasks do.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray._private import state as cluster_state  # the only view of actors without a dashboard
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from pipeline.cluster import ray_errors
from pipeline.errors import ClusterError
from pipeline.units import format_duration

# How long a failure may stay unnoticed while other tasks of the same wait are running.
POLL_S = 1.0
_ACTOR_STATES = {
    "ALIVE": "alive",
    "RESTARTING": "restarting",
    "PENDING_CREATION": "waiting for a place",
    "DEPENDENCIES_UNREADY": "waiting for a place",
}


def gather(
    refs: Sequence[Any], stage: str, timeout_s: int, inputs: Sequence[str] = ()
) -> list[Any]:
    """Wait for tasks and return their results in order, like `ray.get`, but not for ever.

    The first failure ends the wait, and tasks that are still running are then cancelled.

    Args:
        refs: what tasks returned; results should be small, they come to this process.
        stage: what is waited for, as a noun of the message: `comparing`.
        timeout_s: it is an error when no further task ends for so long.
        inputs: what each task works on, to name it should the task kill its process.

    Raises:
        ClusterError: nothing moved, with a diagnosis; a task killed its process each time it was
            tried; or Ray itself failed.
        PipelineError, ElmoError: what a task raised.
    """
    pending = list(refs)
    started = moved = time.monotonic()
    try:
        with ray_errors():
            while pending:
                left_s = max(moved + timeout_s - time.monotonic(), 0.0)
                done, pending = ray.wait(
                    pending, num_returns=len(pending), timeout=min(POLL_S, left_s)
                )
                _check_done(done, refs, stage, inputs)
                now = time.monotonic()
                if done:
                    moved = now
                elif now - moved >= timeout_s:
                    num_done = len(refs) - len(pending)
                    what = f"{num_done} of {len(refs)} tasks are done"
                    when = moved if num_done else None
                    raise no_progress(stage, what, timeout_s, started, when)
            return list(ray.get(list(refs)))
    except BaseException:
        for ref in pending:
            with contextlib.suppress(Exception):
                ray.cancel(ref, force=True)
        raise


def _check_done(
    done: Sequence[Any], refs: Sequence[Any], stage: str, inputs: Sequence[str]
) -> None:
    """Raise what a task raised; of one that killed its process, say what it worked on."""
    try:
        ray.get(done)
    except (WorkerCrashedError, OutOfMemoryError) as error:
        finished = set(done)
        deadly = [
            name
            for ref, name in zip(refs, inputs, strict=False)
            if ref in finished and _has_crashed(ref)
        ]
        if not deadly:
            raise
        more = f" (and {len(deadly) - 1} other tasks)" if len(deadly) > 1 else ""
        how = "ran out of memory" if isinstance(error, OutOfMemoryError) else "died"
        raise ClusterError(
            f"{stage}: the process {how} each time it worked on {deadly[0]}{more}. Nothing was "
            "committed, what was recorded is kept: look into that file, or move it out of the "
            "corpus, and run again"
        ) from error


def _has_crashed(ref: Any) -> bool:
    try:
        ray.get(ref)
    except (WorkerCrashedError, OutOfMemoryError):
        return True
    except Exception:
        return False
    return False


def no_progress(
    stage: str, done: str, timeout_s: int, started: float, moved: float | None
) -> ClusterError:
    """The error that says that nothing moved, and what the cluster looks like.

    Args:
        stage: what was waited for.
        done: how far it is, as a sentence: `3 of 8 tasks are done`.
        timeout_s: run.no_progress_timeout_s.
        started: when the stage began, in seconds of `time.monotonic`.
        moved: when the last one was done, or None if none ever was.
    """
    now = time.monotonic()
    last = (
        f"nothing was ever done in {format_duration(now - started)}"
        if moved is None
        else f"the last one {format_duration(now - moved)} ago"
    )
    return ClusterError(
        f"{stage}: nothing moved for run.no_progress_timeout_s = {timeout_s} s; {done}, {last}. "
        f"{describe_cluster()}. Nothing was committed, what was recorded is kept: add nodes or end "
        "other jobs if something waits for a place (`ray status`), raise the limit if a task may "
        "take that long, and run again"
    )


def describe_cluster() -> str:
    """One line: nodes alive and lost, CPUs and GPUs free, actors of this job by state."""
    parts = []
    try:
        nodes = Counter("alive" if node["Alive"] else "lost" for node in ray.nodes())
        parts.append(_counts("nodes", nodes))
        total, free = ray.cluster_resources(), ray.available_resources()
        for name in ("CPU", "GPU"):
            if total.get(name):
                parts.append(f"{free.get(name, 0.0):g} of {total[name]:g} {name}s free")
        job = ray.get_runtime_context().get_job_id()
        mine = [
            one
            for one in cluster_state.actors().values()
            # Ray Data has others of its own, and those of earlier passes are dead.
            if one["JobID"] == job and "MapWorker" in one["ActorClassName"]
            if one["State"] != "DEAD"
        ]
        actors = Counter(_ACTOR_STATES.get(one["State"], one["State"]) for one in mine)
        parts.append(_counts("actors", actors))
        restarts = sum(one["NumRestarts"] for one in mine)
        if restarts:
            parts.append(f"they were restarted {restarts} times")
    except Exception as error:  # a diagnosis that fails must not hide what it was asked for
        parts.append(f"the cluster does not answer ({type(error).__name__}: {error})")
    return "The cluster: " + "; ".join(parts)


def _counts(what: str, counts: Counter[str]) -> str:
    listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{what}: {listed or 'none'}"
