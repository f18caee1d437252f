"""Keep secrets out of everything that is shown or stored. Knows texts and names, no stores.

What is found: values of the environment's secret variables, credentials and signatures in URLs,
and values that stand beside a name such as `password`. What looks like any other text cannot be
told from it: a secret belongs into the environment, a profile or a role, and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pipeline.storage_urls import redact_url

HIDDEN = "***"
MIN_SECRET_LENGTH = 8

_SECRET_WORDS = frozenset(
    {"apikey", "credential", "credentials", "passphrase", "passwd", "password", "secret"}
    | {"secrets", "token"}
)
# A key is a secret only with one of these before it: `id_key` and `sort_key` are none.
_KEYED_WORDS = frozenset(
    {"access", "account", "api", "auth", "client", "encryption", "private", "shared", "storage"}
)
# AWS_ACCESS_KEY_ID, RAY_AUTH_TOKEN_PATH: these lead to a secret and are none.
_HARMLESS_ENDINGS = frozenset(
    {"endpoint", "file", "files", "id", "ids", "name", "path", "paths", "provider", "uri", "url"}
)
_HARMLESS_VARIABLES = frozenset({"GOOGLE_APPLICATION_CREDENTIALS"})  # the path of a file
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Every repetition is bounded: no text may take quadratic time.
_NAME = (
    r"[\w.-]{0,64}(?:passw(?:or)?d|passphrase|secret|credentials?|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|(?:auth|session|access|bearer|security)[_-]?token)[\w.-]{0,64}"
)
_ASSIGNED = re.compile(
    rf"(?i)(?<![\w.-])({_NAME}[\"']?\s{{0,9}}[=:]\s{{0,9}}|--{_NAME}\s{{1,9}}|--token[= ]\s{{0,9}})"
    r"(?:\"[^\"]{0,4096}\"|'[^']{0,4096}'|\S+)"
)
_BEARER = re.compile(
    r"(?i)\b(authorization:\s{0,9}|bearer\s{1,9})(?:basic\s{1,9}|bearer\s{1,9})?[\w.~+/=-]{8,}"
)


def is_secret_name(name: str) -> bool:
    """Whether a key, a flag or a variable of this name holds a secret."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _HARMLESS_ENDINGS:
        return False
    keyed = any(
        second in ("key", "keys") and first in _KEYED_WORDS
        for first, second in zip(words[:-1], words[1:], strict=True)
    )
    connection = words[-2:] == ["connection", "string"]
    return keyed or connection or not _SECRET_WORDS.isdisjoint(words)


def redact_text(text: str) -> str:
    """`text` without values of the environment's secrets and without credentials in URLs."""
    return _without(text, _environment_secrets())


def redact_message(text: str) -> str:
    """As `redact_text`, and without what stands beside a secret's name (`password=...`)."""
    return redact_messages([text])[0]


def redact_messages(texts: Sequence[str]) -> list[str]:
    """`redact_message` of each text; equal ones, and the environment, are looked at once."""
    secrets = _environment_secrets()
    redacted = {
        text: _BEARER.sub(rf"\1{HIDDEN}", _ASSIGNED.sub(rf"\1{HIDDEN}", _without(text, secrets)))
        for text in set(texts)
    }
    return [redacted[text] for text in texts]


def redact_values(value: Any, *, by_name: bool = False) -> Any:
    """A copy of JSON-like values with all their texts redacted.

    Args:
        value: mappings, sequences and plain values.
        by_name: also hide the values of keys that name a secret, whatever they are: right for
            configurations, and wrong for data, where `token` is a word.
    """
    secrets = _environment_secrets()

    def redacted(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                _without(str(key), secrets): HIDDEN
                if by_name and item and is_secret_name(str(key))
                else redacted(item)
                for key, item in value.items()
            }
        if isinstance(value, str):
            return _without(value, secrets)
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [redacted(item) for item in value]
        return value

    return redacted(value)


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return redact_url(text)


def _environment_secrets() -> list[str]:
    """Values of the environment's secrets in every form in which they may be shown, longest first.

    Shorter ones than MIN_SECRET_LENGTH are left out: they would hit ordinary words.
    """
    forms = set()
    for name, value in os.environ.items():
        is_secret = is_secret_name(name) and name not in _HARMLESS_VARIABLES
        if is_secret and len(value) >= MIN_SECRET_LENGTH:
            forms |= {value, quote(value), quote(value, safe=""), repr(value)[1:-1]}
    return sorted(forms, key=lambda form: (-len(form), form))
