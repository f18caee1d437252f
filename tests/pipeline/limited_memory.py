"""Embed the first texts of a corpus with or without a limit of memory, in a process of its own.

Arguments: options file, weights file, corpus (JSON lines, xz), level, output file, MiB that may be
allocated once the model is loaded (0: no limit), tokens of a batch.
"""

import json
import lzma
import resource
import sys

import numpy as np
import torch

from elmo_model.encoder import Encoder, LayerChoice
from pipeline.config import VectorConfig
from pipeline.elmo_vectors import ElmoVectors
from pipeline.token_window import TokenWindow

NUM_SENTENCES = 400


def window_of(sentences):
    tokens = [token for sentence in sentences for token in sentence]
    words = sorted(set(tokens))
    place = {word: index for index, word in enumerate(words)}
    return TokenWindow(
        words=words,
        word_ids=np.array([place[token] for token in tokens], np.int32),
        sentence_lengths=np.array([len(sentence) for sentence in sentences], np.int64),
        sentences_per_document=np.array([4] * (len(sentences) // 4), np.int64),
    )


def sentences_of(corpus):
    found = []
    with lzma.open(corpus, "rt") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            found += [part.split()[:80] for part in text.split(". ") if part.split()]
            if len(found) >= NUM_SENTENCES:
                return found[:NUM_SENTENCES]
    raise AssertionError("the corpus is too small")


def limit(size_bytes):
    with open("/proc/self/status") as lines:
        used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + size_bytes, resource.RLIM_INFINITY))


def main():
    options, weights, corpus, level, output, limit_mib, max_tokens = sys.argv[1:]
    torch.set_num_threads(1)
    encoder = Encoder.from_files(options, weights, device="cpu")
    choice = LayerChoice.parse("average", num_layers=encoder.num_layers)
    config = VectorConfig(level=level, dtype="float32")
    model = ElmoVectors(encoder, choice, config, int(max_tokens))
    sentences = sentences_of(corpus)
    model.vectors(window_of(sentences[:4]))  # what is allocated once is there before the limit is
    if int(limit_mib):
        limit(int(limit_mib) << 20)
    splits = []
    for _ in range(2):
        vectors = model.vectors(window_of(sentences))
        splits.append(model.counts.num_oom_splits)
    sys.stdout.write(json.dumps({"splits": splits, "safe_tokens": model.counts.safe_tokens}))
    np.save(output, vectors)


if __name__ == "__main__":
    main()
