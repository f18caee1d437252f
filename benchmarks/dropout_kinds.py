"""Which kinds of dropout lower held-out perplexity where a text is seen many times.

    python benchmarks/dropout_kinds.py --data FOLDER --result FILE

trains one small word model for each kind on the first tenth of WikiText-2's articles, for as many
steps as make some thirteen passes, and measures the best weights on the validation part. The
training is that of `configs/wikitext-2-pretrain.yaml` but for its size, its vocabulary and the kind
of dropout. Two seeds say how much a difference is worth. What is done is kept: the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import corpora
import machine
from pretrain_corpus import WORK, job, processor_seconds

CONFIG = Path("configs/wikitext-2-pretrain.yaml")
FOLDER = WORK / "dropout-kinds"
SHARE = 0.1
SEEDS = (1, 2)
SETTINGS = (
    "architecture.projection_dim=128",
    "architecture.dim=256",
    "vocabulary.file=null",
    "vocabulary.max_size=10000",
    "training.max_steps=2400",
    "training.num_negative_samples=1024",
    "training.num_evaluations=8",
)
KINDS: dict[str, dict[str, Any]] = {
    "none": {"dropout": 0.0},
    "element 0.25": {"dropout": 0.25},
    "variational 0.25": {"dropout": 0.25, "dropout_kind": "variational"},
    "element 0.25, weights 0.2": {"dropout": 0.25, "weight_drop": 0.2},
    "element 0.25, words 0.1": {"dropout": 0.25, "word_dropout": 0.1},
    "variational 0.25, weights 0.2, words 0.1": {
        "dropout": 0.25,
        "dropout_kind": "variational",
        "weight_drop": 0.2,
        "word_dropout": 0.1,
    },
}


def write_first_articles(whole: Path, target: Path) -> int:
    """Copy the first tenth of the articles; returns the number of their words."""
    lines = whole.read_text(encoding="utf-8").splitlines()
    chosen = lines[: round(SHARE * len(lines))]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")
    return sum(len(json.loads(line)["text"].split()) for line in chosen)


def trained(name: str, seed: int, text: Path) -> dict[str, Any]:
    """Train one kind with one seed, or find it trained; its measures on the validation part."""
    folder = FOLDER / f"{name.replace(', ', '+').replace(' ', '-')}-{seed}"
    result = folder / "measured.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    folder.mkdir(exist_ok=True)
    dropout = [f"architecture.{key}={value}" for key, value in KINDS[name].items()]
    own = [f"source.path={text}", f"output.directory={folder}/model", f"training.seed={seed}"]
    if not (folder / "model").exists():
        processor_seconds(job("pretrain", CONFIG, [*SETTINGS, *dropout, *own]))
    record = json.loads((folder / "model" / "training.json").read_text())
    config = folder / "perplexity.json"
    held_out = {"source": record["config"]["held_out"], "text": record["config"]["text"]}
    measured = {"directory": f"{folder}/model", "dtype": "float32"}
    config.write_text(json.dumps({**held_out, "model": measured}))
    # Each article whole, as published perplexities are counted.
    whole = ["text.max_sentence_tokens=1000000", "evaluation.batch_size=1"]
    _, printed = processor_seconds(job("perplexity", config, whole))
    found = {
        "validation": json.loads(printed)["result"]["perplexity"],
        "while_training": [round(e["mean"], 1) for e in record["perplexity"]],
        "last_loss": record["perplexity"][-1]["loss"],
        "tokens": record["tokens"],
        "train_seconds": round(record["train_seconds"]),
    }
    result.write_text(json.dumps(found))
    return found


def main() -> None:
    """Train all kinds, one after the other, and write what they reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed corpora")
    parser.add_argument("--result", help="file of the result")
    arguments = parser.parse_args()
    described = machine.describe()
    whole = WORK / "wikitext-2"
    if not whole.exists():
        corpora.unpack_wikitext(arguments.data / "wikitext-2", whole)
    text = FOLDER / "train.jsonl"
    num_words = write_first_articles(whole / "train.jsonl", text)
    found: dict[str, dict[str, Any]] = {name: {} for name in KINDS}
    for seed, name in product(SEEDS, KINDS):
        found[name][str(seed)] = trained(name, seed, text)
        print(f"{name}, seed {seed}: {found[name][str(seed)]}", flush=True)
        done = {key: value for key, value in found.items() if value}
        machine.save(
            arguments.result,
            {"machine": described, "words": num_words, "settings": SETTINGS, "kinds": done},
        )


if __name__ == "__main__":
    main()
