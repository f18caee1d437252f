"""Prepare a corpus on a cluster: one task of Ray Data for each group of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray

from pipeline.cluster import ray_errors
from pipeline.pretraining.prepare import GroupTask, GroupText, TextGroup

# A task holds a shard's text in memory, and its process the interpreter and Arrow.
TASK_CPUS = 1


def on_ray(task: GroupTask, groups: Sequence[TextGroup]) -> Iterator[GroupText]:
    """Prepare the groups in tasks of the cluster; results come as they are ready.

    A task that dies is run again and writes the same files.

    Raises:
        ClusterError: tasks died again and again.
        PipelineError: what a task raised.
    """
    by_number = dict(enumerate(groups))

    def prepare(batch: pa.Table) -> pa.Table:
        texts = [task(by_number[number]).to_json() for number in batch["item"].to_pylist()]
        return pa.table({"text": pa.array(texts, pa.string())})

    dataset = ray.data.from_items(list(by_number), override_num_blocks=max(len(groups), 1))
    dataset = dataset.map_batches(prepare, batch_size=1, batch_format="pyarrow", num_cpus=TASK_CPUS)
    with ray_errors():
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(GroupText.from_json, batch["text"].to_pylist())
