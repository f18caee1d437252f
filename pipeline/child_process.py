"""A child process that answers messages over pipes, each within a time limit.

A message is its length (8 bytes, little-endian) and its bytes. Knows nothing of what they say.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_CHUNK_BYTES = 1 << 20


class ChildDied(Exception):
    """The child ended or took too long; the message goes on from 'the process ...'.

    `signal_number` is the signal that ended it, None if it was none or the time limit.
    """

    def __init__(self, message: str, signal_number: int | None = None) -> None:
        """Keep the signal beside the message."""
        super().__init__(message)
        self.signal_number = signal_number


class ChildProcess:
    """A child with a pipe to it and a pipe from it; it shares standard error with its parent."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the child. It finds the same modules as this process."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, message: bytes, deadline: float) -> None:
        """Send a message.

        Raises:
            ChildDied: it ended, or did not take the message until `deadline` (`time.monotonic`).
        """
        view = memoryview(len(message).to_bytes(8, "little") + message)
        while view:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._to, view[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._death() from None

    def receive(self, deadline: float) -> bytes:
        """Wait for a message.

        Raises:
            ChildDied: it ended, or did not answer until `deadline` (`time.monotonic`).
        """
        return self._read(int.from_bytes(self._read(8, deadline), "little"), deadline)

    def kill(self) -> None:
        """End the child, whatever it does, and close the pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _read(self, size_bytes: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            self._wait(self._from, select.POLLIN, deadline)
            part = os.read(self._from, min(size_bytes - len(data), _CHUNK_BYTES))
            if not part:
                raise self._death()
            data += part
        return bytes(data)

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left_s = max(deadline - time.monotonic(), 0.0)
        if not poll.poll(left_s * 1000):
            self._process.kill()
            self._process.wait()
            raise ChildDied("gave no answer within its time limit and was ended")

    def _death(self) -> ChildDied:
        # The pipe is closed, so the end is near.
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return ChildDied("closed its pipe and was ended")
        if code >= 0:
            return ChildDied(f"ended with exit code {code}")
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = ", often a lack of memory" if -code == signal.SIGKILL else ""
        return ChildDied(f"was ended by {name}{hint}", -code)
