"""Proof that no row vanished: every row that came in ended in one of five ways. Knows numbers only.

A row is a document, or a piece of input that is none: a bad line, a row without text, a duplicate,
a whole file that cannot be read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Accounting:
    """Where the rows of a corpus went.

    Attributes:
        rows_in: rows of the corpus that the plan saw, rejected ones included; a file that cannot be
            read is one.
        embedded: documents whose vectors this run computed and wrote.
        resumed: documents found in files that an interrupted run, or a try of this run that lost a
            race, had written.
        metadata_only: documents whose stored columns changed and whose vectors were copied.
        unchanged: documents whose rows of the parent snapshot are carried over.
        rejected: rows that are not in the snapshot, each with a reason; duplicates too.
    """

    rows_in: int
    embedded: int = 0
    resumed: int = 0
    metadata_only: int = 0
    unchanged: int = 0
    rejected: int = 0

    @property
    def rows_out(self) -> int:
        """The sum of the five ways."""
        return self.embedded + self.resumed + self.metadata_only + self.unchanged + self.rejected

    @property
    def documents(self) -> int:
        """Rows that are documents of the snapshot."""
        return self.rows_out - self.rejected

    def check(self, where: str) -> None:
        """Make sure that no row vanished and none was made up.

        Args:
            where: the corpus or the snapshot directory, for the message.

        Raises:
            PipelineError: the sum is off, or a number is negative.
        """
        if self.rows_out == self.rows_in and min(asdict(self).values()) >= 0:
            return
        off = self.rows_out - self.rows_in
        problem = "a number is negative"
        if off:
            problem = f"{abs(off):,} rows {'too many' if off > 0 else 'have vanished'}"
        raise PipelineError(
            f"{where}: {problem}: {self._sum()}. Nothing was committed; please report this with "
            "the log"
        )

    def describe(self) -> str:
        """One line for the summary: the equation, without the terms that are zero."""
        return f"accounted for: {self._sum(skip_zeros=True)}"

    def to_counts(self) -> dict[str, int]:
        """The terms for the manifest's `counts`: `input_rows`, `input_embedded` and so on.

        The prefix keeps them apart from `rows`, which counts vectors.
        """
        return {
            f"input_{name.replace('rows_in', 'rows')}": count
            for name, count in asdict(self).items()
        }

    def _sum(self, *, skip_zeros: bool = False) -> str:
        terms = [
            f"{count:,} {name.replace('_', ' ')}"
            for name, count in asdict(self).items()
            if name != "rows_in" and (count or not skip_zeros)
        ]
        sign = "=" if self.rows_out == self.rows_in else "≠"
        return f"{self.rows_in:,} rows in {sign} {' + '.join(terms) or '0'}"
