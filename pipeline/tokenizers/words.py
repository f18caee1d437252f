"""Split one chunk (text without blanks) into words and punctuation. Knows no context.

The conventions are those of the Penn Treebank and of the one-billion-word benchmark, on which the
released models were trained: "don't" is `do n't`, "it's" is `it 's`, "U.S." and "Mr." keep their
full stop, hyphenated words stay whole. URLs, e-mail addresses, file paths, identifiers, numbers
with separators, emoji and emoticons stay whole. Han ideographs are tokens of their own.

A chunk gives the same tokens wherever it stands, so each distinct chunk is split once and the
result is reused. The patterns run over class letters (`char_classes`), never look back over what
they have matched and so take time linear in the chunk's length.
"""

from __future__ import annotations

import re
from functools import lru_cache
from unicodedata import ucd_3_2_0

from pipeline.tokenizers import abbreviations
from pipeline.tokenizers.char_classes import classes_of
from pipeline.tokenizers.kinds import Kind

# Ends (code points from the chunk's start) and kinds of a chunk's tokens; together they cover it.
Pieces = tuple[tuple[int, ...], bytes]

MAX_CACHED_LENGTH = 64

_TOKEN = re.compile(
    r"""
    (?P<path>(?<![aAm0_c/])(?:~|\.{1,2})?(?:/\.?[aAm0_]++(?:[.\-+][aAm0_]++)*+){2,}+/?)
  | (?P<money>A{1,3}+\$(?=0))
  | (?P<language>A(?:\+\+|\#)(?![aAm0_]))
  | (?P<word>[aAm0_]++(?:(?:['.\-]|(?<=0)[,:/](?=0)|(?<=A)&(?=A))[aAm0_]++)*+)
  | (?P<decimal>(?<![aAm0_.c])\.0++)
  | (?P<tag>[@\#][aAm_][aAm0_]*+(?:-[aAm0_]++)*+)
  | (?P<year>'00a?(?![aAm0_]))
  | (?P<han>hm*+)
  | (?P<kana>[km]++)
  | (?P<emoji>(?:em*+(?:jem*+)*+|rr?m*+))
  | (?P<end>!++)
  | (?P<wide>f|w++)
  | (?P<ellipsis>\.{2,}+|l++)
  | (?P<bracket>[oc"])
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_RUN = re.compile(r"(.)\1*+", re.DOTALL)
_URL = re.compile(
    r"(?<![A-Za-z0-9+.\-@])(?:[A-Za-z][A-Za-z0-9+.\-]*+://|www\.|mailto:"
    r"|(?:[A-Za-z0-9\-]++\.)++[A-Za-z]{2,}+/)[^<>\"“”«»\s]++"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]++@[A-Za-z0-9_\-]++(?:\.[A-Za-z0-9_\-]++)*+"
)
_EMOTICON = re.compile(r"(?:[:;=]['^]?-?[)(\]\[DPp/\\|*oO3]{1,3}|<3++|\^_*+\^)(?=[.,!?]*+$)")
_CONTRACTION = re.compile(r"(?:n['’]t|['’](?:s|re|ve|ll|d|m))$", re.IGNORECASE)
_APOSTROPHE_WORD = re.compile(
    r"['’](?:em|til|tis|twas|cause|bout|cuz|re|ve|ll|s|d|m|t|n)(?![\w])", re.IGNORECASE | re.ASCII
)
_ELISION = re.compile(
    r"(?:(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quoiqu|dell|dall|nell|sull|all|un)['’]"
    r"(?=[aeiouyhàâäéèêëîïôöùûüœæ])|[A-ZÀ-Ý][a-z]{0,6}['’](?=[a-zà-ý]{3}))",
)
_ELISION_CAPITAL = frozenset({"c'", "d'", "j'", "l'", "m'", "n'", "s'", "t'", "qu'", "dell'"})
_ACRONYM = re.compile(r"[aA](?:\.[aA])+")
_KINDS = {
    "emoji": Kind.EMOTE,
    "decimal": Kind.NUMBER,
    "han": Kind.CASELESS,
    "kana": Kind.CASELESS,
    "end": Kind.END,
    "wide": Kind.WIDE_END,
    "ellipsis": Kind.ELLIPSIS,
}
_OTHER_KINDS = {".": Kind.STOP, "'": Kind.QUOTE, "-": Kind.BULLET, "d": Kind.BULLET}


@lru_cache(maxsize=1 << 16)
def split_cached(chunk: str) -> Pieces:
    """`split` for chunks that are likely to come again."""
    return split(chunk)


def split(chunk: str) -> Pieces:
    """Split a chunk into tokens.

    Args:
        chunk: text without blanks, not empty.

    Returns: the tokens' ends and kinds; the first token starts at 0, each other where the one
        before ends, and the last ends with the chunk.
    """
    classes = classes_of(chunk)
    ends: list[int] = []
    kinds = bytearray()
    position = 0
    for start, end in _whole_spans(chunk):
        _split_range(chunk, classes, position, start, ends, kinds)
        ends.append(end)
        kinds.append(Kind.OTHER)
        position = end
    _split_range(chunk, classes, position, len(chunk), ends, kinds)
    return tuple(ends), bytes(kinds)


def _whole_spans(chunk: str) -> list[tuple[int, int]]:
    """URLs and e-mail addresses, without the punctuation that follows them."""
    spans: list[tuple[int, int]] = []
    if "." in chunk and "/" in chunk or "www." in chunk or ":" in chunk and "@" in chunk:
        for match in _URL.finditer(chunk):
            end = match.start() + len(_without_tail(match.group()))
            spans.append((match.start(), end))
    elif "@" in chunk:
        spans.extend(match.span() for match in _EMAIL.finditer(chunk))
    return spans


def _without_tail(url: str) -> str:
    trimmed = url.rstrip(".,;:!?'\")]}>’”…")
    # A closing bracket belongs to the URL that opened it.
    if url[len(trimmed) :].startswith(")") and trimmed.count("(") > trimmed.count(")"):
        trimmed += ")"
    return trimmed


def _split_range(
    chunk: str, classes: str, start: int, stop: int, ends: list[int], kinds: bytearray
) -> None:
    position = start
    while position < stop:
        match = _TOKEN.match(classes, position, stop)
        assert match is not None
        group = match.lastgroup
        if group == "word":
            position = _add_word(chunk, classes, match, stop, ends, kinds)
            continue
        end = match.end()
        kind = _KINDS.get(group or "", Kind.OTHER)
        if group == "bracket":
            kind = {"o": Kind.OPEN, "c": Kind.CLOSE}.get(classes[position], Kind.QUOTE)
        elif group == "other":
            end, kind = _other(chunk, classes, position, stop)
        ends.append(end)
        kinds.append(kind)
        position = end


def _other(chunk: str, classes: str, position: int, stop: int) -> tuple[int, Kind]:
    """End and kind of a token of punctuation or symbols: a run of one character, or an emoticon."""
    letter = classes[position]
    if letter in ":ps" and stop == len(chunk):
        emoticon = _EMOTICON.match(chunk, position)
        if emoticon:
            return emoticon.end(), Kind.EMOTE
    if letter == "'":
        word = _APOSTROPHE_WORD.match(chunk, position, stop)
        if word:
            return word.end(), Kind.OTHER
        return position + (2 if classes[position : position + 2] == "''" else 1), Kind.QUOTE
    run = _RUN.match(chunk, position, stop)
    assert run is not None
    kind = _OTHER_KINDS.get(letter, Kind.OTHER)
    if chunk[position] in "•*‣▪●◦":
        kind = Kind.BULLET
    return run.end(), kind


def _add_word(
    chunk: str,
    classes: str,
    match: re.Match[str],
    stop: int,
    ends: list[int],
    kinds: bytearray,
) -> int:
    start, end = match.span()
    shape = match.group()
    word = chunk[start:end]
    cuts = _cuts(word, shape) if "'" in shape or len(word) <= 6 else []
    first = cuts[0] if cuts else len(word)
    kind = _word_kind(word[:first], shape[:first])
    if classes[end : end + 1] == "." and end < stop and classes[end + 1 : end + 2] != ".":
        dotted = _dotted_kind(word, shape)
        if dotted is not None:
            end, kind = end + 1, dotted
    for cut in cuts:
        ends.append(start + cut)
        kinds.append(kind)
        kind = Kind.OTHER
    ends.append(end)
    kinds.append(kind)
    return end


def _word_kind(word: str, shape: str) -> Kind:
    first = shape[0]
    if first == "A":
        lower = word.lower()
        if lower in abbreviations.LABELS:
            return Kind.LABEL
        if lower in abbreviations.STARTERS:
            return Kind.STARTER
        return Kind.MONTH if lower in abbreviations.MONTHS else Kind.UPPER
    if first == "0":
        return Kind.NUMBER if shape.strip("0.,:/-") == "" else Kind.OTHER
    if word in abbreviations.LABELS:
        return Kind.LABEL
    has_case = first != "a" or ucd_3_2_0.category(word[0]) == "Ll"
    return Kind.OTHER if has_case else Kind.CASELESS


def _dotted_kind(word: str, shape: str) -> Kind | None:
    """The kind of a word that keeps the full stop after it, None if the stop is a token."""
    if shape == "A" and word != "I":
        return Kind.INITIAL
    if _ACRONYM.fullmatch(shape):
        return Kind.ABBREVIATION
    if len(word) > 7:
        return None
    lower = word.lower()
    is_capital = shape[0] == "A"
    if lower in abbreviations.CAPITAL_ONLY and not is_capital:
        return None
    if lower in abbreviations.LOWER_ONLY and is_capital:
        return None
    if lower in abbreviations.TITLES:
        return Kind.TITLE
    return Kind.ABBREVIATION if lower in abbreviations.ABBREVIATIONS else None


def _cuts(word: str, shape: str) -> list[int]:
    """Where a word is cut inside: contractions, elisions, and words that count as two."""
    if "'" not in shape:
        place = abbreviations.TWO_WORDS.get(word.lower())
        return [place] if place else []
    cuts: list[int] = []
    end = len(word)
    while contraction := _CONTRACTION.search(word, max(0, end - 3), end):
        start = contraction.start()
        if start == 0 or shape[start - 1] not in "aAm0":
            break
        cuts.append(start)
        end = start
    if not cuts:
        elision = _ELISION.match(word)
        if elision and (word[0].islower() or _plain(elision.group()) in _ELISION_CAPITAL):
            cuts.append(elision.end())
    return cuts[::-1]


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")
