"""Short, printable pieces of what was found in the input, for rejected rows and messages.

Input may hold anything: megabytes in a line, control characters that change a terminal, bytes that
are no text. What is shown of it is bounded, is valid UTF-8 and has no character that a terminal or
a log would act on. Knows no rows and no files.
"""

from __future__ import annotations

MAX_EXCERPT_CHARS = 200
MAX_MESSAGE_CHARS = 1000
# How much of what precedes a place is shown with it.
LEAD_CHARS = 60
CUT = "…"
_MAX_CHAR_BYTES = 4


def excerpt(found: str | bytes | None, at: int = 0) -> str | None:
    r"""What stands at a place of the input, for a person who looks for it.

    Args:
        found: the input, of any length; bytes are shown as UTF-8 and as `\xff` where they are not.
        at: position in `found` (characters or bytes) of what is wrong; a little before it is shown.

    Returns: at most MAX_EXCERPT_CHARS printable characters, with `…` where something was left out;
        others are escaped as in Python (`\n`, `\x00`, `\u202e`, `\ud800`). None for None.
    """
    if found is None:
        return None
    first = max(0, at - LEAD_CHARS)
    if isinstance(found, bytes):
        part = found[first : first + MAX_EXCERPT_CHARS * _MAX_CHAR_BYTES + _MAX_CHAR_BYTES]
        if first:
            # The place may lie in the middle of a character.
            part = part[_continuation_bytes(part) :]
        text = part.decode(errors="backslashreplace")
    else:
        text = found[first : first + MAX_EXCERPT_CHARS + 1]
    return bounded((CUT if first else "") + text, MAX_EXCERPT_CHARS)


def bounded(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """The text with unprintable characters escaped, and cut to `max_chars` characters."""
    shown = printable(text[: max_chars + 1])
    return shown if len(shown) <= max_chars else shown[: max_chars - len(CUT)] + CUT


def printable(text: str) -> str:
    """The text with every character escaped that is no letter, mark, number, sign or space."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _continuation_bytes(data: bytes) -> int:
    count = 0
    while count < min(len(data), _MAX_CHAR_BYTES - 1) and data[count] & 0xC0 == 0x80:
        count += 1
    return count
