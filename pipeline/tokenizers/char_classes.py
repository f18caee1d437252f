"""One ASCII letter for each kind of character, so that rules for words are plain patterns.

Built on the Unicode 3.2 table that every Python carries unchanged, and on written-out ranges for
what came later; so the classes of a text never change with the Python that runs. Characters that
3.2 does not know count as letters unless they lie in a block of symbols.

    A upper-case letter        h Han ideograph      . , : / & @ # + ~ ' -  themselves and twins
    a any other letter         k kana               $ currency sign
    m mark or joiner inside a word                  ! what ends a sentence (! ? and twins)
    0 digit, number            e emoji              f full stop of other scripts
    _ connector                r regional indicator l ellipsis character
    o opening, c closing bracket or quotation mark  w fullwidth ! or ?
    " straight quotation mark
    d dash                     p other punctuation  s other symbol
"""

from __future__ import annotations

from unicodedata import ucd_3_2_0

_CATEGORY_CLASS = {
    "Lu": "A",
    "Lt": "A",
    "Mn": "m",
    "Mc": "m",
    "Me": "m",
    "Cf": "m",
    "Nd": "0",
    "Nl": "0",
    "No": "0",
    "Pc": "_",
    "Pd": "d",
    "Ps": "o",
    "Pi": "o",
    "Pe": "c",
    "Pf": "c",
    "Po": "p",
    "Sc": "$",
    "Sm": "s",
    "Sk": "s",
    "So": "s",
}

_SINGLE = {
    **dict.fromkeys("'\u2019\uff07", "'"),
    **dict.fromkeys("-\u2010\u2011\u00b7", "-"),
    **dict.fromkeys('"\uff02', '"'),
    **dict.fromkeys("!?\u203c\u203d\u2047\u2048\u2049\u061f\u037e\u055c\u055e", "!"),
    **dict.fromkeys("\uff01\uff1f", "w"),
    **dict.fromkeys("\u3002\uff61\uff0e\u0964\u0965\u06d4\u0589\u1362\u104b\u17d4", "f"),
    **dict.fromkeys(".,:/&@#+~", None),
    "\u2026": "l",
    "\u200d": "j",
    "\u00ad": "m",
    "\u30fc": "k",
    "\u3005": "h",
    "\u3007": "h",
}

_RANGES = (
    (0x2E80, 0x2FDF, "h"),
    (0x3400, 0x4DBF, "h"),
    (0x4E00, 0x9FFF, "h"),
    (0xF900, 0xFAFF, "h"),
    (0x20000, 0x3FFFD, "h"),
    (0x3040, 0x309F, "k"),
    (0x30A0, 0x30FF, "k"),
    (0x31F0, 0x31FF, "k"),
    (0xFF66, 0xFF9F, "k"),
    (0x1F1E6, 0x1F1FF, "r"),
    (0x1F3FB, 0x1F3FF, "m"),
    (0x1F000, 0x1FAFF, "e"),
    (0x2600, 0x27BF, "e"),
    (0xE0000, 0xE007F, "m"),
    (0xFE00, 0xFE0F, "m"),
)

# Blocks whose characters are symbols or punctuation, also those added after Unicode 3.2.
_SYMBOL_BLOCKS = (
    (0x20A0, 0x20CF, "$"),
    (0x2000, 0x2BFF, "s"),
    (0x2E00, 0x2E7F, "p"),
    (0x2FF0, 0x303F, "p"),
    (0xFE10, 0xFE6F, "p"),
    (0xFFF0, 0xFFFF, "s"),
)


class _ClassTable(dict[int, str]):
    """Computes a character's class when it is first met; for `str.translate`."""

    def __missing__(self, code_point: int) -> str:
        found = class_of(chr(code_point))
        self[code_point] = found
        return found


def class_of(character: str) -> str:
    """The class letter of one character."""
    if character in _SINGLE:
        return _SINGLE[character] or character
    code_point = ord(character)
    for first, last, letter in _RANGES:
        if first <= code_point <= last:
            return letter
    category = ucd_3_2_0.category(character)
    if category == "Cn":
        for first, last, letter in _SYMBOL_BLOCKS:
            if first <= code_point <= last:
                return letter
    return _CATEGORY_CLASS.get(category, "a")


_TABLE = _ClassTable()


def classes_of(text: str) -> str:
    """The class letters of a text, one for each character."""
    return text.translate(_TABLE)
