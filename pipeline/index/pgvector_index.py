"""A pgvector table in PostgreSQL, fed and searched. Knows no snapshot's files.

A name stands for the index: a view of this name, and a row of the table `elmo_indexes` that says
what the index holds and which table has its rows. A delta is one transaction on that table, a full
build one that fills another table and turns the view; either is seen when it is committed.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    CorruptFileError,
    RebuildNeededError,
    StorageError,
)
from pipeline.hits import Hit, matrix_of, unit
from pipeline.index.config import PgvectorSection
from pipeline.index.protocol import (
    EXCERPT,
    VECTOR,
    Feed,
    IndexState,
    check_base,
    check_where,
)
from pipeline.redaction import redact_message
from pipeline.storage_urls import has_credentials

KIND = "pgvector"
DEFAULT_NAME = "elmo"
STATE_TABLE = "elmo_indexes"
# Keys of a record beside those of the state.
SECTION, TRAINED_ROWS = "pgvector", "trained_rows"
# Of pgvector's indexes on the type vector.
MAX_INDEXED_DIM = 2000
# More than any server has; max_parallel_maintenance_workers is the limit.
MAX_WORKERS = 1024
# Parameters of a connection that nobody but its user may see.
_SECRETS = {"password", "sslpassword"}
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,29}")
_BUILT_WITH = ("type", "num_links", "build_depth", "num_lists")
# Readers that are at work keep the last but one table from going; a later run removes it.
_DROP_TIMEOUT = "2s"

log = logging.getLogger(__name__)

Connection: TypeAlias = "psycopg.Connection[Any]"


class _Held(NamedTuple):
    """What is published under a name, and how it is searched."""

    state: IndexState
    table: str
    section: PgvectorSection
    trained_rows: int


class PgvectorReader:
    """One state of an index: a transaction that sees nothing of later ones."""

    def __init__(
        self, connection: Connection, state: IndexState, table: str, section: PgvectorSection
    ) -> None:
        """Search `table` within the connection's transaction."""
        self.state = state
        self._connection = connection
        self._table = table
        self._section = section

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `protocol.IndexReader.search`; with `where`, all rows that it leaves are looked at."""
        check_where(where or {}, self.state.columns, self._table)
        conditions: list[sql.Composable] = [sql.SQL("true")]
        for name in where or {}:
            text = sql.SQL("{}::text").format(sql.Identifier(name))
            conditions.append(sql.SQL("{} is not distinct from %s").format(text))
        query = sql.SQL("select {}, {} <#> %s as distance from {} where {} order by 2 limit %s")
        columns = sql.SQL("row_to_json(({}))")
        names = sql.SQL(", ").join(map(sql.Identifier, self.state.columns))
        statement = query.format(
            columns.format(sql.SQL("select r from (select {}) r").format(names)),
            sql.Identifier(VECTOR),
            sql.Identifier(self._table),
            sql.SQL(" and ").join(conditions),
        )
        values = list((where or {}).values())
        hits = []
        with _reporting(self._table):
            self._look_at(num_hits, is_exact=bool(where))
            for query_D in unit(queries_QD.astype(np.float32)):
                answer = self._connection.execute(statement, [query_D, *values, num_hits])
                hits.append([_hit(row, -distance) for row, distance in answer.fetchall()])
        return hits

    def _look_at(self, num_hits: int, *, is_exact: bool) -> None:
        depth = max(self._section.search_depth, num_hits)
        for name, value in (
            ("hnsw.ef_search", min(depth, 1000)),
            ("ivfflat.probes", self._section.num_probes),
            ("enable_indexscan", "off" if is_exact else "on"),
        ):
            self._connection.execute("select set_config(%s, %s, true)", [name, str(value)])


class PgvectorDraft:
    """The next state of an index: a transaction that is not committed yet."""

    def __init__(self, feeder: PgvectorFeeder, connection: Connection, feed: Feed) -> None:
        """Feed the index within the connection's transaction."""
        self._feeder = feeder
        self._connection = connection
        found = feeder.locked_state(connection)
        check_base(feed, None if found is None else found.state, feeder.url)
        if found is None:
            _check_name_is_free(connection, feeder.name, feeder.url)
        self._is_full = feed.is_full
        if feeder.section.type != "flat" and feed.state.dim > MAX_INDEXED_DIM:
            raise ConfigError(
                f"pgvector.type: pgvector indexes vectors of up to {MAX_INDEXED_DIM} elements, "
                f"found {feed.state.dim}; take flat"
            )
        if feed.is_full:
            self._trained_rows = feed.state.num_rows
            self._table = f"{feeder.name}_{uuid.uuid4().hex}"
            _create_table(connection, self._table, feed.schema)
        else:
            assert found is not None
            self._trained_rows = found.trained_rows
            _check_growth(feed.state.num_rows, found.trained_rows, feeder)
            self._table = found.table
        table = sql.Identifier(self._table)
        for step in feed.steps():
            gone = _plain(step.gone_ids)
            if gone:
                statement = sql.SQL("delete from {} where id = any(%s)").format(table)
                connection.execute(statement, [gone])
            _copy(connection, self._table, feed.schema, step.rows())
        if feed.is_full:
            _create_indexes(connection, self._table, feeder.section, feed.state.num_rows)
        count = connection.execute(sql.SQL("select count(*) from {}").format(table)).fetchone()
        assert count is not None
        self.state = replace(feed.state, num_rows=int(count[0]))

    def reader(self) -> PgvectorReader:
        """Searches the draft."""
        return PgvectorReader(self._connection, self.state, self._table, self._feeder.section)

    def publish(self) -> None:
        """Commit.

        Raises:
            CommitUnknownError: the connection broke while the server was committing.
        """
        connection, name = self._connection, self._feeder.name
        section = self._feeder.section.model_dump(mode="json")
        record = {
            **self.state.to_json(),
            SECTION: section,
            TRAINED_ROWS: self._trained_rows,
        }
        connection.execute(
            sql.SQL(
                "insert into {} (name, state, table_name) values (%s, %s, %s) on conflict (name) "
                "do update set state = excluded.state, table_name = excluded.table_name"
            ).format(sql.Identifier(STATE_TABLE)),
            [name, json.dumps(record), self._table],
        )
        if self._is_full:
            _turn_view(connection, name, self._table)
        try:
            connection.commit()
        except psycopg.OperationalError as error:
            raise CommitUnknownError(
                f"{self._feeder.url}: the server did not say whether the index was published "
                f"({redact_message(str(error))}); run again, which is safe in either case"
            ) from error
        if self._is_full:
            self._feeder.drop_old_tables(connection)


