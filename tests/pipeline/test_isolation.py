"""A model in a child process: what kills the child is found, and nothing else is blamed."""

import math
import os
import signal
import threading
import time

import numpy as np
import pytest

from pipeline import isolation
from pipeline.config import VectorConfig
from pipeline.embed import Embedder, token_window
from pipeline.errors import ClusterError
from pipeline.isolation import IsolatedModel
from pipeline.schema import output_schema
from pipeline.token_window import WindowError
from tests.integration.stand_in import DIM, WordModel
from tests.pipeline.faulty_models import FaultyLoader
from tests.pipeline.test_embed import _collect, tokenised

LEVELS = ["document", "sentence", "token"]


def documents(count, poison=()):
    """Documents d0, d1, ...; those in `poison` hold the word that does harm."""
    return tokenised(
        {
            f"d{n}": ("en", [["some", f"word{n}", *(["poison"] if n in poison else [])], ["end"]])
            for n in range(count)
        }
    )


def loader(tmp_path, how=None, level="document", **options):
    harm = () if how is None else (("poison", how),)
    return FaultyLoader(level, str(tmp_path / "journal"), harm, **options)


def isolated(load_model, timeout_s=60.0):
    return IsolatedModel(load_model, DIM, ("vector",), timeout_s)


def embed(model, table, level="document", window_tokens=10_000):
    schema = output_schema(VectorConfig(level=level), DIM, ("vector",), [])
    return _collect(Embedder(model, schema, ("lang",), level, window_tokens).embed(table))


def loads(tmp_path):
    return (tmp_path / "journal").read_text().count("load ")


@pytest.mark.parametrize("level", LEVELS)
def test_the_child_gives_the_vectors_of_the_model(tmp_path, level):
    window = token_window(documents(7))
    with isolated(loader(tmp_path, level=level)) as model:
        np.testing.assert_array_equal(model.vectors(window), WordModel(level).vectors(window))
        model.vectors(window)
    assert loads(tmp_path) == 1


@pytest.mark.parametrize(
    ("how", "said", "level"),
    [("segfault", "SIGSEGV", "document"), ("leave", "exit code 66", "token")],
)
def test_one_document_that_kills_the_process_is_found_in_logarithmic_time(
    tmp_path, how, said, level
):
    count = 200
    with isolated(loader(tmp_path, how, level)) as model:
        rows, rejected = embed(model, documents(count, {137}), level)
    assert {row["id"] for row in rows} == {f"d{n}" for n in range(count)} - {"d137"}
    assert [(row.id, row.stage, row.code) for row in rejected] == [
        ("d137", "embed", "process_died")
    ]
    assert said in rejected[0].message
    assert model.processes.num_starts == loads(tmp_path)
    assert model.processes.num_starts <= math.ceil(math.log2(count)) + 3


def test_several_documents_that_kill_the_process_are_all_found(tmp_path):
    poison = {3, 4, 61}
    with isolated(loader(tmp_path, "leave")) as model:
        rows, rejected = embed(model, documents(64, poison))
    assert {row.id for row in rejected} == {f"d{n}" for n in poison}
    assert len(rows) == 61
    assert model.processes.num_starts <= len(poison) * (6 + 2) + 1


def test_a_child_that_hangs_is_ended_and_its_document_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "MIN_TIMEOUT_S", 1.0)
    with isolated(loader(tmp_path, "hang"), timeout_s=4.0) as model:
        rows, rejected = embed(model, documents(4, {2}))
    assert [row.id for row in rejected] == ["d2"]
    assert "time limit" in rejected[0].message
    assert len(rows) == 3


def test_a_child_that_is_killed_from_outside_costs_no_document(tmp_path):
    with isolated(loader(tmp_path, seconds_per_document=0.05)) as model:
        killed = []

        def killer():
            while not killed:
                child = model._child
                if child is not None and (tmp_path / "journal").read_text().count("window"):
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
                time.sleep(0.02)

        thread = threading.Thread(target=killer)
        thread.start()
        rows, rejected = embed(model, documents(20))
        thread.join()
    assert len(rows) == 20
    assert rejected == []
    assert model.processes.num_starts == 2


def test_a_model_that_dies_of_every_document_is_the_culprit_itself(tmp_path):
    with (
        isolated(loader(tmp_path, "leave")) as model,
        pytest.raises(ClusterError, match="exit code 66.*broken rather than the documents"),
    ):
        embed(model, documents(50, set(range(50))))
    assert model.processes.num_starts <= 20


def test_a_model_that_cannot_be_loaded_there_is_an_error(tmp_path):
    with (
        isolated(loader(tmp_path, on_load="leave")) as model,
        pytest.raises(ClusterError, match="cannot even be loaded: the process .* exit code 66"),
    ):
        embed(model, documents(3))
    assert model.processes.num_starts == isolation.MAX_FAILED_STARTS


def test_what_the_model_raises_comes_back_and_the_child_lives_on(tmp_path):
    with isolated(loader(tmp_path, "fail")) as model:
        rows, rejected = embed(model, documents(8, {5}))
    assert [(row.id, row.code) for row in rejected] == [("d5", "embed_failed")]
    assert "a word that breaks the model" in rejected[0].message
    assert len(rows) == 7
    assert model.processes.num_starts == 1


def test_a_window_of_several_documents_is_never_blamed_as_a_whole(tmp_path):
    with isolated(loader(tmp_path, "leave")) as model, pytest.raises(WindowError) as caught:
        model.vectors(token_window(documents(2, {0})))
    assert caught.value.code == "process_died"
    assert model.processes.num_culprits == 0


def test_the_child_is_the_first_to_go_when_memory_is_short(tmp_path):
    with isolated(loader(tmp_path)) as model:
        model.vectors(token_window(documents(1)))
        with open(f"/proc/{model._child.pid}/oom_score_adj") as file:
            assert file.read().strip() == "1000"
