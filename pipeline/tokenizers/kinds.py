"""What the sentence rules need to know of a token. Knows no text."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """The part a token can play at the border between two sentences."""

    OTHER = 0  # lower-case words, and whatever plays no part
    UPPER = 1  # starts with a capital
    STARTER = 2  # a capitalised word that often starts a sentence: The, He, In
    NUMBER = 3  # digits only, perhaps with separators
    MONTH = 4  # capitalised; after "3." it goes on with a date
    CASELESS = 5  # letters of a script without capitals
    OPEN = 6  # opening bracket or quotation mark
    CLOSE = 7  # closing bracket or quotation mark
    QUOTE = 8  # straight quotation mark, apostrophe: opens or closes
    STOP = 9  # one full stop
    END = 10  # ! ? and their runs
    WIDE_END = 11  # what ends a sentence also without a blank after it
    ELLIPSIS = 12
    TITLE = 13  # abbreviation that a name follows: Mr. Dr.
    ABBREVIATION = 14  # abbreviation that may also end a sentence: etc. U.S.
    INITIAL = 15  # one capital with a full stop
    LABEL = 16  # word that a number may follow after its full stop: No. Fig. p.
    BULLET = 17  # list mark or dash
    EMOTE = 18  # emoji, emoticon: belongs to the sentence before it
