"""A corpus with a simple grammar, which a small model learns within seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NOUNS = ["cat", "dog", "bird", "horse", "fish", "cow"]
VERBS = ["sees", "hears", "follows", "likes"]
PLACES = ["garden", "house", "field", "river"]


def write_toy_corpus(path: Path, num_documents: int = 300) -> Path:
    """Write JSON lines with id and text; every document has its own number, so none is a copy."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(num_documents):
            sentences = [
                f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} "
                f"in the {rng.choice(PLACES)}."
                for _ in range(4)
            ]
            text = " ".join([*sentences, f"This is story {number}."])
            file.write(json.dumps({"id": f"story-{number}", "text": text}) + "\n")
    return path


def toy_config(source: Path, directory: Path, **training: Any) -> dict[str, Any]:
    """Values of a PretrainConfig for a tiny model on one thread."""
    return {
        "source": {"path": str(source), "id_column": "id"},
        "architecture": {
            "projection_dim": 8,
            "dim": 16,
            "filters": [[1, 8], [2, 8]],
            "char_embedding_dim": 4,
            "max_characters": 12,
            "dropout": 0.0,
        },
        "training": {
            "max_seconds": None,
            "max_steps": 20,
            "batch_size": 8,
            "unroll_steps": 10,
            "warmup_steps": 5,
            "num_negative_samples": 8,
            "held_out_share": 0.1,
            "num_evaluations": 2,
            **training,
        },
        "run": {"num_threads": 1},
        "output": {"directory": str(directory)},
    }
