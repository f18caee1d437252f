"""Fixtures that all tests share, and the environment that Ray and the S3 clients read on import."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Timings never decide a test, and failures must be the same on every machine.
settings.register_profile("elmo", deadline=None, derandomize=True)
settings.load_profile("elmo")

pytest_plugins = ["tests.s3_servers", "tests.fault_proxy"]

SHARED = Path(__file__).resolve().parents[2] / "shared"
INTEGRATION = Path(__file__).resolve().parent / "integration"
REQUIRE_ALL = os.environ.get("ELMO_REQUIRE_ALL", "") not in ("", "0")
"""Set where everything is installed: a test that is skipped then counts as failed."""

# A cluster of the user's must not be used by tests.
os.environ.pop("RAY_ADDRESS", None)
os.environ |= {
    "RAY_AUTH_MODE": "disabled",  # otherwise Ray writes a token file into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by default 15: beside other programs, workers hardly run at all
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray on the loopback interface
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",  # otherwise S3 clients without keys wait for a timeout
    "AWS_DEFAULT_REGION": "us-east-1",
}
# Several Ray workers run at once: more threads each than this only slow one another down.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Background commands of a shell without job control ignore Ctrl-C, and so would the programs that
# tests start and send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and corpora beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} with the reference models and corpora is missing")
    return SHARED


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The module `ray`, connected to a local cluster of 4 logical CPUs that all tests share.

    Starting Ray takes about 3 s and an empty pipeline of actors 1 s: test the stages without it.
    """
    import ray

    from pipeline.cluster import start_here

    # Unix socket paths end at 107 characters, so the directory must be short.
    directory = tempfile.mkdtemp(prefix="ray", dir="/tmp" if Path("/tmp").is_dir() else None)

    def init() -> None:
        ray.init(
            address="local",  # not one that somebody else has started here
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=300 << 20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=directory,
        )

    # On a busy machine a Ray may come up too late for its own limit.
    start_here(init)
    try:
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `tests.side_by_side` divide the tests between two processes."""
    parser.addoption("--part", choices=("all", "cluster", "rest"), default="all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of one part: those that start a Ray, or the others."""
    part = config.getoption("--part")
    if part == "all":
        return
    chosen, left = [], []
    for item in items:
        has_ray = INTEGRATION in item.path.parents or "ray_cluster" in item.fixturenames
        (chosen if has_ray == (part == "cluster") else left).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=left)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the C code where it cannot be built: int8 has no other way to run."""
    parameters = getattr(item, "callspec", None)
    needs = parameters is not None and "int8" in parameters.id
    if needs or item.get_closest_marker("compiler") is not None:
        from elmo_model.kernels.native import load

        code = load()
        if code.library is None:
            pytest.skip(f"needs the C code: {code.reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A missing GPU is the one reason to skip that is always good.
    may_skip = hasattr(report, "wasxfail") or item.get_closest_marker("gpu") is not None
    if REQUIRE_ALL and report.skipped and not may_skip:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRE_ALL and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{reason}\nELMO_REQUIRE_ALL is set: nothing may be skipped here"
