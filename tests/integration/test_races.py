"""Two runs at once, and runs beside maintenance: one commits first, the other loses nothing."""

from dataclasses import replace

import pytest

from pipeline.run import execute
from tests.integration import nightly_driver
from tests.integration.history import History, difference
from tests.integration.invariants import Archive, check_feed, check_rows, read_manifest
from tests.integration.nightly_driver import Attempt, num_embedded
from tests.integration.nights import Nights, values

pytestmark = pytest.mark.timeout(300)

SECONDS_PER_DOCUMENT = 0.01


@pytest.fixture
def address(ray_cluster):
    return ray_cluster.get_runtime_context().gcs_address


def race(attempts):
    """Run drivers at the same time; returns what each did."""
    for attempt in attempts:
        attempt.folder.mkdir(exist_ok=True)
    drivers = [nightly_driver.start(attempt) for attempt in attempts]
    results = [nightly_driver.finish(*pair) for pair in zip(attempts, drivers, strict=True)]
    assert all("error" not in result for result in results), results
    return results


def test_of_two_runs_over_one_corpus_one_commits_and_the_other_has_nothing_to_do(tmp_path, address):
    history = History(tmp_path / "corpus", seed=41, num_documents=60)
    url = str(tmp_path / "vectors")
    before, archive = {}, Archive(url)
    settings = values(history.folder, url)
    # Each takes all actors that the cluster holds, as it would by default.
    settings["run"]["num_actors"] = None
    one = Attempt(settings, tmp_path / "one", address, SECONDS_PER_DOCUMENT)
    other = replace(one, folder=tmp_path / "other")
    for number in (1, 2):
        night = history.next_night(busyness=1.0)
        results = race([one, other])
        assert sorted(result["is_repeat"] for result in results) == [False, True]
        assert {result["snapshot"] for result in results} == {number, None}
        manifest = check_rows(url, "document", night.documents)
        assert manifest["number"] == number
        check_feed(url, manifest, before, night.documents)
        archive.check()
        before = night.documents


def test_of_two_runs_over_two_states_the_later_commit_wins_and_keeps_what_both_embedded(
    tmp_path, address
):
    """The loser of the race embeds nothing twice: what it had embedded it finds recorded."""
    histories = [History(tmp_path / name, seed=42, num_documents=60) for name in ("one", "other")]
    url = str(tmp_path / "vectors")
    archive = Archive(url)
    attempts = [
        Attempt(values(one.folder, url), tmp_path / f"{one.folder.name}-run", address)
        for one in histories
    ]
    first, _ = (history.next_night() for history in histories)
    race(attempts[:1])
    # The same documents, from which two upstreams go different ways.
    histories[1].seed = 43
    nights = [history.next_night(busyness=1.0) for history in histories]
    slow = [replace(one, seconds_per_document=SECONDS_PER_DOCUMENT) for one in attempts]
    results = race(slow)
    order = sorted((0, 1), key=lambda index: results[index]["snapshot"])
    assert [results[index]["snapshot"] for index in order] == [2, 3]
    states = [first.documents, *(nights[index].documents for index in order)]
    for number, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True), 2):
        manifest = check_rows(url, "document", after, number)
        check_feed(url, manifest, before, after)
    archive.check()
    # Each embeds a document at most once: what is new to it, and then what the other took away.
    for index in (0, 1):
        mine, others = nights[index].documents, nights[1 - index].documents
        wanted = difference(first.documents, mine).to_embed | difference(others, mine).to_embed
        already = len(first.documents) if index == 0 else 0
        log = attempts[index].folder / "embedded.log"
        assert num_embedded(log) - already <= len(wanted)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("action", ["roll_back", "compact", "expire"])
def test_a_run_that_maintenance_overtakes_starts_over_and_embeds_nothing_again(tmp_path, action):
    history = History(tmp_path / "corpus", seed=44, num_documents=40)
    nights = Nights(history, str(tmp_path / "vectors"))
    nights.run(history.next_night())
    nights.run(history.next_night(busyness=1.0))
    night = history.next_night(busyness=1.0)
    expected = difference(nights.documents, night.documents)
    reports = []

    def overtaken(prepared):
        """The maintenance commits after the run's plan, and before its own commit."""
        if not reports:
            nights.crashed = True  # What the first try embeds, the second one takes over.
            reports.append(None)
            if action == "roll_back":
                nights.roll_back(1)
            elif action == "compact":
                nights.compact()
            else:
                nights.expire(keep=1)
        reports.append(execute(prepared))
        return reports[-1]

    report = nights.run(night, overtaken)
    assert read_manifest(nights.url)["number"] == (3 if action == "expire" else 4)
    if action == "compact":
        # Nothing has changed but where documents lie, so all that was embedded counts.
        assert report.accounting.embedded == 0
        assert report.accounting.resumed > 0
    elif action == "expire":
        assert report.accounting.embedded == expected.num_to_embed
