"""Thirty nights of a corpus that changes, with crashes in between; each is compared with an oracle.

The oracle is plain Python (`history.py`), the reader plain pyarrow (`invariants.py`).
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import EmbedConfig, build
from pipeline.run import execute, prepare
from tests.integration.history import History, difference
from tests.integration.invariants import Archive, check_feed, check_rows, read_manifest, read_rows
from tests.integration.stand_in import WordBackend

pytestmark = pytest.mark.usefixtures("ray_cluster")

DOCUMENTS_PER_TASK = 8


class Crash(Exception):
    """The end of a run in the middle."""


class Nights:
    """Runs nights and checks each; remembers what the snapshot holds and what a crash has left."""

    def __init__(self, folder, level, seed, num_documents, output_format="parquet"):
        self.level = level
        self.history = History(folder / "corpus", seed, num_documents)
        self.config = build(EmbedConfig, self._values(folder, level, output_format), "test")
        self.url = self.config.output.path
        self.archive = Archive(self.url)
        self.documents = {}
        self.has_crashed = False

    def _values(self, folder, level, output_format):
        return {
            "source": {
                "path": str(folder / "corpus"),
                "id_column": "id",
                "partition_columns": ["lang"],
                "carry_columns": ["title", "text"],
            },
            "model": {"directory": "none"},
            "vectors": {"level": level},
            "output": {"path": str(folder / "vectors"), "format": output_format},
            "run": {
                "num_actors": 2,
                "documents_per_task": DOCUMENTS_PER_TASK,
                "max_rejected_share": 1.0,
                "max_deleted_share": 1.0,
            },
        }

    def crash(self, after_blocks):
        """Start a run of the present corpus and leave it after some blocks; False if it ended."""
        blocks = []

        def progress(*counts):
            blocks.append(counts)
            if len(blocks) == after_blocks:
                raise Crash

        prepared = prepare(self.config, backend=WordBackend())
        num_blocks = -(-(prepared.plan.num_selected if prepared.plan else 0) // DOCUMENTS_PER_TASK)
        if num_blocks <= after_blocks:
            return False
        with pytest.raises(Crash):
            execute(prepared, progress)
        self.has_crashed = True
        return True

    def run(self, night):
        """Run the night to its end and check everything that must hold then."""
        expected = difference(self.documents, night.documents)
        prepared = prepare(self.config, backend=WordBackend())
        report = execute(prepared)
        manifest = check_rows(self.url, self.level, night.documents)
        if report.snapshot is None:
            assert expected.changes == {}
        else:
            assert report.snapshot.number == manifest["number"]
            check_feed(self.url, manifest, self.documents, night.documents)
        if not prepared.is_repeat:
            self._check_accounting(report.accounting, night, expected)
        self.archive.check()
        self.documents = night.documents
        self.has_crashed = False
        return report

    def _check_accounting(self, accounting, night, expected):
        assert accounting.rows_in == night.num_rows
        assert accounting.rejected == night.num_bad
        assert accounting.unchanged == len(expected.unchanged)
        assert accounting.rows_out == night.num_rows
        if self.has_crashed:
            assert accounting.embedded <= expected.num_to_embed
        else:
            assert accounting.embedded == expected.num_to_embed
            assert accounting.metadata_only == len(expected.same_text)
            assert accounting.resumed == 0

    def check_against_scratch(self, folder):
        """The last night, embedded from scratch by one run, gives the same rows."""
        values = self._values(folder, self.level, self.config.output.format)
        values["output"]["path"] = str(folder / "scratch")
        config = build(EmbedConfig, values, "test")
        execute(prepare(config, backend=WordBackend()))
        scratch = read_rows(config.output.path, read_manifest(config.output.path))
        assert read_rows(self.url, read_manifest(self.url)) == scratch


def run_nights(nights, num_nights, random_):
    """Some nights crash and are run again, some are given up, and the next has another corpus."""
    crashes = resumed = given_up = 0
    for _ in range(num_nights):
        night = nights.history.next_night()
        for _ in range(random_.choice((0, 0, 1, 2))):
            crashes += nights.crash(after_blocks=random_.randint(1, 3))
        if nights.has_crashed and random_.random() < 0.3:
            given_up += 1
            continue
        resumed += nights.run(night).accounting.resumed
    nights.run(nights.history.next_night(busyness=0.1))
    return crashes, resumed, given_up


def test_thirty_nights_with_crashes_end_as_one_embedding_of_the_last(tmp_path):
    nights = Nights(tmp_path, "document", seed=30, num_documents=200)
    crashes, resumed, given_up = run_nights(nights, 29, random.Random(30))
    nights.check_against_scratch(tmp_path)
    # The history must have had what it is for.
    assert crashes >= 3
    assert resumed >= 2 * DOCUMENTS_PER_TASK
    assert given_up >= 1


def test_nights_of_token_vectors_with_crashes_end_as_one_embedding_of_the_last(tmp_path):
    nights = Nights(tmp_path, "token", seed=8, num_documents=60, output_format="arrow")
    run_nights(nights, 5, random.Random(8))
    nights.check_against_scratch(tmp_path)


def test_a_night_in_which_only_metadata_changed_runs_no_model(tmp_path):
    nights = Nights(tmp_path, "sentence", seed=5, num_documents=20)
    nights.run(nights.history.next_night())
    documents = nights.history.documents
    for number, name in enumerate(sorted(documents)[:7]):
        changes = {"title": "Renamed"} if number % 2 else {"lang": f"new/{number}"}
        documents[name] = documents[name]._replace(**changes)
    accounting = nights.run(nights.history.next_night(busyness=0.0)).accounting
    assert (accounting.metadata_only, accounting.embedded) == (7, 0)


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    busyness=st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=2, max_size=3),
    level=st.sampled_from(["document", "sentence"]),
)
def test_any_short_history_leaves_what_the_oracle_says(tmp_path_factory, seed, busyness, level):
    folder = tmp_path_factory.mktemp("history")
    nights = Nights(folder, level, seed, num_documents=12)
    nights.run(nights.history.next_night())
    for share in busyness:
        nights.run(nights.history.next_night(share))
