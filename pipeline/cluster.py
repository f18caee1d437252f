"""Connect to Ray and fit a run's actors to the cluster before anything starts.

Ray waits in silence for resources that will never come, so the plan is checked here. Knows no
corpus, model or storage.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# Ray reads these when it is imported. Its own log stays in its files; what a user can act on is in
# this project's messages.
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# The first failure ends a stage and is reported; those of the tasks that depended on it are not.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
# Of workers and nodes that die Ray prints pages; the run itself says what it makes of that.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    "A worker died or was killed while executing|has been marked dead because|"
    "There are infinite retries remaining|"
    "Workers \\(tasks / actors\\) killed due to memory pressure",
)

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from elmo_model import errors as model_errors
from elmo_model.errors import ElmoError
from pipeline import errors
from pipeline.config import RunConfig
from pipeline.errors import ClusterError, PipelineError

T = TypeVar("T")
log = logging.getLogger(__name__)

READERS_PER_NODE = 4
# Two threads embed what two actors would, in one process; four lose a fifth (benchmarks/LOG.md).
MAX_DEFAULT_CPUS = 2
_connected_here = False
_is_local = False
# A machine that is busy may not bring up a Ray of its own within the time that Ray gives it.
MAX_STARTS = 3
START_PAUSE_S = 5.0
# What is quoted of Ray's messages, which go on with advice about Ray.
MESSAGE_LINES = 3
_OUR_ERROR = r"(pipeline|elmo_model)\.errors\.(\w+): (.*)"
MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class NodeResources:
    """What one live node of the cluster offers."""

    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class Allocation:
    """How many actors run, and what each reserves.

    `num_readers` reading tasks run at once. They reserve no CPU, so that they never wait for one:
    the actors may hold all there are once a node is lost, or beside another run. `actor_cpus` may
    be less than the threads that an actor runs: the cores are shared with readers, which need
    little, and on every node there is room for other tasks.
    """

    num_actors: int
    actor_cpus: float
    actor_gpus: float
    threads_per_actor: int
    num_readers: int

    def describe(self) -> str:
        """One line for the plan that is printed."""
        device = f"{self.actor_gpus:g} GPU and " if self.actor_gpus else ""
        return (
            f"{self.num_actors} actors, each {device}{self.threads_per_actor} threads "
            f"({self.actor_cpus:g} CPU reserved); {self.num_readers} readers"
        )


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a submitted job), or start Ray on this machine.

    Raises:
        ClusterError: no cluster answers at RAY_ADDRESS, or Ray does not start on this machine.
    """
    if ray.is_initialized():
        return
    global _connected_here, _is_local
    before = signal.getsignal(signal.SIGTERM)
    try:
        if os.environ.get("RAY_ADDRESS"):
            _join()
        else:
            # A local Ray needs no login, and its dashboard would only cost start-up time.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            start_here(_init_here)
            _is_local = True
        _connected_here = True
    finally:
        # Ray puts handlers of its own there, which print a trace and end with another exit code.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _join() -> None:
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise ClusterError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster answers there ({error}). "
            "Start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine"
        ) from None


def _init_here() -> None:
    # Unless it is told otherwise, Ray would join whatever cluster somebody has started here.
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)


def start_here(init: Callable[[], T], pause_s: float = START_PAUSE_S) -> T:
    """Start Ray on this machine, and again if it did not come up in time.

    Args:
        init: starts it, and raises whatever it will if it did not come up.
        pause_s: seconds before another try.

    Returns: what `init` returns.

    Raises:
        ClusterError: it did not start in MAX_STARTS tries.
    """
    for start in range(1, MAX_STARTS + 1):
        before = _children()
        try:
            return init()
        except Exception as error:
            # Ray names no class for this: a late process is a RuntimeError or a plain Exception.
            ray.shutdown()
            # What came up half would take processor time and memory from the next try.
            for pid in _children() - before:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            reason = " ".join(str(error).split())[:MESSAGE_CHARACTERS] or type(error).__name__
        if start < MAX_STARTS:
            log.warning("Ray did not start (%s); try %d of %d", reason, start + 1, MAX_STARTS)
            time.sleep(pause_s)
    raise ClusterError(
        f"Ray did not start on this machine in {MAX_STARTS} tries, the last time with: {reason}. "
        "If other programs keep the machine busy, run again when they are done; otherwise look at "
        "free memory and disk, at RAY_TMPDIR, and at the logs in /tmp/ray/session_latest/logs"
    )


def _children() -> set[int]:
    """Processes that this one has started; none on systems without /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of the program, in brackets, may hold anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found.add(int(stat.parent.name))
    return found


def is_local() -> bool:
    """Whether `connect` has started Ray for this process alone: no node will ever join it."""
    return _is_local


def leave(exit_code: int) -> None:
    """End this process now if it is connected to Ray by `connect`; do nothing otherwise.

    For a run that was interrupted: Ray's own way out waits for the threads of its executor, and may
    abort instead of exiting. The Ray that was started for this process ends with it, and on a
    cluster so do the job's actors.
    """
    if _connected_here:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)


def nodes() -> list[NodeResources]:
    """The resources of the nodes that are alive now."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            found.append(NodeResources(resources.get("CPU", 0.0), resources.get("GPU", 0.0)))
    return found


