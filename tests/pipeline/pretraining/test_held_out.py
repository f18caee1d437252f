"""Held-out text in batches: most of it is counted, whatever its sentences are like."""

import json

import pytest

from elmo_model.lm_batches import WordTable
from elmo_model.vocabulary import Vocabulary
from pipeline.config import SourceConfig, TextConfig, build
from pipeline.pretraining.held_out import HeldOutText
from pipeline.pretraining.prepare import local, prepare_text
from pipeline.storage import open_storage


@pytest.mark.parametrize(("num_sentences", "num_tokens"), [(1, 500), (6, 300), (40, 25), (400, 5)])
def test_most_of_the_text_is_counted(num_sentences, num_tokens, tmp_path):
    with (tmp_path / "text.jsonl").open("w") as file:
        for number in range(num_sentences):
            words = " ".join(f"w{number % 7}" for _ in range(num_tokens))
            file.write(json.dumps({"id": f"d{number}", "text": f"{words} d{number}"}) + "\n")
    source = build(SourceConfig, {"path": str(tmp_path / "text.jsonl"), "id_column": "id"}, "test")
    config = TextConfig(tokenizer="pretokenized", max_sentence_tokens=1000)
    storage = open_storage(str(tmp_path / "work"))
    text = prepare_text(storage, "text", source, config, 0.0, local)
    table = WordTable(Vocabulary.from_counts({"w1": 2}), None)
    held_out = HeldOutText(storage, text.train, table, max_tokens=100_000)
    counted = sum(batch.forward.targets_BT.numel() for batch in held_out.batches())
    assert counted > 0.5 * num_sentences * (num_tokens + 2)
