"""From the configuration, or an index's URL, to what feeds or searches it. Knows all kinds by name.

A kind's package is imported when an index of this kind is used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from pipeline.errors import ConfigError
from pipeline.index.config import IndexConfig
from pipeline.index.protocol import IndexFeeder, IndexReader
from pipeline.index.versions import IndexVersions
from pipeline.storage import open_storage

_PACKAGES: dict[str, tuple[str, ...]] = {
    "faiss": ("faiss",),
    "lancedb": ("lancedb",),
    "opensearch": (),
    "pgvector": ("psycopg", "pgvector"),
}
_POSTGRES = ("postgresql://", "postgres://")
_HTTP = ("https://", "http://")


def open_feeder(config: IndexConfig) -> IndexFeeder:
    """What feeds the configured index.

    Raises:
        ConfigError: the kind's package is not installed, or the URL is not one, or one of another
            kind.
    """
    is_postgres = config.index.path.startswith(_POSTGRES)
    if is_postgres is not (config.index.kind == "pgvector"):
        expected = "a directory" if is_postgres else "postgresql://host/database#name"
        found = "a URL of PostgreSQL" if is_postgres else "a directory"
        raise ConfigError(
            f"index.path: index.kind is {config.index.kind}, which expects {expected}, found "
            f"{found}; change one of the two"
        )
    if config.index.path.startswith(_HTTP) and config.index.kind != "opensearch":
        raise ConfigError(
            f"index.path: index.kind is {config.index.kind}, which does not expect a URL of a "
            "server on the web; change one of the two"
        )
    if config.index.kind == "opensearch" and config.snapshot.space == "white":
        raise ConfigError(
            "snapshot.space: white is a matrix that OpenSearch would keep in its cluster's state, "
            "on every node; take centered or plain there"
        )
    need_package(config.index.kind)
    return _FEEDERS[config.index.kind](config)


def open_index(url: str) -> IndexReader:
    """Open an index to search it: what is published now, whatever is published later.

    Args:
        url: as index.path.

    Raises:
        ConfigError: there is no index, one of a kind that is not known, or its package is not
            installed.
        CorruptFileError: a file of it is damaged.
        StorageError: the store failed.
    """
    reader: IndexReader | None
    if url.startswith(_POSTGRES):
        need_package("pgvector")
        from pipeline.index.pgvector_index import open_pgvector

        reader = open_pgvector(url)
    elif url.startswith(_HTTP):
        from pipeline.index.opensearch_index import open_opensearch

        reader = open_opensearch(url)
    else:
        reader = _open_directory(url)
    if reader is None:
        raise ConfigError(f"{url}: there is no index here; 'elmo index' makes one")
    return reader


def _open_directory(url: str) -> IndexReader | None:
    storage = open_storage(url)
    found = IndexVersions(storage).open_latest(lambda version: [version.state.settings.get("kind")])
    if found is None:
        return None
    (kind,) = found
    if kind == "faiss":
        need_package(kind)
        from pipeline.index.faiss_index import open_faiss

        return open_faiss(storage)
    if kind == "lancedb":
        need_package(kind)
        from pipeline.index.lancedb_index import open_lancedb

        return open_lancedb(storage)
    if kind == "opensearch":
        raise ConfigError(
            f"{url}: requests for OpenSearch are here, which nothing searches; give the URL of the "
            "server that they were sent to, https://host:9200#name"
        )
    raise ConfigError(
        f"{url}: an index of kind {kind!r} is here, which this version does not know; a newer one "
        "may"
    )


def need_package(kind: str) -> None:
    """Make sure that a kind's package is installed.

    Raises:
        ConfigError: it is not; names the extra.
    """
    try:
        for package in _PACKAGES[kind]:
            import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"index.kind: {kind} needs a package that is not installed ({error}); install the "
            f"extra: pip install 'elmo-nightly[{kind}]'"
        ) from None


def _faiss(config: IndexConfig) -> IndexFeeder:
    from pipeline.index.faiss_index import FaissFeeder

    return FaissFeeder(open_storage(config.index.path), config.faiss, config.index.keep_versions)


def _lancedb(config: IndexConfig) -> IndexFeeder:
    from pipeline.index.lancedb_index import LancedbFeeder

    storage = open_storage(config.index.path)
    return LancedbFeeder(storage, config.lancedb, config.index.keep_versions)


def _pgvector(config: IndexConfig) -> IndexFeeder:
    from pipeline.index.pgvector_index import PgvectorFeeder

    return PgvectorFeeder(config.index.path, config.pgvector)


def _opensearch(config: IndexConfig) -> IndexFeeder:
    if config.index.path.startswith(_HTTP):
        from pipeline.index.opensearch_index import OpenSearchFeeder

        return OpenSearchFeeder(config.index.path, config.opensearch, config.index.keep_versions)
    from pipeline.index.opensearch_files import RequestsFeeder

    return RequestsFeeder(config.index.path, config.opensearch, config.index.keep_versions)


_FEEDERS: dict[str, Callable[[IndexConfig], IndexFeeder]] = {
    "faiss": _faiss,
    "lancedb": _lancedb,
    "opensearch": _opensearch,
    "pgvector": _pgvector,
}
