"""An index in OpenSearch, fed and searched at its URL. Knows no snapshot's files.

A draft is an index that no alias stands for: made new for a full build, cloned from the live one
for a delta. Turning the alias publishes it, and is refused where the alias was turned meanwhile.
What the requests are like is in `opensearch_requests`, how they are sent in `opensearch_server`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    MissingFileError,
    StorageError,
    UnknownOutcomeError,
)
from pipeline.hits import Hit, unit
from pipeline.index.config import OpenSearchSection
from pipeline.index.opensearch_requests import (
    KIND,
    Target,
    claim_of,
    claim_request,
    conditions_of,
    cosine_of,
    draft_requests,
    integer_columns,
    is_index_of,
    path_of,
    removal_request,
    search_body,
    state_of,
    turn_request,
)
from pipeline.index.opensearch_server import OpenSearchServer, split_url
from pipeline.index.protocol import EXCERPT, Feed, IndexState, check_base, check_where
from pipeline.index.versions import ORPHAN_HOURS

# What an index is built with; the others matter to requests, or can be changed.
_BUILT_WITH = ("engine", "num_links", "build_depth", "num_shards")


@dataclass(frozen=True)
class _Published:
    """What an alias stands for."""

    index: str
    state: IndexState
    section: OpenSearchSection
    before: tuple[str, ...]
    integers: set[str]


class OpenSearchReader:
    """One state of an index: an index of OpenSearch that does not change."""

    def __init__(self, server: OpenSearchServer, found: _Published) -> None:
        """Search what was found on a server."""
        self.state = found.state
        self._server = server
        self._index = found.index
        self._depth = found.section.search_depth
        self._integers = found.integers

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `protocol.IndexReader.search`; OpenSearch gives 10,000 hits at most.

        Raises:
            MissingFileError: this state is no longer kept.
        """
        where = where or {}
        check_where(where, self.state.columns, self._index)
        conditions = conditions_of(where, self._integers)
        hits = []
        for query_D in unit(queries_QD.astype(np.float32)):
            body = search_body(query_D.tolist(), num_hits, self._depth, conditions)
            try:
                answer = self._server.post(path_of(self._index, "_search"), body)
            except MissingFileError as error:
                raise MissingFileError(
                    f"{self._server.url}: {self._index} was replaced and removed since it was "
                    "opened; open the index again (index.keep_versions keeps more of them)"
                ) from error
            found = [self._hit(hit) for hit in answer["hits"]["hits"]]
            hits.append(sorted(found, key=lambda hit: (-hit.score, hit.id)))
        return hits

    def _hit(self, found: Mapping[str, Any]) -> Hit:
        source = found["_source"]
        values = {name: source.get(name) for name in self.state.columns}
        excerpt = values.pop(EXCERPT, None) or ""
        return Hit(cosine_of(found["_score"]), values.pop("id"), values, excerpt)


class OpenSearchDraft:
    """The next state of an index: an index that no alias stands for yet."""

    def __init__(
        self, feeder: OpenSearchFeeder, feed: Feed, target: Target, claim: str | None
    ) -> None:
        """Fill the index of `target`.

        Args:
            feeder: of the alias.
            feed: what comes and goes.
            target: where it goes.
            claim: the index that nobody else may have taken away; None where there is a base.
        """
        self._feeder = feeder
        self._target = target
        self._claim = claim
        self._is_kept = False
        self._integers: set[str] = set()
        self.state = feed.state
        server = feeder.server
        try:
            for request in draft_requests(feed, target, feeder.section):
                server.send(request)
            count = server.get(path_of(target.index, "_count"))["count"]
            self.state = replace(feed.state, num_rows=int(count))
            found = server.get(path_of(target.index, "_mapping"))[target.index]["mappings"]
            self._integers = integer_columns(found["properties"])
        except BaseException:
            self.close()
            raise

    def reader(self) -> OpenSearchReader:
        """Searches the draft."""
        target, feeder = self._target, self._feeder
        found = _Published(target.index, self.state, feeder.section, target.before, self._integers)
        return OpenSearchReader(feeder.server, found)

    def publish(self) -> None:
        """Turn the alias, and remove what has been replaced for longer than is kept.

        Raises:
            CommitConflictError: another feeder turned it meanwhile.
            CommitUnknownError: the server did not say whether it did.
        """
        feeder, target = self._feeder, self._target
        try:
            feeder.server.send(turn_request(target, self._claim))
        except MissingFileError as error:
            raise CommitConflictError(
                f"{feeder.url}: another feeder published meanwhile. Nothing of it was touched; run "
                "again"
            ) from error
        except StorageError as error:
            self._is_kept = True
            self._look(error)
        self._is_kept = True
        with suppress(StorageError, ConfigError):
            feeder.remove_old(target)

    def close(self) -> None:
        """Remove the draft, unless it is or may be published."""
        if not self._is_kept:
            with suppress(StorageError, ConfigError):
                self._feeder.server.send(removal_request(self._target.index))

    def _look(self, error: StorageError) -> None:
        """Find out whether the alias was turned."""
        with suppress(StorageError, ConfigError):
            published = self._feeder.published()
            if published is not None and published.index == self._target.index:
                return
        raise CommitUnknownError(
            f"{self._feeder.url}: the server did not say whether the index was published "
            f"({error}); run again, which is safe in either case"
        ) from error