class PgvectorFeeder:
    """Feeds the index of one name in one database."""

    def __init__(self, url: str, section: PgvectorSection) -> None:
        """Feed the index at `url`; nothing is connected yet.

        Raises:
            ConfigError: the URL holds a password, or a name that cannot be one.
        """
        self._connect_to, self.name = split_url(url)
        self.url = url
        self.section = section
        self.settings = {"kind": KIND, **{key: getattr(section, key) for key in _BUILT_WITH}}

    def read_state(self) -> IndexState | None:
        """What the index holds, None where there is none yet."""
        with _connected(self._connect_to) as connection:
            found = _read_state(connection, self.name)
            return None if found is None else found.state

    @contextmanager
    def draft(self, feed: Feed) -> Iterator[PgvectorDraft]:
        """Make the next state in a transaction.

        Raises:
            CommitConflictError: another feeder is at work, or was.
            ConfigError: the server has no pgvector.
            RebuildNeededError: the lists were made for far fewer rows.
        """
        with _connected(self._connect_to) as connection:
            _prepare(connection)
            yield PgvectorDraft(self, connection, feed)

    def locked_state(self, connection: Connection) -> _Held | None:
        """What is published, once no other feeder can be at work.

        Raises:
            CommitConflictError: one is.
        """
        lock = "select pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
        got = connection.execute(lock, [f"{STATE_TABLE} {self.name}"]).fetchone()
        if got is None or not got[0]:
            raise CommitConflictError(
                f"{self.url}: another feeder is at work on this index; run again when it is done"
            )
        return _read_state(connection, self.name)

    def drop_old_tables(self, connection: Connection) -> None:
        """Remove all tables of this index but the published one and the newest before it."""
        with suppress(psycopg.Error):
            found = connection.execute(
                sql.SQL(
                    "select relname from pg_class where relkind = 'r' and relname ~ %s and relname "
                    "not in (select table_name from {}) and pg_table_is_visible(oid) "
                    "order by oid desc offset 1"
                ).format(sql.Identifier(STATE_TABLE)),
                [f"^{self.name}_[0-9a-f]{{32}}$"],
            ).fetchall()
            connection.execute("select set_config('lock_timeout', %s, true)", [_DROP_TIMEOUT])
            for (table,) in found:
                connection.execute(sql.SQL("drop table {}").format(sql.Identifier(table)))
            connection.commit()


