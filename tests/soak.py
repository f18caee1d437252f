"""A program: random nights with random faults, for as long as it is told; `make soak`.

Two snapshot directories, one on disk and one on S3 behind a fault proxy, live through rounds of
changes, killed actors and drivers, store faults, concurrent runs, runs that are given up, and
maintenance. After each round an undisturbed run must bring the directory to what an oracle says,
and what was committed before must be as it was. A violation ends the program with the seed and the
round. A summary is printed and written at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Ray and the clients of stores read these when they are imported.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # or whatever else runs here starves the workers
    "ELMO_STORE_ATTEMPTS": "8",
    "ELMO_STORE_FIRST_PAUSE_S": "0.02",
    "ELMO_STORE_READ_TIMEOUT_S": "5",
}

from pipeline.errors import PipelineError
from pipeline.run import execute, run_to_commit
from tests.fault_proxy import FaultProxy, Rule, fault_proxy
from tests.integration import nightly_driver
from tests.integration.history import History, Night, difference
from tests.integration.invariants import snapshot_numbers
from tests.integration.nightly_driver import Attempt, CountingBackend, num_embedded
from tests.integration.nights import Nights
from tests.s3_servers import run_moto

NUM_DOCUMENTS = 120
SECONDS_PER_DOCUMENT = 0.01
ACTOR = b"ray::MapWorker(MapBatches(EmbedWorker))"
STORE_FAULTS = (
    Rule("503", probability=0.04),
    Rule("500", method="PUT", probability=0.03),
    Rule("reset", probability=0.02),
    Rule("cut", method="PUT", probability=0.03),
    Rule("cut", method="PUT", path="_snapshots/", probability=0.5),
    Rule("truncate", method="GET", probability=0.03),
    Rule("flip_request", method="PUT", path="/data/", probability=0.02),
    Rule("stall", probability=0.002, count=1, seconds=8),
    Rule("denied", method="PUT", path="/data/", probability=0.01, count=1),
)


@dataclass
class Summary:
    """What happened; printed and written at the end."""

    seed: int
    minutes: float = 0.0
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    maintenance: Counter[str] = field(default_factory=Counter)
    snapshots: int = 0
    documents_needed: int = 0
    documents_embedded: int = 0
    documents_resumed: int = 0
    documents_by_concurrent_runs: int = 0
    documents_redone: int = 0
    violation: str | None = None

    def to_json(self) -> str:
        """All of it, and the share of the work that faults made to be done again."""
        share = round(self.documents_redone / max(self.documents_needed, 1), 4)
        values = {**vars(self), "share_redone": share}
        return json.dumps(
            {
                k: dict(sorted(v.items())) if isinstance(v, Counter) else v
                for k, v in values.items()
            },
            indent=1,
        )


class Soak:
    """The rounds of one program; every choice comes of the seed, the moments of the machine."""

    def __init__(self, folder: Path, proxy: FaultProxy, address: str, seed: int) -> None:
        self.summary = Summary(seed)
        self._folder = folder
        self._proxy = proxy
        self._address = address
        self._log = folder / "embedded.log"
        backend = CountingBackend(str(self._log), SECONDS_PER_DOCUMENT)
        urls = {"disk": str(folder / "vectors"), "s3": proxy.new_directory()}
        self._places = {
            name: Nights(
                History(folder / f"corpus-{name}", seed, NUM_DOCUMENTS), url, backend=backend
            )
            for name, url in urls.items()
        }
        self._kinds: dict[str, list[str]] = {name: [] for name in urls}

    def round(self) -> str:
        """One night in one of the two places; returns what was done to it.

        Raises:
            ViolationError: something that must hold does not. Any other error is one as well.
        """
        self.summary.rounds += 1
        random_ = random.Random(f"{self.summary.seed}/{self.summary.rounds}")
        place = ("disk", "s3")[self.summary.rounds % 2]
        nights = self._places[place]
        kind = self._next_kind(place, random_)
        night = nights.history.next_night(random_.choice((0.1, 0.5, 1.0, 2.0)))
        self.summary.documents_embedded = num_embedded(self._log)
        disturb: Callable[[Nights, random.Random], None] = getattr(self, f"_{kind}")
        disturb(nights, random_)
        self._proxy.clear()
        if kind == "give_up" and random_.random() < 0.7:
            return f"{place} {kind}"
        self._settle(nights, night, is_shared=kind == "run_together")
        actions = [nights.maintain(random_) for _ in range(random_.choice((0, 0, 1, 2)))]
        self.summary.maintenance.update(actions)
        nights.check_composed_feed(random_.choice([number for number in nights.states if number]))
        self.summary.snapshots = sum(one.latest for one in self._places.values())
        return " ".join([place, kind, *actions])

    def _next_kind(self, place: str, random_: random.Random) -> str:
        """All kinds in turn, each time in another order."""
        left = self._kinds[place]
        if not left:
            left += ["kill_drivers", "kill_actors", "run_together", "give_up"]
            left += ["break_store"] * (place == "s3")
            random_.shuffle(left)
        return left.pop()

    def _settle(self, nights: Nights, night: Night, *, is_shared: bool) -> None:
        """What a disturbed run has committed is right; an undisturbed one does the rest."""
        before = self.summary.documents_embedded
        needed = difference(nights.documents, night.documents).num_to_embed
        self.summary.documents_needed += needed
        nights.crashed = True  # At least one run may have left something.
        if snapshot_numbers(nights.url)[-1:] > [nights.latest]:
            nights.expect(night.documents)
        report = nights.run(night)
        self.summary.documents_resumed += report.accounting.resumed
        self.summary.documents_embedded = num_embedded(self._log)
        # It may be less than nothing: an earlier run that lost its race has embedded them already.
        surplus = max(self.summary.documents_embedded - before - needed, 0)
        if is_shared:
            # That both embed the same is no fault: neither knows of the other before its commit.
            self.summary.documents_by_concurrent_runs += surplus
        else:
            self.summary.documents_redone += surplus

    def _attempt(self, nights: Nights, **changes: Any) -> Attempt:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        (folder / "embedded.log").symlink_to(self._log)
        return Attempt(nights.values, folder, self._address, SECONDS_PER_DOCUMENT, **changes)

    def _kill_drivers(self, nights: Nights, random_: random.Random) -> None:
        """One to three drivers die, at a chosen moment or at any."""
        moments = [None, None, nightly_driver.FIRST_FILES, *nightly_driver.MOMENTS]
        for _ in range(random_.randint(1, 3)):
            moment = random_.choice(moments)
            driver = nightly_driver.start(self._attempt(nights, die=moment))
            driver.join(120 if moment else random_.uniform(0.5, 5))
            if driver.exitcode is None or driver.exitcode == -signal.SIGKILL:
                self.summary.faults[f"driver killed {moment or 'at any time'}"] += 1
            driver.kill()
            driver.join()

    def _kill_actors(self, nights: Nights, random_: random.Random) -> None:
        """A run loses one to three actors."""
        ended = threading.Event()
        number = random_.randint(1, 3)

        def kill() -> None:
            for _ in range(number):
                while not ended.is_set() and not (pids := list(_actors())):
                    time.sleep(0.02)
                if ended.wait(random_.uniform(0, 0.3)):
                    return
                with suppress(ProcessLookupError):
                    os.kill(random_.choice(pids), signal.SIGKILL)
                    self.summary.faults["actor killed"] += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            self._try_run(nights)
        finally:
            ended.set()
            killer.join()

    def _break_store(self, nights: Nights, random_: random.Random) -> None:
        """A run while the store fails in some of the ways."""
        self._proxy.forget()
        self._proxy.add(*random_.sample(STORE_FAULTS, random_.randint(2, len(STORE_FAULTS))))
        self._try_run(nights)
        self._proxy.clear()
        events = self._proxy.events()
        self.summary.faults.update(f"store: {event.fault}" for event in events if event.fault)

    def _run_together(self, nights: Nights, random_: random.Random) -> None:
        """Two or three runs of the same corpus at once."""
        attempts = [self._attempt(nights) for _ in range(random_.randint(1, 2))]
        drivers = [nightly_driver.start(attempt) for attempt in attempts]
        time.sleep(random_.uniform(0, 3))
        self._try_run(nights)
        for attempt, driver in zip(attempts, drivers, strict=True):
            self.summary.faults["concurrent run"] += 1
            result = nightly_driver.finish(attempt, driver)
            if "error" in result:
                self.summary.errors[result["error"]] += 1

    def _give_up(self, nights: Nights, random_: random.Random) -> None:
        """A run ends after some blocks; the next night may have another corpus."""
        self.summary.faults["run given up"] += nights.crash(after_blocks=random_.randint(1, 2))

    def _try_run(self, nights: Nights) -> None:
        """A run that may fail with an error of the program's own, and with no other."""
        try:
            run_to_commit(nights.prepare, execute)
        except PipelineError as error:
            self.summary.errors[type(error).__name__] += 1


