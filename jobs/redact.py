"""Keep secrets out of what a job prints. Knows the environment's secret names, no stores."""

from __future__ import annotations

import os
import re

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "HF_TOKEN",
    "RAY_AUTH_TOKEN",
)
_MIN_SECRET_LENGTH = 8
_USER_INFO = re.compile(r"(?<=://)[^/\s@'\"]*:[^/\s@'\"]*(?=@)")
_QUERY_SECRET = re.compile(r"(?i)((?:signature|token|secret|password|credential)[\w-]*=)[^&\s'\"]+")


def redact(text: str) -> str:
    """Return `text` with credentials replaced by `***`.

    Replaced are the values of `SECRET_VARIABLES`, the user part of URLs (`s3://key:secret@host`)
    and the signing parts of URL queries. Values shorter than 8 characters are left: they would
    hit ordinary words.
    """
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, "***")
    return _QUERY_SECRET.sub(r"\1***", _USER_INFO.sub("***", text))