def open_pgvector(url: str) -> PgvectorReader | None:
    """Open an index to search it; None where there is none.

    Raises:
        ConfigError: the URL holds a password, or a name that cannot be one.
        CorruptFileError: the table of the index is gone.
        StorageError: the server cannot be reached.
    """
    connect_to, name = split_url(url)
    with _reporting(connect_to), ExitStack() as closing:
        connection = psycopg.connect(connect_to)
        closing.callback(connection.close)
        # What is seen is settled by the first statement, whatever is committed later.
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        found = _locked_table(connection, name)
        if found is None:
            return None
        register_vector(connection)
        reader = PgvectorReader(connection, found.state, found.table, found.section)
        weakref.finalize(reader, closing.pop_all().close)
        return reader


def split_url(url: str) -> tuple[str, str]:
    """What to connect to, and the index's name: `postgresql://host/database#name`.

    Raises:
        ConfigError: the URL holds a password, or a name that cannot be one.
    """
    connect_to, _, name = url.partition("#")
    try:
        parameters = conninfo_to_dict(connect_to)
    except psycopg.ProgrammingError:
        # What libpq says of it repeats parts of the URL, and with them perhaps a password.
        raise ConfigError(
            "index.path: libpq cannot read this URL; expected postgresql://host/database#name"
        ) from None
    if has_credentials(url) or _SECRETS & parameters.keys():
        raise ConfigError(
            "index.path: a password does not belong in a URL; give it by the environment "
            "(PGPASSWORD, or a password file)"
        )
    name = name or DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"index.path: {name!r} cannot name an index: expected up to 30 of a-z 0-9 _"
        )
    return connect_to, name


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """A connection whose transaction is rolled back at the end, unless it was committed."""
    with _reporting(url):
        connection = psycopg.connect(url)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def _reporting(url: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        said = " ".join(redact_message(str(error)).split())
        raise StorageError(f"{url}: PostgreSQL: {said}") from error


def _prepare(connection: Connection) -> None:
    try:
        connection.execute("create extension if not exists vector")
    except psycopg.Error as error:
        raise ConfigError(
            f"PostgreSQL: the extension vector (pgvector) is needed: {error}; install it on the "
            "server, or let its administrator create it in this database"
        ) from error
    connection.execute(
        sql.SQL(
            "create table if not exists {} (name text primary key, state jsonb not null, "
            "table_name text not null)"
        ).format(sql.Identifier(STATE_TABLE))
    )
    connection.commit()
    register_vector(connection)


def _read_state(connection: Connection, name: str) -> _Held | None:
    there = connection.execute("select to_regclass(%s)", [STATE_TABLE]).fetchone()
    if there is None or there[0] is None:
        return None
    statement = sql.SQL("select state, table_name from {} where name = %s")
    found = connection.execute(statement.format(sql.Identifier(STATE_TABLE)), [name]).fetchone()
    if found is None:
        return None
    state = IndexState.from_json(found[0], f"{STATE_TABLE}: {name}")
    if state.settings.get("kind") != KIND:
        raise CorruptFileError(f"{STATE_TABLE}: {name} is not of kind {KIND}")
    section = PgvectorSection.model_validate(found[0].get(SECTION, {}))
    trained_rows = int(found[0].get(TRAINED_ROWS, state.num_rows))
    return _Held(state, str(found[1]), section, trained_rows)


def _locked_table(connection: Connection, name: str) -> _Held | None:
    """What is published, its table held so that no later build removes it."""
    gone = None
    while (found := _read_state(connection, name)) is not None:
        lock = sql.SQL("lock table {} in access share mode").format(sql.Identifier(found.table))
        try:
            connection.execute(lock)
        except psycopg.errors.UndefinedTable:
            # Removed since the state was read; a second time, by somebody else than a feeder.
            connection.rollback()
            if found.table == gone:
                raise CorruptFileError(
                    f"{STATE_TABLE}: {name}: its table {gone} is gone; build it anew with --rebuild"
                ) from None
            gone = found.table
        else:
            return found
    return None


def _check_growth(num_rows: int, trained_rows: int, feeder: PgvectorFeeder) -> None:
    section = feeder.section
    limit = int(section.max_growth * trained_rows)
    if section.type == "ivfflat" and num_rows > limit:
        raise RebuildNeededError(
            f"{feeder.url}: the index would hold {num_rows:,} rows, its lists were made for "
            f"{trained_rows:,}; with more than {limit:,} they are made anew (pgvector.max_growth = "
            f"{section.max_growth:g})"
        )


def _check_name_is_free(connection: Connection, name: str, url: str) -> None:
    there = connection.execute("select to_regclass(%s)", [name]).fetchone()
    if there is not None and there[0] is not None:
        raise ConfigError(
            f"{url}: {name} is there already and {STATE_TABLE} does not name it, so it is no "
            "index; give another name after '#', or remove it"
        )


def _turn_view(connection: Connection, name: str, table: str) -> None:
    """Let the view show another table; with the same columns, what builds on it stays as well."""
    names = sql.Identifier(name), sql.Identifier(table)
    try:
        with connection.transaction():
            replaced = sql.SQL("create or replace view {} as select * from {}").format(*names)
            connection.execute(replaced)
    except psycopg.errors.InvalidTableDefinition:
        wanted = _grants(connection, name)
        connection.execute(sql.SQL("drop view {}").format(names[0]))
        connection.execute(sql.SQL("create view {} as select * from {}").format(*names))
        columns = connection.execute(sql.SQL("select * from {} limit 0").format(names[0]))
        left = {column.name for column in columns.description or ()}
        wanted = {grant for grant in wanted if grant.column is None or grant.column in left}
        _set_grants(connection, name, wanted)


class _Grant(NamedTuple):
    """A privilege on a view, or on one column of it; role None is everybody."""

    role: str | None
    privilege: str
    column: str | None
    may_grant: bool


def _grants(connection: Connection, name: str) -> set[_Grant]:
    """The privileges on a view and its columns, those that come by default as well."""
    found = connection.execute(
        "select nullif(a.grantee, 0)::regrole::text, a.privilege_type, null, a.is_grantable "
        "from pg_class, aclexplode(coalesce(relacl, acldefault('r', relowner))) a "
        "where oid = %(name)s::regclass union all "
        "select nullif(a.grantee, 0)::regrole::text, a.privilege_type, attname, a.is_grantable "
        "from pg_attribute, aclexplode(attacl) a "
        "where attrelid = %(name)s::regclass and not attisdropped",
        {"name": name},
    )
    return {_Grant(*row) for row in found.fetchall()}


def _set_grants(connection: Connection, name: str, wanted: set[_Grant]) -> None:
    """Leave just these privileges on a view."""
    found = _grants(connection, name)
    for verb, preposition, grants in (
        ("revoke", "from", found - wanted),
        ("grant", "to", wanted - found),
    ):
        for grant in grants:
            # `regrole` has quoted the role already, and the server named the privilege.
            what = sql.SQL("{} {}").format(sql.SQL(verb), sql.SQL(grant.privilege))
            if grant.column is not None:
                what = sql.SQL("{} ({})").format(what, sql.Identifier(grant.column))
            role = sql.SQL(grant.role or "public")
            end = " with grant option" if verb == "grant" and grant.may_grant else ""
            statement = sql.SQL("{} on {} {} {}{}")
            connection.execute(
                statement.format(
                    what, sql.Identifier(name), sql.SQL(preposition), role, sql.SQL(end)
                )
            )


def _create_table(connection: Connection, table: str, schema: pa.Schema) -> None:
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(_type_of(field)))
        for field in schema
    ]
    statement = sql.SQL("create table {} ({})")
    connection.execute(statement.format(sql.Identifier(table), sql.SQL(", ").join(columns)))


