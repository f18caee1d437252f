"""Docstrings to English prose: no signatures, markup, code or tables. Knows text only.

A docstring is read line by line into paragraphs, whatever its dialect (reST, numpy, Google,
epytext, Markdown, or the standard library's own habits); what is not prose is dropped on the way.
Parameter lists become the sentences that describe the parameters. Then inline markup is taken off,
and what still does not read like English is dropped.
"""

from __future__ import annotations

import inspect
import re

MIN_WORDS = 5


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PROSE_DIRECTIVES = _words(
    "admonition attention caution danger hint important note seealso tip warning"
)
_ENTRY_SECTIONS = _words(
    "args arguments attributes fields kwargs members params parameters raises receives return "
    "returns variables warns yield yields"
)
_DROPPED_SECTIONS = _words(
    "bibliography changelog doctest doctests example examples literature methods properties "
    "reference references see seealso shape usage"
)
_DROPPED_FIELDS = re.compile(
    r"r?type|vartype|ytype|kwtype|meta|since|version|author|copyright|licen[sc]e|see"
)

_DOCTEST = re.compile(r"\s*(>>>|\.\.\.(\s|$)|In ?\[\d*\]:|Out ?\[\d*\]:)")
_FENCE = re.compile(r"\s*(```|~~~)")
_DIRECTIVE = re.compile(r"\s*\.\. ?([\w-]+(?::[\w-]+)*)::\s*(.*)")
_COMMENT = re.compile(r"\s*(\.\.(\s|$)|__ \S|/// )")
_FIELD = re.compile(r"\s*(?::(\w+)(?: [^:`]*)?:|@(\w+)(?: [^:]*)?:)(?:\s+(.*)|$)")
_RULE = re.compile(r"\s*([=\-~^\"'*+#_.`])\1{2,}(?:\s+\1{2,})*\s*$")
_TABLE_BORDER = re.compile(r"\s*(=+( +=+)+|-+( +-+)+|\+[-=+]{3,})\s*$")
_TABLE_ROW = re.compile(r"\s*(\+[-=+]{3,}|\|.*\|?\s*$)")
_HEADING = re.compile(r"\s*#{1,6} ")
_ITEM = re.compile(r"\s*(?:[-*+•o]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)]|#\.)\s+(?=\S)")
_DASHES = re.compile(
    r"\s*([\w.*]+(?:\([^()]*\))?(?:, ?[\w.*]+)*(?: or [\w.]+)?)\s+(--|-|–|—)\s+(\S.*)"
)
_SIGNATURE = re.compile(r"\s*[\w.]+\s?\(.*\)(\s*->\s*.+|\s*:)?\s*$")
_SECTION = re.compile(r"\s*\**((?:[A-Za-z]+ ?){1,3})\**:\s*$")
_GOOGLE_ENTRY = re.compile(
    r"\s*[`*]*[\w.\-]+(?:\[[^\]]*\])?[`*]*(?:, ?[`*]*[\w.]+[`*]*)*\s*(?:\(.*?\))?\s*:\s+(\S.*)"
)

