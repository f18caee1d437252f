"""Embedding actors that die: whatever kills them, nothing is lost and nobody innocent rejected."""

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private import state as cluster_state

from pipeline.config import EmbedConfig, build
from pipeline.errors import ClusterError
from pipeline.run import execute, prepare
from pipeline.snapshot.read import open_snapshot
from tests.integration.stand_in import WordBackend
from tests.pipeline.faulty_models import FaultyBackend

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_DOCUMENTS = 300


def write_corpus(tmp_path, poison=()):
    (tmp_path / "corpus").mkdir()
    rows = [
        {
            "id": f"d{n:03d}",
            "text": f"word{n} and word{n % 7} stand here. {'poison' if n in poison else 'End'}.",
        }
        for n in range(NUM_DOCUMENTS)
    ]
    for number in range(3):
        table = pa.Table.from_pylist(rows[number::3])
        pq.write_table(table, tmp_path / f"corpus/part-{number}.parquet")


def config_of(tmp_path, output="vectors", **changes):
    values = {
        "source": {"path": str(tmp_path / "corpus"), "id_column": "id"},
        "model": {"directory": "none"},
        "output": {"path": str(tmp_path / output)},
        "batch": {"window_tokens": 200},
        "run": {"num_actors": 2, "documents_per_task": 40, "max_rejected_share": 0.1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return build(EmbedConfig, values, "test")


def run(config, backend):
    return execute(prepare(config, backend=backend))


def rows_of(config):
    rows = open_snapshot(config.output.path)[1].to_table().to_pylist()
    found = {(row["id"], row.get("token_index"), row.get("sentence_index")): row for row in rows}
    assert len(found) == len(rows)
    return found


def undisturbed(tmp_path, **changes):
    config = config_of(tmp_path, "undisturbed", **changes)
    run(config, WordBackend())
    return rows_of(config)


def rejected_of(config, report):
    return [
        row
        for path in report.rejected_files
        for row in pq.read_table(f"{config.output.path}/{path}").to_pylist()
    ]


@contextlib.contextmanager
def killer_of_actors(seed, num_kills, journal, pause_s):
    """Kill a random living actor of the embedding model every `pause_s` or so; yields the kills."""
    choose = random.Random(seed)
    killed, stop = [], threading.Event()

    def victims():
        return [
            one["Pid"]
            for one in cluster_state.actors().values()
            if one["State"] == "ALIVE"
            and "EmbedWorker" in one["ActorClassName"]
            and one["Pid"] not in killed
        ]

    def kill():
        while len(killed) < num_kills and not stop.is_set():
            time.sleep(choose.uniform(0.2, 1.8) * pause_s)
            living = victims() if journal.exists() else []
            if living:
                victim = choose.choice(sorted(living))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_actors_killed_at_random_moments_change_nothing(tmp_path):
    write_corpus(tmp_path)
    expected = undisturbed(tmp_path)
    config = config_of(tmp_path)
    journal = tmp_path / "journal"
    backend = FaultyBackend(str(journal), seconds_per_document=0.03)
    with killer_of_actors(1, 5, journal, pause_s=1.2) as killed:
        report = run(config, backend)
    assert len(killed) >= 3
    assert report.rejected_by_code == {}
    assert report.counts.documents == NUM_DOCUMENTS
    assert report.counts.num_isolated >= 1
    assert rows_of(config) == expected


@pytest.mark.parametrize(
    ("how", "said", "level"),
    [("segfault", "SIGSEGV", "document"), ("leave", "exit code 66", "token")],
)
def test_one_poison_document_among_hundreds_is_the_only_one_rejected(tmp_path, how, said, level):
    write_corpus(tmp_path, {123})
    expected = undisturbed(tmp_path, vectors__level=level)
    config = config_of(tmp_path, vectors__level=level)
    journal = tmp_path / "journal"
    report = run(config, FaultyBackend(str(journal), harm=(("poison", how),)))
    assert report.rejected_by_code == {"process_died": 1}
    (row,) = rejected_of(config, report)
    assert (row["id"], row["stage"], row["code"]) == ("d123", "embed", "process_died")
    assert said in row["message"]
    assert rows_of(config) == {key: value for key, value in expected.items() if key[0] != "d123"}
    # One actor died of it, and then as many processes as a bisection of a block of 40 takes.
    counts = report.counts
    assert counts.documents == NUM_DOCUMENTS - 1
    assert 1 <= counts.num_isolated <= 2
    assert counts.num_retries == counts.num_isolated
    assert counts.num_process_starts <= math.ceil(math.log2(40)) + 3 + counts.num_isolated
    assert journal.read_text().count("load ") <= 2 + 2 + counts.num_process_starts


def test_two_poison_documents_in_different_blocks_are_both_found(tmp_path):
    write_corpus(tmp_path, {10, 290})
    config = config_of(tmp_path)
    harm = (("poison", "kill"),)
    report = run(config, FaultyBackend(str(tmp_path / "journal"), harm=harm))
    rejected = rejected_of(config, report)
    assert sorted(row["id"] for row in rejected) == ["d010", "d290"]
    assert all("SIGKILL" in row["message"] for row in rejected)
    assert Counter(key[0] for key in rows_of(config)).total() == NUM_DOCUMENTS - 2


@pytest.mark.parametrize(
    ("how", "message"),
    [("leave", "actors died while they loaded the model"), ("fail", "a word that breaks")],
)
def test_a_model_that_never_loads_ends_the_run(tmp_path, how, message):
    write_corpus(tmp_path)
    backend = FaultyBackend(str(tmp_path / "journal"), on_load=how)
    with pytest.raises(ClusterError, match=message):
        run(config_of(tmp_path), backend)
    assert (tmp_path / "journal").read_text().count("load ") <= 15


def test_a_model_that_hangs_is_an_error_that_names_the_stage(tmp_path):
    write_corpus(tmp_path, {5})
    backend = FaultyBackend(str(tmp_path / "journal"), harm=(("poison", "hang"),))
    with pytest.raises(
        ClusterError,
        match=r"(?s)^embedding: nothing moved.* of 300 documents are done.*actors: 1 alive",
    ):
        run(config_of(tmp_path, run__no_progress_timeout_s=15), backend)
