"""How often, how long and with what pauses a store is asked again. Knows error objects only.

There is one loop of retries, around each single request: the clients' own are switched off, because
loops around loops multiply (an S3 client of s3fs asks 75 times when a read stalls). What may pass
by itself is asked again: 429 and 5xx, timeouts, broken connections, answers that are too short, and
bodies that the store found damaged on their way. 403, 404 and 412 are answers.

The limits stand in the environment, where tasks and actors find them like the credentials:

    ELMO_STORE_ATTEMPTS           times that one request is sent, 10
    ELMO_STORE_TOTAL_S            seconds that one request may take, all attempts together, 180
    ELMO_STORE_READ_TIMEOUT_S     seconds without a byte of an answer that end an attempt, 60
    ELMO_STORE_CONNECT_TIMEOUT_S  seconds until a connection must stand, 10
    ELMO_STORE_FIRST_PAUSE_S      longest pause after the first failure, 0.2; it doubles each time
    ELMO_STORE_LONGEST_PAUSE_S    until it is this, 20
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import TypeVar

from pipeline.errors import ConfigError
from pipeline.storage_errors import RetriedError, ShortAnswerError, error_code, http_status

ENVIRONMENT_PREFIX = "ELMO_STORE_"

T = TypeVar("T")

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        # Asked too often, or by several at once.
        *(
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "RequestLimitExceeded",
        ),
        *("ConditionalRequestConflict", "OperationAborted"),
        # The request did not arrive as it was sent.
        *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
        "InternalError",
    }
)
_NOT_DONE_CODES = _TRANSIENT_CODES - {"InternalError", "RequestTimeout"}
_TRANSIENT_TYPES = frozenset(
    {
        *("HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError"),
        *("ClientPayloadError", "ClientConnectionError", "ServerDisconnectedError"),
        "FSTimeoutError",
    }
)


@dataclass(frozen=True)
class RetryPolicy:
    """The limits of the requests to one store; times in seconds."""

    attempts: int = 10
    total_s: float = 180
    read_timeout_s: float = 60
    connect_timeout_s: float = 10
    first_pause_s: float = 0.2
    longest_pause_s: float = 20

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """The limits that the environment sets.

        Raises:
            ConfigError: a variable is unknown or holds no number over 0.
        """
        values: dict[str, float] = {}
        known = {ENVIRONMENT_PREFIX + field.name.upper(): field.name for field in fields(cls)}
        for name, text in os.environ.items():
            if not name.startswith(ENVIRONMENT_PREFIX):
                continue
            if name not in known:
                raise ConfigError(f"{name}: not a known variable; known are {', '.join(known)}")
            try:
                value = int(text) if known[name] == "attempts" else float(text)
            except ValueError:
                value = 0
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}={text!r}: expected a number over 0")
            values[known[name]] = value
        return cls(**values)  # type: ignore[arg-type]  # the int among them is `attempts`

    def pause_s(self, num_failures: int) -> float:
        """How long to wait after so many failures: full jitter, so that clients do not meet again.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        longest = min(self.first_pause_s * 2.0 ** (num_failures - 1), self.longest_pause_s)
        return random.uniform(0, longest)


async def retried(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, *, changes: bool = False
) -> T:
    """Call until it succeeds, fails for good, or the policy's limits are reached.

    Args:
        attempt: sends one request and reads its whole answer.
        policy: the limits.
        changes: whether the request changes what is stored, so that it matters if an attempt
            without an answer has been carried out.

    Raises:
        RetriedError: given up, or refused after an attempt whose outcome is unknown.
        Exception: what `attempt` raised, when asking again would bring nothing.
    """
    started = time.monotonic()
    unclear = False
    for num_attempts in range(1, policy.attempts + 1):
        remaining_s = policy.total_s - (time.monotonic() - started)
        try:
            async with asyncio.timeout(max(remaining_s, 0.001)):
                return await attempt()
        except Exception as error:
            seconds = time.monotonic() - started
            if not is_transient(error):
                if not (changes and unclear) or isinstance(error, FileExistsError):
                    raise
                raise RetriedError(num_attempts, seconds, unclear=True) from error
            unclear = unclear or not _was_not_done(error)
            pause_s = policy.pause_s(num_attempts)
            if num_attempts == policy.attempts or seconds + pause_s >= policy.total_s:
                raise RetriedError(num_attempts, seconds, unclear=unclear) from error
        await asyncio.sleep(pause_s)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUS or error_code(error) in _TRANSIENT_CODES
    if isinstance(error, (ConnectionError, TimeoutError, ShortAnswerError)):
        return True
    return any(kind.__name__ in _TRANSIENT_TYPES for kind in type(error).__mro__)


def _was_not_done(error: BaseException) -> bool:
    """Whether the store has said that it did not do what was asked."""
    # A 503 without S3's own code may come from a gateway that had passed the request on.
    return http_status(error) == 429 or error_code(error) in _NOT_DONE_CODES
