"""Requests to OpenSearch are as documented, and what goes wrong is said or mended."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import OutputConfig, VectorConfig
from pipeline.data_files import DataFileWriter
from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    MissingFileError,
    StorageError,
)
from pipeline.index.feed import SnapshotFeed
from pipeline.index.kinds import open_feeder, open_index
from pipeline.index.update import plan_update
from pipeline.schema import output_schema
from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import (
    HANGS_AFTER_SECONDS,
    commit,
    config_of,
    feed,
    found,
    ids_in,
    new_url,
    opensearch,
    write_vectors,
)
from tests.pipeline.index.opensearch_double import Fault, OpenSearch, start
from tests.pipeline.snapshots import DIM, rows

SECTIONS = {"index": {"kind": "opensearch"}}
PAGE = Path(__file__).parents[3] / "docs/INDEX.md"
# The server computes in float32.
FLOAT32_TOLERANCE = 1e-6
NUM_DOCUMENTS = 30


@pytest.fixture
def store() -> SnapshotStore:
    store = SnapshotStore(open_storage(f"memory://{uuid.uuid4().hex}"))
    puts = {f"doc-{n}": Document("one", "de" if n % 3 else "en") for n in range(NUM_DOCUMENTS)}
    Night(puts, documents_per_file=NUM_DOCUMENTS).commit(store)
    return store


@pytest.fixture
def server() -> Iterator[OpenSearch]:
    _, state = opensearch()
    state.log.clear()
    yield state
    assert state.num_busy_rows == 0
    assert all(fault.count == 0 for fault in state.faults)
    state.faults.clear()


def indexes_of(url: str) -> list[str]:
    name = url.partition("#")[2]
    return [index for index in opensearch()[1].indexes if index.startswith(f"{name}-")]


def live_index(url: str) -> str:
    name = url.partition("#")[2]
    (live,) = [i.name for i in opensearch()[1].indexes.values() if name in i.aliases]
    return live


def cosines(query_D, number: int) -> float:
    partition = "de" if number % 3 else "en"
    (vector_D,) = rows([f"doc-{number}"], text=f"one/{partition}")["vector"].to_numpy(False)
    vector_D = vector_D.astype(np.float64)
    return float(vector_D @ query_D / np.linalg.norm(vector_D) / np.linalg.norm(query_D))


@pytest.mark.parametrize("engine", ["faiss", "lucene"])
def test_scores_are_the_cosines_of_the_stored_vectors(store, engine):
    url, query = new_url("opensearch"), np.arange(1.0, DIM + 1)
    feed(store, url, opensearch={"engine": engine}, **SECTIONS)
    every = {f"doc-{n}": cosines(query, n) for n in range(NUM_DOCUMENTS)}
    answers = found(open_index(url), query, NUM_DOCUMENTS)
    assert min(every.values()) < 0 < max(every.values())
    assert answers == pytest.approx(every, abs=FLOAT32_TOLERANCE)
    best = sorted(every, key=lambda id_: -every[id_])[:7]
    assert list(found(open_index(url), query, 7)) == best


def test_a_document_with_fewer_sentences_than_before_leaves_no_rows(memory_url):
    store = SnapshotStore(open_storage(memory_url))
    sentences(store, {"long": 7, "gone": 2, "kept": 3})
    url = new_url("opensearch")
    sections = {"opensearch": {"max_request_bytes": 600}, **SECTIONS}
    feed(store, url, **sections)
    sentences(store, {"long": 2, "new": 1, "kept": 3}, ["long", "gone", "new"])
    report = feed(store, url, **sections)
    assert (report.action, report.num_rows_in, report.num_rows) == ("delta", 3, 6)
    hits = open_index(url).search(np.ones((1, DIM)), 20)[0]
    places = sorted((hit.id, hit.columns["sentence_index"]) for hit in hits)
    kept = [("kept", 0), ("kept", 1), ("kept", 2)]
    assert places == [*kept, ("long", 0), ("long", 1), ("new", 0)]
    assert {hit.excerpt for hit in hits if hit.id == "new"} == {"Sentence 0 of “new”."}
    second = open_index(url).search(np.ones((1, DIM)), 20, {"sentence_index": "1"})[0]
    assert {hit.id for hit in second} == {"kept", "long"}
    for value in ("one", "99999999999"):
        assert open_index(url).search(np.ones((1, DIM)), 20, {"sentence_index": value}) == [[]]


def sentences(store: SnapshotStore, documents: dict, changed: list[str] | None = None) -> None:
    """A snapshot of as many sentences of each document, in one file."""
    vectors = VectorConfig(level="sentence", dtype="float32")
    schema = output_schema(vectors, DIM, ["vector"], [pa.field("text", pa.string())])
    run_id = f"run-{uuid.uuid4().hex[:8]}"
    places = [(id_, n) for id_, number in documents.items() for n in range(number)]
    texts = [f"Sentence {n} of “{id_}”." for id_, n in places]
    values = {
        "id": [id_ for id_, _ in places],
        "content_hash": [uuid.uuid4().bytes for _ in places],
        "text": texts,
        "sentence_index": [n for _, n in places],
        "start": [0 for _ in places],
        "end": [len(text) for text in texts],
        "vector": np.random.default_rng(0).standard_normal((len(places), DIM)).tolist(),
    }
    output = OutputConfig(path=store.url)
    with DataFileWriter(store.storage, schema, output, {}, run_id) as writer:
        writer.write(pa.record_batch(values, schema=schema))
        file = writer.close()
    number = (store.latest_number() or 0) + 1
    changes = None
    if changed is not None:
        table = [
            {"id": id_, "op": "update" if id_ in documents else "delete", "file": file.path}
            for id_ in changed
        ]
        for row in table:
            row["file"] = None if row["op"] == "delete" else row["file"]
        made = pa.Table.from_pylist(table, schema=CHANGE_SCHEMA)
        changes = (write_changes(store.storage, number, run_id, made),)
    commit(
        store,
        [file],
        run_id=run_id,
        schema=schema,
        partition_columns=(),
        changes=changes,
        rewritten={},
    )


def test_requests_are_as_small_as_they_are_told_to_be(store, server):
    url, limit = new_url("opensearch"), 1000
    feed(store, url, opensearch={"max_request_bytes": limit}, **SECTIONS)
    sizes = [size for _, path, size in server.log if path.endswith("/_bulk")]
    assert len(sizes) > 3
    assert max(sizes) <= limit
    assert sum(sizes) > (len(sizes) - 1) * limit / 2
    assert ids_in(url) == {f"doc-{n}" for n in range(NUM_DOCUMENTS)}
    with pytest.raises(ConfigError, match=r"max_request_bytes: a row of document 'doc-\d+' needs"):
        feed(store, url, rebuild=True, opensearch={"max_request_bytes": 100}, **SECTIONS)


def test_requests_with_rows_can_be_compressed(store, server):
    one, other = new_url("opensearch"), new_url("opensearch")
    feed(store, one, **SECTIONS)
    feed(store, other, opensearch={"compress": True}, **SECTIONS)
    plain, compressed = [size for _, path, size in server.log if path.endswith("/_bulk")]
    assert compressed < plain
    query = np.ones(DIM)
    assert found(open_index(one), query, 9) == found(open_index(other), query, 9)


def test_rows_that_a_busy_server_rejects_are_sent_again_alone(store, server):
    url = new_url("opensearch")
    server.num_busy_rows = 5
    feed(store, url, **SECTIONS)
    first, second = [size for _, path, size in server.log if path.endswith("/_bulk")]
    assert second < first / 3
    assert ids_in(url) == {f"doc-{n}" for n in range(NUM_DOCUMENTS)}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/_bulk", status=429),
        Fault("POST", "/_bulk", status=503, is_done=True),
        Fault("POST", "/_bulk"),
        Fault("PUT", "/t_[^/]*$", status=429),
        Fault("POST", "/_search", status=502),
    ],
    ids=["busy", "done_and_busy", "done_and_cut", "busy_at_first", "busy_with_a_query"],
)
def test_a_request_that_may_be_repeated_is_repeated(store, server, fault):
    url = new_url("opensearch")
    server.faults.append(fault)
    assert feed(store, url, **SECTIONS).is_published
    assert ids_in(url) == {f"doc-{n}" for n in range(NUM_DOCUMENTS)}


def test_rows_that_left_without_an_answer_leave_once_more(store, server):
    """Before the next refresh the server still finds them, and in conflict with what it did."""
    url = new_url("opensearch")
    feed(store, url, **SECTIONS)
    Night({"doc-0": Document("two")}, deletes=["doc-1"]).commit(store)
    server.faults.append(Fault("POST", "/_delete_by_query"))
    assert feed(store, url, **SECTIONS).action == "delta"
    assert ids_in(url) == {f"doc-{n}" for n in range(NUM_DOCUMENTS) if n != 1}


def test_a_rejected_row_is_named_and_nothing_is_published(store, server):
    url = new_url("opensearch")
    feed(store, url, **SECTIONS)
    before = indexes_of(url)
    id_ = "x" * 40_000
    Night({id_: Document("one")}).commit(store)
    with pytest.raises(ConfigError, match=r"rejects a row of document 'x+': status 400, illegal"):
        feed(store, url, **SECTIONS)
    assert indexes_of(url) == before
    assert len(ids_in(url)) == NUM_DOCUMENTS


def test_an_alias_that_was_turned_without_an_answer_is_found_to_be(store, server):
    url = new_url("opensearch")
    server.faults.append(Fault("POST", "/_aliases"))
    assert feed(store, url, **SECTIONS).is_published
    assert len(ids_in(url)) == NUM_DOCUMENTS


def test_where_nobody_knows_whether_it_is_published_nothing_is_removed(store, server):
    url = new_url("opensearch")
    feed(store, url, **SECTIONS)
    before = set(indexes_of(url))
    Night(deletes=["doc-0"]).commit(store)
    server.faults.append(Fault("POST", "/_aliases", status=503))
    with pytest.raises(CommitUnknownError, match="run again, which is safe in either case"):
        feed(store, url, **SECTIONS)
    assert set(indexes_of(url)) > before
    assert feed(store, url, **SECTIONS).is_published
    assert len(ids_in(url)) == NUM_DOCUMENTS - 1


def test_of_two_that_publish_for_the_first_time_one_is_told(store):
    url = new_url("opensearch")
    config = config_of(store, url, **SECTIONS)
    feeder = open_feeder(config)
    rows_ = plan_update(config, feeder, rebuild=False).rows
    feeds = [SnapshotFeed(rows_, feeder.settings, None) for _ in range(2)]
    with feeder.draft(feeds[0]) as first, feeder.draft(feeds[1]) as second:
        second.publish()
        with pytest.raises(CommitConflictError, match="another feeder published meanwhile"):
            first.publish()
    assert len(indexes_of(url)) == 1
    assert len(ids_in(url)) == NUM_DOCUMENTS


def test_earlier_states_stay_as_long_as_they_are_told_to(store):
    url = new_url("opensearch")
    sections = {"index": {"kind": "opensearch", "keep_versions": 2}}
    feed(store, url, **sections)
    reader = open_index(url)
    before = found(reader, np.ones(DIM), 99)
    Night({"doc-0": Document("two")}).commit(store)
    feed(store, url, **sections)
    assert found(reader, np.ones(DIM), 99) == before != found(open_index(url), np.ones(DIM), 99)
    feed(store, url, rebuild=True, **sections)
    assert len(indexes_of(url)) == 2
    with pytest.raises(MissingFileError, match="open the index again"):
        found(reader, np.ones(DIM), 99)


def test_nothing_goes_that_is_not_called_like_a_state_of_this_index(store, server):
    """Whatever the index says of itself: who may write there may not remove what is elsewhere."""
    url, victim = new_url("opensearch"), f"victim-{uuid.uuid4().hex}"
    feed(store, url, **SECTIONS)
    live = server.indexes[live_index(url)]
    server.indexes[victim] = type(live)(victim, {}, {})
    live.mapping["_meta"]["elmo"]["before"] = [victim, f"{victim}?x", "*", "_all"]
    feed(store, url, rebuild=True, index={"kind": "opensearch", "keep_versions": 1})
    assert victim in server.indexes
    assert indexes_of(url) == [live_index(url)]
    assert not [path for method, path, _ in server.log if method == "DELETE" and "t_" not in path]


def test_what_a_killed_feeder_left_goes_after_a_day_and_a_draft_at_work_stays(store, server):
    url = new_url("opensearch")
    name = url.partition("#")[2]
    feed(store, url, **SECTIONS)
    live = server.indexes[live_index(url)]
    names = {"old": f"{name}-{'1' * 32}", "young": f"{name}-{'2' * 32}", "other": f"{name}-notes"}
    for kind, index in names.items():
        created_ms = live.created_ms - (0 if kind == "young" else 25 * 3_600_000)
        server.indexes[index] = type(live)(index, dict(live.settings), {}, created_ms=created_ms)
    feed(store, url, rebuild=True, **SECTIONS)
    assert set(names.values()) & set(server.indexes) == {names["young"], names["other"]}


def test_a_night_without_a_change_and_other_copies_are_taken_up(store, server):
    url = new_url("opensearch")
    feed(store, url, **SECTIONS)
    Night().commit(store)
    report = feed(store, url, opensearch={"num_replicas": 0, "search_depth": 7}, **SECTIONS)
    assert (report.action, report.num_rows_in) == ("delta", 0)
    settings = server.indexes[live_index(url)].settings
    assert settings["index.number_of_replicas"] == 0
    assert settings["index.knn.algo_param.ef_search"] == 7
    assert settings["index.blocks.write"] is True
    rebuilt = feed(store, url, opensearch={"num_links": 8}, **SECTIONS)
    assert "num_links was 16, is 8" in rebuilt.reason


def test_what_is_no_index_of_this_package_is_left_alone(store, server):
    base, _ = opensearch()
    plain, behind = f"plain{uuid.uuid4().hex[:8]}", f"behind{uuid.uuid4().hex[:8]}"
    ask(base, "PUT", f"/{plain}", {"settings": {"index.number_of_shards": 1}})
    ask(base, "PUT", f"/{behind}-a", {"aliases": {behind: {}}})
    for name in (plain, behind):
        with pytest.raises(ConfigError, match="give another name after '#'"):
            feed(store, f"{base}#{name}", **SECTIONS)
    ask(base, "PUT", f"/{behind}-b", {"aliases": {behind: {}}})
    with pytest.raises(ConfigError, match="the alias stands for 2 indexes"):
        feed(store, f"{base}#{behind}", **SECTIONS)
    assert {plain, f"{behind}-a", f"{behind}-b"} <= set(server.indexes)


def ask(base: str, method: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        base + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=HANGS_AFTER_SECONDS) as answer:
        return json.loads(answer.read())


def test_other_programs_ask_the_alias_as_the_page_says(store):
    url, query = new_url("opensearch"), np.arange(1.0, DIM + 1)
    feed(store, url, **SECTIONS)
    (code,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    # This snapshot's partition column has another name.
    code = code.replace("[0.6, 0.8]", str((query / np.linalg.norm(query)).tolist()))
    body = json.loads(code.replace("language", "lang"))
    base, _, name = url.partition("#")
    hits = ask(base, "POST", f"/{name}/_search", body)["hits"]["hits"]
    scores = {hit["_source"]["id"]: hit["_score"] for hit in hits}
    ours = found(open_index(url), query, 10, lang="en")
    expected = {id_: 1 + c if c > 0 else 1 / (1 - c) for id_, c in ours.items()}
    assert scores == pytest.approx(expected, abs=FLOAT32_TOLERANCE)


def test_user_and_password_come_from_the_environment(store, monkeypatch):
    base, state, end = start()
    try:
        state.user = ("elmo", "a secret")
        url = f"{base}#mine"
        with pytest.raises(
            ConfigError, match="OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD"
        ) as told:
            feed(store, url, **SECTIONS)
        assert "401" in str(told.value)
        monkeypatch.setenv("OPENSEARCH_USERNAME", "elmo")
        with pytest.raises(ConfigError, match="expected both or none"):
            feed(store, url, **SECTIONS)
        monkeypatch.setenv("OPENSEARCH_PASSWORD", "a secret")
        assert feed(store, url, **SECTIONS).is_published
        assert len(ids_in(url)) == NUM_DOCUMENTS
        elsewhere, log = opensearch()[0], opensearch()[1].log
        log.clear()
        state.faults.append(Fault("GET", "/mine", status=302, location=f"{elsewhere}/mine"))
        with pytest.raises(ConfigError, match="302"):
            open_index(url)
        assert log == []
    finally:
        end()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:secret@host:9200#name", "found a user, a password or parameters"),
        ("https://secret@host:9200", "found a user, a password or parameters"),
        ("https://host:9200?token=secret#name", "found a user, a password or parameters"),
        ("https:///secret#name", "found no host"),
        ("https://host:9200#Drop Index", "cannot name an index"),
        ("memory://place#Drop Index", "cannot name an index"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused_without_its_secret(store, url, message):
    with pytest.raises(ConfigError, match=message) as told:
        feed(store, url, **SECTIONS)
    assert "secret" not in str(told.value)


def test_a_url_of_a_web_server_is_no_directory(store):
    with pytest.raises(ConfigError, match="does not expect a URL of a server on the web"):
        feed(store, "https://host:9200#name")


def test_a_server_that_does_not_answer_is_an_error_of_the_store(store):
    base, _, end = start()
    end()
    with pytest.raises(StorageError, match="OpenSearch: .*refused"):
        feed(store, base, **SECTIONS)


def send_as_the_page_says(directory: Path, version: int, base: str) -> subprocess.CompletedProcess:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    (code,) = re.findall(r"```sh\n(send\(\).*?)```", PAGE.read_text(), re.DOTALL)
    code = code.replace("https://search.example.com:9200", base).replace(
        "00000007", f"{version:08d}"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", code],
        cwd=directory,
        env={**os.environ, "PATH": path},
        timeout=HANGS_AFTER_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("compress", [False, True])
def test_requests_in_files_make_the_same_index_when_they_are_sent(store, tmp_path, compress):
    direct = new_url("opensearch")
    base, _, name = new_url("opensearch").partition("#")
    options = {"compress": compress, "max_request_bytes": 1500}
    sections = {"opensearch": options, **SECTIONS}
    files, url = f"{tmp_path}#{name}", f"{base}#{name}"
    nights = [
        Night(),
        Night({"doc-0": Document("two"), "new": Document("one")}, deletes=["doc-1"]),
        Night(deletes=["new"]),
    ]
    for version, night in enumerate(nights, start=1):
        if version > 1:
            night.commit(store)
        report = feed(store, files, **sections)
        assert (report.action, report.is_published) == ("delta" if version > 1 else "full", True)
        assert "recall was not measured" in report.quality.notes[0]
        feed(store, direct, **sections)
        sent = send_as_the_page_says(tmp_path, version, base)
        assert (sent.returncode, sent.stderr) == (0, "")
        assert open_index(url).state == open_index(direct).state
        for query in np.random.default_rng(1).standard_normal((3, DIM)):
            one, other = found(open_index(url), query, 9), found(open_index(direct), query, 9)
            assert one == pytest.approx(other, abs=FLOAT32_TOLERANCE)
    # What was made from files can be fed at its URL.
    Night({"doc-5": Document("three")}).commit(store)
    assert feed(store, url, **sections).action == "delta"


def test_requests_after_a_gap_change_nothing_until_everything_is_sent(store, tmp_path):
    base, _, name = new_url("opensearch").partition("#")
    files, url = f"{tmp_path}#{name}", f"{base}#{name}"
    sections = {"index": {"kind": "opensearch", "keep_versions": 9}}
    feed(store, files, **sections)
    for gone in ("doc-1", "doc-2"):
        Night(deletes=[gone]).commit(store)
        feed(store, files, **sections)
    assert send_as_the_page_says(tmp_path, 1, base).returncode == 0
    before = indexes_of(url)
    sent = send_as_the_page_says(tmp_path, 3, base)
    assert sent.returncode != 0
    assert "404" in sent.stderr
    again = send_as_the_page_says(tmp_path, 1, base)
    assert again.returncode != 0
    assert indexes_of(url) == before
    assert len(ids_in(url)) == NUM_DOCUMENTS
    feed(store, files, rebuild=True, **sections)
    assert send_as_the_page_says(tmp_path, 4, base).returncode == 0
    assert len(ids_in(url)) == NUM_DOCUMENTS - 2


def test_a_row_that_is_rejected_stops_the_sending_before_the_alias_is_turned(store, tmp_path):
    base, state = opensearch()
    name = new_url("opensearch").partition("#")[2]
    feed(store, f"{tmp_path}#{name}", **SECTIONS)
    state.num_busy_rows = 1
    assert send_as_the_page_says(tmp_path, 1, base).returncode == 1
    with pytest.raises(ConfigError, match="there is no index here"):
        open_index(f"{base}#{name}")


def test_a_directory_of_requests_is_written_as_a_whole_or_not_at_all(store, memory_url):
    directory = f"{memory_url}-requests"
    storage = open_storage(directory)
    with pytest.raises(ConfigError, match="max_request_bytes"):
        feed(store, directory, opensearch={"max_request_bytes": 100}, **SECTIONS)
    assert storage.list_files() == []
    feed(store, directory, **SECTIONS)
    config = config_of(store, directory, **SECTIONS)
    feeder = open_feeder(config)
    Night({"doc-0": Document("two")}).commit(store)
    plan = plan_update(config, feeder, rebuild=False)
    fed = SnapshotFeed(plan.rows, feeder.settings, plan.held, plan.changes)
    with feeder.draft(fed) as draft:
        feed(store, directory, **SECTIONS)
        before = {info.path for info in storage.list_files()}
        with pytest.raises(CommitConflictError, match="published version 2"):
            draft.publish()
    assert {info.path for info in storage.list_files()} < before
    other = feed(store, f"{directory}#other", rebuild=False, **SECTIONS)
    assert other.action == "none"
    Night({"doc-0": Document("three")}).commit(store)
    other = feed(store, f"{directory}#other", **SECTIONS)
    assert other.action == "full"
    assert "the requests so far are for the index 'elmo'" in other.reason


def test_ids_of_any_characters_are_told_apart(store):
    url = new_url("opensearch")
    ids = ["a", 'a"', "a,null", '["a"]', "ä", "\\u00e4", "a\u2028b", "a\nb"]
    vectors_ND = np.random.default_rng(2).standard_normal((len(ids), DIM))
    commit(store, [write_vectors(store.storage, ids, vectors_ND)])
    feed(store, url, **SECTIONS)
    assert ids_in(url) == set(ids)
