"""What every search index offers, and what it is told. Knows no index and no snapshot's files.

An index holds the rows of one snapshot. A feeder makes a draft of its next state beside the live
one; a draft can be searched, and nobody else sees it before it is published.

Rows come as record batches of one schema: `id`, the columns of the snapshot's level, its partition
columns, `_excerpt` where the snapshot carries the text, and `vector`, of length 1, float32, in the
space of the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import CommitConflictError, ConfigError, CorruptFileError
from pipeline.hits import Hit
from pipeline.projection import SPACES, Projection, Space

FORMAT_VERSION = 1
# Names that begin so are no columns of a snapshot.
VECTOR, EXCERPT = "vector", "_excerpt"
# A filter that leaves a smaller share of the rows than this is answered by looking at all of these:
# a graph or a few lists would hold too few of them.
MIN_SHARE_FOR_APPROXIMATION = 0.2


@dataclass(frozen=True)
class IndexState:
    """What an index holds, as it records it itself.

    Attributes:
        snapshot: number of the snapshot.
        run_id: of the run that committed that snapshot; tells two directories' histories apart.
        fingerprint: of the encoder; vectors of another one are refused.
        vector_column: which of the snapshot's vector columns.
        dim: elements of a vector.
        columns: of a row, the vector not among them.
        num_rows: rows that a search can find.
        settings: how it was built; with others it has to be built anew.
        space: where cosines are taken; queries are brought there before they are asked.
        projection: what brings vectors there, as `Projection.to_json`; None for `plain`.
        fitted_rows: rows that the projection was fitted to.
    """

    snapshot: int
    run_id: str
    fingerprint: str
    vector_column: str
    dim: int
    columns: tuple[str, ...]
    num_rows: int
    settings: Mapping[str, Any] = field(hash=False)
    space: Space = "plain"
    projection: Mapping[str, str | None] | None = field(default=None, hash=False)
    fitted_rows: int = 0

    def read_projection(self) -> Projection | None:
        """What brings vectors of the encoder into the index's space; None for the plain one.

        Raises:
            CorruptFileError: it is damaged.
        """
        if self.projection is None:
            return None
        try:
            return Projection.from_json(self.projection)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"the state of the index: its projection cannot be read ({error}); build it anew "
                "with --rebuild"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The state as plain JSON types; `from_json` reads it back."""
        return {
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "columns": list(self.columns),
            "settings": dict(self.settings),
            "projection": None if self.projection is None else dict(self.projection),
        }

    @classmethod
    def from_json(cls, values: Any, where: str) -> IndexState:
        """Read what `to_json` gave; keys that are not known are skipped.

        A state of before there were spaces is of the plain one.

        Raises:
            CorruptFileError: a key is missing or has another type, or the format is a later one.
        """
        if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
            found = values.get("format_version") if isinstance(values, dict) else None
            raise CorruptFileError(
                f"{where}: the state of an index in format {FORMAT_VERSION} is expected, found "
                f"{found!r}; a newer version of this package may read it, or build it anew"
            )
        kinds = {
            "snapshot": int,
            "run_id": str,
            "fingerprint": str,
            "vector_column": str,
            "dim": int,
            "columns": list,
            "num_rows": int,
            "settings": dict,
        }
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):
                raise CorruptFileError(
                    f"{where}: {name} of type {kind.__name__} is expected, found "
                    f"{values.get(name)!r}; build the index anew"
                )
        space, projection = values.get("space", "plain"), values.get("projection")
        fitted_rows = values.get("fitted_rows", 0)
        is_plain = space == "plain" and projection is None
        is_known = space in SPACES and isinstance(projection, dict)
        if not is_plain and not (is_known and isinstance(fitted_rows, int)):
            raise CorruptFileError(
                f"{where}: a space of {', '.join(SPACES)} and its projection are expected, found "
                f"{space!r} and {type(projection).__name__}; build the index anew"
            )
        chosen = {name: values[name] for name in kinds}
        chosen |= {"space": space, "projection": projection, "fitted_rows": fitted_rows}
        return cls(**{**chosen, "columns": tuple(values["columns"])})


class Step(Protocol):
    """A part of what an index has to do: first the documents that go, then the rows that come."""

    @property
    def gone_ids(self) -> pa.Array:
        """Documents of which all rows leave; those that are not there are no error."""

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows that come, as the feed's `schema` says."""


class Feed(Protocol):
    """What makes an index hold a snapshot: of everything, or of the difference to its state."""

    @property
    def is_full(self) -> bool:
        """Whether the index starts empty."""

    @property
    def base(self) -> IndexState | None:
        """What the index must hold for this to be published; None where there is no index."""

    @property
    def state(self) -> IndexState:
        """What the index will hold; the draft knows the number of rows better."""

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""

    def steps(self) -> Iterator[Step]:
        """In order, once. No document goes or comes in two of them."""

    def sample(self, num_rows: int) -> NDArray[np.float32]:
        """Vectors (N, D) of rows drawn from the whole snapshot: all of them, or `num_rows`."""


class IndexReader(Protocol):
    """An index that can be searched: one state of it, whatever is published meanwhile."""

    @property
    def state(self) -> IndexState:
        """What it holds."""

    def search(
        self,
        queries_QD: NDArray[np.floating],
        num_hits: int,
        where: Mapping[str, str | None] | None = None,
    ) -> list[list[Hit]]:
        """The rows of highest cosine with each query.

        Args:
            queries_QD: one vector a query, of any length, in the space of the index
                (`IndexState.read_projection`).
            num_hits: rows wanted per query; fewer come back where fewer were found.
            where: only rows with these values of their columns; None as a value is null.

        Returns: hits in falling order of score, one list a query.

        Raises:
            ConfigError: a column of `where` is not in the index.
        """


class Draft(Protocol):
    """The next state of an index, which nobody sees but its maker."""

    def reader(self) -> IndexReader | None:
        """What searches the draft; None where it cannot be searched before it is published."""

    def publish(self) -> None:
        """Make it the index: whoever opens it from now on sees all of it.

        Raises:
            CommitConflictError: somebody else published meanwhile; nothing of theirs was touched.
        """


class IndexFeeder(Protocol):
    """Feeds one index."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it builds the index: one that was built with others has to be built anew."""

    def read_state(self) -> IndexState | None:
        """What the index holds, None where there is none yet."""

    def draft(self, feed: Feed) -> AbstractContextManager[Draft]:
        """Make the next state; leaving the block without `publish` throws it away.

        Raises:
            CommitConflictError: the index does not hold `feed.base`: somebody else published.
            RebuildNeededError: the index cannot take these changes; feed it everything.
        """


def check_base(feed: Feed, found: IndexState | None, url: str) -> None:
    """Make sure that an index holds what a feed starts from.

    Raises:
        CommitConflictError: somebody else published since that was read.
    """
    if feed.base != found:
        held = "nothing" if found is None else f"snapshot {found.snapshot}"
        raise CommitConflictError(
            f"{url}: another feeder published meanwhile: the index now holds {held}. Nothing of it "
            "was touched; run again"
        )


def check_where(where: Mapping[str, str | None], columns: Sequence[str], url: str) -> None:
    """Refuse a filter on a column that the index does not have.

    Raises:
        ConfigError: names the columns that there are.
    """
    for name in where:
        if name not in columns:
            raise ConfigError(f"{url}: there is no column {name!r}; found: {', '.join(columns)}")
