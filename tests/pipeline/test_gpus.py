"""Actors get GPUs where there are some and the model can use them; contradictions are told."""

import pytest

from pipeline.config import EmbedConfig, build
from pipeline.errors import ConfigError
from pipeline.gpus import with_gpus


def config(gpus=None, **model):
    values = {
        "source": {"path": "corpus", "id_column": "id"},
        "model": {"directory": "model", **model},
        "output": {"path": "vectors"},
        "run": {"gpus_per_actor": gpus},
    }
    return build(EmbedConfig, values, "test")


@pytest.mark.parametrize(
    ("gpus", "model", "nodes", "actor", "device"),
    [
        (None, {}, [0, 0], 0, "cpu"),
        (None, {}, [0, 8], 1, "auto"),
        (None, {"dtype": "int8"}, [8], 0, "cpu"),
        (None, {"device": "cpu"}, [8], 0, "cpu"),
        # Asked for, and not there: the cluster says what is missing.
        (None, {"device": "cuda"}, [0], 1, "cuda"),
        (None, {"dtype": "tf32"}, [0], 1, "auto"),
        (0, {}, [8], 0, "cpu"),
        (0.5, {}, [8], 0.5, "auto"),
    ],
)
def test_gpus_are_used_where_they_are(gpus, model, nodes, actor, device):
    found = with_gpus(config(gpus, **model), nodes)
    assert (found.run.gpus_per_actor, found.model.device) == (actor, device)


@pytest.mark.parametrize(
    ("gpus", "model", "message"),
    [
        (0, {"dtype": "tf32"}, "tf32 needs a GPU, but run.gpus_per_actor is 0: set it to 1"),
        (0, {"device": "cuda:1"}, "device: cuda:1 needs a GPU"),
        (1, {"dtype": "int8"}, "int8 runs on a CPU, but run.gpus_per_actor is 1: set it to 0"),
        (2, {"device": "cpu"}, "device: cpu runs on a CPU"),
    ],
)
def test_a_contradiction_is_told_before_anything_starts(gpus, model, message):
    with pytest.raises(ConfigError, match=message):
        config(gpus, **model)
