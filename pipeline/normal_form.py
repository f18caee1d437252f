"""Unicode normal forms in time proportional to the text. Knows strings only.

Python brings a run of combining marks into canonical order by insertion: a base letter with a
million marks in the wrong order would take hours, and one document of the input is enough for that.
Here long runs are put in order beforehand by a sort that keeps the order of equal classes, which is
what the Unicode standard asks for (UAX #15, canonical ordering), so the result is the same.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import groupby
from typing import Literal

# Shorter runs, which are all that languages have, cost nothing that could be measured.
LONG_RUN = 256
# No character outside of this range is a mark; should one be some day, its runs are only slow.
_FIRST_MARK, _PAST_LAST_MARK = 0x300, 0x20000

Form = Literal["NFC", "NFKC"]
_DECOMPOSED: dict[Form, Literal["NFD", "NFKD"]] = {"NFC": "NFD", "NFKC": "NFKD"}


def normal_form(text: str, form: Form) -> str:
    """As `unicodedata.normalize`, for any text in time proportional to its length."""
    if len(text) > LONG_RUN and not text.isascii():
        text = _long_run(form).sub(lambda run: _ordered(run.group(), form), text)
    return unicodedata.normalize(form, text)


@lru_cache(maxsize=2)
def _long_run(form: Form) -> re.Pattern[str]:
    """Matches long runs of characters that are nothing but marks once decomposed."""
    places = [
        place
        for place in range(_FIRST_MARK, _PAST_LAST_MARK)
        if all(map(unicodedata.combining, unicodedata.normalize(_DECOMPOSED[form], chr(place))))
    ]
    ranges = []
    for _, group in groupby(enumerate(places), lambda item: item[1] - item[0]):
        run = [place for _, place in group]
        ranges.append(f"\\U{run[0]:08x}-\\U{run[-1]:08x}")
    return re.compile(f"[{''.join(ranges)}]{{{LONG_RUN},}}")


def _ordered(run: str, form: Form) -> str:
    decomposed = _DECOMPOSED[form]
    marks = "".join(unicodedata.normalize(decomposed, mark) for mark in run)
    return "".join(sorted(marks, key=unicodedata.combining))
