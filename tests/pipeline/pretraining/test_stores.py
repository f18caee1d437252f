"""Training whose work directory and model are in an object store."""

import json

import pytest
import torch

from elmo_model.encoder import Encoder
from pipeline.config import build
from pipeline.model_files import local_copy
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.crew import Alone
from pipeline.pretraining.loop import train
from pipeline.pretraining.model_output import check_output
from pipeline.pretraining.prepare import prepare_text
from pipeline.pretraining.run import finish, prepare, train_here
from pipeline.pretraining.shards import read_unit
from pipeline.pretraining.vocabulary import make_vocabulary
from pipeline.storage import open_storage
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def config_of(toy, url, **training):
    values = toy_config(toy, f"{url}/model", **training)
    values["run"] |= {"checkpoint_steps": 4}
    return build(PretrainConfig, values, "test")


@pytest.mark.s3
def test_a_training_in_a_store_is_interrupted_gone_on_with_and_replaced(
    toy, rgw_url, tmp_path, monkeypatch
):
    monkeypatch.setenv("ELMO_CACHE", str(tmp_path / "cache"))
    config = config_of(toy, rgw_url, max_steps=10)

    def kill(step, *_):
        if step == 7:
            raise KeyboardInterrupt

    check_output(config.output.directory, overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        train(prepare(config).task, Alone(), torch.device("cpu"), kill)
    prepared = prepare(config)
    assert prepared.resumed_step == 5
    end = train_here(prepared.task, lambda *progress: None)
    finish(prepared, end)
    model = open_storage(config.output.directory)
    assert {info.path for info in model.list_files()} == {
        "options.json",
        "weights.safetensors",
        "vocabulary.txt",
        "softmax.safetensors",
        "training.json",
    }
    assert json.loads(model.read_bytes("training.json", 1 << 20))["steps"] == 10
    layers = Encoder.from_directory(local_copy(config.output.directory)).encode([["cat"]]).layers
    assert torch.isfinite(layers).all()
    work = open_storage(config.output.work_directory)
    assert {"run.json", "metrics.jsonl", "curves.png"} <= {i.path for i in work.list_files()}
    check_output(config.output.directory, overwrite=True)
    again = prepare(config_of(toy, rgw_url, max_steps=3), begin_anew=True)
    assert again.resumed_step is None
    finish(again, train_here(again.task, lambda *progress: None))
    assert json.loads(model.read_bytes("training.json", 1 << 20))["steps"] == 3


@pytest.mark.s3
def test_a_unit_of_text_takes_one_request(toy, rgw_proxy):
    config = config_of(toy, rgw_proxy.new_directory())
    storage = open_storage(config.output.work_directory)
    text = prepare_text(storage, "text", config.source, config.text, 0.0)
    (shard,) = text.train
    assert len(shard.unit_tokens) == 2
    rgw_proxy.forget()
    parts = [read_unit(storage, shard, unit) for unit in (1, 0, 1)]
    assert [event.method for event in rgw_proxy.events()] == ["GET"] * 3
    assert [len(part.ids_N) for part in parts] == [shard.unit_tokens[unit] for unit in (1, 0, 1)]
    rgw_proxy.forget()
    make_vocabulary(config.vocabulary, storage, text)
    assert [event.method for event in rgw_proxy.events()] == ["GET"]
