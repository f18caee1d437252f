"""What the failures of any store mean to the caller. Knows error objects only: it calls no store.

fsspec's file systems raise OSError in all its kinds, and now and then the error of the SDK below;
the S3 error code hides in the chain of causes. `translated` turns them into the classes of
`pipeline.errors`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import (
    AlreadyExistsError,
    ConfigError,
    MissingFileError,
    PipelineError,
    StorageError,
    UnknownOutcomeError,
)
from pipeline.storage_urls import redact_url

_SDK_MODULES = frozenset({"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "fsspec"})
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
)
_WRONG_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch"})
_EXPIRED_CREDENTIALS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
)
_WRITING = frozenset({"create", "write"})
_NO_ANSWER = frozenset({"EndpointConnectionError", "ConnectTimeoutError"})
_DEFINITE_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
    }
)


class ShortAnswerError(OSError):
    """The store sent less than it was asked for."""


class RetriedError(OSError):
    """A request failed after all its attempts; the last one's error is the cause.

    `unclear` says that an attempt had no clear answer, so that the store may have carried it out.
    """

    def __init__(self, num_attempts: int, seconds: float, *, unclear: bool) -> None:
        super().__init__(f"tried {num_attempts} times in {seconds:.1f} s")
        self.num_attempts = num_attempts
        self.unclear = unclear


@contextmanager
def reporting(action: str, url: str, *, unknown_outcome: bool = False) -> Iterator[None]:
    """Translate what the block raises.

    Args:
        action: what is being done, as a verb, for the message.
        url: what it is done to.
        unknown_outcome: whether a failure without a clear answer leaves the outcome open.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if not _is_store_error(error):
            raise
        raise translated(error, action, redact_url(url), unknown_outcome) from error


def error_code(error: BaseException | None) -> str | None:
    """The S3 error code (`NoSuchBucket`) or the HTTP status in a chain of causes, if any."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code"))
        if type(error).__module__.startswith("gcsfs") and hasattr(error, "code"):
            return str(error.code)
        error = error.__cause__
    return None


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status in a chain of causes, if the store has answered."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        error = error.__cause__
    return None


def translated(error: Exception, action: str, url: str, unknown_outcome: bool) -> PipelineError:
    """The error of `pipeline.errors` that tells the caller what `error` means."""
    tried = ""
    unclear: bool | None = None
    if isinstance(error, RetriedError):
        tried, unclear = f"; {error}", error.unclear
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    code = error_code(error)
    if unclear is None:
        unclear = not _is_definite(error, code)
    said = redact_url(_message(error)) + tried
    if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
        if action in _WRITING:
            return AlreadyExistsError(f"{url}: exists already")
        return StorageError(f"{url}: was replaced while it was read; run again when it is at rest")
    if unknown_outcome and unclear and tried:
        return _unknown(url, action, said + _hint(error, code))
    if code == "NoSuchBucket":
        return ConfigError(f"{url}: the bucket does not exist; create it or mend the URL")
    about_credentials = _about_credentials(error, code, said, action)
    if about_credentials:
        return ConfigError(f"{url}: {about_credentials}")
    no_directory = isinstance(error, NotADirectoryError) and action not in _WRITING
    if isinstance(error, FileNotFoundError) or no_directory:
        return MissingFileError(f"{url}: there is no such file")
    hint = _hint(error, code)
    if unknown_outcome and unclear:
        return _unknown(url, action, said + hint)
    return StorageError(f"{url}: could not {action} this: {said}{hint}")


def _about_credentials(error: Exception, code: str | None, said: str, action: str) -> str | None:
    """What is wrong with the credentials, if that is what `error` says."""
    if type(error).__name__ in _NO_CREDENTIALS:
        return (
            f"no credentials for this store ({said}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, choose a profile, or run under an instance role"
        )
    if code in _EXPIRED_CREDENTIALS:
        return (
            f"could not {action} this, for the credentials have expired ({code}): renew them and "
            "run again; what was finished is kept and not done again"
        )
    if isinstance(error, PermissionError) or code in _WRONG_CREDENTIALS:
        return (
            f"not allowed to {action} this ({code or said}); check the credentials, whether they "
            "have expired, and their rights"
        )
    return None


def _unknown(url: str, action: str, said: str) -> UnknownOutcomeError:
    return UnknownOutcomeError(
        f"{url}: it is not known whether the store did {action} this: {said}"
    )


def _is_store_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _SDK_MODULES


def _is_definite(error: BaseException | None, code: str | None) -> bool:
    """Whether the store has answered that it did not do what was asked."""
    if isinstance(error, OSError) and error.errno in _DEFINITE_ERRNOS:
        return True
    if code is not None and code.isdigit():
        return _refused(int(code))
    status = http_status(error)
    return status is not None and _refused(status)


def _refused(status: int) -> bool:
    return 400 <= status < 500 and status not in (408, 409, 429)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error) or type(error).__name__


def _hint(error: Exception, code: str | None) -> str:
    if code in ("MissingContentLength", "411"):
        return (
            "; this store needs AWS_REQUEST_CHECKSUM_CALCULATION=when_required in the environment"
        )
    if type(error).__name__ in _NO_ANSWER:
        return "; check AWS_ENDPOINT_URL and the network"
    if code == "400":
        return "; the store gave no reason, as for credentials that have expired: renew them"
    return ""
