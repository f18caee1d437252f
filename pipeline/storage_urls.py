"""URLs of stores and paths inside them: taken apart, checked, redacted. Knows text only."""

from __future__ import annotations

import re

from pipeline.errors import ConfigError

MAX_PATH_BYTES = 1024  # of a key in S3 and in Google Cloud Storage
MAX_SEGMENT_BYTES = 255  # of a name in a Linux directory

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(//)?")
GLOB_CHARACTERS = re.compile(r"[*?\[]")
# A password may hold slashes (AWS secrets do) and at signs; what follows a colon up to a slash is a
# port if it is a number. Every repetition is bounded: no text may take quadratic time.
_USER = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)"
    r"(?:[^/@:\s\"'<>]{0,128}:(?!\d{1,5}/)[^\s\"'<>]{0,512}|[^/\s\"'<>]{1,512})@"
)
_SECRET = r"token|secret|signature|sig|passw|pwd|credential|access_?key|api_?key|auth|session"
_SECRET_VALUE = re.compile(
    rf"([?&][^=&?\s]{{0,64}}(?:{_SECRET})[^=&?\s]{{0,64}}=)[^&\s\"'<>\\]+", re.IGNORECASE
)


def redact_url(text: str) -> str:
    """`text` (a URL, or prose that holds some) without user:password@ and secret query values."""
    return _SECRET_VALUE.sub(r"\1***", _USER.sub(r"\1***@", text))


def has_credentials(url: str) -> bool:
    """Whether a URL holds a user, with or without a password."""
    return _USER.match(url) is not None


def split_pattern(url: str) -> tuple[str, str]:
    """Split a URL or path into the directory to open and what to look for in it.

    The first part holds no glob character; the second is the rest: a glob, the name of a file or
    directory, or empty when the URL ends in a slash or is a bucket.
    `s3://b/corpus/2026-*/x.jsonl` -> (`s3://b/corpus`, `2026-*/x.jsonl`).
    """
    match = SCHEME.match(url)
    start = match.end() if match else 0
    magic = GLOB_CHARACTERS.search(url, start)
    cut = url.rfind("/", start, magic.start() if magic else len(url))
    if cut >= start:
        return url[: max(cut, start + 1)], url[cut + 1 :]
    if match and match[1] != "file" and not magic:
        return url, ""
    return url[:start] or ".", url[start:]


def check_path(path: str, where: str) -> None:
    """Refuse a relative path that is empty in parts, leaves its root or fits no store."""
    if not path:
        return
    try:
        segments = [segment.encode() for segment in path.split("/")]
    except UnicodeEncodeError:
        raise ConfigError(f"{where!r}: the path is not valid Unicode") from None
    shown = redact_url(where if len(where) < 300 else f"{where[:300]}...")
    if any(segment in (b"", b".", b"..") for segment in segments):
        raise ConfigError(
            f"{shown}: a path inside a storage is relative, without '//', '.' or '..'"
        )
    if any(character < " " for character in path):
        raise ConfigError(f"{shown!r}: control characters cannot stand in a path")
