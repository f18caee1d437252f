"""A model that costs nothing and whose vectors still depend on every word: for tests of the run."""

import zlib

import numpy as np

from pipeline.backend import EncoderDescription
from pipeline.token_window import BatchCounts

DIM = 8


def word_vector(word):
    """A vector in [0, 1) that only this word has."""
    bits = [zlib.crc32(f"{word}/{place}".encode()) for place in range(DIM)]
    return np.array(bits, dtype=np.float64) / 2**32


class WordModel:
    """The mean of the words' vectors, at each level."""

    dim = DIM
    vector_columns = ("vector",)

    def __init__(self, level):
        self._level = level
        self.counts = BatchCounts()

    def vectors(self, window):
        table = np.stack([word_vector(word) for word in window.words])
        values, counts = table[window.word_ids], np.ones(len(window.word_ids))
        lengths = {
            "token": [],
            "sentence": [window.sentence_lengths],
            "document": [window.sentence_lengths, window.sentences_per_document],
        }[self._level]
        for length in lengths:
            starts = np.cumsum(length) - length
            values = np.add.reduceat(values, starts)
            counts = np.add.reduceat(counts, starts)
        return (values / counts[:, None])[:, None].astype(np.float16)


class WordLoader:
    """Makes the model in an actor's process."""

    def __init__(self, level):
        self._level = level

    def __call__(self):
        return WordModel(self._level)


class WordBackend:
    """Stands in for ELMo; `layers` is part of the fingerprint, as it is there."""

    def describe(self, config):
        fingerprint = f"words-{config.model.layers}-{config.vectors.level}"
        return EncoderDescription(fingerprint, {}, DIM, ("vector",))

    def loader(self, config, num_threads):
        return WordLoader(config.vectors.level)
