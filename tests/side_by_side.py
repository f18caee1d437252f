"""Run the tests in two processes, of which one has all that starts a Ray, and add up what they say.

`python -m tests.side_by_side [arguments of pytest]`. Tests of clusters mostly wait, for processes
that start and for time that must pass, and leave room for the others. Within each of the two the
order is that of one process. Output is shown line by line, with the name of its part in front.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence

PARTS = ("cluster", "rest")
_OUTCOME = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")
# pytest's exit code if nothing was selected, which one of the two parts may well meet.
NO_TESTS = 5


class Part(threading.Thread):
    """One pytest process; `code` and `outcomes` are there once it has ended."""

    def __init__(self, name: str, arguments: Sequence[str], lock: threading.Lock) -> None:
        super().__init__(name=name)
        self._lock = lock
        self.code = 1
        self.outcomes: Counter[str] = Counter()
        command = [sys.executable, "-m", "pytest", f"--part={name}", *arguments]
        # A core each: threads that wait for one another at every step would keep both waiting.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def run(self) -> None:
        """Show what it prints, and read what its last line counts."""
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            with self._lock:
                sys.stdout.write(f"{self.name:7} | {line}")
                sys.stdout.flush()
            last = line if line.strip() else last
        self.code = self._process.wait()
        for number, outcome in _OUTCOME.findall(last):
            self.outcomes[outcome.removesuffix("s")] += int(number)


def main(arguments: Sequence[str]) -> int:
    """Run both parts; the exit code is 0 if no test failed and one passed."""
    # A shell's background command ignores Ctrl-C, and so would all that the tests start and stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lock = threading.Lock()
    parts = [Part(name, arguments, lock) for name in PARTS]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    total = sum((part.outcomes for part in parts), Counter())
    failed = total["failed"] + total["error"]
    sys.stdout.write(f"\n{total['passed']} passed, {failed} failed, {total['skipped']} skipped\n")
    codes = [part.code for part in parts if part.code != NO_TESTS]
    return max(codes, default=NO_TESTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
