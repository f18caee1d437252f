"""Keep secrets out of what a job prints. Knows the environment's secret names, no stores."""

from __future__ import annotations

import os

from pipeline.storage_urls import redact_url

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "HF_TOKEN",
    "RAY_AUTH_TOKEN",
)
_MIN_SECRET_LENGTH = 8


def redact(text: str) -> str:
    """Return `text` with credentials replaced by `***`.

    Replaced are the values of `SECRET_VARIABLES` and what `redact_url` finds in URLs. Values
    shorter than 8 characters are left: they would hit ordinary words.
    """
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, "***")
    return redact_url(text)
