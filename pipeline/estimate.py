"""What a planned run would do: documents, tokens, actors, partitions, files, time and bytes.

The time comes from a short measurement in the cluster with the resources of one actor. Writes
nothing and knows no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline import dataset
from pipeline.prepare import PreparedRun, documents_per_task, worker_spec
from pipeline.units import format_bytes, format_duration

ELEMENT_BYTES = {"float16": 2, "float32": 4}
# Id, content hash and offsets of a row, uncompressed.
ROW_OVERHEAD_BYTES = 64


@dataclass(frozen=True)
class Estimate:
    """A plan in numbers. Tokens, rows, bytes and seconds are extrapolated from samples."""

    up_to_date: bool
    documents: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    rejected: int = 0
    tokens: int = 0
    rows: int = 0
    partitions: int = 0
    tasks: int = 0
    files: int = 0
    files_rewritten: int = 0
    output_bytes: int = 0
    actors: str = ""
    tokens_per_s: float = 0.0
    seconds: float = 0.0
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
        return asdict(self)

    def describe(self) -> str:
        """The plan as lines of text."""
        if self.up_to_date:
            return "nothing changed since the last snapshot: a run would commit nothing"
        return "\n".join(
            [
                f"documents   {self.documents:,} in the corpus: {self.new:,} new, "
                f"{self.changed:,} changed, {self.unchanged:,} unchanged, {self.deleted:,} deleted,"
                f" {self.rejected:,} rows rejected",
                f"to embed    {self.new + self.changed:,} documents, about {self.tokens:,} tokens",
                f"actors      {self.actors}",
                f"tasks       {self.tasks:,}",
                f"partitions  {self.partitions:,}",
                f"files       about {self.files:,} new, {self.files_rewritten:,} rewritten",
                f"output      about {self.rows:,} rows, {format_bytes(self.output_bytes)}",
                f"time        about {format_duration(self.seconds)} at {self.tokens_per_s:,.0f} "
                "tokens/s, measured with one actor just now",
                f"encoder     {self.fingerprint[:12]}",
            ]
        )


def estimate(prepared: PreparedRun) -> Estimate:
    """Put numbers to a prepared run; embeds a small sample to measure the rate.

    Raises:
        PipelineError: the sample cannot be read or embedded.
    """
    plan, allocation = prepared.plan, prepared.allocation
    if plan is None or allocation is None:
        return Estimate(up_to_date=True)
    per_task = documents_per_task(prepared)
    tasks = -(-plan.num_selected // per_task)
    rows = {
        "document": plan.num_selected,
        "sentence": plan.estimated_sentences,
        "token": plan.estimated_tokens,
    }[prepared.config.vectors.level]
    vector_bytes = prepared.encoder.dim * ELEMENT_BYTES[prepared.config.vectors.dtype]
    row_bytes = vector_bytes * len(prepared.encoder.vector_columns) + ROW_OVERHEAD_BYTES
    # A task writes a file for each partition it meets; the input is usually sorted by partition.
    by_partition = sum(-(-count // per_task) for count in plan.corpus.partitions.values())
    rate = 0.0
    if plan.reads:
        rate = dataset.measure_rate(worker_spec(prepared), allocation, plan.reads[0])
        rate *= min(allocation.num_actors, max(tasks, 1))
    return Estimate(
        up_to_date=not plan.num_selected and not plan.drops,
        documents=plan.corpus.documents,
        new=plan.num_new,
        changed=plan.num_changed,
        unchanged=plan.num_unchanged,
        deleted=plan.num_gone,
        rejected=plan.num_rejected,
        tokens=plan.estimated_tokens,
        rows=rows,
        partitions=len(plan.corpus.partitions),
        tasks=tasks,
        files=min(max(tasks, by_partition), plan.num_selected),
        files_rewritten=len(plan.drops),
        output_bytes=rows * row_bytes,
        actors=allocation.describe(),
        tokens_per_s=rate,
        seconds=plan.estimated_tokens / rate if rate else 0.0,
        fingerprint=prepared.encoder.fingerprint,
    )
