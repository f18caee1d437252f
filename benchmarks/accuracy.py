"""How far every arithmetic of the encoder is from float64, layer by layer and in the layers' mean.

Relative error: the length of the difference over that of the float64 vectors, all tokens together
and for the worst token. Cosine: of each token's vector with its float64 one. Same nearest: the
share of tokens whose nearest other token of the text, by cosine, is the one that float64 finds.
Weights are random (random_elmo.py), or those of the trained models in the directories of `--model`.
Same bits alone: whether a sentence's vectors are the same to the bit without its batch mates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import machine
from random_elmo import SIZES, options_of, random_model
from sample_text import LENGTHS, news_sentences

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END, CharacterEncoder
from elmo_model.directory import ModelFiles, load_directory
from elmo_model.encoder import Encoder
from elmo_model.errors import DeviceError
from elmo_model.weights import build

ARITHMETICS = ("float32", "bfloat16", "float16", "int8")
SEED = 1
# Sentences that are encoded at once; the tokens of all of them are compared together.
ROWS = 64


def layers_of(encoder: Encoder, sentences: Sequence[Sequence[str]]) -> Tensor:
    """Vectors (L+2, N, D) of all tokens in float64: every layer, then their mean.

    The mean is taken in the encoder's own element type, as the jobs do.
    """
    parts = []
    for first in range(0, len(sentences), ROWS):
        found = encoder.encode(sentences[first : first + ROWS])
        layers_LND = found.layers[:, found.mask]
        parts.append(torch.cat([layers_LND, layers_LND.mean(0, keepdim=True)]).double())
    return torch.cat(parts, dim=1)


def float64_layers(files: ModelFiles, sentences: Sequence[Sequence[str]]) -> Tensor:
    """The same vectors from the plain modules, every part of them in float64."""
    exact = {name: value.double() for name, value in files.state.items()}
    bilm = build(files.options, exact).requires_grad_(False).eval()
    assert files.options.char_cnn is not None
    spell = CharacterEncoder(files.options.char_cnn.max_characters_per_token)
    number = {SENTENCE_BEGIN: 0, SENTENCE_END: 1}
    for word in (word for sentence in sentences for word in sentence):
        number.setdefault(word, len(number))
    table_UP = bilm.token_embedding(torch.from_numpy(spell.encode(list(number))))
    parts = []
    for first in range(0, len(sentences), ROWS):
        batch = sentences[first : first + ROWS]
        lengths_B = np.array([len(sentence) for sentence in batch])
        ids_BT = np.zeros((len(batch), int(lengths_B.max()) + 2), np.int64)
        for row, sentence in enumerate(batch):
            marked = [SENTENCE_BEGIN, *sentence, SENTENCE_END]
            ids_BT[row, : len(marked)] = [number[word] for word in marked]
        layers, _ = bilm(table_UP, ids_BT, lengths_B + 2, keep_marks=False)
        mask = torch.from_numpy(np.arange(layers.shape[2]) < lengths_B[:, None])
        layers_LND = layers[:, mask]
        parts.append(torch.cat([layers_LND, layers_LND.mean(0, keepdim=True)]))
    return torch.cat(parts, dim=1)


def compare(found_ND: Tensor, expected_ND: Tensor) -> dict[str, float]:
    """The measures of one layer; figures are rounded to what can be read."""
    difference_N = (found_ND - expected_ND).norm(dim=1)
    length_N = expected_ND.norm(dim=1)
    cosine_N = F.cosine_similarity(found_ND, expected_ND, dim=1)
    nearest_N = _nearest(expected_ND)
    return {
        "relative_error": _short(difference_N.norm() / length_N.norm()),
        "relative_error_worst_token": _short((difference_N / length_N).max()),
        "cosine_mean": round(float(cosine_N.mean()), 8),
        "cosine_min": round(float(cosine_N.min()), 8),
        "same_nearest": round(float((_nearest(found_ND) == nearest_N).double().mean()), 4),
    }


def _nearest(vectors_ND: Tensor) -> Tensor:
    unit_ND = F.normalize(vectors_ND.float(), dim=1)
    cosine_NN = unit_ND @ unit_ND.t()
    # In layer 0 the same word has the same vector, so the first of them is taken on both sides.
    return cosine_NN.fill_diagonal_(-1.0).argmax(dim=1)


def _short(value: Tensor) -> float:
    return float(f"{float(value):.3g}")


def table(
    files: ModelFiles, sentences: Sequence[Sequence[str]], wanted: Sequence[str]
) -> dict[str, Any]:
    """The measures of every arithmetic that is available, by layer."""
    expected = float64_layers(files, sentences)
    names = [*(f"layer {layer}" for layer in range(len(expected) - 1)), "average"]
    rows: dict[str, Any] = {}
    for arithmetic in wanted:
        try:
            encoder = Encoder(files, device="cpu", dtype=arithmetic)
        except DeviceError as error:
            rows[arithmetic] = {"left_out": str(error)}
            continue
        found = layers_of(encoder, sentences)
        rows[arithmetic] = {
            name: compare(found_ND, expected_ND)
            for name, found_ND, expected_ND in zip(names, found, expected, strict=True)
        }
        rows[arithmetic]["same_bits_alone"] = _same_bits_alone(encoder, sentences[:ROWS])
    return rows


def _same_bits_alone(encoder: Encoder, sentences: Sequence[Sequence[str]]) -> bool:
    """Whether a short, a middling and the longest sentence get what they get among the others."""
    together = encoder.encode(sentences).layers
    by_length = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
    for row in (by_length[0], by_length[len(by_length) // 2], by_length[-1]):
        # Its words are spelled alone, too.
        encoder._cache._rows.clear()
        alone = encoder.encode([sentences[row]]).layers[:, 0]
        if not torch.equal(alone, together[:, row, : len(sentences[row])]):
            return False
    return True


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--news", required=True, help="bbc.jsonl.xz of the reference corpora")
    parser.add_argument("--model", nargs="*", default=[], help="directories of trained models")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--text", choices=LENGTHS, default="mixed")
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=ARITHMETICS)
    parser.add_argument("--result")
    args = parser.parse_args()
    sentences = news_sentences(Path(args.news), args.text, args.sentences)
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "seed": SEED,
        "text": args.text,
        "tokens": sum(map(len, sentences)),
        "models": {},
    }
    for directory in args.model:
        files = load_directory(directory)
        name = f"trained, {files.options.lstm.dim}/{files.options.lstm.projection_dim}"
        result["models"][name] = table(files, sentences, args.arithmetics)
    for size in args.sizes:
        files = random_model(options_of(size), words[:500], SEED)
        result["models"][f"random weights, {size}"] = table(files, sentences, args.arithmetics)
    machine.save(args.result, result)


if __name__ == "__main__":
    main()