def _create_indexes(
    connection: Connection, table: str, section: PgvectorSection, num_rows: int
) -> None:
    name = sql.Identifier(table)
    connection.execute(sql.SQL("create index on {} (id)").format(name))
    vector = sql.Identifier(VECTOR)
    if section.type == "hnsw":
        with _many_workers(connection, name):
            connection.execute(
                sql.SQL(
                    "create index on {} using hnsw ({} vector_ip_ops) with (m = {}, "
                    "ef_construction = {})"
                ).format(name, vector, section.num_links, section.build_depth)
            )
    elif section.type == "ivfflat":
        lists = section.num_lists or max(1, min(num_rows // 1000, 32768))
        connection.execute(
            sql.SQL("create index on {} using ivfflat ({} vector_ip_ops) with (lists = {})").format(
                name, vector, lists
            )
        )
    connection.execute(sql.SQL("analyze {}").format(name))


@contextmanager
def _many_workers(connection: Connection, table: sql.Identifier) -> Iterator[None]:
    """Let an index be built by as many workers as the server allows, and log what it says of it."""
    # By itself it counts the table's pages, and the vectors are not in these but beside them.
    connection.execute(
        sql.SQL("alter table {} set (parallel_workers = {})").format(table, MAX_WORKERS)
    )
    connection.add_notice_handler(_log_notice)
    try:
        yield
    finally:
        connection.remove_notice_handler(_log_notice)
    connection.execute(sql.SQL("alter table {} reset (parallel_workers)").format(table))


def _log_notice(notice: psycopg.errors.Diagnostic) -> None:
    is_debug = (notice.severity_nonlocalized or "").startswith("DEBUG")
    said = ". ".join(filter(None, (notice.message_primary, notice.message_hint)))
    log.log(logging.DEBUG if is_debug else logging.WARNING, "PostgreSQL: %s", said)


def _copy(
    connection: Connection, table: str, schema: pa.Schema, rows: Iterator[pa.RecordBatch]
) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, schema.names))
    statement = sql.SQL("copy {} ({}) from stdin with (format binary)")
    types = [_type_of(field).partition("(")[0] for field in schema]
    with (
        connection.cursor() as cursor,
        cursor.copy(statement.format(sql.Identifier(table), names)) as copy,
    ):
        copy.set_types(types)
        for batch in rows:
            columns: list[Any] = [
                matrix_of(batch[name]) if name == VECTOR else _plain(batch[name])
                for name in schema.names
            ]
            for row in zip(*columns, strict=True):
                copy.write_row(row)


def _plain(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if pa.types.is_string(column.type):
        # The one character that PostgreSQL's text cannot hold.
        return [None if value is None else value.replace("\0", "") for value in values]
    return values


def _type_of(field: pa.Field) -> Any:
    if field.name == VECTOR:
        return f"vector({field.type.list_size})"
    return "int4" if pa.types.is_int32(field.type) else "text"


def _hit(values: dict[str, Any], score: float) -> Hit:
    excerpt = values.pop(EXCERPT, None) or ""
    return Hit(float(score), values.pop("id"), values, excerpt)
