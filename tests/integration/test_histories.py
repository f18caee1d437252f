"""Thirty nights of a corpus that changes, with crashes and maintenance; an oracle checks each."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.history import History
from tests.integration.nights import DOCUMENTS_PER_TASK, Nights

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


def make_nights(folder, level, seed, num_documents, **output):
    history = History(folder / "corpus", seed, num_documents)
    return Nights(history, str(folder / "vectors"), level, output)


def run_nights(nights, num_nights, random_):
    """Some nights crash and are run again; some are given up, and the next has another corpus.

    Returns: the numbers of crashes, of documents taken over from crashed runs, and of nights that
        were given up.
    """
    crashes = resumed = given_up = 0
    for _ in range(num_nights):
        night = nights.history.next_night()
        for _ in range(random_.choice((0, 0, 1, 2))):
            crashes += nights.crash(after_blocks=random_.randint(1, 3))
        if nights.crashed and random_.random() < 0.3:
            given_up += 1
        else:
            resumed += nights.run(night).accounting.resumed
        if nights.latest and not nights.crashed and random_.random() < 0.2:
            nights.maintain(random_)
    nights.run(nights.history.next_night(busyness=0.1))
    return crashes, resumed, given_up


def test_thirty_nights_with_crashes_end_as_one_embedding_of_the_last(tmp_path):
    nights = make_nights(tmp_path, "document", seed=30, num_documents=200)
    crashes, resumed, given_up = run_nights(nights, 29, random.Random(30))
    nights.check_against_scratch(str(tmp_path / "scratch"))
    for number in nights.states:
        if number:
            nights.check_composed_feed(number)
    # The history must have had what it is for.
    assert crashes >= 3
    assert resumed >= 2 * DOCUMENTS_PER_TASK
    assert given_up >= 1


def test_nights_of_token_vectors_with_crashes_end_as_one_embedding_of_the_last(tmp_path):
    nights = make_nights(tmp_path, "token", seed=8, num_documents=60, format="arrow")
    run_nights(nights, 5, random.Random(8))
    nights.check_against_scratch(str(tmp_path / "scratch"))


def test_a_night_in_which_only_metadata_changed_runs_no_model(tmp_path):
    nights = make_nights(tmp_path, "sentence", seed=5, num_documents=20)
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
    nights = make_nights(tmp_path_factory.mktemp("history"), level, seed, num_documents=12)
    nights.run(nights.history.next_night())
    for share in busyness:
        nights.run(nights.history.next_night(share))
