"""Why input is rejected: every reason code that reading can give. Knows no data.

`docs/SOURCES.md` says for each what causes it and what to do; a test keeps the two together.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.excerpt import bounded

# Room for the longest URL of an object store beside the message of a decoder.
MAX_ERROR_CHARS = 3000


class Reason(StrEnum):
    """A reason code, as it stands in the column `code` of rejected rows."""

    CORRUPT_FILE = "corrupt_file"
    TRUNCATED_FILE = "truncated_file"
    LINE_TOO_LONG = "line_too_long"
    BAD_JSON = "bad_json"
    NOT_AN_OBJECT = "not_an_object"
    BAD_CSV_ROW = "bad_csv_row"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_UTF8 = "not_utf8"
    NULL_ID = "null_id"
    EMPTY_ID = "empty_id"
    ID_TOO_LONG = "id_too_long"
    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    DOCUMENT_TOO_LARGE = "document_too_large"
    BAD_PARTITION = "bad_partition"
    NO_TOKENS = "no_tokens"

    @property
    def stage(self) -> str:
        """The stage that finds it."""
        return _STAGES[self]


_STAGES = {
    Reason.CORRUPT_FILE: "read",
    Reason.TRUNCATED_FILE: "read",
    Reason.LINE_TOO_LONG: "read",
    Reason.BAD_JSON: "parse",
    Reason.NOT_AN_OBJECT: "parse",
    Reason.BAD_CSV_ROW: "parse",
    Reason.MISSING_FIELD: "parse",
    Reason.WRONG_TYPE: "validate",
    Reason.NOT_UTF8: "validate",
    Reason.NULL_ID: "validate",
    Reason.EMPTY_ID: "validate",
    Reason.ID_TOO_LONG: "validate",
    Reason.NULL_TEXT: "validate",
    Reason.EMPTY_TEXT: "validate",
    Reason.DOCUMENT_TOO_LARGE: "validate",
    Reason.BAD_PARTITION: "validate",
    Reason.NO_TOKENS: "tokenise",
}


# What pyarrow raises for bytes that it cannot decode. An OSError with a number is the system's.
DECODING_ERRORS = (
    pa.ArrowException,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)


def is_of_the_system(error: Exception) -> bool:
    """Whether an error says that reading failed, and nothing of what was read."""
    return isinstance(error, OSError) and error.errno is not None


class BadFileError(PipelineError):
    """A file, or a part of it, that is not what its format promises.

    Internal to reading: it becomes a SourceError, or a rejected row without offset when
    `source.on_bad_file` is `reject`. `excerpt` is for that row (`pipeline.excerpt`).
    """

    def __init__(self, reason: Reason, message: str, excerpt: str | None = None) -> None:
        # Decoders quote what they did not understand, which may be anything.
        super().__init__(bounded(message, MAX_ERROR_CHARS))
        self.reason = reason
        self.excerpt = excerpt
