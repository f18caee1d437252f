"""Train a biLM on a public corpus by its configuration, and say what it reached at which cost.

    python benchmarks/pretrain_corpus.py wikitext-2 --data FOLDER --result FILE

unpacks the corpus into `.corpora/<name>`, trains by `configs/<name>-pretrain.yaml`, and measures
the model on the whole validation part with the state carried. A run that was interrupted goes on
with the same command; the processor time of all its runs is added up.
Other settings follow `--set`, as with the jobs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import corpora
import machine

WORK = Path(".corpora")
UNPACK: dict[str, Callable[[Path, Path], None]] = {
    "wikitext-2": lambda data, target: corpora.unpack_wikitext(data / "wikitext-2", target),
    "english-novels": lambda data, target: corpora.unpack_novels(data / "english-novels", target),
    "chinese": corpora.unpack_chinese,
}
# How the validation part is read for the last figure, where not as the training reads text.
MEASURED: dict[str, tuple[str, ...]] = {
    # Each article whole, one after the other: all 217,646 words are counted.
    "wikitext-2": ("text.max_sentence_tokens=1000000", "evaluation.batch_size=1"),
    "english-novels": ("evaluation.max_tokens=100000",),
    "chinese": ("evaluation.max_tokens=100000",),
}


def processor_seconds(command: Sequence[str]) -> tuple[float, str]:
    """Run a program; its processor time with that of its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used_s, done.stdout


def job(name: str, config: Path, settings: Sequence[str]) -> list[str]:
    """The command of a job that prints JSON."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", f"jobs.{name}", "--config", str(config), *sets, "--json"]


def train(name: str, settings: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Train, or go on; the processor seconds of all runs so far, and the training's record."""
    log = WORK / name / "processor-seconds.json"
    before_s = json.loads(log.read_text()) if log.exists() else 0.0
    model = WORK / name / "model"
    used_s = 0.0
    if not model.exists():
        config = Path(f"configs/{name}-pretrain.yaml")
        try:
            used_s, _ = processor_seconds(job("pretrain", config, settings))
        finally:
            if not used_s:  # interrupted: what it used counts all the same
                usage = resource.getrusage(resource.RUSAGE_CHILDREN)
                used_s = usage.ru_utime + usage.ru_stime
            log.write_text(json.dumps(before_s + used_s))
    return before_s + used_s, json.loads((model / "training.json").read_text())


def measure(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Perplexity of the model on the validation part, by `elmo perplexity`."""
    config = {
        "source": record["config"]["held_out"],
        "text": record["config"]["text"],
        "model": {"directory": str(WORK / name / "model"), "dtype": "float32"},
    }
    path = WORK / name / "perplexity.json"
    path.write_text(json.dumps(config))
    _, printed = processor_seconds(job("perplexity", path, MEASURED[name]))
    result: dict[str, Any] = json.loads(printed)
    return result


def main() -> None:
    """Unpack, train, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(UNPACK))
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed corpora")
    parser.add_argument("--set", action="append", default=[], help="a setting of the training")
    parser.add_argument("--result", help="file of the result")
    arguments = parser.parse_args()
    described = machine.describe()
    target = WORK / arguments.name
    if not target.exists():
        UNPACK[arguments.name](arguments.data, target)
    used_s, record = train(arguments.name, arguments.set)
    measured = measure(arguments.name, record)
    kept = ("seed", "steps", "step_of_the_model", "tokens", "train_seconds", "tokens_per_s")
    machine.save(
        arguments.result,
        {
            "machine": described,
            "corpus": arguments.name,
            **{key: record[key] for key in kept},
            "waited_for_text_share": record["waited_for_text_s"] / record["train_seconds"],
            "processor_seconds": round(used_s),
            "parameters": record["parameters"],
            "train": record["train"],
            "vocabulary": record["vocabulary"],
            "perplexity_while_training": record["perplexity"],
            "validation": measured,
            "config": record["config"],
        },
    )


if __name__ == "__main__":
    main()