class OpenSearchFeeder:
    """Feeds the index of one name on one server."""

    def __init__(self, url: str, section: OpenSearchSection, keep_versions: int = 2) -> None:
        """Feed the index at `url`; nothing is connected yet.

        Args:
            url: of the server, with the index's name after '#'.
            section: what to make.
            keep_versions: states that stay, the published one among them.

        Raises:
            ConfigError: the URL holds a user or a password, or a name that cannot be one.
        """
        address, self.name = split_url(url)
        self.server = OpenSearchServer(address, compress=section.compress)
        self.url = url
        self.section = section
        self.settings = settings_of(section)
        self._keep = keep_versions

    def read_state(self) -> IndexState | None:
        """What the index holds, None where there is none yet."""
        found = self.published()
        return None if found is None else found.state

    def published(self) -> _Published | None:
        """What the alias stands for, None where there is none yet."""
        return _published(self.server, self.name, self.url)

    @contextmanager
    def draft(self, feed: Feed) -> Iterator[OpenSearchDraft]:
        """Make the next state beside the live one.

        Raises:
            CommitConflictError: the index does not hold what the feed starts from.
            ConfigError: the server refuses a row, or all of it.
        """
        # Before it is read what there is: who publishes first takes the claim away.
        claim = self._claimed() if feed.base is None else None
        found = self.published()
        check_base(feed, None if found is None else found.state, self.url)
        base, before = (None, ()) if found is None else (found.index, found.before)
        target = Target.after(self.name, base, before, self._keep)
        draft = OpenSearchDraft(self, feed, target, claim)
        try:
            yield draft
        finally:
            draft.close()

    def remove_old(self, target: Target) -> None:
        """Remove states that are no longer kept, and what feeders that were killed left."""
        for index in target.gone:
            self.server.send(removal_request(index))
        path = f"/{self.name}-*/_settings/index.creation_date"
        oldest_ms = (time.time() - ORPHAN_HOURS * 3600) * 1000
        for index, found in self.server.get(path).items():
            created_ms = int(found["settings"]["index"]["creation_date"])
            is_kept = index == target.index or index in target.before
            if is_index_of(self.name, index) and not is_kept and created_ms < oldest_ms:
                self.server.send(removal_request(index))

    def _claimed(self) -> str:
        """Make sure that the claim is there; returns its index."""
        claim = claim_of(self.name)
        try:
            self.server.send(claim_request(self.name))
        except (ConfigError, UnknownOutcomeError):
            try:
                self.server.get(path_of(claim, "_settings"))
            except MissingFileError:
                pass
            else:
                return claim
            raise
        return claim


def settings_of(section: OpenSearchSection) -> dict[str, Any]:
    """How an index is built: one that was built with others has to be built anew."""
    return {"kind": KIND, **{key: getattr(section, key) for key in _BUILT_WITH}}


def open_opensearch(url: str) -> OpenSearchReader | None:
    """Open an index to search it; None where there is none.

    Raises:
        ConfigError: the URL holds a user or a password, or the name is of something else.
        CorruptFileError: what the index says of itself cannot be read.
        StorageError: the server cannot be reached.
    """
    address, name = split_url(url)
    server = OpenSearchServer(address)
    found = _published(server, name, url)
    return None if found is None else OpenSearchReader(server, found)


def _published(server: OpenSearchServer, name: str, url: str) -> _Published | None:
    try:
        found = server.get(path_of(name, "_mapping"))
    except MissingFileError:
        return None
    if len(found) != 1:
        raise ConfigError(
            f"{url}: the alias stands for {len(found)} indexes ({', '.join(sorted(found))}), "
            "expected one; let it stand for one of them"
        )
    ((index, described),) = found.items()
    mapping = described["mappings"]
    state, section, before = state_of(mapping.get("_meta"), url)
    integers = integer_columns(mapping.get("properties", {}))
    return _Published(index, state, section, before, integers)
