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
_WRONG_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_WRITING = frozenset({"create", "write"})
_DEFINITE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
)


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


def translated(error: Exception, action: str, url: str, unknown_outcome: bool) -> PipelineError:
    """The error of `pipeline.errors` that tells the caller what `error` means."""
    code = error_code(error)
    said = redact_url(_message(error))
    if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
        return AlreadyExistsError(f"{url}: exists already")
    if code == "NoSuchBucket":
        return ConfigError(f"{url}: the bucket does not exist; create it or mend the URL")
    if type(error).__name__ in _NO_CREDENTIALS:
        return ConfigError(
            f"{url}: no credentials for this store ({said}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, choose a profile, or run under an instance role"
        )
    if isinstance(error, PermissionError) or code in _WRONG_CREDENTIALS:
        return ConfigError(
            f"{url}: not allowed to {action} this ({code or said}); check the credentials and "
            "their rights"
        )
    no_directory = isinstance(error, NotADirectoryError) and action not in _WRITING
    if isinstance(error, FileNotFoundError) or no_directory:
        return MissingFileError(f"{url}: there is no such file")
    hint = _hint(error, code)
    if unknown_outcome and not _is_definite(error, code):
        return UnknownOutcomeError(
            f"{url}: it is not known whether the store did {action} this: {said}{hint}"
        )
    return StorageError(f"{url}: could not {action} this: {said}{hint}")


def _is_store_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _SDK_MODULES


def _is_definite(error: BaseException | None, code: str | None) -> bool:
    """Whether the store has answered that it did not do what was asked."""
    if isinstance(error, OSError) and error.errno in _DEFINITE_ERRNOS:
        return True
    if code is not None and code.isdigit():
        return _refused(int(code))
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return _refused(int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))
        error = error.__cause__
    return False


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
    if type(error).__name__ in ("EndpointConnectionError", "ConnectTimeoutError"):
        return "; check AWS_ENDPOINT_URL and the network"
    return ""
