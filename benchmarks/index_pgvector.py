"""A PostgreSQL server, and a plain program that loads it as pgvector's documentation advises.

That is: binary COPY into a table without an index, then the index, with room for it in memory and
several workers. Knows none of our code.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
from index_corpus import ALL, read_whole
from pgvector.psycopg import register_vector

if TYPE_CHECKING:
    from index_corpus import Corpus

    from pipeline.index.config import IndexConfig

# Both ways have these, from libpq's environment.
OPTIONS = "-c maintenance_work_mem=1GB -c max_parallel_maintenance_workers=2"
STARTS_WITHIN_SECONDS = 300


class Server:
    """A server that ends with this process."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # Of a machine without a directory for what runs, which is not needed here.
            warnings.simplefilter("ignore")
            import pgserver

        self._package = Path(pgserver.__file__).parent
        # A socket's path has at most 107 characters.
        self._directory = tempfile.mkdtemp(prefix="pg", dir="/tmp")
        atexit.register(self._end)
        os.environ["PGOPTIONS"] = OPTIONS
        # It waits ten seconds for the server and then leaves it to itself.
        with suppress(subprocess.TimeoutExpired):
            pgserver.get_server(self._directory)
        self.url = f"postgresql:///postgres?user=postgres&host={quote(self._directory)}"
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while True:
            try:
                self._execute("create extension if not exists vector")
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def fresh_url(self, name: str) -> str:
        """Where an index of this name is not there any more, nor what `own_pgvector` made."""
        with psycopg.connect(self.url) as connection:
            there = connection.execute("select to_regclass('elmo_indexes')").fetchone()
            if there and there[0]:
                connection.execute("delete from elmo_indexes where name = %s", [name])
            connection.execute(f"drop view if exists {name}")
            connection.execute("drop table if exists own")
            found = "select relname from pg_class where relkind = 'r' and relname ~ %s"
            for (table,) in connection.execute(found, [f"^{name}_[0-9a-f]{{32}}$"]).fetchall():
                connection.execute(f"drop table {table}")
        # What is written back later would be counted to what is measured next.
        self._execute("checkpoint")
        return f"{self.url}#{name}"

    def cpu_s(self) -> float:
        """Processor seconds of the server so far, those of its ended processes among them."""
        parent = int((Path(self._directory) / "postmaster.pid").read_text().split()[0])
        ticks = 0
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = entry.read_text().rpartition(")")[2].split()
                if int(entry.parent.name) == parent:
                    ticks += sum(map(int, fields[11:15]))
                elif int(fields[1]) == parent:
                    ticks += sum(map(int, fields[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def _end(self) -> None:
        subprocess.run(
            [
                self._package / "pginstall/bin/pg_ctl",
                "-D",
                self._directory,
                "-m",
                "immediate",
                "stop",
            ],
            user=os.stat(self._directory).st_uid,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        shutil.rmtree(self._directory, ignore_errors=True)


@functools.cache
def postgres_server() -> Server:
    """The one server of this process, started when it is first asked for."""
    return Server()


def own_pgvector(corpus: Corpus, folder: Path, config: IndexConfig) -> None:
    """Load a table of the first snapshot and index it with the same settings."""
    del folder
    section = config.pgvector
    ids, vectors_ND = read_whole(corpus.paths(ALL))
    using = {
        "hnsw": f"hnsw (vector vector_ip_ops) with (m = {section.num_links}, "
        f"ef_construction = {section.build_depth})",
        "ivfflat": f"ivfflat (vector vector_ip_ops) with (lists = {max(1, len(ids) // 1000)})",
    }
    with psycopg.connect(postgres_server().url) as connection:
        register_vector(connection)
        connection.execute(f"create table own (id text, vector vector({corpus.dim}))")
        statement = "copy own (id, vector) from stdin with (format binary)"
        with connection.cursor().copy(statement) as copy:
            copy.set_types(["text", "vector"])
            for row in zip(ids.to_pylist(), vectors_ND, strict=True):
                copy.write_row(row)
        connection.execute("create index on own (id)")
        if section.type in using:
            connection.execute(f"create index on own using {using[section.type]}")
        connection.execute("analyze own")
