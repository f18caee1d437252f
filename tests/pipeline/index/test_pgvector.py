"""pgvector on a real server: any program can ask it, and what is wrong is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector

from pipeline.errors import ConfigError, CorruptFileError, StorageError
from pipeline.hits import unit
from pipeline.index import pgvector_index
from pipeline.index.kinds import open_index
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import (
    commit,
    feed,
    found,
    ids_in,
    new_url,
    postgres_url,
    write_vectors,
)
from tests.pipeline.snapshots import DIM, rows

SECTIONS = {"index": {"kind": "pgvector"}}
# The server computes in float32.
FLOAT32_TOLERANCE = 1e-6


@pytest.fixture
def store(memory_url) -> SnapshotStore:
    store = SnapshotStore(open_storage(memory_url))
    puts = {f"doc-{n}": Document("one", "de" if n % 4 else "en") for n in range(60)}
    Night(puts, documents_per_file=60).commit(store)
    return store


def cosines(query_D, number: int, partition: str) -> float:
    (vector_D,) = rows([f"doc-{number}"], text=f"one/{partition}").column("vector").to_numpy(False)
    vector_D = vector_D.astype(np.float64)
    return float(vector_D @ query_D / np.linalg.norm(vector_D) / np.linalg.norm(query_D))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfflat"])
def test_scores_are_the_cosines_of_the_stored_vectors(store, kind):
    url, query = new_url("pgvector"), np.arange(1.0, DIM + 1)
    feed(store, url, pgvector={"type": kind}, **SECTIONS)
    every = {f"doc-{n}": cosines(query, n, "de" if n % 4 else "en") for n in range(60)}
    best = sorted(every, key=lambda id_: -every[id_])[:7]
    expected = {id_: every[id_] for id_ in best}
    assert found(open_index(url), query, 7) == pytest.approx(expected, abs=FLOAT32_TOLERANCE)
    english = found(open_index(url), query, 30, lang="en")
    assert set(english) == {f"doc-{n}" for n in range(0, 60, 4)}


def test_other_programs_ask_the_view_as_the_page_says(store):
    url = new_url("pgvector")
    name = url.partition("#")[2]
    feed(store, url, **SECTIONS)
    page = (Path(__file__).parents[3] / "docs/INDEX.md").read_text()
    (code,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    query = unit(np.arange(1.0, DIM + 1))
    # This snapshot carries no text, and its partition column has another name.
    code = code.replace("documents", name).replace("language", "lang").replace("_excerpt, ", "")
    with psycopg.connect(postgres_url()) as connection:
        register_vector(connection)
        cursor = psycopg.ClientCursor(connection)
        answer = cursor.execute(code.replace("$1", "%(q)s::vector"), {"q": str(query.tolist())})
        answers = dict(answer.fetchall())
    ours = found(open_index(url), query, 10, lang="en")
    assert answers == pytest.approx(ours, abs=FLOAT32_TOLERANCE)


def test_of_the_tables_that_were_replaced_the_last_one_stays(store):
    url = new_url("pgvector")
    name = url.partition("#")[2]
    for _ in range(4):
        feed(store, url, rebuild=True, **SECTIONS)
    with psycopg.connect(postgres_url()) as connection:
        statement = "select count(*) from pg_tables where tablename like %s"
        assert connection.execute(statement, [f"{name}\\_%"]).fetchone() == (2,)
    assert len(ids_in(url)) == 60


def test_two_names_in_one_database_are_two_indexes(store):
    one, other = new_url("pgvector"), new_url("pgvector")
    feed(store, one, **SECTIONS)
    Night(deletes=["doc-0"]).commit(store)
    feed(store, other, **SECTIONS)
    assert "doc-0" in ids_in(one)
    assert "doc-0" not in ids_in(other)


def test_a_reader_sees_its_state_whatever_is_published(store):
    url = new_url("pgvector")
    feed(store, url, **SECTIONS)
    reader = open_index(url)
    Night({f"doc-{n}": Document("two") for n in range(60)}, documents_per_file=60).commit(store)
    before = found(reader, np.ones(DIM), 60)
    feed(store, url, **SECTIONS)
    assert found(reader, np.ones(DIM), 60) == before
    assert found(open_index(url), np.ones(DIM), 60) != before


def test_the_table_of_a_reader_that_has_not_searched_yet_stays(store, monkeypatch):
    monkeypatch.setattr(pgvector_index, "_DROP_TIMEOUT", "50ms")
    url = new_url("pgvector")
    feed(store, url, **SECTIONS)
    reader = open_index(url)
    for _ in range(2):
        feed(store, url, rebuild=True, **SECTIONS)
    assert len(found(reader, np.ones(DIM), 60)) == 60


def test_an_index_whose_table_was_removed_is_said_to_be_damaged(store):
    url = new_url("pgvector")
    feed(store, url, **SECTIONS)
    name = url.partition("#")[2]
    with psycopg.connect(postgres_url()) as connection:
        statement = "select table_name from elmo_indexes where name = %s"
        (table,) = connection.execute(statement, [name]).fetchone()
        connection.execute(f"drop table {table} cascade")
    with pytest.raises(CorruptFileError, match="is gone; build it anew with --rebuild"):
        open_index(url)
    assert feed(store, url, rebuild=True, **SECTIONS).is_published
    assert len(ids_in(url)) == 60


def test_a_full_build_keeps_the_grants_of_the_view(store):
    url = new_url("pgvector")
    name = url.partition("#")[2]
    feed(store, url, **SECTIONS)
    with psycopg.connect(postgres_url()) as connection:
        connection.execute(f"grant select on {name} to public")
        connection.execute(f"create view {name}_ids as select id from {name}")
    Night(deletes=["doc-0"]).commit(store)
    feed(store, url, rebuild=True, **SECTIONS)
    with psycopg.connect(postgres_url()) as connection:
        asked = "select count(*), has_table_privilege('public', %s, 'select') from {}_ids"
        assert connection.execute(asked.format(name), [name]).fetchone() == (59, True)


def test_a_view_with_other_columns_is_made_anew_and_keeps_its_grants(store):
    url = new_url("pgvector")
    name = url.partition("#")[2]
    feed(store, url, **SECTIONS)
    role, lost = f'"Reader {name}"', f"lost_{name}"
    with psycopg.connect(postgres_url()) as connection:
        connection.execute(f"create role {role}")
        connection.execute(f"create role {lost}")
        connection.execute(f"grant select on {name} to {role} with grant option")
        connection.execute(f"grant select (id, lang) on {name} to public")
        # What new views are given is taken from this one.
        grant = "alter default privileges grant insert, update on tables to"
        connection.execute(f"{grant} {lost}")
        connection.execute(f"alter view {name} rename column lang to language")
    feed(store, url, rebuild=True, **SECTIONS)
    with psycopg.connect(postgres_url()) as connection:
        connection.execute(grant.replace("grant", "revoke").replace(" to", f" from {lost}"))
        assert connection.execute(f"select count(lang) from {name}").fetchone() == (60,)
        may = "select has_table_privilege(%s, %s, %s)"
        for privilege, is_held in (
            ("select", True),
            ("select with grant option", True),
            ("insert", False),
        ):
            asked = [role.strip('"'), name, privilege]
            assert connection.execute(may, asked).fetchone() == (is_held,)
        assert connection.execute(may, [lost, name, "insert, update"]).fetchone() == (False,)
        may = "select has_column_privilege('public', %s, %s, 'select')"
        assert connection.execute(may, [name, "id"]).fetchone() == (True,)
        assert connection.execute(may, [name, "vector"]).fetchone() == (False,)


def test_lists_that_were_made_for_far_fewer_rows_are_made_anew(store):
    url, sections = new_url("pgvector"), {"pgvector": {"type": "ivfflat"}, **SECTIONS}
    feed(store, url, **sections)
    Night({f"more-{n}": Document("one") for n in range(180)}, documents_per_file=180).commit(store)
    assert feed(store, url, **sections).action == "delta"
    Night({"last": Document("one")}).commit(store)
    report = feed(store, url, **sections)
    assert (report.action, report.num_rows, report.is_published) == ("full", 241, True)
    assert "its lists were made for 60" in report.reason
    assert "pgvector.max_growth = 4" in report.reason
    Night({"later": Document("one")}).commit(store)
    assert feed(store, url, **sections).action == "delta"


def test_a_view_that_is_no_index_is_left_alone(store):
    url = new_url("pgvector")
    name = url.partition("#")[2]
    with psycopg.connect(postgres_url()) as connection:
        connection.execute(f"create view {name} as select 7 as seven")
    with pytest.raises(ConfigError, match="give another name after '#'"):
        feed(store, url, **SECTIONS)
    with psycopg.connect(postgres_url()) as connection:
        assert connection.execute(f"select seven from {name}").fetchone() == (7,)


def test_a_url_of_postgresql_is_no_directory(store):
    with pytest.raises(ConfigError, match="which expects a directory, found a URL of PostgreSQL"):
        feed(store, "postgresql://host/db#name")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://user:secret@host/db", "a password does not belong in a URL"),
        ("postgresql://host/db?password=secret", "a password does not belong in a URL"),
        ("postgresql://host/db?pass%77ord=secret", "a password does not belong in a URL"),
        ("postgresql://host/db?secret=secret", "cannot read this URL"),
        ("s3://secret/index", "which expects postgresql://host/database#name"),
        ("postgresql://host/db#Drop Table", "cannot name an index"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused_without_its_secret(store, url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        feed(store, url, **SECTIONS)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_an_error_of_the_store(store, tmp_path):
    with pytest.raises(StorageError, match="PostgreSQL"):
        feed(store, f"postgresql:///db?host={tmp_path}", **SECTIONS)


def test_vectors_that_are_too_wide_for_an_index_are_said_to_be(memory_url):
    store = SnapshotStore(open_storage(memory_url))
    dim = 2001
    vectors_ND = np.eye(2, dim)
    commit(store, [write_vectors(store.storage, ["a", "b"], vectors_ND)], dim=dim)
    with pytest.raises(ConfigError, match="up to 2000 elements, found 2001; take flat"):
        feed(store, new_url("pgvector"), **SECTIONS)
    url = new_url("pgvector")
    assert feed(store, url, pgvector={"type": "flat"}, **SECTIONS).is_published
    assert found(open_index(url), vectors_ND[1], 1) == {"b": 1.0}


def test_a_graph_is_built_by_several_workers_and_too_little_memory_for_it_is_logged(
    memory_url, monkeypatch, caplog
):
    store = SnapshotStore(open_storage(memory_url))
    vectors = np.random.default_rng(1).standard_normal((2000, DIM))
    commit(store, [write_vectors(store.storage, [f"doc-{n:04d}" for n in range(2000)], vectors)])
    options = "maintenance_work_mem=1MB", "client_min_messages=debug1"
    monkeypatch.setenv("PGOPTIONS", " ".join(f"-c {option}" for option in options))
    url = new_url("pgvector")
    with caplog.at_level("DEBUG", "pipeline.index"):
        feed(store, url, **SECTIONS)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert re.search("using [1-9] parallel workers", said)
    (warning,) = (record for record in caplog.records if "no longer fits" in record.getMessage())
    assert warning.levelname == "WARNING"
    assert "maintenance_work_mem" in warning.getMessage()
    connect_to, _, name = url.partition("#")
    with psycopg.connect(connect_to) as connection:
        left = connection.execute(
            "select count(*) from pg_class where relname ~ %s and reloptions is not null",
            [f"^{name}_[0-9a-f]{{32}}$"],
        ).fetchone()
    assert left == (0,)
