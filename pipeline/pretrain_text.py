"""Read a corpus for pretraining: tokens, the held-out share, the vocabulary, numbered text.

All text is held in memory as word numbers. Knows no model and no training.

Shape suffixes: D documents, S sentences, N tokens.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from elmo_model.lm_batches import Corpus, WordTable
from elmo_model.vocabulary import Vocabulary
from pipeline.errors import SourceError
from pipeline.pretrain_config import PretrainConfig
from pipeline.sources.discover import Discovery
from pipeline.sources.read import read_documents
from pipeline.text import tokenise

log = logging.getLogger(__name__)

_HASH_BYTES = 8
_EMPTY = np.empty(0, np.int64)


@dataclass(frozen=True)
class TextPart:
    """Some tokenised documents, with distinct words of their own.

    `ids_N` are places in `words`; `hashes_D` are numbers from 0 to 1 that depend on the text alone.
    """

    words: list[str]
    ids_N: NDArray[np.int32]
    sentence_lengths_S: NDArray[np.int64]
    num_sentences_D: NDArray[np.int64]
    num_tokens_D: NDArray[np.int64]
    hashes_D: NDArray[np.float64]

    @classmethod
    def of(cls, documents: pa.Table, hashes_D: NDArray[np.float64]) -> TextPart:
        """Number the words of documents with TOKEN_FIELDS."""
        tokens = documents["tokens"].combine_chunks()
        lengths = documents["sentence_lengths"].combine_chunks()
        numbered = pa.concat_arrays([tokens.flatten()]).dictionary_encode()
        return cls(
            numbered.dictionary.to_pylist(),
            numbered.indices.to_numpy(zero_copy_only=False),
            lengths.flatten().to_numpy().astype(np.int64),
            lengths.value_lengths().to_numpy().astype(np.int64),
            tokens.value_lengths().to_numpy().astype(np.int64),
            hashes_D,
        )

    def select(self, is_chosen_D: NDArray[np.bool_]) -> TextPart:
        """The chosen documents; words that only the others use stay among `words`."""
        return TextPart(
            self.words,
            self.ids_N[np.repeat(is_chosen_D, self.num_tokens_D)],
            self.sentence_lengths_S[np.repeat(is_chosen_D, self.num_sentences_D)],
            self.num_sentences_D[is_chosen_D],
            self.num_tokens_D[is_chosen_D],
            self.hashes_D[is_chosen_D],
        )


@dataclass(frozen=True)
class PretrainText:
    """What a model is trained and measured on.

    `covered_share` is the share of the training tokens that are in the vocabulary.
    """

    vocabulary: Vocabulary
    train: Corpus
    held_out: Corpus
    num_train_documents: int
    num_held_out_documents: int
    num_rejected: int
    covered_share: float


def read_text(
    config: PretrainConfig,
    discovery: Discovery,
    on_progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> PretrainText:
    """Read, tokenise and number the corpus, in this process.

    A document is held out if a hash of its text is below `training.held_out_share`: the choice does
    not depend on order, ids or other documents, and copies of a text are on one side. If there is
    none such, the one with the smallest hash is held out. The vocabulary is counted without them.

    Args:
        config: source, text, and the training section's shares and limits.
        discovery: of `config.source`.
        on_progress: gets the documents and tokens read by now.

    Raises:
        SourceError: fewer than two documents, or the source cannot be read as configured.
        StorageError: the store failed.
    """
    training = config.training
    parts, num_rejected = _read_parts(config, discovery, on_progress)
    hashes = np.concatenate([*(part.hashes_D for part in parts), np.empty(0)])
    # A hash equal to the smallest is that of a copy.
    limit = max(training.held_out_share, float(np.nextafter(hashes.min(initial=1.0), 2.0)))
    train = [part.select(part.hashes_D >= limit) for part in parts]
    held_out = [part.select(part.hashes_D < limit) for part in parts]
    num_train = sum(len(part.hashes_D) for part in train)
    if not num_train:
        raise SourceError(
            f"{', '.join(config.source.paths)}: expected at least two different documents, one to "
            f"train on and one to measure with, found {len(hashes)} ({num_rejected} rejected)"
        )
    counts = count_words(train)
    vocabulary = Vocabulary.from_counts(counts, training.min_count, training.vocabulary_size)
    covered = sum(count for word, count in counts.items() if word in vocabulary)
    table = WordTable(vocabulary, config.architecture.max_characters)
    return PretrainText(
        vocabulary=vocabulary,
        train=to_corpus(train, table),
        held_out=to_corpus(held_out, table),
        num_train_documents=num_train,
        num_held_out_documents=len(hashes) - num_train,
        num_rejected=num_rejected,
        covered_share=covered / counts.total(),
    )


def count_words(parts: Sequence[TextPart]) -> Counter[str]:
    """How often each word occurs."""
    counts: Counter[str] = Counter()
    for part in parts:
        per_word = np.bincount(part.ids_N, minlength=len(part.words)).tolist()
        counts.update(
            {word: count for word, count in zip(part.words, per_word, strict=True) if count}
        )
    return counts


def to_corpus(parts: Sequence[TextPart], table: WordTable) -> Corpus:
    """The text as numbers of `table`, which learns the words."""
    numbers = [table.ids_of(part.words)[part.ids_N] for part in parts]
    lengths = [part.sentence_lengths_S for part in parts]
    return Corpus(np.concatenate([*numbers, _EMPTY]), np.concatenate([*lengths, _EMPTY]), table)


def text_hashes(text: pa.ChunkedArray) -> NDArray[np.float64]:
    """A number from 0 to 1 for each text, evenly spread: the leading bytes of its BLAKE2b hash."""
    digests = b"".join(
        hashlib.blake2b(value.encode(), digest_size=_HASH_BYTES).digest()
        for value in text.to_pylist()
    )
    return np.frombuffer(digests, ">u8") / 2.0 ** (8 * _HASH_BYTES)


def _read_parts(
    config: PretrainConfig, discovery: Discovery, on_progress: Callable[[int, int], None]
) -> tuple[list[TextPart], int]:
    parts: list[TextPart] = []
    num_documents = num_tokens = 0
    num_rejected = len(discovery.rejected)
    for split in discovery.splits:
        for batch in read_documents(split, config.source, config.text):
            num_rejected += len(batch.rejected)
            if not batch.documents.num_rows:
                continue
            tokenised = tokenise(batch.documents, config.text)
            parts.append(TextPart.of(tokenised, text_hashes(batch.documents["text"])))
            num_documents += batch.documents.num_rows
            num_tokens += len(parts[-1].ids_N)
            on_progress(num_documents, num_tokens)
            if num_tokens >= config.training.max_tokens:
                log.warning(
                    "stopped reading at %d tokens: training.max_tokens is %d",
                    num_tokens,
                    config.training.max_tokens,
                )
                return parts, num_rejected
    return parts, num_rejected
