"""Read a corpus as a stream of numbered sentences, in its own order and in bounded memory.

What is held is a batch of documents and the table of distinct words. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from elmo_model.lm_batches import Corpus, Ids, WordTable
from pipeline.config import SourceConfig, TextConfig
from pipeline.embed import token_window
from pipeline.records import rejected_table
from pipeline.rejected import RejectedTally
from pipeline.sources.discover import Discovery
from pipeline.sources.read import read_documents
from pipeline.text import tokenise


class SentenceStream:
    """The sentences of a corpus, and counts of what was read by now.

    `num_predictions` are those of one direction: the tokens, and a sentence mark for each sentence.
    `num_cut_tokens` were beyond `text.max_document_tokens` of their document.
    """

    def __init__(self, discovery: Discovery, table: WordTable, max_tokens: int | None) -> None:
        """Take the files of a corpus.

        Args:
            discovery: of the source that will be read.
            table: numbers the words, and learns those that it meets.
            max_tokens: reading ends with the sentence that reaches so many; None reads all.
        """
        self._discovery = discovery
        self._table = table
        self._max_tokens = max_tokens
        self.num_documents = self.num_sentences = self.num_tokens = self.num_cut_tokens = 0
        self.rejected = RejectedTally()
        self.rejected.reject(rejected_table(discovery.rejected))

    @property
    def num_predictions(self) -> int:
        """Predictions of one direction in what was read."""
        return self.num_tokens + self.num_sentences

    def sequences(self, source: SourceConfig, text: TextConfig) -> Iterator[Ids]:
        """Table numbers of each sentence with its marks, int64; to be called once.

        Raises:
            SourceError: the source cannot be read as configured.
            StorageError: the store failed.
        """
        for split in self._discovery.splits:
            for batch in read_documents(split, source, text):
                self.rejected.reject(batch.rejected.table)
                if not batch.documents.num_rows:
                    continue
                documents = tokenise(batch.documents, text)
                window = token_window(documents)
                lengths_S = window.sentence_lengths
                ends_S = self.num_tokens + np.cumsum(lengths_S)
                if self._max_tokens is not None:
                    stop = int(np.searchsorted(ends_S, self._max_tokens)) + 1
                    lengths_S, ends_S = lengths_S[:stop], ends_S[:stop]
                num_new = int(lengths_S.sum())
                ids_N = self._table.ids_of(window.words)[window.word_ids[:num_new]]
                before_D = np.cumsum(window.sentences_per_document)
                num_documents = int(np.searchsorted(before_D, len(lengths_S))) + 1
                cut_tokens = documents["num_cut_tokens"].slice(0, num_documents)
                self.num_cut_tokens += int(cut_tokens.to_numpy().sum())
                self.num_documents += num_documents
                self.num_sentences += len(lengths_S)
                self.num_tokens += num_new
                yield from Corpus(ids_N, lengths_S, self._table).sequences()
                if self._max_tokens is not None and self.num_tokens >= self._max_tokens:
                    return