def allocate(config: RunConfig, cluster: list[NodeResources]) -> Allocation:
    """Fit the actors to the cluster, with room for a reading task on at least one node.

    On CPUs, one actor runs per `cpus_per_actor` cores, and what it reserves is scaled down so that
    one core of each node stays free in Ray's books for reading: the operating system shares the
    cores, Ray's accounting does not have to. By default an actor has up to MAX_DEFAULT_CPUS threads
    and reserves half of that: a second run at the same time then finds a place.

    Raises:
        ClusterError: says what was asked for, what the cluster has, and what to change.
    """
    if config.gpus_per_actor:
        return _allocate_gpus(config, cluster)
    cpus = config.cpus_per_actor or _default_cpus(config, cluster)
    threads = max(1, int(cpus))
    usable = [node for node in cluster if node.num_cpus >= cpus]
    if not usable:
        raise ClusterError(
            f"an actor asks for {cpus:g} CPUs, but the largest node has "
            f"{max((node.num_cpus for node in cluster), default=0):g}: lower run.cpus_per_actor"
        )
    fitting = sum(shares(node.num_cpus, cpus) for node in usable)
    num_actors = config.num_actors or fitting
    if num_actors > fitting:
        raise ClusterError(
            f"run.num_actors = {num_actors} actors of {cpus:g} CPUs do not fit: "
            f"the cluster's {len(cluster)} nodes hold {fitting}; ask for fewer or add nodes"
        )
    smallest = min(node.num_cpus for node in usable)
    per_node = shares(smallest, cpus)
    spare = 1.0 if smallest > 1 else 0.5
    reserved = min((smallest - spare) / per_node, cpus)
    if config.cpus_per_actor is None and threads > 1:
        reserved /= 2
    # Several readers share the spare core: they wait for the store as much as they compute, and
    # a cheap model should not have to wait for one of them.
    num_readers = READERS_PER_NODE * len(usable)
    # Rounded down, or the actors together would reserve what the reader needs.
    reserved = math.floor(reserved * 1000) / 1000
    return Allocation(num_actors, reserved, 0.0, threads, num_readers)


def shares(whole: float, share: float) -> int:
    """How often a node has a share: a GPU ten times 0.1 of it, where 1.0 // 0.1 is 9."""
    return int(whole / share + 1e-6)


def _default_cpus(config: RunConfig, cluster: list[NodeResources]) -> int:
    """CPUs of an actor that leave no core of the largest node without one.

    Threads of one actor share its weights, its words and the seconds that its start takes.
    """
    cores = max([1, *(int(node.num_cpus) for node in cluster)])
    cpus = cores // math.ceil(cores / MAX_DEFAULT_CPUS)
    if config.num_actors is not None:
        while cpus > 1 and sum(node.num_cpus // cpus for node in cluster) < config.num_actors:
            cpus -= 1
    return cpus


def _allocate_gpus(config: RunConfig, cluster: list[NodeResources]) -> Allocation:
    cpus, gpus = config.cpus_per_actor or 1.0, config.gpus_per_actor or 1.0
    fitting = sum(shares(node.num_gpus, gpus) for node in cluster)
    num_actors = config.num_actors or fitting
    if not fitting or num_actors > fitting:
        raise ClusterError(
            f"{num_actors or 'embedding'} actors of {gpus:g} GPU do not fit: the "
            f"cluster's {len(cluster)} nodes hold {fitting}; lower run.num_actors, add GPU nodes, "
            "or set run.gpus_per_actor to 0 to embed on CPUs"
        )
    spare = sum(node.num_cpus for node in cluster) - num_actors * cpus
    if spare < 1:
        raise ClusterError(
            f"{num_actors} GPU actors reserve all of the cluster's CPUs and leave none to read "
            f"the corpus: lower run.cpus_per_actor (now {cpus:g}) or add CPU nodes"
        )
    return Allocation(num_actors, cpus, gpus, max(1, int(cpus)), num_readers=int(spare))


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Let the errors that tasks and actors raised come out of Ray's wrapping.

    Raises:
        PipelineError, ElmoError: the one that the task raised, without Ray's wrapping.
        ClusterError: Ray itself failed: workers died, nothing moved, the cluster is gone.
    """
    try:
        yield
    except RayError as error:
        inner = _innermost(error)
        if isinstance(inner, (PipelineError, ElmoError)):
            raise inner from error
        raise (_from_traceback(error) or _from_text(inner)) from error


def _innermost(error: BaseException) -> BaseException:
    """What the task raised: Ray wraps it in errors of its own, each with a `cause`."""
    while not isinstance(error, (PipelineError, ElmoError)):
        inner = getattr(error, "cause", None) or error.__cause__
        # Ray Data gives errors that are not a task's an empty exception as their cause.
        if not isinstance(inner, BaseException) or not str(inner):
            break
        error = inner
    return error


def _ours(module: str, name: str, message: str) -> PipelineError | ElmoError | None:
    """An error of ours by its name in a traceback; None if there is no such class."""
    kind = getattr(model_errors if module == "elmo_model" else errors, name, None)
    if isinstance(kind, type) and issubclass(kind, (PipelineError, ElmoError)):
        return kind(message)
    return None


def _from_traceback(error: BaseException) -> PipelineError | ElmoError | None:
    """What a task raised, from the text of its traceback: Ray Data's error may lose its cause."""
    if not isinstance(error, RayTaskError):
        return None
    raised = re.findall(rf"^\s*{_OUR_ERROR}$", str(error), re.MULTILINE)
    return _ours(*raised[-1]) if raised else None


def _from_text(error: BaseException) -> PipelineError | ElmoError:
    """The error that is only left as text: what an actor raised at its start is its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    raised = isinstance(error, RayActorError) and error.actor_init_failed
    line = lines[-1] if raised else " ".join(lines[:MESSAGE_LINES])[:MESSAGE_CHARACTERS]
    match = re.fullmatch(_OUR_ERROR, line)
    ours = _ours(*match.groups()) if match else None
    if ours is not None:
        return ours
    what = "an actor could not start" if raised else type(error).__name__
    return ClusterError(
        f"the run failed in Ray: {what}: {line}. Nothing was committed, and what was recorded is "
        "kept: run it again, or look at the full report with --debug"
    )