def _actors() -> Iterator[int]:
    """Process ids of the embedding actors of this program's Ray."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(ACTOR) and _is_ours(entry.name):
                    yield int(entry.name)
            except (FileNotFoundError, ProcessLookupError):
                continue


def _is_ours(pid: str) -> bool:
    while pid not in ("0", "1"):
        if int(pid) == os.getpid():
            return True
        pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return False


@contextmanager
def _surroundings(seed: int) -> Iterator[tuple[Path, FaultProxy, str]]:
    """A folder, an S3 server behind a proxy, and a Ray whose workers know the proxy."""
    import ray  # after the modules of the pipeline, which choose what it prints

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak", dir="/tmp")))
        server = stack.enter_context(run_moto())
        proxy = stack.enter_context(fault_proxy(server, seed))
        stack.enter_context(proxy.environment())
        ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        stack.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=300 << 20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=ray_folder,
        )
        stack.callback(ray.shutdown)
        yield folder, proxy, ray.get_runtime_context().gcs_address


def main() -> int:
    """Run rounds until the time or their number is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=None, help="end after so many, whatever time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=Path, default=None, help="also write the summary here")
    call = parser.parse_args()
    say = sys.stdout.write
    with _surroundings(call.seed) as surroundings:
        soak = Soak(*surroundings, call.seed)
        summary = soak.summary
        started = time.monotonic()
        while summary.violation is None:
            summary.minutes = round((time.monotonic() - started) / 60, 1)
            if call.rounds is not None and summary.rounds >= call.rounds:
                break
            if call.rounds is None and summary.minutes >= call.minutes:
                break
            try:
                done = soak.round()
                say(f"{summary.minutes:5.1f} min, round {summary.rounds}: {done}\n")
            except Exception as error:  # also one that a user would see as a traceback
                where = f"seed {call.seed}, round {summary.rounds}"
                summary.violation = f"{where}: {type(error).__name__}: {error}"
                say(traceback.format_exc())
            sys.stdout.flush()
        say(summary.to_json() + "\n")
        if call.result is not None:
            call.result.write_text(summary.to_json() + "\n")
        return int(summary.violation is not None)


if __name__ == "__main__":
    sys.exit(main())
