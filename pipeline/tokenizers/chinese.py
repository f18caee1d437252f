"""The `chinese` tokeniser: words by jieba, sentences by 。！？； and line breaks.

jieba is loaded when the first text comes, without its cache file in the shared temporary folder
and without its log on stderr.
"""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.tokenizers.blanks import BLANK_CHARACTERS, SOLID_PATTERN
from pipeline.tokenizers.spans import TextBuffer, TokenSpans

# jieba builds a graph over its whole input: longer stretches are given to it in pieces.
MAX_STRETCH = 4096

_BLANKS = frozenset(BLANK_CHARACTERS)
_SENTENCE_END = re.compile(
    r"(?:[。！？；｡…]++|[!?]++(?![A-Za-z0-9=&/])|(?<=[A-Za-z]{2})\.(?=\s|$))++[”’」』】）)》\"']*+"
    r"|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]++"
)
_RUNS = frozenset("…—～~.·-=*！？。!?_、，,")


class ChineseTokeniser:
    """Chinese text, simplified or traditional; Latin words and numbers in it stay whole.

    Raises:
        ConfigError: jieba is not installed.
    """

    def __init__(self) -> None:
        try:
            self._version = importlib.metadata.version("jieba")
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                "text.tokenizer = chinese needs the package jieba, which is not installed here: "
                'pip install "elmo-nightly[chinese]"'
            ) from None

    @property
    def fingerprint(self) -> str:
        """Changes with every change of the rules, and with jieba and its dictionary."""
        return f"chinese-1/jieba-{self._version}"

    @property
    def solid_pattern(self) -> str:
        """RE2 pattern of a character that belongs to a token."""
        return SOLID_PATTERN

    def spans(self, text: TextBuffer) -> TokenSpans:
        """Find the tokens and sentences of each document."""
        document_offsets = np.zeros(text.num_documents + 1, np.int64)
        starts: list[int] = []
        ends: list[int] = []
        first: list[bool] = []
        bases: list[int] = []
        data = text.data.tobytes()
        base = 0
        edges = text.offsets.tolist()
        for document, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            string = data[begin:end].decode()
            for is_first, start, stop in _tokens(string):
                starts.append(start)
                ends.append(stop)
                first.append(is_first)
            bases.extend([base] * (len(starts) - len(bases)))
            base += len(string)
            document_offsets[document + 1] = len(starts)
        byte_of = np.flatnonzero((text.data & 0xC0) != 0x80)
        byte_of = np.append(byte_of, len(text.data)).astype(np.int32)
        shift = np.array(bases, np.int64)
        start_array, end_array = np.array(starts, np.int32), np.array(ends, np.int32)
        return TokenSpans(
            document_offsets=document_offsets,
            byte_starts=byte_of[start_array + shift],
            byte_ends=byte_of[end_array + shift],
            starts=start_array,
            ends=end_array,
            sentence_starts=np.array(first, bool),
        )


def _tokens(text: str) -> Iterator[tuple[bool, int, int]]:
    """(starts a sentence, start, end) of each token of a document."""
    cut = _jieba().cut
    for begin, stop in _sentences(text):
        is_first = True
        start = end = begin
        for low in range(begin, stop, MAX_STRETCH):
            position = low
            for word in cut(text[low : min(stop, low + MAX_STRETCH)]):
                word_end = position + len(word)
                if word in _RUNS and end == position and start < end and text[end - 1] == word:
                    end = word_end
                elif word not in _BLANKS:
                    if start < end:
                        yield is_first, start, end
                        is_first = False
                    start, end = position, word_end
                position = word_end
        if start < end:
            yield is_first, start, end


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for match in _SENTENCE_END.finditer(text):
        yield begin, match.end()
        begin = match.end()
    yield begin, len(text)


@lru_cache(maxsize=1)
def _jieba() -> Any:
    with warnings.catch_warnings():
        # jieba's sources make current Pythons warn when they are compiled or imported.
        warnings.simplefilter("ignore")
        import jieba
    tokenizer = jieba.Tokenizer()
    # `initialize` would log to stderr and read a cache that anyone may have put into /tmp.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