_LABEL = re.compile(
    r"(?i)\s*\**(?:returns?|yields?|raises|arguments?|args?|params?|\(\w[^()]*\))\**\s*:\**\s+"
)
_TYPE = re.compile(
    r"(?i)[\w\[\], .|/()'\"`=:~{}<>-]*\b(optional|default|int|integer|str|string|float|bool|"
    r"boolean|list|dict|dictionary|tuple|set|array|ndarray|callable|function|object|graph|number|"
    r"iterable|class|instance|type)\b[\w\[\], .|/()'\"`=:~{}<>-]*"
)
_LEGAL = re.compile(
    r"(?i)copyright|©|all rights reserved|licen[sc]ed? under|permission is hereby|spdx-|"
    r"without warrant|apache license|mit license|bsd,? |see license|redistribut"
)
# Stands where something was taken out without which the sentence means nothing.
_HOLE = "\x00"
# What must occur in a text for the pattern to be worth trying, the pattern, the replacement.
_INLINE: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("<!--", re.compile(r"<!--.*?-->"), " "),
    (":math:", re.compile(r":math:`\\?(\w+)`"), r"\1"),
    (":math:", re.compile(r":math:`[^`]*`"), _HOLE),
    ("$", re.compile(r"\$\$.*?\$\$|(?<!\w)\$[^$]+\$(?!\w)"), _HOLE),
    ("\\", re.compile(r"\\[a-zA-Z]{2,}[{_^ ]"), _HOLE),
    ("![", re.compile(r"!\[[^\]]*\]\([^)]*\)"), " "),
    ("](", re.compile(r"\[([^\]]+)\]\((?:https?:|#|\.|/|\w)[^)\s]*\)"), r"\1"),
    ("][", re.compile(r"\[([^\]]+)\]\[[\w.`-]*\]"), r"\1"),
    (":`", re.compile(r"(?::[\w+-]+)+:`([^`<]+?)\s*<[^`>]+>`"), r"\1"),
    (":`~", re.compile(r"(?::[\w+-]+)+:`~(?:[\w.]*\.)?(\w+)(?:\(\))?`"), r"\1"),
    (":`", re.compile(r"(?::[\w+-]+)+:`[!~.]?([^`]*)`"), r"\1"),
    ("`_", re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{1,2}"), r"\1"),
    ("]_", re.compile(r"(?:\s+(?:in|by|from|see|at|of|per))?\s*\[(?:[\w-]+|#\w*|\*)\]_"), ""),
    ("``", re.compile(r"``([^`]+)``"), r"\1"),
    ("`", re.compile(r"`([^`']+)['`](?:_{1,2}\b)?"), r"\1"),
    ("`", re.compile(r"(?<!\w)`(?=\w[^']*'(?!\w))"), "'"),
    ("`", re.compile(r"`"), ""),
    ("**", re.compile(r"(?<![\w*])\*\*(?=\S)([^*]+?)(?<=\S)\*\*(?!\w)"), r"\1"),
    ("*", re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?!\w)"), r"\1"),
    ("***", re.compile(r"\*{3,}"), ""),
    ("|", re.compile(r"\|(@?[A-Za-z][\w.]+)\|"), r"\1"),
    ("<", re.compile(r"</?[a-zA-Z][\w-]*(?:\s+\w+=[^<>]*)?/?>"), " "),
    ("://", re.compile(r"\([^()]*\b(?:https?|ftp)://[^\s)]+\)"), ""),
    ("://", re.compile(r"<?\b(?:https?|ftp)://[^\s>]+>?"), _HOLE),
    (":", re.compile(r":(?:class|func|meth|attr|mod|obj|data|exc|const|ref|doc|py):\s*"), ""),
    ("\\", re.compile(r"\\([*_`|<>\[\]()#:])"), r"\1"),
    ("(", re.compile(r"\(\s*[,;:.]*\s*\)"), ""),
    ("", re.compile(r"\s+"), " "),
    (" ", re.compile(r" +([,;!?)]|[.:](?![.:]))"), r"\1"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")
_WORD = re.compile(r"[\"'(]*[A-Za-z]+(?:[-/'’][A-Za-z]+)*[)\"'’]*[.,;:!?]*[)\"']*")
_CODE_MARKS = re.compile(r"[{}\[\]=<>\\|$@^~`]|\w\(|::|->")
_FUNCTION_WORDS = _words(
    "a about after all also an and any are as at be been before but by can do does each for from "
    "given has have how if in into is it its may must no not of on only or other same should so "
    "some such than that the their them then there these they this to used using was we what when "
    "where whether which will with without you your"
)


def docstring_to_prose(docstring: str) -> str:
    """Return the English sentences of a docstring, a paragraph a line; empty if there are none.

    Fewer than `MIN_WORDS` words count as none. Every line ends in a full stop or the like.
    """
    lines = inspect.cleandoc(docstring).expandtabs(4).splitlines()
    paragraphs = (
        _clean_paragraph(text, is_first=index == 0)
        for index, text in enumerate(_Reader(lines).paragraphs())
    )
    text = "\n".join(dict.fromkeys(filter(None, paragraphs)))
    words = text.split()
    return text if len(words) >= MIN_WORDS and _is_english(text, words) else ""


class _Reader:
    """Reads the lines of one docstring, or of an indented part of it, into raw paragraphs."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._at = 0
        self._found: list[str] = []
        self._open: list[str] = []

    def paragraphs(self) -> list[str]:
        """Return the paragraphs, inline markup still in them."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not line.strip():
                self._flush()
                self._at += 1
            elif not (self._read_code(line) or self._read_markup(line) or self._read_section(line)):
                self._read_text(line)
        self._flush()
        return self._found

    def _read_code(self, line: str) -> bool:
        """Drop a doctest with its output, or a fenced block."""
        if _FENCE.match(line):
            self._flush()
            mark = line.strip()[:3]
            self._at += 1
            while self._at < len(self._lines) and mark not in self._lines[self._at]:
                self._at += 1
            self._at += 1
            return True
        if _DOCTEST.match(line):
            self._flush()
            while self._at < len(self._lines) and self._lines[self._at].strip():
                self._at += 1
            return True
        return False

    def _read_markup(self, line: str) -> bool:
        """Handle directives, comments, field lists, tables and rules."""
        directive = _DIRECTIVE.match(line)
        if directive:
            self._flush()
            content = self._take_indented(_indent(line))
            if directive[1] in _PROSE_DIRECTIVES:
                options = [row for row in content if not re.match(r"\s*:[\w-]+:", row)]
                self._found += _Reader([directive[2], "", *_dedent(options)]).paragraphs()
            return True
        if _COMMENT.match(line):
            self._flush()
            self._take_indented(_indent(line))
            return True
        found = _FIELD.match(line)
        if found:
            self._flush()
            content = self._take_indented(_indent(line), stop_at_blank=not found[3])
            if not _DROPPED_FIELDS.fullmatch(found[1] or found[2]):
                self._found += _Reader([found[3] or "", *_dedent(content)]).paragraphs()
            return True
        if _TABLE_BORDER.match(line):
            self._flush()
            self._skip_table()
            return True
        if _TABLE_ROW.match(line) or _HEADING.match(line) or _RULE.match(line):
            if _RULE.match(line) and len(self._open) == 1:
                self._open = []  # a title, which is no sentence
            self._flush()
            self._at += 1
            return True
        return False

    def _read_section(self, line: str) -> bool:
        """Handle a section in the numpy style (underlined) or the Google style (colon, indent)."""
        below = self._lines[self._at + 1] if self._at + 1 < len(self._lines) else ""
        underlined = bool(_RULE.match(below)) and not _TABLE_BORDER.match(below)
        if underlined and len(below.strip()) >= 3:
            name = line.strip().rstrip(":").lower()
            self._flush()
            self._at += 2
            kind = _section_kind(name)
            if kind:
                content = self._take_until_title()
                self._found += _entries(_dedent(content)) if kind == "entries" else []
            return True
        header = _SECTION.match(line)
        kind = _section_kind(header[1].lower()) if header else ""
        if not kind:
            return False
        self._flush()
        content = self._take_indented(_indent(line))
        self._found += _entries(_dedent(content)) if kind == "entries" else []
        return True

    def _read_text(self, line: str) -> None:
        """Add a line to the open paragraph, or begin one with it."""
        self._at += 1
        item = _ITEM.match(line)
        dashes = _DASHES.fullmatch(line)
        if item or dashes:
            self._flush()
            self._open.append(dashes[3] if dashes else line[item.end() :] if item else "")
        elif _SIGNATURE.fullmatch(line) and not self._open:
            return
        else:
            self._open.append(line.strip())
        if line.rstrip().endswith("::"):
            self._open[-1] = self._open[-1].removesuffix(":")
            self._flush()
            self._at -= 1
            self._take_indented(_indent(line))

    def _flush(self) -> None:
        if self._open:
            self._found.append(" ".join(self._open))
        self._open = []

    def _take_indented(self, indent: int, *, stop_at_blank: bool = False) -> list[str]:
        """Consume the present line and those below it that are indented deeper than `indent`."""
        start = self._at = self._at + 1
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.strip() and _indent(line) <= indent or (stop_at_blank and not line.strip()):
                break
            self._at += 1
        return self._lines[start : self._at]

    def _take_until_title(self) -> list[str]:
        """Consume lines up to the next underlined title or directive of this level."""
        start = self._at
        while self._at < len(self._lines):
            below = self._lines[self._at + 1] if self._at + 1 < len(self._lines) else ""
            line = self._lines[self._at]
            title = line.strip() and _RULE.match(below) and not _TABLE_BORDER.match(below)
            if title or (_DIRECTIVE.match(line) and _indent(line) == 0):
                break
            self._at += 1
        return self._lines[start : self._at]

    def _skip_table(self) -> None:
        """Drop a simple table: up to its last border, which a blank line follows."""
        while self._at < len(self._lines):
            border = bool(_TABLE_BORDER.match(self._lines[self._at]))
            self._at += 1
            after = self._lines[self._at].strip() if self._at < len(self._lines) else ""
            rest = self._lines[self._at :]
            if border and not after and not any(_TABLE_BORDER.match(row) for row in rest[:12]):
                return
            if not border and not any(_TABLE_BORDER.match(row) for row in rest):
                return


def _section_kind(name: str) -> str:
    words = name.strip(" :*").split()
    if not words or len(words) > 3:
        return ""
    if words[0] in _DROPPED_SECTIONS or words[-1] in ("example", "examples", "methods"):
        return "dropped"
    return "entries" if words[-1] in _ENTRY_SECTIONS else ""


def _entries(lines: list[str]) -> list[str]:
    """Return the descriptions in a list of parameters, attributes, results or errors."""
    found: list[str] = []
    reader_lines: list[str] = []
    for index, line in enumerate(lines):
        below = next((row for row in lines[index + 1 :] if row.strip()), "")
        google = _GOOGLE_ENTRY.fullmatch(line)
        if _indent(line) > 0 or not line.strip():
            reader_lines.append(line)
        elif google and " : " not in line and not (_indent(below) > 0 and _is_type(google[1])):
            reader_lines += ["", google[1]]
        elif _indent(below) > 0 or " : " in line:
            reader_lines.append("")  # `name : type`, whose description is indented below
        else:
            reader_lines.append(line)
    block: list[str] = []
    for line in [*reader_lines, ""]:
        if line.strip():
            block.append(line.strip() if _FIELD.match(line) is None else "")
        elif block:
            found += _Reader(block).paragraphs()
            block = []
    return found


def _is_type(text: str) -> bool:
    return len(text.split()) <= 6 and bool(_TYPE.fullmatch(text))


def _clean_paragraph(text: str, *, is_first: bool) -> str:
    """Take inline markup off a paragraph and keep its sentences that read like English.

    A sentence that ends in a colon announced what was dropped, and is dropped as well; the first
    paragraph says what the thing is, and keeps it.
    """
    if _LEGAL.search(text):
        return ""
    text = _LABEL.sub("", text)
    for needle, pattern, replacement in _INLINE:
        if needle in text:
            text = pattern.sub(replacement, text)
    sentences = [s.strip() for s in _SENTENCE_END.split(text)]
    if sentences[-1].endswith(":") and not is_first:
        del sentences[-1]
    kept = " ".join(s for s in sentences if _reads_like_english(s))
    kept = kept.rstrip(" :;,-–—")
    if not kept:
        return ""
    kept = kept[0].upper() + kept[1:] if re.match(r"[a-z]+[ ,]", kept) else kept
    return kept if kept[-1] in ".!?" or kept.endswith((".)", '."', ".'")) else f"{kept}."


def _reads_like_english(sentence: str) -> bool:
    tokens = sentence.split()
    if len(tokens) < 3 or _HOLE in sentence:
        return False
    num_words = sum(1 for token in tokens if _WORD.fullmatch(token))
    num_marks = len(_CODE_MARKS.findall(sentence))
    return num_words >= 0.7 * len(tokens) and num_marks <= 0.12 * len(tokens)


def _is_english(text: str, words: list[str]) -> bool:
    num_common = sum(1 for word in words if word.strip("\"'(),.;:!?").lower() in _FUNCTION_WORDS)
    num_foreign = sum(1 for character in text if ord(character) > 0x2FF)
    needed = 1 if len(words) < 12 else 0.15 * len(words)
    return num_common >= needed and num_foreign <= 0.02 * len(text)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _dedent(lines: list[str]) -> list[str]:
    margin = min((_indent(line) for line in lines if line.strip()), default=0)
    return [line[margin:] for line in lines]
