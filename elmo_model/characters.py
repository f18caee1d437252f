"""Words to character ids: the UTF-8 bytes of a word between two marks, padded to a fixed width.

Ids 0-255 are bytes; 256 and 257 the sentence's begin and end, 258 and 259 the word's, 260 padding
inside a word. Prediction shifts all by one, so that 0 can mean "no token here". No lower-casing, no
normalisation, no vocabulary. Knows no tensors and no model.

Axes: N words, B sentences, T tokens of the longest sentence, C characters of a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SENTENCE_BEGIN, SENTENCE_END = "<S>", "</S>"
BEGIN_SENTENCE_ID, END_SENTENCE_ID = 256, 257
BEGIN_WORD_ID, END_WORD_ID, PAD_ID = 258, 259, 260
DEFAULT_MAX_CHARACTERS = 50

CharIds = NDArray[np.int64]


class CharacterEncoder:
    """Spells words; one encoder for a model's width and numbering."""

    def __init__(
        self,
        max_characters_per_token: int = DEFAULT_MAX_CHARACTERS,
        *,
        shifted: bool = True,
        tokens_to_add: Mapping[str, int] | None = None,
    ) -> None:
        """Set the width and the numbering.

        Args:
            max_characters_per_token: C; a word keeps its first C - 2 bytes, even where that cuts
                through a character, as in the original.
            shifted: number from 1, as prediction does; False as training does.
            tokens_to_add: words with an id of their own below 261 (not shifted), which stands
                between the word marks as the ids of `<S>` and `</S>` do.

        Raises:
            ValueError: no room for the marks and a byte, or an added id that is out of range.
        """
        if max_characters_per_token < 3:
            raise ValueError(
                f"max_characters_per_token must be at least 3, got {max_characters_per_token}"
            )
        self.max_characters_per_token = max_characters_per_token
        self._shift = int(shifted)
        self._special = {SENTENCE_BEGIN: BEGIN_SENTENCE_ID, SENTENCE_END: END_SENTENCE_ID}
        for token, char_id in (tokens_to_add or {}).items():
            if not 0 <= char_id <= PAD_ID:
                raise ValueError(f"tokens_to_add[{token!r}] must be 0..{PAD_ID}, got {char_id}")
            self._special[token] = char_id

    def encode(self, words: Sequence[str]) -> CharIds:
        """Spell words.

        Lone surrogates have no UTF-8 form and are left out; a word without bytes is its two marks.

        Returns: ids (N, C) int64.
        """
        width = self.max_characters_per_token
        pieces = [word.encode("utf-8", "ignore")[: width - 2] for word in words]
        lengths_N = np.fromiter(map(len, pieces), np.int64, len(pieces))
        ids_NC = np.full((len(pieces), width), PAD_ID, np.int64)
        ids_NC[:, 0] = BEGIN_WORD_ID
        rows = np.repeat(np.arange(len(pieces)), lengths_N)
        starts = np.cumsum(lengths_N) - lengths_N
        ids_NC[rows, np.arange(rows.size) - starts[rows] + 1] = np.frombuffer(
            b"".join(pieces), np.uint8
        )
        ids_NC[np.arange(len(pieces)), lengths_N + 1] = END_WORD_ID
        for row in [row for row, word in enumerate(words) if word in self._special]:
            ids_NC[row, 1:] = PAD_ID
            ids_NC[row, 1:3] = self._special[words[row]], END_WORD_ID
        return ids_NC + self._shift if self._shift else ids_NC

    def encode_sentences(self, sentences: Sequence[Sequence[str]]) -> CharIds:
        """Spell sentences, without sentence marks.

        Returns: ids (B, T, C) int64; rows beyond a sentence's end are 0, so only shifted ids tell
            padding from text.
        """
        lengths_B = np.fromiter(map(len, sentences), np.int64, len(sentences))
        longest = int(lengths_B.max(initial=0))
        ids_BTC = np.zeros((len(sentences), longest, self.max_characters_per_token), np.int64)
        is_token = np.arange(longest) < lengths_B[:, None]
        ids_BTC[is_token] = self.encode([word for sentence in sentences for word in sentence])
        return ids_BTC
